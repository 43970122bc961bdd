"""Connections that come: what they may cost until they have proved a key, and how that is shared out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from comity_node.transport.limits import Libp2pLimits
from comity_node.transport.pace import FairPace, Pace, source_of
from comity_node.transport.slots import FairSlots
from comity_node.transport.wire import RawStream, SendsAtOnce

T = TypeVar("T")


class Arrivals:
    """Those who have connected and not proved a key, each in a task that goes when its place is needed."""

    def __init__(self, limits: Libp2pLimits) -> None:
        """Begin with none."""
        self.pace = FairPace(
            Pace(limits.handshakes_per_s, burst=limits.handshake_burst, longest_wait_s=limits.handshake_wait_s),
            Pace(
                limits.reserved_handshakes_per_s,
                burst=2 * limits.reserved_handshakes_per_s,
                longest_wait_s=limits.handshake_wait_s,
            ),
            source_per_s=limits.source_handshakes_per_s,
            source_burst=limits.source_handshake_burst,
        )
        self._unproved: FairSlots[trio.CancelScope] = FairSlots(
            limits.max_unproved, limits.max_unproved_per_source, knows=self.pace.knows
        )

    @property
    def unproved(self) -> int:
        """How many there are now."""
        return len(self._unproved)

    @property
    def evicted(self) -> int:
        """How many had to make room for others."""
        return self._unproved.evicted

    async def prove(self, raw: RawStream, secure: Callable[[RawStream], Awaitable[T]]) -> T | None:
        """Let a connection prove its key.

        Args:
            raw: the connection; it takes its turn (`FairPace`) when its peer first says something.
            secure: makes the handshake on what it is given.

        Returns:
            What `secure` returned; None if the connection had to make room for others.

        Raises:
            Busy: there are too many handshakes before this one.
            ComityError: what `secure` raised.
        """
        source = source_of(raw.remote_address)
        result: T | None = None
        with trio.CancelScope() as scope:
            if (evicted := self._unproved.add(source, scope)) is not None:
                evicted.cancel()
            try:
                result = await secure(_Paced(raw, lambda: self.pace.turn(source)))
            finally:
                self._unproved.remove(source, scope)
        return result


class _Paced:
    """A `RawStream` that waits for a turn once its peer has said something: silence uses no turns up."""

    def __init__(self, raw: RawStream, turn: Callable[[], Awaitable[None]]) -> None:
        self._raw, self._turn = raw, turn
        self._at_once = raw if isinstance(raw, SendsAtOnce) else None
        self._has_spoken = False

    @property
    def remote_address(self) -> str:
        return self._raw.remote_address

    async def receive_some(self, max_bytes: int) -> bytes:
        data = await self._raw.receive_some(max_bytes)
        if not self._has_spoken:
            self._has_spoken = True
            await self._turn()
        return data

    async def send_all(self, data: bytes) -> None:
        await self._raw.send_all(data)

    def send_some(self, data: bytes) -> int:
        return 0 if self._at_once is None else self._at_once.send_some(data)

    async def aclose(self) -> None:
        await self._raw.aclose()

    def abort(self) -> None:
        self._raw.abort()
