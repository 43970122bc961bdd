"""Slow lines and long ones, with a virtual clock: who waits for whom, and how near to the line's rate bulk comes."""

from __future__ import annotations

import statistics

import pytest
import trio

from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.muxed import MuxedStream
from comity_node.transport.yamux import INITIAL_WINDOW, MAX_WINDOW, MuxLimits
from kit.line import make_line
from kit.muxes import muxed_over, read_exactly, run_virtual

MBIT = 1e6 / 8
PIECE = 16 * 1024


async def pump(stream: MuxedStream) -> None:
    """Send for ever."""
    block = bytes(64 * 1024)
    while True:
        await stream.send(block)


async def sink(stream: MuxedStream) -> None:
    while await stream.receive(1 << 20):
        pass


async def latencies(ours: MuxedStream, theirs: MuxedStream, count: int, every_s: float) -> list[float]:
    """Seconds from `send` to `receive` of small messages, one at a time."""
    found = []
    for number in range(count):
        await trio.sleep(every_s * (1 + number % 7 / 10))  # not in step with the bulk
        began = trio.current_time()
        await ours.send(b"m" * 200)
        await read_exactly(theirs, 200)
        found.append(trio.current_time() - began)
    return found


@pytest.mark.invariant("R4")
@pytest.mark.parametrize("rate", [1 * MBIT, 10 * MBIT, 100 * MBIT])
@pytest.mark.parametrize("priority", [Priority.WORK, Priority.CONTROL])
def test_a_small_message_waits_for_one_piece_of_bulk_and_what_the_kernel_holds(rate: float, priority: Priority) -> None:
    found: list[float] = []

    async def main() -> None:
        async with muxed_over(make_line(rate, rtt_s=0.02, kernel_bytes=PIECE)) as (pair, nursery):
            bulk, bulk_end = await pair.open(Priority.BULK)
            nursery.start_soon(pump, bulk)
            nursery.start_soon(sink, bulk_end)
            ours, theirs = await pair.open(priority)
            await trio.sleep(2)
            found.extend(await latencies(ours, theirs, 40, every_s=5 * PIECE / rate))

    run_virtual(main)
    # One piece of 16 KiB is being written when the message comes, and the kernel holds as much again; on a fast line a
    # batch is larger, but takes no longer than 20 ms.
    most = max(2 * PIECE / rate, 0.02 + PIECE / rate) + 300 / rate + 0.011
    assert max(found) <= most, (statistics.median(found), max(found), most)


def test_eight_endless_bulk_streams_are_no_worse_for_a_message_than_one() -> None:
    found: list[float] = []

    async def main() -> None:
        async with muxed_over(make_line(MBIT, kernel_bytes=PIECE)) as (pair, nursery):
            for _ in range(8):
                bulk, bulk_end = await pair.open(Priority.BULK)
                nursery.start_soon(pump, bulk)
                nursery.start_soon(sink, bulk_end)
            ours, theirs = await pair.open()
            found.extend(await latencies(ours, theirs, 20, every_s=1))

    run_virtual(main)
    assert max(found) <= 2 * PIECE / MBIT + 0.02


@pytest.mark.invariant("R4")
def test_bulk_beside_endless_work_gets_an_eighth_and_work_the_rest() -> None:
    async def main() -> None:
        async with muxed_over(make_line(10 * MBIT, rtt_s=0.01)) as (pair, nursery):
            counts = {}
            for priority in (Priority.WORK, Priority.BULK):
                ours, theirs = await pair.open(priority)
                nursery.start_soon(pump, ours)
                counts[priority] = [0]

                async def count(stream: MuxedStream = theirs, counter: list[int] = counts[priority]) -> None:
                    while data := await stream.receive(1 << 20):
                        counter[0] += len(data)

                nursery.start_soon(count)
            await trio.sleep(10)
            work, bulk = counts[Priority.WORK][0], counts[Priority.BULK][0]
            assert (work + bulk) / 10 >= 0.95 * 10 * MBIT
            assert 0.1 <= bulk / (work + bulk) <= 0.15

    run_virtual(main)


def test_streams_of_one_class_share_the_line_evenly_whatever_the_size_of_their_writes() -> None:
    async def main() -> None:
        async with muxed_over(make_line(10 * MBIT, rtt_s=0.01)) as (pair, nursery):
            counters = []
            for size in (200, 5_000, 64 * 1024, 1 << 20):
                ours, theirs = await pair.open()
                counter = [0]
                counters.append(counter)

                async def send(stream: MuxedStream = ours, size: int = size) -> None:
                    while True:
                        await stream.send(bytes(size))

                async def count(stream: MuxedStream = theirs, counter: list[int] = counter) -> None:
                    while data := await stream.receive(1 << 20):
                        counter[0] += len(data)

                nursery.start_soon(send)
                nursery.start_soon(count)
            await trio.sleep(8)
            total = sum(counter[0] for counter in counters)
            assert all(0.2 <= counter[0] / total <= 0.3 for counter in counters), counters

    run_virtual(main)


@pytest.mark.parametrize(("rate", "rtt_s"), [(100 * MBIT, 0.2), (400 * MBIT, 0.2), (100 * MBIT, 0.02)])
def test_bulk_over_a_long_line_comes_near_its_rate(rate: float, rtt_s: float) -> None:
    seconds = 4

    async def main() -> None:
        limits = MuxLimits()
        budget = Budget(256 << 20)
        async with muxed_over(make_line(rate, rtt_s, kernel_bytes=64 * 1024), limits, budget=budget) as (pair, nursery):
            ours, theirs = await pair.open(Priority.BULK)
            nursery.start_soon(pump, ours)
            got = 0

            async def count() -> None:
                nonlocal got
                while data := await theirs.receive(1 << 20):
                    got += len(data)

            nursery.start_soon(count)
            await trio.sleep(3)  # the windows have grown
            before = got
            await trio.sleep(seconds)
            assert (got - before) / seconds >= 0.97 * rate
            assert before / 3 >= 0.6 * rate  # and they grow fast
            window = pair.b.metrics().window_bytes
            # Four times what is on its way at the line's rate, and one doubling past it; pings wait a little, too.
            assert INITIAL_WINDOW <= window <= min(MAX_WINDOW, max(INITIAL_WINDOW, 10 * rate * rtt_s))
            assert pair.b.rtt == pytest.approx(rtt_s, rel=0.6)

    run_virtual(main)


def test_without_a_budget_windows_stay_small_and_a_long_line_is_slow() -> None:
    async def main() -> None:
        async with muxed_over(make_line(100 * MBIT, 0.2)) as (pair, nursery):
            ours, theirs = await pair.open(Priority.BULK)
            nursery.start_soon(pump, ours)
            nursery.start_soon(sink, theirs)
            await trio.sleep(10)
            assert pair.b.metrics().window_bytes == INITIAL_WINDOW
            assert pair.b.metrics().bytes_received <= 10 / 0.2 * INITIAL_WINDOW * 1.1

    run_virtual(main)


def test_the_window_of_a_slow_reader_does_not_grow() -> None:
    async def main() -> None:
        async with muxed_over(make_line(100 * MBIT, 0.05), budget=Budget(256 << 20)) as (pair, nursery):
            ours, theirs = await pair.open(Priority.BULK)
            nursery.start_soon(pump, ours)

            async def slow() -> None:
                while True:
                    assert await theirs.receive(10_000)
                    await trio.sleep(0.1)  # 100 kB/s

            nursery.start_soon(slow)
            await trio.sleep(60)
            assert pair.b.metrics().window_bytes == INITIAL_WINDOW

    run_virtual(main)
