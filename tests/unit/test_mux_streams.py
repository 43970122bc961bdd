"""The life of streams and connections: many short ones, signs of life, a graceful end, and what the metrics say."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest
import trio

from comity.errors import Busy, DeadlineExceeded, LinkClosed
from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.muxed import KeepAlive, MuxedStream
from comity_node.transport.yamux import INITIAL_WINDOW, MuxLimits
from kit.line import make_line, make_pipe
from kit.muxes import MuxPair, muxed_over, read_all, read_exactly, run_virtual


async def settle() -> None:
    """Let everything that is on its way arrive."""
    await trio.sleep(0.1)


async def echo(pair: MuxPair) -> None:
    """Serve every stream that comes: what is asked comes back."""

    async def serve(stream: MuxedStream) -> None:
        await stream.send(await read_all(stream))
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        async for stream in pair.accepted:
            nursery.start_soon(serve, stream)


async def ask(pair: MuxPair) -> None:
    stream = pair.a.open()
    await stream.send(b"question")
    await stream.send_eof()
    assert await read_all(stream) == b"question"
    await stream.aclose()


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("at_once", [1, 128])
def test_ten_thousand_short_streams_leave_memory_flat(at_once: int) -> None:
    async def main() -> None:
        limits = MuxLimits(max_streams=128)
        async with muxed_over(make_pipe(), limits, budget=Budget(64 << 20)) as (pair, nursery):
            nursery.start_soon(echo, pair)

            async def several(count: int) -> None:
                for _ in range(count):
                    await ask(pair)

            async def round_of(count: int) -> int:
                async with trio.open_nursery() as workers:
                    for _ in range(at_once):
                        workers.start_soon(several, count // at_once)
                await settle()
                gc.collect()
                return sys.getallocatedblocks()

            before = await round_of(1024)
            after = await round_of(10_112)
            # Blocks of Python's allocator: objects, more or less. trio keeps up to a thousand deadlines that are over.
            assert after - before < 5000
            for end in (pair.a, pair.b):
                metrics = end.metrics()
                assert (metrics.streams, metrics.granted_bytes, metrics.queued_bytes) == (0, 0, 0)
            # The last one is still a local variable of whoever accepts and serves.
            assert sum(isinstance(each, MuxedStream) for each in gc.get_objects()) <= 2

    run_virtual(main)


def test_hundreds_of_streams_at_once_do_not_hang_and_one_too_many_is_refused() -> None:
    async def main() -> None:
        limits = MuxLimits(max_streams=600, max_bytes=1 << 30)
        async with muxed_over(limits=limits) as (pair, _):
            streams = []
            for _ in range(3):
                streams += [await pair.open() for _ in range(200)]
            with pytest.raises(Busy, match="600 streams"):
                pair.a.open()
            for number, (ours, theirs) in enumerate(streams):
                await ours.send(b"%d" % number)
                assert await theirs.receive() == b"%d" % number
            ours, theirs = streams[0]
            await ours.aclose()
            await theirs.aclose()
            await settle()
            await pair.open()

    run_virtual(main)


def test_a_ping_measures_the_round_trip_also_beside_bulk() -> None:
    async def main() -> None:
        async with muxed_over(make_line(1e6, rtt_s=0.1)) as (pair, nursery):
            assert await pair.a.ping() == pytest.approx(0.1, abs=0.01)
            ours, theirs = await pair.open(Priority.BULK)
            nursery.start_soon(ours.send, bytes(1 << 30))
            nursery.start_soon(read_all, theirs)
            await trio.sleep(1)
            # Behind one piece of 16 KiB and what the kernel holds, at 1 MB/s.
            assert await pair.a.ping() <= 0.1 + 2 * 0.0164 + 0.005
            assert pair.a.rtt == pytest.approx(0.1, abs=0.02)
            assert pair.a.metrics().rtt_ms == pair.a.rtt * 1000

            found = []

            async def one() -> None:
                found.append(await pair.b.ping())

            async with trio.open_nursery() as several:
                for _ in range(5):
                    several.start_soon(one)
            assert len(set(found)) == 1  # one question for all

    run_virtual(main)


@pytest.mark.invariant("R3")
def test_a_ping_finds_a_peer_that_is_gone_and_one_that_has_closed() -> None:
    async def main() -> None:
        ends = make_line(1e6)
        async with muxed_over(ends) as (pair, nursery):
            await pair.a.ping()
            ends[1].cut()
            began = trio.current_time()
            with pytest.raises(DeadlineExceeded, match="has not answered a ping in 3 s"):
                await pair.a.ping(timeout_s=3)
            assert trio.current_time() - began == pytest.approx(3)
            assert pair.a.is_usable  # whoever asked decides
            ends[1].heal()
            assert await pair.a.ping() >= 3

            async def waits() -> None:
                with pytest.raises(LinkClosed):
                    await pair.b.ping(timeout_s=100)

            ends[0].cut()
            nursery.start_soon(waits)
            await trio.sleep(1)
            pair.b.close("enough")
            await pair.b.closed.wait()
            await settle()
            with pytest.raises(LinkClosed, match="enough"):
                await pair.b.ping()

    run_virtual(main)


@pytest.mark.invariant("R3")
def test_a_connection_gives_up_a_peer_that_is_silent_and_no_other() -> None:
    async def main() -> None:
        ends = make_line(1e6)
        async with muxed_over(ends, keep_alive=KeepAlive(idle_s=5, answer_s=3)) as (pair, _):
            ours, theirs = await pair.open()
            await trio.sleep(1000)  # idle, but there
            await ours.send(b"still here")
            assert await theirs.receive() == b"still here"
            assert pair.a.metrics().frames_sent <= 1000 / 5 + 3
            ends[1].cut()
            began = trio.current_time()
            with pytest.raises(LinkClosed, match="nothing has been heard of the peer for 8 s"):
                await ours.receive()
            assert trio.current_time() - began <= 8.1
            await pair.a.closed.wait()

    run_virtual(main)


@pytest.mark.invariant("R5")
def test_a_connection_that_drains_finishes_its_streams_and_opens_none() -> None:
    async def main() -> None:
        async with muxed_over(make_line(1e6, rtt_s=0.05)) as (pair, nursery):
            ours, theirs = await pair.open()
            nursery.start_soon(pair.a.drain)
            await trio.sleep(0.2)
            for end in (pair.a, pair.b):  # the peer has been told
                assert not end.is_usable
                with pytest.raises(LinkClosed):
                    end.open()
            payload = bytes(range(256)) * 4096

            async def answer() -> None:
                await theirs.send(await read_exactly(theirs, len(payload)))
                await theirs.aclose()

            nursery.start_soon(answer)
            nursery.start_soon(ours.send, payload)
            assert await read_all(ours) == payload
            assert not pair.a.closed.is_set()
            began = trio.current_time()
            await ours.aclose()
            await pair.a.closed.wait()
            await pair.b.closed.wait()
            assert trio.current_time() - began < 0.2

    run_virtual(main)


def test_a_stream_that_was_on_its_way_when_the_drain_began_is_refused_at_once() -> None:
    async def main() -> None:
        async with muxed_over(make_line(1e6, rtt_s=1)) as (pair, nursery):
            await pair.open()
            nursery.start_soon(pair.a.drain)
            await trio.sleep(0.1)
            late = pair.b.open()
            with pytest.raises(LinkClosed, match="the peer reset the stream"):
                await late.receive()
            late.reset()

    run_virtual(main)


def test_a_drain_ends_in_time() -> None:
    async def main() -> None:
        async with muxed_over() as (pair, _):
            _ours, theirs = await pair.open()
            began = trio.current_time()
            await pair.a.drain(timeout_s=7)
            assert trio.current_time() - began == pytest.approx(7, abs=1.1)
            with pytest.raises(LinkClosed):
                await theirs.receive()
        # Without streams it is over at once.
        async with muxed_over() as (pair, _):
            began = trio.current_time()
            await pair.b.drain()
            await pair.a.closed.wait()
            assert trio.current_time() - began < 0.1

    run_virtual(main)


@pytest.mark.invariant("R5")
def test_a_closed_connection_flushes_what_waits_in_every_stream_before_it_says_goodbye() -> None:
    async def main() -> None:
        async with muxed_over(make_line(1e6)) as (pair, _):
            pairs = [await pair.open(priority) for priority in Priority]
            for ours, _theirs in pairs:
                await ours.send(bytes(60_000))
            pair.a.close("done")
            for _ours, theirs in pairs:
                await read_exactly(theirs, 60_000)
            await pair.a.closed.wait()

    run_virtual(main)


def test_metrics_count_bytes_frames_streams_and_what_waits() -> None:
    async def main() -> None:
        async with muxed_over(limits=MuxLimits(window=INITIAL_WINDOW + 1000)) as (pair, nursery):
            ours, _theirs = await pair.open()
            await ours.send(bytes(1000))
            await settle()
            a, b = pair.a.metrics(), pair.b.metrics()
            assert (a.streams, b.streams) == (1, 1)
            assert a.bytes_sent == b.bytes_received == 12 + 12 + 1000
            assert a.frames_sent == b.frames_received == 2
            assert a.bytes_received == b.bytes_sent == 12
            assert (b.unread_bytes, b.window_bytes, b.granted_bytes) == (
                1000,
                INITIAL_WINDOW + 1000,
                INITIAL_WINDOW + 1000,
            )
            assert b.rtt_ms == 0
            nursery.start_soon(ours.send, bytes(INITIAL_WINDOW))
            await settle()
            assert (pair.a.metrics().queued_bytes, pair.b.metrics().unread_bytes) == (0, INITIAL_WINDOW + 1000)
            nursery.start_soon(ours.send, bytes(500))
            await settle()
            assert pair.a.metrics().queued_bytes == 500
            with pytest.raises(AttributeError):
                pair.a.metrics().streams = 7  # type: ignore[misc]

    run_virtual(main)


@pytest.mark.invariant("S7")
def test_an_idle_connection_keeps_nothing_of_what_it_carried() -> None:
    async def main() -> None:
        async with muxed_over(make_pipe()) as (pair, _):
            ours, theirs = await pair.open()
            tracemalloc.start()
            try:
                for _ in range(20):
                    await ours.send(bytes(100_000))
                    await read_exactly(theirs, 100_000)
                await settle()
                gc.collect()
                assert tracemalloc.get_traced_memory()[0] < 50_000
            finally:
                tracemalloc.stop()

    run_virtual(main)


def test_one_receive_hands_over_all_that_is_there_and_no_more_than_asked_for() -> None:
    async def main() -> None:
        async with muxed_over() as (pair, _):
            ours, theirs = await pair.open()
            sent = b""
            for number in range(300):
                await ours.send(bytes([number % 256]) * number)
                sent += bytes([number % 256]) * number
                if number % 10 == 0:
                    await settle()
            await settle()
            got = [await theirs.receive(size) for size in (7, 20_000, 1, 3_000, 1 << 20)]
            assert [len(piece) for piece in got] == [7, 20_000, 1, 3_000, len(sent) - 23_008]
            assert b"".join(got) == sent

    run_virtual(main)


def test_a_loop_that_never_has_to_wait_still_lets_others_run() -> None:
    async def main() -> None:
        async with muxed_over() as (pair, nursery):
            ours, theirs = await pair.open()
            await ours.send(bytes(60_000))
            await settle()
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(other)
            await trio.lowlevel.checkpoint()
            before = turns
            for _ in range(1000):
                await theirs.receive(1)
            assert turns - before >= 1000 // 16 - 2
            before = turns
            for _ in range(1000):
                await ours.send(b"x")
            assert turns - before >= 1000 // 16 - 2

    run_virtual(main)


def test_a_send_that_is_cancelled_before_anything_waits_leaves_the_stream_whole() -> None:
    async def main() -> None:
        async with muxed_over() as (pair, _):
            ours, theirs = await pair.open()
            await ours.send(b"one ")
            with trio.CancelScope() as scope:
                scope.cancel()
                await ours.send(b"never ")
            with trio.CancelScope() as scope:
                scope.cancel()
                await theirs.receive()
            await ours.send(b"two")
            await ours.aclose()
            assert await read_all(theirs) == b"one two"

    run_virtual(main)


@pytest.mark.parametrize("finish", ["aclose", "send_eof", "reset"])
def test_a_send_that_is_cancelled_half_way_is_never_taken_for_a_whole_one(finish: str) -> None:
    async def main() -> None:
        async with muxed_over() as (pair, nursery):
            ours, theirs = await pair.open()
            with trio.move_on_after(1):
                await ours.send(bytes(2_000_000))
            with pytest.raises(LinkClosed):
                await ours.send(b"more")
            if finish == "reset":
                ours.reset()
            else:
                nursery.start_soon(getattr(ours, finish))
            with pytest.raises(LinkClosed, match="the peer reset the stream"):
                await read_all(theirs)
            assert pair.a.metrics().queued_bytes == 0

    run_virtual(main)


@pytest.mark.parametrize("finish", ["aclose", "reset"])
def test_a_send_that_waits_ends_when_its_stream_is_closed_by_somebody_else(finish: str) -> None:
    async def main() -> None:
        async with muxed_over() as (pair, _):
            ours, theirs = await pair.open()

            async def blocked() -> None:
                with pytest.raises(LinkClosed):
                    await ours.send(bytes(2_000_000))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(blocked)
                await trio.sleep(1)
                if finish == "aclose":
                    await ours.aclose()
                else:
                    ours.reset()
            if finish == "aclose":  # what was sent before it still arrives
                assert await read_all(theirs) == bytes(2_000_000)
            else:
                with pytest.raises(LinkClosed):
                    await read_all(theirs)

    run_virtual(main)


def test_a_send_that_waits_goes_on_when_the_limits_give_it_room() -> None:
    async def main() -> None:
        async with muxed_over() as (pair, _):
            ours, _theirs = await pair.open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send, bytes(INITIAL_WINDOW + 100_000))
                await trio.sleep(1)
                pair.a.set_limits(MuxLimits(send_buffer=1 << 20))

    run_virtual(main)


def test_closing_twice_or_resetting_what_is_closed_does_no_harm() -> None:
    async def main() -> None:
        async with muxed_over() as (pair, _):
            ours, theirs = await pair.open()
            await ours.send(b"last words")
            await ours.aclose()
            ours.reset()  # what was sent still arrives
            await ours.aclose()
            assert await read_all(theirs) == b"last words"
            theirs.reset()
            theirs.reset()
            await settle()
            assert pair.a.metrics().granted_bytes == pair.b.metrics().granted_bytes == 0

    run_virtual(main)
