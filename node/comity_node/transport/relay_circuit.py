"""One circuit through a relay: bytes, copied piece by piece, that somebody pays for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from comity.errors import Busy, ComityError, LinkClosed
from comity_node.transport.base import ByteStream
from comity_node.transport.relay_limits import Account, RelayLimits

_log = logging.getLogger("comity.relay")


@dataclass(frozen=True, slots=True)
class Payment:
    """On whose account a circuit goes.

    Attributes:
        payer: the organization whose node has asked for it.
        others: that of the other end, if it is another: what it carries is counted for it, too.
    """

    payer: Account
    others: Sequence[Account]

    async def pay(self, count: int) -> None:
        """Pay for bytes, and wait until they may go.

        Raises:
            Busy: the payer has used up what it has in this hour.
        """
        if not self.payer.has_bytes_left:
            raise Busy("the organization's quota is used up")
        self.payer.carry(count)
        for other in self.others:
            other.bytes_carried += count
        await self.payer.pace.turn(count)


class End:
    """One end of a circuit."""

    def __init__(self, stream: ByteStream, rest: bytes) -> None:
        """Take a stream, and what has been read of it already."""
        self.stream, self.rest = stream, rest
        #: Whether nothing more comes from it.
        self.ended = False


class Circuit:
    """Copies bytes both ways until both ends have ended, or one breaks, or time or a quota is over."""

    def __init__(self, limits: RelayLimits, payment: Payment, until_not_wanted: Callable[[], Awaitable[None]]) -> None:
        """Make a circuit.

        Args:
            limits: what it may carry, and for how long.
            payment: on whose account.
            until_not_wanted: returns when it has to end although nothing is wrong with it.
        """
        self._limits, self._payment, self._until_not_wanted = limits, payment, until_not_wanted
        self._last_heard = trio.current_time()
        self._copying = 2

    async def run(self, near: End, far: End) -> None:
        """Carry, and return when it is over."""
        with trio.move_on_after(self._limits.circuit_s):
            async with trio.open_nursery() as nursery:
                for source, sink in ((near, far), (far, near)):
                    nursery.start_soon(self._guarded, source, sink, nursery.cancel_scope)
                await self._until_not_wanted()
                nursery.cancel_scope.cancel()
        if near.ended and far.ended:
            await near.stream.aclose()
            await far.stream.aclose()

    async def _guarded(self, source: End, sink: End, scope: trio.CancelScope) -> None:
        try:
            await self._copy(source, sink)
        except ComityError as error:
            _log.debug("a circuit ended: %s", error)
            scope.cancel()
        self._copying -= 1
        if not self._copying:
            scope.cancel()

    async def _copy(self, source: End, sink: End) -> None:
        left = self._limits.circuit_bytes
        while data := await self._read(source):
            left -= len(data)
            if left < 0:
                raise Busy("the circuit has carried what it may")
            await self._payment.pay(len(data))
            await sink.stream.send(data)
        source.ended = True
        await sink.stream.send_eof()

    async def _read(self, source: End) -> bytes:
        if source.rest:
            first, source.rest = source.rest, b""
            return first
        while True:
            patience_s = self._last_heard + self._limits.idle_s - trio.current_time()
            if patience_s <= 0:
                raise LinkClosed(f"nothing has come for {self._limits.idle_s:g} s")
            with trio.move_on_after(patience_s):
                data = await source.stream.receive(self._limits.buffer_bytes)
                self._last_heard = trio.current_time()
                return data
