"""The pace of what strangers make a node compute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from comity.errors import Busy
from comity.signing import PrivateKey
from comity_node.transport.address import is_own_machine
from comity_node.transport.budget import BudgetLimits, Budgets
from comity_node.transport.pace import FairPace, Pace, source_of
from comity_node.transport.slots import FairSlots

RELAY = PrivateKey(bytes(32)).peer_id


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


# Sources.


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("/ip4/192.0.2.77/tcp/4001", "192.0.2.0/24"),
        ("/ip6/2001:db8:1:2ff::1/tcp/4001", "2001:db8:1:200::/56"),
        ("/ip6/::ffff:192.0.2.77/tcp/4001", "192.0.2.0/24"),
        (f"/ip4/192.0.2.77/tcp/4001/p2p/{RELAY}/p2p-circuit", f"/p2p/{RELAY}"),
        ("/dns4/a.example/tcp/1", "/dns4/a.example/tcp/1"),
        ("", ""),
    ],
)
def test_what_an_address_counts_for(address: str, source: str) -> None:
    assert source_of(address) == source


def fair_pace() -> FairPace:
    return FairPace(
        Pace(10, burst=20, longest_wait_s=0.01), Pace(5, burst=5, longest_wait_s=0.01), source_per_s=5, source_burst=5
    )


async def turns(pace: FairPace, source: str, count: int) -> int:
    """How many of `count` turns are given at once."""
    given = 0
    for _ in range(count):
        with trio.move_on_after(0):
            try:
                await pace.turn(source)
            except Busy:
                continue
        given += 1
    return given


@pytest.mark.invariant("S7")
def test_a_flood_from_one_source_leaves_the_others_their_turns() -> None:
    async def main() -> None:
        pace = fair_pace()
        given = await turns(pace, "flood", 1000)
        assert given == 10  # the burst of one source, and what it may wait a second for
        assert pace.refused == 990
        assert await turns(pace, "somebody", 1) == 1

    run(main)


@pytest.mark.invariant("S7")
def test_a_flood_from_many_sources_leaves_members_the_reserve() -> None:
    async def main() -> None:
        pace = fair_pace()
        pace.remember("member")
        assert sum([await turns(pace, f"flood {number}", 10) for number in range(100)]) == 20
        assert await turns(pace, "somebody", 1) == 0
        assert await turns(pace, "member", 10) == 5
        assert pace.knows("member")

    run(main)


@pytest.mark.invariant("S7")
def test_sources_are_remembered_in_bounded_number() -> None:
    async def main() -> None:
        pace = fair_pace()
        for number in range(5000):
            pace.remember(f"member {number}")
            await turns(pace, f"flood {number}", 1)
        assert not pace.knows("member 0")
        assert pace.knows("member 4999")
        assert (len(pace._sources), len(pace._known)) == (4096, 4096)

    run(main)


# Places.


@pytest.mark.invariant("S7")
def test_who_has_most_gives_a_place_up() -> None:
    slots: FairSlots[int] = FairSlots(total=10, per_source=6)
    assert [slots.add("flood", number) for number in range(8)] == [None] * 6 + [0, 1]
    assert [slots.add("other", number) for number in range(100, 104)] == [None] * 4
    assert slots.add("third", 200) == 2  # ten are there: the source with most of them gives one up
    assert slots.add("third", 201) == 3
    assert (len(slots), slots.evicted) == (10, 4)
    slots.remove("third", 200)
    slots.remove("third", 200)
    slots.remove("flood", 0)  # gone already
    assert len(slots) == 9


@pytest.mark.invariant("S7")
def test_known_sources_keep_their_places_while_there_are_others() -> None:
    slots: FairSlots[int] = FairSlots(total=5, per_source=5, knows=lambda source: source == "member")
    for number in range(4):
        assert slots.add("member", number) is None
    assert slots.add("a", 10) is None
    assert slots.add("b", 11) in (10, 11)
    assert slots.add("member", 4) in (10, 11)
    assert slots.add("member", 5) == 0


# Memory.


@pytest.mark.invariant("S7")
def test_what_a_peer_takes_its_organization_and_the_node_have_given() -> None:
    budgets = Budgets(BudgetLimits(total=100, per_organization=60, per_peer=40))
    a1, a2, b1 = budgets.of("a1", "a"), budgets.of("a2", "a"), budgets.of("b1", "b")
    assert budgets.of("a1", "a") is a1
    assert a1.take(40)
    assert not a1.take(1)
    assert a2.take(20)
    assert not a2.take(1)  # of its organization nothing is left
    assert b1.take(40)
    assert not budgets.of("c1").take(1)  # and of the node nothing
    assert budgets.total.used == 100
    a1.give(40)
    assert budgets.of("c1").take(30)
    assert (a1.used, budgets.total.used) == (0, 90)


@pytest.mark.invariant("S7")
def test_budgets_that_nobody_holds_are_forgotten() -> None:
    budgets = Budgets()
    kept = budgets.of("kept", "a")
    for number in range(1000):
        budgets.of(f"peer {number}", f"organization {number}")
    assert (len(budgets._peers), len(budgets._organizations)) == (1, 1)
    assert budgets.of("kept", "a") is kept
