"""Our Yamux and py-libp2p's own, over one pipe: every stream arrives whole, whoever dials and whoever opens it."""

from __future__ import annotations

import logging
import warnings
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import LinkClosed
from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.muxed import MuxedConnection, MuxedStream
from comity_node.transport.yamux import INITIAL_WINDOW, MuxLimits
from kit.line import PipeEnd, make_pipe
from kit.muxes import read_all, run_virtual

SIZES = st.integers(0, 100_000) | st.sampled_from([INITIAL_WINDOW - 1, INITIAL_WINDOW, INITIAL_WINDOW + 1, 700_000])
PEER = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"


@pytest.fixture(scope="module")
def stock() -> Any:
    """py-libp2p's Yamux. It warns about its own dependencies and takes over its loggers when it is imported."""
    logger = logging.getLogger("libp2p")
    before = logger.level, logger.propagate, list(logger.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from libp2p.peer.id import ID
        from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset
        from libp2p.stream_muxer.yamux.yamux import Yamux
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]

    class Stock:
        def __init__(self, end: PipeEnd, *, initiator: bool) -> None:
            self.mux = Yamux(_Secured(end), ID.from_base58(PEER), is_initiator=initiator)

        async def serve(self) -> None:
            """Send back, on every stream that comes, what came on it."""
            async with trio.open_nursery() as nursery:
                while True:
                    nursery.start_soon(self._echo, await self.mux.accept_stream())

        async def _echo(self, stream: Any) -> None:
            await stream.write(await self.read_all(stream))
            await stream.close()

        @staticmethod
        async def read_all(stream: Any) -> bytes:
            data = b""
            while True:
                try:
                    data += await stream.read(50_000)
                except MuxedStreamEOF:
                    return data

        #: What a read raises on a stream that was reset: it depends on who comes first.
        ended = (MuxedStreamReset, MuxedStreamEOF)

    return Stock


class _Secured:
    """A pipe as what py-libp2p calls an `ISecureConn`."""

    def __init__(self, end: PipeEnd) -> None:
        self._end = end
        self._buffer = b""

    async def read(self, n: int) -> bytes:
        if not self._buffer:
            self._buffer = await self._end.read()
        data, self._buffer = self._buffer[:n], self._buffer[n:]
        return data

    async def write(self, data: bytes) -> None:
        await self._end.write(data)

    async def close(self) -> None:
        await self._end.close()


async def echo(stream: MuxedStream) -> None:
    await stream.send(await read_all(stream))
    await stream.aclose()


@settings(max_examples=20, deadline=None)
@given(
    st.booleans(),
    st.integers(INITIAL_WINDOW, 2 * INITIAL_WINDOW),
    st.lists(st.tuples(st.booleans(), SIZES, st.sampled_from(Priority)), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_streams_of_both_sides_come_back_whole(
    stock: Any, dialled: bool, window: int, transfers: list[tuple[bool, int, Priority]], seed: int
) -> None:
    random = Random(seed)

    async def ours(connection: MuxedConnection, data: bytes, priority: Priority) -> None:
        stream = connection.open(priority)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, len(data), step):
                    await stream.send(data[start : start + step])
                await stream.send_eof()

            step = random.randint(1000, 200_000)
            nursery.start_soon(send)
            assert await read_all(stream) == data
        await stream.aclose()

    async def theirs(peer: Any, data: bytes) -> None:
        stream = await peer.mux.open_stream()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.write(data)
                await stream.close()

            nursery.start_soon(send)
            assert await peer.read_all(stream) == data

    async def main() -> None:
        ends = make_pipe()
        connection = MuxedConnection(
            ends[0], PEER, initiator=dialled, limits=MuxLimits(window=window), budget=Budget(32 << 20)
        )
        peer = stock(ends[1], initiator=not dialled)
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run, lambda stream: nursery.start_soon(echo, stream))
                nursery.start_soon(peer.mux.start)
                await peer.mux.event_started.wait()
                nursery.start_soon(peer.serve)
                async with trio.open_nursery() as workers:
                    for by_us, size, priority in transfers:
                        if by_us:
                            workers.start_soon(ours, connection, random.randbytes(size), priority)
                        else:
                            workers.start_soon(theirs, peer, random.randbytes(size))
                await trio.sleep(5)
                assert connection.rtt >= 0
                metrics = connection.metrics()
                assert (metrics.streams, metrics.granted_bytes, metrics.queued_bytes) == (0, 0, 0)
                nursery.cancel_scope.cancel()

    run_virtual(main)


def test_resets_pings_and_going_away_are_understood_both_ways(stock: Any) -> None:
    async def main() -> None:
        ends = make_pipe()
        accepted: list[MuxedStream] = []
        connection = MuxedConnection(ends[0], PEER, initiator=True, limits=MuxLimits())
        peer = stock(ends[1], initiator=False)
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run, accepted.append)
                nursery.start_soon(peer.mux.start)
                await peer.mux.event_started.wait()
                await connection.ping()
                await trio.sleep(2)
                assert peer.mux.rtt() >= 0  # it pings by itself
                # We reset.
                ours = connection.open()
                await ours.send(b"x")
                there = await peer.mux.accept_stream()
                assert await there.read(1) == b"x"
                ours.reset()
                with pytest.raises(peer.ended):
                    await there.read(1)
                assert there.reset_received
                # They reset.
                theirs = await peer.mux.open_stream()
                await trio.sleep(1)
                await theirs.reset()
                with pytest.raises(LinkClosed, match="the peer reset the stream"):
                    await accepted[-1].receive()
                # They go, with a stream open.
                last = connection.open()
                await trio.sleep(1)
                await peer.mux.close()
                with pytest.raises(LinkClosed, match="closed the connection"):
                    await last.receive()
                await connection.closed.wait()

    run_virtual(main)


@pytest.mark.invariant("S7")
def test_stock_sends_no_more_than_the_window_that_we_grant_and_goes_on_when_it_is_read(stock: Any) -> None:
    async def main() -> None:
        ends = make_pipe()
        accepted: list[MuxedStream] = []
        connection = MuxedConnection(ends[0], PEER, initiator=True, limits=MuxLimits())
        peer = stock(ends[1], initiator=False)
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run, accepted.append)
                nursery.start_soon(peer.mux.start)
                await peer.mux.event_started.wait()
                stream = await peer.mux.open_stream()
                nursery.start_soon(stream.write, bytes(1_000_000))
                await trio.sleep(3)  # after five seconds it gives up
                assert connection.metrics().unread_bytes == INITIAL_WINDOW
                got = 0
                while got < 1_000_000:
                    got += len(await accepted[0].receive(1 << 20))
                nursery.cancel_scope.cancel()

    run_virtual(main)
