"""One try of a transfer on one stream: frames out, events in, and nothing waits for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from comity.errors import ComityError, DeadlineExceeded
from comity_node.bulk.common import Stream

E = TypeVar("E")

_PIECE = 256 * 1024


@asynccontextmanager
async def flat_nursery() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery out of which the first error of ours comes as itself, not in a group.

    Where it was cancelled from outside at the same time, the cancellation is what comes out.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:  # taken apart: the caller gets what is in it
        ours, others = group.split(ComityError)
        if others is not None and others.split(trio.Cancelled)[1] is None:
            raise others from None
        if ours is None or others is not None:
            raise
        first: BaseException = ours
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


class Channel(Generic[E]):
    """A stream and the state machine that makes sense of it.

    Args:
        stream: the tunnel.
        receive_data: the machine's.
        silence_s: seconds that the other side may take for the next whole event, and for taking what is sent.
    """

    def __init__(self, stream: Stream, receive_data: Callable[[bytes], Sequence[E]], silence_s: float) -> None:
        self._stream, self._receive_data, self._silence_s = stream, receive_data, silence_s
        self._events: deque[E] = deque()
        self._sending = trio.Lock()

    async def send(self, *frames: bytes) -> None:
        """Send frames, in one piece as far as other tasks are concerned.

        Raises:
            DeadlineExceeded: the other side does not take one of them in time; the stream can only be reset.
            LinkClosed: the stream broke.
        """
        async with self._sending:
            for frame in frames:
                if not frame:
                    continue
                with trio.move_on_after(self._silence_s) as scope:
                    await self._stream.send(frame)
                if scope.cancelled_caught:
                    raise DeadlineExceeded(f"the other side has taken nothing for {self._silence_s:g} s")

    async def next_event(self) -> E:
        """Return the next event. Bytes that trickle in are no event: a whole one has to come in time.

        Raises:
            DeadlineExceeded: it did not.
            LinkClosed: the stream broke, or ended.
            ProtocolError: the other side breaks the protocol.
        """
        with trio.move_on_after(self._silence_s):
            while not self._events:
                self._events.extend(self._receive_data(await self._stream.receive(_PIECE)))
            return self._events.popleft()
        raise DeadlineExceeded(f"the other side has said nothing for {self._silence_s:g} s")
