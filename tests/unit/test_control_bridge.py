"""The bridge between gRPC's asyncio thread and trio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from comity.errors import Busy, DeadlineExceeded, NodeStopping, PolicyDenied
from comity_node.control.bridge import Bridge, Lane, Stream


def over_bridge(test: Callable[[Bridge], Awaitable[None]], **limits: int) -> None:
    """Run `test` in trio with a running bridge, and see that its thread ends."""

    async def main() -> None:
        bridge = Bridge(**limits)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(bridge.run)
                await test(bridge)
                await bridge.drain(0)
                await bridge.stop()
        assert "comity-control" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}

    trio.run(main)


def test_a_call_runs_in_trio_and_brings_its_result_back() -> None:
    async def test(bridge: Bridge) -> None:
        home = trio.lowlevel.current_trio_token()

        async def double(number: int) -> int:
            assert trio.lowlevel.current_trio_token() is home
            await trio.lowlevel.checkpoint()
            return 2 * number

        async def many() -> list[int]:
            return await asyncio.gather(*(bridge.call(double, number) for number in range(500)))

        assert await bridge.call_asyncio(many) == [2 * number for number in range(500)]

    over_bridge(test)


def test_an_error_crosses_with_its_type() -> None:
    async def test(bridge: Bridge) -> None:
        async def refuse(_: None) -> None:
            raise PolicyDenied("no", rules=("never",))

        with pytest.raises(PolicyDenied) as caught:
            await bridge.call_asyncio(bridge.call, refuse, None)
        assert caught.value.rules == ("never",)

    over_bridge(test)


def test_a_deadline_ends_the_trio_side() -> None:
    async def test(bridge: Bridge) -> None:
        cancelled = trio.Event()

        async def never(_: None) -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        async def call() -> None:
            await bridge.call(never, None, timeout_s=0.01)

        with pytest.raises(DeadlineExceeded):
            await bridge.call_asyncio(call)
        await cancelled.wait()

    over_bridge(test)


def test_a_cancellation_in_asyncio_reaches_trio() -> None:
    async def test(bridge: Bridge) -> None:
        begun, cancelled = trio.Event(), trio.Event()

        async def never(_: None) -> None:
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.call_asyncio, bridge.call, never, None)
            await begun.wait()
            nursery.cancel_scope.cancel()  # cancels the asyncio task, and that its trio half
        await cancelled.wait()

    over_bridge(test)


@pytest.mark.invariant("R4")
def test_calls_in_flight_are_limited_until_their_trio_half_is_over() -> None:
    async def test(bridge: Bridge) -> None:
        entered = trio.Event()
        release = trio.Event()

        async def stubborn(_: None) -> None:
            entered.set()
            with trio.CancelScope(shield=True):
                await release.wait()

        async def give_up() -> None:
            task = asyncio.ensure_future(bridge.call(stubborn, None))
            await asyncio.sleep(0)
            await bridge.call(wait_entered, None)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with pytest.raises(Busy):  # given up in asyncio, but it still runs in trio
                await asyncio.gather(bridge.call(answer, None), bridge.call(answer, None))

        async def wait_entered(_: None) -> None:
            await entered.wait()

        async def answer(_: None) -> str:
            return "here"

        await bridge.call_asyncio(give_up)
        release.set()

    over_bridge(test, max_calls=2)


@pytest.mark.invariant("R5")
def test_draining_lets_calls_end_refuses_new_ones_and_tells_the_rest() -> None:
    async def test(bridge: Bridge) -> None:
        begun = [trio.Event(), trio.Event()]
        release = trio.Event()
        outcomes: dict[str, object] = {}

        async def finishes(_: None) -> str:
            begun[0].set()
            await release.wait()
            return "done"

        async def hangs(_: None) -> None:
            begun[1].set()
            await trio.sleep_forever()

        async def keep(name: str, function: Callable[[None], Awaitable[object]]) -> None:
            try:
                outcomes[name] = await bridge.call_asyncio(bridge.call, function, None)
            except NodeStopping:
                outcomes[name] = "stopping"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "first", finishes)
            nursery.start_soon(keep, "second", hangs)
            for event in begun:
                await event.wait()
            nursery.start_soon(bridge.drain, 0.2)
            await trio.testing.wait_all_tasks_blocked()
            await keep("third", finishes)
            release.set()
        assert outcomes == {"first": "done", "second": "stopping", "third": "stopping"}

    over_bridge(test)


@pytest.mark.invariant("R4")
def test_a_slow_reader_holds_a_stream_back_and_nothing_else() -> None:
    async def test(bridge: Bridge) -> None:
        sent = 0

        async def flood(stream: Stream[None, int]) -> None:
            nonlocal sent
            while True:
                await stream.send(sent)
                sent += 1

        async def answer(_: None) -> str:
            await trio.testing.wait_all_tasks_blocked()  # whatever could be sent has been
            return f"{sent}"

        async def read_three() -> tuple[list[int], str]:
            stream = bridge.stream(flood, nothing())
            taken = [await anext(stream) for _ in range(3)]
            other = await bridge.call(answer, None)
            await stream.aclose()
            return taken, other

        taken, other = await bridge.call_asyncio(read_three)
        assert taken == [0, 1, 2]
        assert int(other) <= 8 + 3

    over_bridge(test, window=8)


@pytest.mark.invariant("R4")
def test_a_slow_trio_side_holds_the_sender_back() -> None:
    async def test(bridge: Bridge) -> None:
        produced = 0
        go = trio.Event()
        received: list[int] = []

        async def incoming() -> AsyncIterator[int]:
            nonlocal produced
            for number in range(100):
                produced += 1
                yield number

        async def slow(stream: Stream[int, None]) -> None:
            await go.wait()
            while True:
                try:
                    received.append(await stream.receive())
                except trio.EndOfChannel:
                    return

        async def run() -> None:
            async for _ in bridge.stream(slow, incoming()):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.call_asyncio, run)
            for _ in range(3):  # the other thread gets all the turns it wants
                await bridge.call_asyncio(asyncio.sleep, 0.02)
            assert produced <= 8 + 1
            go.set()
        assert received == list(range(100))

    over_bridge(test, window=8)


def test_what_a_stream_raises_reaches_its_reader_after_what_it_sent() -> None:
    async def test(bridge: Bridge) -> None:
        async def breaks(stream: Stream[None, str]) -> None:
            await stream.send("one")
            stream.send_nowait("two")
            raise PolicyDenied("enough")

        async def read() -> list[str]:
            stream = bridge.stream(breaks, nothing())
            taken = [await anext(stream), await anext(stream)]
            with pytest.raises(PolicyDenied, match="enough"):
                await anext(stream)
            return taken

        assert await bridge.call_asyncio(read) == ["one", "two"]

    over_bridge(test)


def test_closing_a_stream_cancels_its_trio_side() -> None:
    async def test(bridge: Bridge) -> None:
        gone = trio.Event()

        async def serve(stream: Stream[None, str]) -> None:
            try:
                await stream.send("hello")
                await trio.sleep_forever()
            finally:
                gone.set()

        async def read_one() -> None:
            stream = bridge.stream(serve, nothing())
            assert await anext(stream) == "hello"
            await stream.aclose()

        await bridge.call_asyncio(read_one)
        await gone.wait()

    over_bridge(test)


def test_a_lane_wakes_its_loop_once_for_a_batch_and_keeps_order() -> None:
    wakes: list[Callable[[], None]] = []
    seen: list[int] = []
    lane = Lane(wakes.append)
    for number in range(300):
        lane.put(seen.append, number)
    assert len(wakes) == 1
    turns = 0
    while wakes:
        wakes.pop()()
        turns += 1
    assert seen == list(range(300))
    assert turns == 3  # the loop had a turn at something else in between


async def nothing() -> AsyncIterator[None]:
    for _ in ():
        yield
