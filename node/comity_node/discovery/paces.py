"""How often each peer is answered, over however many streams it asks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from comity_node.transport.pace import Pace

#: Peers whose pace is remembered: more than can be linked with at a time.
_MAX_PEERS: Final = 1024


class PeerPaces:
    """A pace for each peer; when there are too many, the one that was silent for longest is forgotten."""

    def __init__(self, per_s: float, *, burst: float, longest_wait_s: float) -> None:
        """Make paces; the arguments are those of `Pace`, for each peer."""
        self._per_s, self._burst, self._longest_wait_s = per_s, burst, longest_wait_s
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    async def turn(self, peer_id: str) -> None:
        """Wait for a peer's turn.

        Raises:
            Busy: it has asked too much.
        """
        pace = self._paces.get(peer_id)
        if pace is None:
            pace = self._paces[peer_id] = Pace(self._per_s, burst=self._burst, longest_wait_s=self._longest_wait_s)
            if len(self._paces) > _MAX_PEERS:
                self._paces.popitem(last=False)
        self._paces.move_to_end(peer_id)
        await pace.turn()
