"""The lanes of a link from their greeting to their end, and the signs of life that are asked for meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from comity.errors import ComityError, LinkClosed
from comity_node.links.greeting import Greeter
from comity_node.links.lane import Lane
from comity_node.links.limits import LinkLimits
from comity_node.links.state import Peer

#: A peer that answers no ping for so many times `dead_after_s` is gone, whatever else comes from it.
_PATIENCE = 3


class NoSignOfLife(LinkClosed):
    """The peer does not answer pings: its connections are dead too."""


class Life:
    """Lanes that end together."""

    def __init__(self, peer: Peer, lanes: Sequence[Lane], greeter: Greeter, limits: LinkLimits) -> None:
        self.lanes = lanes
        self._peer, self._greeter, self._limits = peer, greeter, limits
        self._left = list(lanes)

    async def run(self, on_end: Callable[[Life, ComityError], None]) -> None:
        """Carry calls until the last lane has drained, or the first one has failed.

        Args:
            on_end: told why it ends, before those hear of it who wait for an answer.
        """
        async with trio.open_nursery() as nursery:

            def ended(error: ComityError) -> None:
                on_end(self, error)
                nursery.cancel_scope.cancel()

            def lane_ended(lane: Lane, error: ComityError) -> None:
                self._left.remove(lane)
                if lane.is_leaving and self._left:
                    self.go_away("leaving", str(error))  # the others still get their last answers
                else:
                    ended(error)

            for lane in self.lanes:
                nursery.start_soon(lane.run, lane_ended)
            try:
                await self._keep_alive()
            except ComityError as error:
                ended(error)

    def go_away(self, code: str, reason: str) -> None:
        """Make no more calls; each lane ends when its last one is answered."""
        for lane in list(self._left):
            lane.go_away(code, reason)

    async def _keep_alive(self) -> None:
        """Ask for signs of life until there is none, or the peer's certificate has expired."""
        peer, limits = self._peer, self._limits
        peer.heard_at = trio.current_time()
        while True:
            for lane in self._left:
                lane.ping()
            ponged_at = min(lane.ponged_at for lane in self.lanes[:1])
            dead_at = min(peer.heard_at + limits.dead_after_s, ponged_at + _PATIENCE * limits.dead_after_s)
            if dead_at <= trio.current_time():
                raise NoSignOfLife(f"no sign of life for {limits.dead_after_s:g} s")
            await trio.sleep_until(min(dead_at, trio.current_time() + limits.ping_every_s))
            self._greeter.judge_again(self.lanes[0].greeting)
