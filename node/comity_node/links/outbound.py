"""The streams on which our calls to one peer go: opened, kept alive, opened again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from comity.errors import ComityError, LinkClosed, PeerNotAttested, PeerUnreachable
from comity_node.links.calls import Calls
from comity_node.links.greeting import Admit, Greeter
from comity_node.links.items import Items
from comity_node.links.lane import MESSAGES, Lane, LaneOpener, open_all
from comity_node.links.life import Life, NoSignOfLife
from comity_node.links.limits import LinkLimits
from comity_node.links.state import Peer
from comity_node.transport.base import Priority, Transport

__all__ = ["MESSAGES", "OutboundLink"]

#: Both are opened at once, so that the first call of either class waits for nothing.
CLASSES = (Priority.CONTROL, Priority.WORK)
_log = logging.getLogger("comity.links")


class OutboundLink:
    """Keeps streams to a peer open, one of each class, and makes calls on them."""

    def __init__(
        self,
        peer: Peer,
        transport: Transport,
        greeter: Greeter,
        limits: LinkLimits,
        random_bytes: Callable[[int], bytes],
        admit: Admit,
    ) -> None:
        self.peer = peer
        self._transport, self._greeter, self._limits = transport, greeter, limits
        self._opener = LaneOpener(peer, transport, greeter, limits, admit)
        self._random_bytes = random_bytes
        self._life: Life | None = None
        self._failure: ComityError | None = None
        self._kicked = trio.Event()
        self._better = trio.Event()
        self._stopping = False
        #: Cancelled when the peer is forgotten.
        self.scope = trio.CancelScope()

    def kick(self) -> None:
        """The peer is known to be there: do not wait for the next attempt."""
        self._kicked.set()

    def move(self) -> None:
        """There is a better connection to the peer: open the streams anew on it, and let the old ones drain."""
        self._better.set()

    @property
    def lanes(self) -> Sequence[Lane]:
        """The lanes on which calls go now; none while the link is down."""
        return self._life.lanes if self._life is not None else ()

    def calls(self, priority: Priority) -> Calls:
        """Where a call of this class goes now.

        Raises:
            PeerUnreachable: there is no link to the peer at this moment, or no calls of this class.
        """
        if self._life is None:
            raise PeerUnreachable(f"no link to {self.peer.peer_id}: {self.peer.reason or self.peer.phase}")
        if priority not in CLASSES:
            raise PeerUnreachable(f"calls are CONTROL or WORK, not {priority.name}: open a tunnel for it")
        return self._life.lanes[priority].calls

    @asynccontextmanager
    async def stream(self, payload: bytes, deadline_s: float, priority: Priority) -> AsyncIterator[Items]:
        """Ask for a stream; it is cancelled at the end of the `async with`, if it has not ended."""
        calls, limits = self.calls(priority), self._limits
        call = await calls.stream(payload, deadline_s, items=limits.stream_items, size=limits.stream_bytes)
        try:
            yield call.items
        finally:
            calls.end_stream(call)

    def go_away(self) -> None:
        """Make no more calls; the link ends when the last one is answered."""
        self._stopping = True
        if self._life is not None:
            self._life.go_away("shutting_down", "the node is shutting down")
        self.kick()

    async def run(self) -> None:
        """Connect, and connect again whenever the link ends, until cancelled or `go_away`."""
        failures = 0
        while not self._stopping:
            self._kicked = trio.Event()
            began = trio.current_time()
            not_wanted = False
            self.peer.set_phase("connecting", self.peer.reason)
            try:
                await self._live()
            except ComityError as error:
                _log.debug("the link to %s ended: %s", self.peer.peer_id, error)
                not_wanted = isinstance(error, PeerNotAttested)
                self.peer.set_phase("down", str(error))
                if not_wanted or isinstance(error, NoSignOfLife):
                    await self._transport.disconnect(self.peer.peer_id)
            failures = 0 if trio.current_time() - began > self._limits.idle_s else failures + 1
            if not self._stopping:
                with trio.move_on_after(self._backoff_s(failures, not_wanted=not_wanted)):
                    await self._kicked.wait()

    def _backoff_s(self, failures: int, *, not_wanted: bool) -> float:
        """Exponential, between half and all of it, so that many peers do not come back at once."""
        doubled: float = self._limits.backoff_first_s * 2 ** min(failures, 16)
        longest = self._limits.backoff_max_s if not_wanted else min(doubled, self._limits.backoff_max_s)
        return longest * (0.5 + int.from_bytes(self._random_bytes(2), "big") / 131072)

    async def _live(self) -> None:
        """One life of the link, over whatever better connections come; always raises why it ended."""
        self._better, self._failure = trio.Event(), None
        life = self._life = await self._connect()
        self.peer.set_phase("connected")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, life, nursery)
                while True:
                    await self._better.wait()
                    self._better = trio.Event()
                    await self._move(nursery)
        finally:
            self._life = None
        raise self._failure or LinkClosed("the link was closed")

    async def _connect(self) -> Life:
        lanes = await open_all(self._opener, CLASSES)
        greeting = lanes[Priority.WORK].greeting
        self._transport.confirm(self.peer.peer_id, greeting.attested.organization)
        self.peer.attest(greeting)
        return Life(self.peer, lanes, self._greeter, self._limits)

    async def _carry(self, life: Life, nursery: trio.Nursery) -> None:
        await life.run(self._on_end)
        if self._life is None:
            nursery.cancel_scope.cancel()

    async def _move(self, nursery: trio.Nursery) -> None:
        try:
            life = await self._connect()
        except ComityError as error:
            _log.debug("the link to %s stays where it is: %s", self.peer.peer_id, error)
            return
        old, self._life = self._life, life
        nursery.start_soon(self._carry, life, nursery)
        if old is None:  # it has failed meanwhile
            self.peer.set_phase("connected")
        else:
            old.go_away("moved", "there is a better connection")

    def _on_end(self, life: Life, error: ComityError) -> None:
        if life is self._life:
            self._life, self._failure = None, error
            self.peer.set_phase("down", str(error))
