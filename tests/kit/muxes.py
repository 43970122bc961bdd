"""Two multiplexed connections with each other, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.budget import Budget
from comity_node.transport.muxed import KeepAlive, MuxedConnection, MuxedStream, SecureChannel
from comity_node.transport.yamux import MuxLimits
from kit.line import make_line


class MuxPair:
    """`a` has dialled `b`; streams that either opens come out of `accepted`."""

    def __init__(
        self,
        channels: tuple[SecureChannel, SecureChannel],
        limits: MuxLimits,
        *,
        budget: Budget | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self.a = MuxedConnection(channels[0], "b", initiator=True, limits=limits, budget=budget, keep_alive=keep_alive)
        self.b = MuxedConnection(channels[1], "a", initiator=False, limits=limits, budget=budget)
        self._send, self.accepted = trio.open_memory_channel[MuxedStream](1000)

    def on_stream(self, stream: MuxedStream) -> None:
        self._send.send_nowait(stream)

    async def open(self, priority: Priority = Priority.WORK) -> tuple[MuxedStream, MuxedStream]:
        """A stream that `a` opens: its end, then that of `b`."""
        ours = self.a.open(priority)
        return ours, await self.accepted.receive()


@asynccontextmanager
async def muxed_over(
    ends: tuple[SecureChannel, SecureChannel] | None = None,
    limits: MuxLimits | None = None,
    *,
    budget: Budget | None = None,
    keep_alive: KeepAlive | None = None,
) -> AsyncIterator[tuple[MuxPair, trio.Nursery]]:
    """Run both ends of a connection over a line (without one: over a fast one)."""
    channels = ends or make_line(1e9, kernel_bytes=256 * 1024)
    pair = MuxPair(channels, limits or MuxLimits(), budget=budget, keep_alive=keep_alive)
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.a.run, pair.on_stream)
            nursery.start_soon(pair.b.run, pair.on_stream)
            yield pair, nursery
            nursery.cancel_scope.cancel()


def run_virtual(main: Callable[[], Awaitable[None]]) -> None:
    """Run with a clock that jumps ahead whenever everybody waits."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def read_all(stream: ByteStream) -> bytes:
    """Everything until the peer ends its side."""
    data = bytearray()
    while piece := await stream.receive():
        data += piece
    return bytes(data)


async def read_exactly(stream: ByteStream, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        piece = await stream.receive(count - len(data))
        assert piece, "the stream ended early"
        data += piece
    return data
