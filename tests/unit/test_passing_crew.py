"""A crew: so many tasks that wait for work. What comes is done, and pieces of it can be broken off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from comity_node.protocol.token import Token
from comity_node.runtime.passing.crew import Crew
from comity_node.runtime.passing.lanes import Lanes
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.memory import MemoryJournal, MemoryStore, OpenGateway, Turns
from comity_node.runtime.passing.ports import Outgoing
from comity_node.runtime.passing.queue import FairQueue
from comity_node.runtime.passing.world import MemoryWorld
from kit.passing import ALONE, A, B, Colleagues, play, rows, trip


class Pile:
    """Pieces of work, each so many seconds long, and a crew for them."""

    def __init__(self, most: int) -> None:
        self.waiting: list[tuple[str, float]] = []
        self.done: list[str] = []
        self.at_it: dict[str, trio.CancelScope] = {}
        self.most = 0
        self.crew = Crew(most, self.work)

    def add(self, name: str, seconds: float = 0.0) -> None:
        self.waiting.append((name, seconds))
        self.crew.call()

    async def work(self, scope: trio.CancelScope) -> bool:
        if self.waiting:
            name, seconds = self.waiting.pop(0)
            self.at_it[name] = scope
            self.most = max(self.most, len(self.at_it))
            try:
                if seconds:
                    await trio.sleep(seconds)
                self.done.append(name)
            finally:
                del self.at_it[name]
        return bool(self.waiting)


def crewed(most: int, scene: Callable[[Pile], Awaitable[None]]) -> Pile:
    """Play a scene with a crew, on a clock that jumps."""
    pile = Pile(most)

    async def main() -> None:
        with trio.fail_after(1e4):
            async with trio.open_nursery() as nursery:
                pile.crew.begin(nursery)
                await scene(pile)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return pile


@pytest.mark.parametrize("most", [1, 3])
def test_a_crew_does_all_that_comes_and_no_more_at_once_than_it_is(most: int) -> None:
    async def scene(pile: Pile) -> None:
        for number in range(7):
            pile.add(str(number), 1.0 + number)
        await trio.sleep(100)
        pile.add("later", 1.0)
        await trio.sleep(100)

    pile = crewed(most, scene)
    assert sorted(pile.done) == sorted([*map(str, range(7)), "later"])
    assert pile.most == most


def test_who_was_called_before_the_crew_began_comes_then() -> None:
    pile = Pile(3)

    async def main() -> None:
        for name in "abcde":
            pile.add(name, 1.0)
        async with trio.open_nursery() as nursery:
            pile.crew.begin(nursery)
            await trio.sleep(1.5)
            assert sorted(pile.done) == ["a", "b", "c"]
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert sorted(pile.done) == list("abcde")


def test_a_piece_that_is_broken_off_leaves_the_crew_whole() -> None:
    async def scene(pile: Pile) -> None:
        for turn in range(5):
            pile.add(f"long {turn}", 1000.0)
            pile.add(f"short {turn}", 1.0)
            await trio.sleep(2)
            pile.at_it[f"long {turn}"].cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not pile.at_it
        for number in range(4):
            pile.add(str(number), 1.0)
        await trio.sleep(1.5)
        assert len(pile.at_it) == 2  # both are back

    pile = crewed(2, scene)
    assert [name for name in pile.done if name.startswith("short")] == [f"short {turn}" for turn in range(5)]
    assert not [name for name in pile.done if name.startswith("long")]


def test_a_piece_that_is_done_in_the_round_in_which_it_is_broken_off_is_done() -> None:
    done, event = [], trio.Event()
    scopes: list[trio.CancelScope] = []

    async def work(scope: trio.CancelScope) -> bool:
        if not scopes:
            scopes.append(scope)
            await event.wait()
            done.append(1)
        elif len(done) == 1:
            await trio.sleep(1)
            done.append(2)
        return False

    async def main() -> None:
        crew = Crew(1, work)
        async with trio.open_nursery() as nursery:
            crew.begin(nursery)
            await trio.testing.wait_all_tasks_blocked()
            event.set()
            scopes[0].cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert done == [1]
            crew.call()
            await trio.sleep(2)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert done == [1, 2]


def test_others_have_a_turn_between_two_pieces() -> None:
    turns = []

    async def other(pile: Pile) -> None:
        while pile.waiting:
            turns.append(len(pile.done))
            await trio.lowlevel.checkpoint()

    async def scene(pile: Pile) -> None:
        for number in range(50):
            pile.add(str(number))
        await other(pile)

    crewed(1, scene)
    assert len(turns) >= 49


def test_nobody_comes_when_the_crew_has_gone() -> None:
    pile = Pile(20)

    async def main() -> None:
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as nursery:
                pile.crew.begin(nursery)
                await trio.testing.wait_all_tasks_blocked()
                outer.start_soon(late)
                nursery.cancel_scope.cancel()
            pile.add("much later")

    async def late() -> None:
        for _ in range(10):  # at some of these times its nursery is being closed
            pile.add("late")
            await trio.lowlevel.checkpoint()

    trio.run(main)
    assert "much later" not in pile.done
    assert len(pile.waiting) >= 5


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=60), st.integers(1, 5))
def test_the_fair_queue_says_how_many_batches_wait(items: list[tuple[int, int]], rows_of: int) -> None:
    queue: FairQueue[int] = FairQueue()
    calls = sum(queue.put(source, step, 0, rows_of) for source, step in items)
    batches = 0
    while queue.take():
        batches += 1
    assert calls == batches == sum(-(-count // rows_of) for count in Counter(items).values())


def test_after_calls_that_were_broken_off_all_places_are_free_again() -> None:
    limits = PassingLimits(lease_s=1e6, hedge_share=0.0, patience_s=1e6, window=2)
    workers = Colleagues("s0", delay_s=lambda: 1.0)
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=limits)

    async def scene(world: MemoryWorld) -> None:
        for turn in range(4):
            workers.hold = trio.Event()
            await world.open(A, rows(2, 2 * turn))
            await trio.sleep(5)
            assert workers.running == 2
            world.engine(A).cancel(world.pact.agreement)
            await trio.sleep(5)
            assert workers.running == world.engine(B).counts.running == 0
        workers.hold = None
        workers.most = 0
        await world.open(A, rows(6, 100))
        await world.sinks[A].wait(14)

    play(world, scene)
    assert workers.cancelled == 8
    assert workers.most == 2
    assert all(workers.done[task, 0] == 1 for task in range(100, 106))


def test_a_call_that_is_over_is_not_looked_after_any_longer() -> None:
    workers = Colleagues("s0", delay_s=lambda: 1.0)
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=ALONE)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        race = world.engine(B)._calls._race
        workers.hold = trio.Event()
        await world.open(A, rows(3, 40))
        await trio.sleep(1.5)
        assert len(race._due) == 3
        world.engine(A).cancel(world.pact.agreement, [rows(1, 40)[0][0]])
        await trio.sleep(0.1)
        assert len(race._due) == 2
        workers.hold.set()
        await world.sinks[A].wait(43)
        assert not race._due

    play(world, scene)


def test_what_is_put_out_while_lanes_are_closed_waits_for_the_next_run() -> None:
    store = MemoryStore(A)
    lanes = Lanes(
        gateway=OpenGateway(store),
        carrier=cast(Any, None),  # nothing is to be carried
        journal=MemoryJournal(store),
        routing=Turns(Random(0)),
        random=Random(0),
        limits=PassingLimits(),
        owner=cast(Any, None),
    )
    late = Outgoing(Token(bytes(16), bytes(32), B, "peer", 1, 1, b"{}", b"{}", (), 9_000), B, "skill")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lanes.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
            lanes.put(late)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert lanes.backlog(B) == 1
