"""Which of the linked nodes of an organization gets a token: in turns, and the same one again until its link is gone.

Invariants
  R2  a token that got no answer comes again to the node that may have it, as long as that is linked; if another one
      gets it then, both may work on it, and the first end that comes home counts.
  R3  a node that is gone, busy or without the agreement holds up nothing that another one of its organization can take.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import trio

from comity.errors import Busy, LinkError
from comity.trust import Attested
from comity_node.protocol.token import Key
from comity_node.runtime.passing.ports import Answer, Outgoing, Verdict, Verdicts

#: Tokens of which it is remembered who may have them; one that is forgotten may go to another node: done twice, it
#: counts once all the same.
_LOST_KEPT: Final = 65_536
#: (node, agreement) that are left out for a while.
_AVOIDED_KEPT: Final = 4_096
#: Seconds for which a node gets nothing new that gave no answer, and after which its tokens are brought again.
_SILENT_S: Final = 5.0
_AGAIN_S: Final = 1.0
#: It may have it: nobody knows.
_UNSURE: Final = Verdict(Answer.BUSY, "no answer", _AGAIN_S, unsure=True)

#: Brings tokens of one agreement to one node: (PeerId, which of them).
Send: TypeAlias = Callable[[str, Sequence[Outgoing]], Awaitable[Verdicts]]


class Nodes:
    """The nodes of other organizations, for tokens that any of them may have."""

    def __init__(self, linked: Callable[[str], Sequence[Attested]]) -> None:
        """Share among those that `linked` returns for an organization."""
        self._linked = linked
        self._lost: dict[Key, str] = {}
        self._avoided: dict[tuple[str, bytes], float] = {}
        self._turn = 0

    def linked(self, to: str) -> list[str]:
        """Return the PeerIds of the nodes of an organization that are linked now."""
        return [each.peer_id for each in self._linked(to)]

    def share(
        self, to: str, agreement: bytes, keys: Sequence[Key], tried: Mapping[Key, Collection[str]] | None = None
    ) -> dict[str, list[int]]:
        """Divide tokens among the nodes of an organization.

        Args:
            to: the organization.
            agreement: under which they go there.
            keys: of the tokens.
            tried: nodes that have no room for a token; None: nobody was asked yet.

        Returns:
            Places in `keys` by PeerId; under "" if no node is linked at all, and none of what all have no room for.
        """
        every = self.linked(to)
        if not every:
            return {"": list(range(len(keys)))} if tried is None else {}
        now_s = trio.current_time()
        free = [each for each in every if self._avoided.get((each, agreement), 0.0) <= now_s]
        parts: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            peer_id = self._lost.get(key, "")
            if tried is not None:
                among = [each for each in free if each not in tried[key]]
            elif peer_id in every:
                among = [peer_id]
            else:
                among = free or every
            if among:
                parts.setdefault(among[self._turn % len(among)], []).append(place)
                self._turn += len(among) > 1
        return parts

    def lost(self, peer_id: str, keys: Sequence[Key]) -> None:
        """Note that a node gave no answer to tokens: it may have them, and gets them again while it is linked."""
        if len(self._lost) + len(keys) > _LOST_KEPT:
            self._lost.clear()
        self._lost.update(dict.fromkeys(keys, peer_id))

    def answered(self, keys: Sequence[Key]) -> None:
        """Note that it is known what became of tokens."""
        if self._lost:
            for key in keys:
                self._lost.pop(key, None)

    def avoid(self, peer_id: str, agreement: bytes, for_s: float) -> None:
        """Give a node nothing under an agreement for a while, if there is another one."""
        if len(self._avoided) >= _AVOIDED_KEPT:
            self._avoided.clear()
        self._avoided[peer_id, agreement] = trio.current_time() + for_s

    async def deliver(self, to: str, agreement: bytes, rows: Sequence[Outgoing], send: Send) -> Verdicts:
        """Bring tokens to the nodes of an organization, each to one of them; what that has no room for to the next.

        Raises:
            Busy: no node of it takes anything now.
            LinkError: none is linked, or none gives an answer.
        """
        now = _Round(self, to, agreement, rows, send)
        await now.ask(self.share(to, agreement, now.keys))
        while left := now.left():
            parts = self.share(to, agreement, [now.keys[at] for at in left], now.tried)
            if not parts:
                break
            await now.ask({peer_id: [left[at] for at in places] for peer_id, places in parts.items()})
        return now.verdicts()


class _Round:
    """One delivery, to as many nodes as it takes."""

    def __init__(self, nodes: Nodes, to: str, agreement: bytes, rows: Sequence[Outgoing], send: Send) -> None:
        self._nodes, self._to, self._agreement, self._rows, self._send = nodes, to, agreement, rows, send
        self.keys = [row.token.key for row in rows]
        self.out: list[Verdict] = [Verdict(Answer.BUSY)] * len(rows)
        self.tried: dict[Key, set[str]] = {}
        self._asked: set[str] = set()
        self._failures: list[LinkError] = []
        self._waits: list[float] = []
        self._is_answered = False

    async def ask(self, parts: dict[str, list[int]]) -> None:
        """Bring each node its part, all at once."""
        self._asked.update(parts)
        for peer_id, places in parts.items():
            for at in places:
                self.tried.setdefault(self.keys[at], set()).add(peer_id)
        if len(parts) == 1:
            ((peer_id, places),) = parts.items()
            await self._one(peer_id, places)
            return
        async with trio.open_nursery() as nursery:
            for peer_id, places in parts.items():
                nursery.start_soon(partial(self._one, peer_id, places))

    def left(self) -> list[int]:
        """Return the places of those that nobody had room for yet."""
        return [at for at, one in enumerate(self.out) if one.answer is Answer.BUSY and not one.unsure]

    async def _one(self, peer_id: str, places: Sequence[int]) -> None:
        rows = [self._rows[at] for at in places]
        keys = [self.keys[at] for at in places]
        try:
            found = await self._send(peer_id, rows)
        except Busy as error:
            self._failed(error, places, Verdict(Answer.BUSY, str(error), error.retry_after_ms / 1000))
            self._nodes.answered(keys)
            self._nodes.avoid(peer_id, self._agreement, error.retry_after_ms / 1000)
            return
        except LinkError as error:
            self._failed(error, places, _UNSURE)
            self._nodes.lost(peer_id, keys)
            self._nodes.avoid(peer_id, self._agreement, _SILENT_S)
            return
        self._is_answered = True
        self._nodes.answered(keys)
        if found.wait_s is not None:
            self._waits.append(found.wait_s)
        for at, verdict in zip(places, found, strict=True):
            self.out[at] = verdict
        if busy_s := max((one.retry_after_s for one in found if one.answer is Answer.BUSY), default=0.0):
            self._nodes.avoid(peer_id, self._agreement, busy_s)

    def _failed(self, error: LinkError, places: Sequence[int], verdict: Verdict) -> None:
        self._failures.append(error)
        for at in places:
            self.out[at] = verdict

    def verdicts(self) -> Verdicts:
        """Return what was answered, and as how loaded the nodes are what they say on the average.

        Raises:
            LinkError: nobody has answered, and there is nobody else who could.
        """
        if self._failures and not self._is_answered and self._asked.issuperset(self._nodes.linked(self._to)):
            raise self._failures[0]
        wait_s = sum(self._waits) / len(self._waits) if self._waits else None
        return Verdicts(self.out, wait_s)
