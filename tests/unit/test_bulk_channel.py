"""One try's plumbing: time-outs on silence, and errors that come out as themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from comity.errors import DeadlineExceeded, LinkClosed
from comity_node.bulk.channel import Channel, flat_nursery
from comity_node.transport.memory import MemoryNetwork


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def broken(error: Exception) -> None:
    async with flat_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise error


def test_an_error_of_ours_comes_out_as_itself() -> None:
    async def main() -> None:
        with pytest.raises(LinkClosed, match="broken"):
            await broken(LinkClosed("broken"))

    run(main)


def test_another_error_does_not() -> None:
    async def main() -> None:
        with pytest.RaisesGroup(ValueError):
            await broken(ValueError("not one of ours"))

    run(main)


def test_a_cancellation_from_outside_wins() -> None:
    async def fail(scope: trio.CancelScope) -> None:
        scope.cancel()
        raise LinkClosed("broken at the same moment")

    async def both(scope: trio.CancelScope) -> None:
        async with flat_nursery() as nursery:
            nursery.start_soon(fail, scope)
            await trio.sleep_forever()

    async def main() -> None:
        with trio.CancelScope() as scope:
            await both(scope)
        assert scope.cancelled_caught

    run(main)


@pytest.mark.invariant("S7")
def test_bytes_that_trickle_in_are_no_event() -> None:
    async def main() -> None:
        ours, theirs = MemoryNetwork().connect("a", "b")
        channel: Channel[bytes] = Channel(ours, lambda data: [], 10)

        async def trickle() -> None:
            while True:
                await theirs.send(b"x")
                await trio.sleep(3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            begun = trio.current_time()
            with pytest.raises(DeadlineExceeded, match="said nothing for 10 s"):
                await channel.next_event()
            assert trio.current_time() - begun == pytest.approx(10)
            nursery.cancel_scope.cancel()

    run(main)


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    async def main() -> None:
        ours, _ = MemoryNetwork().connect("a", "b")
        channel: Channel[bytes] = Channel(ours, lambda data: [], 10)
        with pytest.raises(DeadlineExceeded, match="taken nothing for 10 s"):
            await channel.send(bytes(1_000_000))

    run(main)
