"""The pace of what strangers make a node compute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from comity.errors import Busy
from comity_node.transport.address import is_own_machine
from comity_node.transport.pace import Pace


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.invariant("S7")
def test_a_burst_then_a_steady_rate_and_the_rest_is_refused_at_once() -> None:
    async def main() -> None:
        pace = Pace(10, burst=5, longest_wait_s=1.05)
        began = trio.current_time()
        turns: list[float] = []
        refused: list[tuple[float, int]] = []

        async def take() -> None:
            try:
                await pace.turn()
                turns.append(round(trio.current_time() - began, 6))
            except Busy as error:
                refused.append((trio.current_time() - began, error.retry_after_ms))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(take)
        assert turns == [0.0] * 5 + [pytest.approx(n / 10) for n in range(1, 11)]
        assert refused == [(0.0, 1100)] * 85
        # After a quiet time there is a burst again, and not two.
        await trio.sleep(60)
        turns.clear()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(take)
        assert turns == [0.0] * 5 + [0.1]

    run(main)


@pytest.mark.invariant("S7")
def test_over_any_time_there_are_no_more_than_the_burst_and_the_rate() -> None:
    async def main() -> None:
        pace = Pace(50, burst=10, longest_wait_s=0)
        given = 0
        for _ in range(10_000):  # a flood of 1000 a second for 10 seconds
            try:
                await pace.turn()
                given += 1
            except Busy:
                pass
            await trio.sleep(0.001)
        assert 490 <= given <= 511

    run(main)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("0.0.0.0", True),
        ("169.254.169.254", True),
        ("::1", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%eth0", True),
        ("10.0.0.1", False),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
    ],
)
def test_which_addresses_are_of_this_machine_or_its_link(host: str, own: bool) -> None:
    assert is_own_machine(host) is own
