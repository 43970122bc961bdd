"""Tasks under way among peers that lie, flood or vanish, and a store that fails at a bad moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from comity.errors import StorageFull
from comity_node.protocol.flow import begin, encode_cursor
from comity_node.protocol.token import Token, encode_state
from comity_node.runtime.passing.codec import Bytes
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import Answer, End, Move, Note, Told
from comity_node.runtime.passing.queue import FairQueue
from comity_node.runtime.passing.world import MemoryWorld, now_ms
from kit.passing import ALONE, A, B, C, Colleagues, play, rows, trip

ONE = trip(("others",))


def a_token(world: MemoryWorld, number: int) -> Token:
    """A token of home A for B."""
    return Token(
        number.to_bytes(16, "big"), world.pact.agreement, A, "peer", 1, 1, encode_cursor(begin(ONE, now_ms())),
        encode_state({"task": number}), (), now_ms() + 600_000,
    )  # fmt: skip


@pytest.mark.invariant("R4")
def test_what_a_home_sends_and_cancels_again_and_again_does_not_pile_up_before_the_agents() -> None:
    workers = Colleagues("s0")
    world = MemoryWorld({A: Colleagues(), B: workers}, ONE, limits=replace(ALONE, window=1), codec=Bytes())
    most = 0

    async def scene(world: MemoryWorld) -> None:
        nonlocal most
        workers.hold = trio.Event()
        engine = world.engine(B)
        await engine.take(A, [a_token(world, 1)])
        await trio.testing.wait_all_tasks_blocked()
        for first in range(2, 6_002, 200):
            tokens = [a_token(world, number) for number in range(first, first + 200)]
            await engine.take(A, tokens)
            engine.told(A, [Note(Told.CANCEL, A, token.task_id, 1) for token in tokens])
            most = max(most, engine.counts.waiting)
        assert engine.counts.custody == 1

    play(world, scene)
    assert most < 3_000


@pytest.mark.invariant("R4")
def test_what_a_home_cancels_and_does_not_take_back_does_not_pile_up_before_its_door() -> None:
    world = MemoryWorld({A: Colleagues(), B: Colleagues("s0")}, ONE, limits=ALONE, codec=Bytes())
    most = 0

    async def scene(world: MemoryWorld) -> None:
        nonlocal most
        world.network.cut.add(frozenset((A, B)))
        engine = world.engine(B)
        for first in range(1, 6_001, 200):
            tokens = [a_token(world, number) for number in range(first, first + 200)]
            await engine.take(A, tokens)
            await trio.testing.wait_all_tasks_blocked()
            assert engine.counts.outgoing == 200
            engine.told(A, [Note(Told.CANCEL, A, token.task_id, 1) for token in tokens])
            most = max(most, engine._lanes.backlog(A))
        assert engine.counts.custody == engine.counts.outgoing == 0

    play(world, scene)
    assert most < 3_000


def test_what_is_no_longer_wanted_leaves_the_fair_queue_and_the_rest_keeps_its_turns() -> None:
    queue: FairQueue[int] = FairQueue(quantum=2)
    for number in range(12):
        queue.put(number % 3, number % 2, number, rows=2)
    queue.keep(lambda number: number % 3 != 1 and number < 9)
    assert len(queue) == 6
    taken = []
    while batch := queue.take():
        taken.append(batch)
    assert sorted(number for batch in taken for number in batch) == [0, 2, 3, 5, 6, 8]
    assert not len(queue)
    queue.put(1, 1, 13)
    assert queue.take() == [13]


@pytest.mark.invariant("R3")
def test_a_task_whose_return_cannot_be_journaled_is_sent_out_again_if_who_brought_it_is_gone() -> None:
    """The home answers `busy`: the task is still with who brought it, and its lease runs."""
    flow = trip(("others", "home"))
    limits = PassingLimits(lease_s=5.0, hedge_share=0.0)
    world = MemoryWorld({A: Colleagues("s1"), B: Colleagues("s0"), C: Colleagues("s0")}, flow, limits=limits)

    async def scene(world: MemoryWorld) -> None:
        store = world.stores[A]

        def full(tokens: Sequence[Token]) -> None:
            world.crash(B)  # and never comes back
            del store.checkpoint_now
            raise StorageFull("the disk is full")

        store.checkpoint_now = full  # type: ignore[method-assign]
        world.offering["s0"] = [B]
        await world.open(A, rows(1))
        await trio.sleep(0.5)
        assert B not in world.network.engines
        world.offering["s0"] = [B, C]
        with trio.fail_after(60.0):
            await world.sinks[A].wait(1)

    play(world, scene)
    assert [each.end for each in world.sinks[A].ends.values()] == [End.DONE]


@pytest.mark.invariant("R1")
@pytest.mark.parametrize("steps", [("others",), ("others", "home")])
def test_a_return_that_is_broken_off_while_it_is_journaled_is_not_lost(steps: tuple[str, ...]) -> None:
    """The link goes down under the home's hands: the end is journaled and told all the same."""
    workers = Colleagues("s0")
    world = MemoryWorld(
        {A: Colleagues("s1"), B: workers}, trip(steps), limits=PassingLimits(lease_s=5.0, hedge_share=0.0)
    )

    async def scene(world: MemoryWorld) -> None:
        ledger = world.engine(A)._ports.ledger
        end, checkpoint = ledger.end, ledger.checkpoint
        scope = trio.CancelScope()

        async def hangs(_: Any) -> None:
            ledger.end, ledger.checkpoint = end, checkpoint  # type: ignore[method-assign]
            scope.cancel()
            await trio.lowlevel.checkpoint()

        workers.hold = trio.Event()
        await world.open(A, rows(1))
        await trio.sleep(0.1)
        (held,) = world.stores[B].held.values()
        visit = world.engine(B)._holder._visits[A, held.token.task_id]
        workers.hold.set()
        world.network.cut.add(frozenset((A, B)))
        await trio.sleep(0.1)
        (row,) = world.stores[B].outgoing.values()
        assert visit.token.task_id == row.token.task_id
        ledger.end = hangs  # type: ignore[assignment,method-assign]
        ledger.checkpoint = hangs  # type: ignore[assignment,method-assign]
        with scope:
            await world.engine(A).take(B, [row.token])
        assert scope.cancelled_caught
        world.network.cut.clear()
        with trio.fail_after(60.0):
            await world.sinks[A].wait(1)
        await trio.sleep(30.0)
        assert world.engine(A).counts.open_tasks == 0
        assert not world.stores[B].outgoing

    play(world, scene)
    assert [each.end for each in world.sinks[A].ends.values()] == [End.DONE]


@pytest.mark.invariant("R1")
def test_tasks_whose_opening_is_broken_off_are_open_or_are_not_in_the_ledger() -> None:
    world = MemoryWorld({A: Colleagues(), B: Colleagues("s0")}, ONE, limits=ALONE)

    async def scene(world: MemoryWorld) -> None:
        ledger = world.engine(A)._ports.ledger
        opened = ledger.open
        scope = trio.CancelScope()

        async def slow(tokens: Sequence[Token]) -> Sequence[bool]:
            fresh = await opened(tokens)
            scope.cancel()
            await trio.lowlevel.checkpoint()
            return fresh

        ledger.open = slow  # type: ignore[method-assign]
        with scope:
            await world.open(A, rows(3))
        ledger.open = opened  # type: ignore[method-assign]
        await world.open(A, rows(3))
        with trio.fail_after(60.0):
            await world.sinks[A].wait(3)

    play(world, scene)


@pytest.mark.invariant("R1")
def test_an_attempt_that_is_overtaken_before_it_left_does_not_set_its_checkpoint_back() -> None:
    """A hedge waits for the journal while the first attempt comes back: it is not journaled after that."""
    flow = trip(("others", "home"))
    slow = Colleagues("s1")
    first, second = Colleagues("s0"), Colleagues("s0")
    world = MemoryWorld({A: slow, B: first, C: second}, flow, limits=replace(ALONE, attempts=99))

    async def scene(world: MemoryWorld) -> None:
        slow.hold, first.hold, second.hold = trio.Event(), trio.Event(), trio.Event()
        world.offering["s0"] = [B]
        await world.open(A, rows(1))
        await trio.sleep(0.1)
        (task,) = world.engine(A)._keeper._tasks.values()
        engine, store = world.engine(A), world.stores[A]
        journal = engine._ports.journal
        written = journal.finish
        door = trio.Event()

        async def later(moves: Sequence[Move]) -> None:
            journal.finish = written  # type: ignore[method-assign]
            await door.wait()

        journal.finish = later  # type: ignore[method-assign]
        engine._desk.put(Move(None, None))  # a transaction is under way
        await trio.testing.wait_all_tasks_blocked()
        world.offering["s0"] = [B, C]
        engine._keeper._hedge(task)
        assert set(task.outs) == {1, 2}
        first.hold.set()
        await trio.sleep(0.1)
        assert store.tasks[task.token.task_id].token.sequence == 2
        door.set()
        await trio.sleep(0.1)
        assert store.tasks[task.token.task_id].token.sequence == 2
        assert not store.outgoing
        assert not second.begun

    play(world, scene)


@pytest.mark.invariant("R3")
def test_a_holder_that_says_for_ever_that_it_holds_a_task_keeps_it_until_the_deadline_at_most() -> None:
    world = MemoryWorld(
        {A: Colleagues(), B: Colleagues("s0", delay_s=lambda: 1e9)}, ONE, limits=replace(ALONE, agent_s=1e9)
    )

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(1))
        for _ in range(400):
            await trio.sleep(10.0)
            world.engine(A).told(B, [Note(Told.HOLDING, A, rows(1)[0][0], 1)])
        assert [each.end for each in world.sinks[A].ends.values()] == [End.EXPIRED]
        assert world.engine(B).counts.custody == 0

    play(world, scene)


@pytest.mark.invariant("R2")
def test_what_comes_back_twice_at_once_counts_once() -> None:
    """The second copy comes while the first is being journaled."""
    flow = trip(("others", "home"))
    workers = Colleagues("s1")
    world = MemoryWorld({A: workers, B: Colleagues("s0")}, flow, limits=ALONE)

    async def scene(world: MemoryWorld) -> None:
        world.network.cut.add(frozenset((A, B)))
        await world.open(A, rows(1))
        await trio.testing.wait_all_tasks_blocked()
        world.network.cut.clear()
        ledger = world.engine(A)._ports.ledger
        checkpoint = ledger.checkpoint
        again: list[Answer] = []

        async def twice(tokens: Sequence[Token]) -> None:
            ledger.checkpoint = checkpoint  # type: ignore[method-assign]
            again.append((await world.engine(A).take(B, tokens))[0].answer)
            await checkpoint(tokens)

        ledger.checkpoint = twice  # type: ignore[method-assign]
        await world.sinks[A].wait(1)
        assert again == [Answer.BUSY]

    play(world, scene)
    assert set(workers.begun.values()) == {1}


@pytest.mark.invariant("R2")
def test_what_was_done_before_a_restart_is_not_taken_again_after_it() -> None:
    workers = Colleagues("s0")
    world = MemoryWorld({A: Colleagues(), B: workers}, ONE, limits=ALONE, codec=Bytes())

    async def scene(world: MemoryWorld) -> None:
        copy = a_token(world, 1)
        (first,) = await world.engine(B).take(A, [replace(copy, attempt=2)])
        await trio.sleep(1.0)
        world.crash(B)
        await world.restart(B)
        assert not world.stores[B].held
        answers = [one.answer for one in await world.engine(B).take(A, [replace(copy, attempt=2), copy])]
        assert (first.answer, answers) == (Answer.TAKEN, [Answer.KNOWN, Answer.STALE])

    play(world, scene)
    assert sum(workers.begun.values()) == 1


@pytest.mark.invariant("R2")
def test_an_attempt_that_was_never_sent_out_ends_nothing() -> None:
    workers = Colleagues("s0")
    world = MemoryWorld({A: Colleagues(), B: workers}, ONE, limits=ALONE, codec=Bytes())

    async def scene(world: MemoryWorld) -> None:
        world.network.cut.add(frozenset((A, B)))
        await world.open(A, rows(1))
        await trio.testing.wait_all_tasks_blocked()
        (out,) = world.stores[A].outgoing.values()
        await world.engine(B).take(A, [out.token])
        await trio.sleep(1.0)
        (back,) = [row.token for row in world.stores[B].outgoing.values()]
        (verdict,) = await world.engine(A).take(B, [replace(back, attempt=back.attempt + 1)])
        assert verdict.answer is Answer.REFUSED
        assert not world.stores[A].ends
        (verdict,) = await world.engine(A).take(B, [back])
        assert verdict.answer is Answer.TAKEN
        await world.sinks[A].wait(1)

    play(world, scene)


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("told", [True, False])
def test_notes_renew_a_lease_and_nothing_else_does(told: bool) -> None:
    """Without notes, the second attempt begins when the lease is over; with them, it never does."""
    world = MemoryWorld(
        {A: Colleagues(), B: Colleagues("s0", delay_s=lambda: 50.0)}, ONE,
        limits=PassingLimits(lease_s=8.0, hedge_share=0.0),
    )  # fmt: skip

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(1))
        await trio.sleep(0.1)
        world.network.cut.add(frozenset((A, B)))
        for _ in range(20):
            await trio.sleep(1.0)
            if told:
                world.engine(A).told(B, [Note(Told.HOLDING, A, rows(1)[0][0], 1)])
                world.engine(A).told(B, [Note(Told.HOLDING, A, rows(1)[0][0], 7)])  # of no attempt that is out
        assert (world.engine(A)._keeper.taken_over > 0) is not told

    play(world, scene)


@pytest.mark.invariant("R3")
def test_a_holder_whose_agents_are_not_back_yet_does_not_make_a_task_fail() -> None:
    """After a restart its agents connect later: until then it is busy, which is no refusal for good."""
    world = MemoryWorld({A: Colleagues(), B: Colleagues("s0")}, ONE, limits=PassingLimits(), codec=Bytes())

    async def scene(world: MemoryWorld) -> None:
        world.offering["s0"] = []
        (verdict,) = await world.engine(B).take(A, [a_token(world, 1)])
        assert (verdict.answer, verdict.retry_after_s) == (Answer.BUSY, 1.0)
        world.offering["s0"] = [B]
        (verdict,) = await world.engine(B).take(A, [a_token(world, 1)])
        assert verdict.answer is Answer.TAKEN

    play(world, scene)
