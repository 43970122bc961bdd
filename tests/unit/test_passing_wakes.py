"""Nothing that is put down while somebody is at work, or pauses, is left lying: desk, lanes, calls, and watch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, cast

import pytest
import trio
import trio.testing

from comity_node.protocol.token import Key, Token, decode_state
from comity_node.runtime.passing.desk import Desk
from comity_node.runtime.passing.lanes import Lanes
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.memory import MemoryJournal, MemoryStore, OpenGateway, Turns
from comity_node.runtime.passing.ports import Answer, End, Move, Outgoing, Verdict
from comity_node.runtime.passing.visit import Parcel
from comity_node.runtime.passing.world import MemoryWorld
from kit.passing import ALONE, A, B, Colleagues, play, rows, trip


def row(number: int) -> Outgoing:
    """A token on its way to B."""
    return Outgoing(Token(number.to_bytes(16, "big"), bytes(32), A, "peer", 1, 1, b"{}", b"{}", (), 9_000), B, "skill")


class Slow(MemoryJournal):
    """A journal whose transactions take a second, and that remembers what went in and out."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(A))
        self.finished: list[Key] = []
        self.gone: list[Key] = []

    async def finish(self, moves: Sequence[Move]) -> None:
        await trio.sleep(1.0)
        self.finished += [move.outgoing.token.key for move in moves if move.outgoing is not None]

    async def let_go(self, keys: Sequence[Key]) -> None:
        await trio.sleep(1.0)
        self.gone += keys


class Nowhere:
    """Lanes that take what they are given."""

    def put(self, row: Outgoing) -> None:
        """Take it."""


class Answering:
    """A carrier that gives its answers one after the other, each after a second, and then takes all."""

    def __init__(self, *answers: Verdict) -> None:
        self.answers = list(answers)
        self.sizes: list[int] = []
        self.at_once = self.most = 0

    async def deliver(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Verdict]:
        self.sizes.append(len(rows))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await trio.sleep(1.0)
        self.at_once -= 1
        return [self.answers.pop(0) if self.answers else Verdict(Answer.TAKEN) for _ in rows]


class Told:
    """An owner that hears what was delivered."""

    def __init__(self) -> None:
        self.delivered_at: list[float] = []

    def delivered(self, parcel: Parcel, verdict: Verdict) -> None:
        self.delivered_at.append(trio.current_time())


def lanes_with(carrier: Answering, owner: Told, limits: PassingLimits) -> Lanes:
    """Lanes of A over a carrier."""
    store = MemoryStore(A)
    return Lanes(
        gateway=OpenGateway(store), carrier=cast(Any, carrier), journal=MemoryJournal(store), routing=Turns(Random(0)),
        random=Random(0), limits=limits, owner=lambda parcel: cast(Any, owner),
    )  # fmt: skip


def played(scene: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    """Play a scene from 0 s on a clock that jumps."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(nursery)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.invariant("R1")
def test_what_is_put_on_the_desk_while_it_writes_is_written_next() -> None:
    journal = Slow()
    desk = Desk(journal, cast(Lanes, Nowhere()), 1.0)

    async def scene(nursery: trio.Nursery) -> None:
        desk.begin(nursery)
        desk.put(Move(None, row(0)))
        await trio.sleep(0.5)
        desk.put(Move(None, row(1)))
        desk.drop(row(7).token.key)
        await trio.sleep(10.0)
        assert journal.finished == [row(0).token.key, row(1).token.key]
        assert journal.gone == [row(7).token.key]
        desk.drop(row(8).token.key)
        await trio.sleep(10.0)
        assert journal.gone == [row(7).token.key, row(8).token.key], "with nothing that goes out beside it, too"

    played(scene)


@pytest.mark.invariant("R4")
def test_what_is_to_come_later_is_brought_then_even_if_nothing_else_is() -> None:
    carrier, owner = Answering(Verdict(Answer.BUSY, retry_after_s=30.0)), Told()
    lanes = lanes_with(carrier, owner, ALONE)

    async def scene(nursery: trio.Nursery) -> None:
        nursery.start_soon(lanes.run)
        lanes.put(row(0))
        await trio.sleep(100.0)
        assert owner.delivered_at == [pytest.approx(32.0)]

    played(scene)


@pytest.mark.invariant("R4")
def test_after_a_pause_as_many_deliveries_are_under_way_as_may_be() -> None:
    carrier, owner = Answering(Verdict(Answer.BUSY, retry_after_s=0.5)), Told()
    lanes = lanes_with(carrier, owner, replace(ALONE, batch=1, lanes=2))

    async def scene(nursery: trio.Nursery) -> None:
        nursery.start_soon(lanes.run)
        lanes.put(row(0))
        await trio.sleep(1.2)
        carrier.most = 0
        for number in range(1, 5):
            lanes.put(row(number))
        await trio.sleep(100.0)
        assert len(owner.delivered_at) == 5

    played(scene)
    assert carrier.most == 2


@pytest.mark.invariant("R2")
def test_two_calls_for_the_same_that_are_answered_at_the_same_moment_count_once() -> None:
    limits = PassingLimits(lease_s=1e6, hedge_share=0.0, patience_s=1e6, call_hedge_share=1.0)
    workers = Colleagues("s0", delay_s=lambda: 1.0)
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=limits)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        workers.hold = trio.Event()
        await world.open(A, rows(1, 40))
        await trio.sleep(10.0)
        assert workers.running == 2
        workers.hold.set()
        workers.hold = None
        await world.sinks[A].wait(41)
        await world.open(A, rows(40, 41))
        await world.sinks[A].wait(81)
        assert world.engine(B).counts.running == 0

    play(world, scene)
    assert workers.done[40, 0] == 2
    assert set(world.sinks[A].told.values()) == {1}


@pytest.mark.invariant("R3")
def test_a_call_for_which_there_was_no_room_a_second_time_is_made_twice_when_there_is() -> None:
    limits = PassingLimits(lease_s=1e6, hedge_share=0.0, patience_s=1e6, call_hedge_share=1.0, window=2)
    workers = Colleagues("s0", delay_s=lambda: 1.0)
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=limits)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        workers.hold = trio.Event()
        await world.open(A, rows(2, 40))
        await trio.sleep(10.0)
        assert world.engine(B).counts.called_twice == 0
        workers.hold = None
        world.engine(A).cancel(world.pact.agreement, [rows(1, 41)[0][0]])
        await world.sinks[A].wait(42)
        assert world.engine(B).counts.called_twice == 1

    play(world, scene)


@pytest.mark.invariant("R3")
def test_tasks_that_are_opened_after_none_were_left_have_their_deadlines() -> None:
    workers = Colleagues("s0", delay_s=lambda: 0.1)
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=ALONE)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(2))
        await world.sinks[A].wait(2)
        await trio.sleep(60.0)
        world.network.cut.add(frozenset((A, B)))
        await world.open(A, rows(1, 2))
        began_s = trio.current_time()
        await world.sinks[A].wait(3)
        assert trio.current_time() - began_s == pytest.approx(3600.0, abs=5.0)
        assert world.sinks[A].ends[rows(1, 2)[0][0]].end is End.EXPIRED

    play(world, scene)


class Shut(Turns):
    """Turns that at times has nobody be asked."""

    shut = False

    def pick(self, skill: str, candidates: Sequence[str], now_s: float) -> str | None:
        return None if self.shut else super().pick(skill, candidates, now_s)


@pytest.mark.invariant("R2")
def test_a_task_that_waited_for_somebody_and_came_back_instead_is_worked_on_once() -> None:
    homes, others = Colleagues("s1", delay_s=lambda: 1.0), Colleagues("s0", delay_s=lambda: 1.0)
    routing = Shut(Random(0))
    world = MemoryWorld(
        {A: homes, B: others}, trip(("others", "home", "others"), most=1), routing=lambda me, random: routing,
        limits=replace(ALONE, lease_s=4.0),
    )  # fmt: skip
    others.offered.append("s2")
    world.offering["s2"] = [B]

    async def scene(world: MemoryWorld) -> None:
        others.hold = trio.Event()
        await world.open(A, rows(1))
        await trio.sleep(0.5)
        routing.shut = True
        world.network.cut.add(frozenset((A, B)))
        await trio.sleep(10.0)  # the lease is over, and nobody is asked anew
        world.network.cut.clear()
        others.hold.set()
        await trio.sleep(5.0)
        routing.shut = False
        await world.sinks[A].wait(1)
        assert decode_state(world.sinks[A].ends[rows(1)[0][0]].state)["turn"] == 3

    play(world, scene)
    assert homes.begun == {(0, 1): 1}
