"""Streams over one connection, with a virtual clock: slow readers, cancelled writers, ends and breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from comity.errors import LinkClosed
from comity_node.transport.base import ByteStream
from comity_node.transport.memory import MemoryNetwork, MemoryStream
from comity_node.transport.muxed import MuxedConnection, MuxedStream
from comity_node.transport.yamux import MuxLimits


class Channel:
    """A memory stream as the encrypted connection below."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        return await self._stream.receive(65536)

    async def write(self, data: bytes) -> None:
        await self._stream.send(data)

    async def close(self) -> None:
        await self._stream.aclose()


class Pair:
    def __init__(self, limits: MuxLimits) -> None:
        self.network = MemoryNetwork()
        left, right = self.network.connect("a", "b")
        self.a = MuxedConnection(Channel(left), "b", initiator=True, limits=limits)
        self.b = MuxedConnection(Channel(right), "a", initiator=False, limits=limits)
        self._send, self.accepted = trio.open_memory_channel[MuxedStream](100)

    def on_stream(self, stream: MuxedStream) -> None:
        self._send.send_nowait(stream)

    async def open(self) -> tuple[MuxedStream, MuxedStream]:
        ours = self.a.open()
        return ours, await self.accepted.receive()


@asynccontextmanager
async def connected(limits: MuxLimits | None = None) -> AsyncIterator[tuple[Pair, trio.Nursery]]:
    pair = Pair(limits or MuxLimits())
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.a.run, pair.on_stream)
            nursery.start_soon(pair.b.run, pair.on_stream)
            yield pair, nursery
            nursery.cancel_scope.cancel()


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def everything(stream: ByteStream) -> bytes:
    data = bytearray()
    while piece := await stream.receive():
        data += piece
    return bytes(data)


@pytest.mark.invariant("R4")
def test_a_reader_that_pauses_for_minutes_loses_nothing_and_costs_one_window() -> None:
    payload = bytes(range(256)) * 20_000  # 5 MB
    limits = MuxLimits()

    async def main() -> None:
        async with connected(limits) as (pair, nursery):
            ours, theirs = await pair.open()

            async def send() -> None:
                await ours.send(payload)
                await ours.send_eof()

            nursery.start_soon(send)
            await trio.sleep(300)
            assert sum(len(chunk) for chunk in theirs._chunks) <= limits.window
            # Another stream of the same connection is not held up.
            ours2, theirs2 = await pair.open()
            await ours2.send(b"quick")
            assert await theirs2.receive() == b"quick"
            assert await everything(theirs) == payload

    run(main)


def test_bulk_both_ways_on_many_streams_does_not_lock_up() -> None:
    payload = b"x" * 1_500_000

    async def main() -> None:
        async with connected() as (pair, _):
            pairs = [await pair.open() for _ in range(6)]

            async def send(stream: MuxedStream) -> None:
                await stream.send(payload)
                await stream.send_eof()

            async def receive(stream: MuxedStream) -> None:
                assert await everything(stream) == payload

            async with trio.open_nursery() as nursery:
                for stream in (each for both in pairs for each in both):
                    nursery.start_soon(send, stream)
                    nursery.start_soon(receive, stream)
            for stream in (each for both in pairs for each in both):
                await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert pair.a.streams == pair.b.streams == 0

    run(main)


def test_a_cancelled_writer_and_reader_harm_no_other_stream() -> None:
    async def main() -> None:
        async with connected() as (pair, _):
            ours, _theirs = await pair.open()
            with trio.move_on_after(1):
                await ours.send(bytes(2_000_000))  # more than the window: blocks
            ours.reset()
            other, theirs = await pair.open()
            with trio.move_on_after(1):
                await theirs.receive()
            await other.send(b"still fine")
            assert await theirs.receive() == b"still fine"
            with pytest.raises(LinkClosed):
                await ours.send(b"x")

    run(main)


@pytest.mark.invariant("R3")
def test_a_peer_that_reads_nothing_is_given_up() -> None:
    async def main() -> None:
        async with connected() as (pair, _):
            ours, _theirs = await pair.open()
            await trio.testing.wait_all_tasks_blocked()
            pair.network.partition("a", "b")
            began = trio.current_time()
            with pytest.raises(LinkClosed, match="has read nothing"):
                await ours.send(bytes(2_000_000))
            assert trio.current_time() - began <= 31

    run(main)


def test_what_was_sent_before_a_close_arrives_and_is_readable_after_it() -> None:
    async def main() -> None:
        async with connected() as (pair, _):
            ours, theirs = await pair.open()
            await ours.send(b"last words")
            pair.a.close("enough")
            await pair.b.closed.wait()
            assert await theirs.receive() == b"last words"
            with pytest.raises(LinkClosed, match="closed the connection"):
                await theirs.receive()
            with pytest.raises(LinkClosed, match="enough"):
                pair.a.open()

    run(main)


def test_a_closed_stream_ends_the_other_side_and_drops_what_still_comes() -> None:
    async def main() -> None:
        async with connected() as (pair, _):
            ours, theirs = await pair.open()
            await ours.send(b"bye")
            await ours.aclose()
            assert await everything(theirs) == b"bye"
            await theirs.send(b"nobody reads this")
            with pytest.raises(LinkClosed):
                await ours.receive()
            await theirs.aclose()
            ours.reset()  # no effect any more
            await trio.testing.wait_all_tasks_blocked()
            assert pair.a.streams == pair.b.streams == 0

    run(main)


def test_a_reset_reaches_the_other_side() -> None:
    async def main() -> None:
        async with connected() as (pair, _):
            ours, theirs = await pair.open()
            ours.reset()
            with pytest.raises(LinkClosed, match="reset"):
                await theirs.receive()
            with pytest.raises(LinkClosed, match="reset"):
                await theirs.send(b"x")

    run(main)


def test_a_read_takes_no_more_than_it_asks_for() -> None:
    async def main() -> None:
        async with connected() as (pair, _):
            ours, theirs = await pair.open()
            await ours.send(b"0123456789")
            await trio.testing.wait_all_tasks_blocked()
            assert [await theirs.receive(4), await theirs.receive(4), await theirs.receive(4)] == [
                b"0123",
                b"4567",
                b"89",
            ]

    run(main)
