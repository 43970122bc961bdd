"""Each rule of tasks under way by itself: custody, leases, hedges, deadlines, fairness, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from comity.digest import canonical_json
from comity.errors import AgreementStopped, FlowMismatch, StorageFull, UnexpectedMessage
from comity_node.protocol.flow import begin, encode_cursor
from comity_node.protocol.token import Outcome, Token, TokenLimits, check_token, decode_state, encode_state
from comity_node.runtime.passing.codec import Bytes
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.memory import Agents
from comity_node.runtime.passing.ports import Answer, End, Held, Note, Told
from comity_node.runtime.passing.queue import FairQueue
from comity_node.runtime.passing.world import Faults, MemoryWorld, now_ms
from kit.passing import ALONE, A, B, C, Colleagues, play, rows, trip

ONE = trip(("others",))


def world_of(*agents: Colleagues, limits: PassingLimits = ALONE, flow: Any = ONE, **more: Any) -> MemoryWorld:
    return MemoryWorld(dict(zip((A, B, C), agents, strict=False)), flow, limits=limits, **more)


def token(number: int = 1, **changes: Any) -> Token:
    """A token of home A, as a peer would send it to B."""
    made = Token(
        number.to_bytes(16, "big"), b"", A, "peer", 1, 1, encode_cursor(begin(ONE, now_ms())),
        encode_state({"task": number}), (), now_ms() + 60_000,
    )  # fmt: skip
    return replace(made, **changes)


async def bring(world: MemoryWorld, *tokens: Token) -> list[str]:
    """Bring tokens of A to B; returns its answers."""
    own = [replace(each, agreement=world.pact.agreement) for each in tokens]
    return [verdict.answer.value for verdict in await world.engine(B).take(A, own)]


def at_b(limits: PassingLimits = ALONE, *, hold: bool = True) -> tuple[MemoryWorld, Colleagues]:
    """A world in which B does what A, which is down, has it do; `hold`: not yet."""
    workers = Colleagues("s0")
    world = world_of(Colleagues(), workers, limits=limits, codec=Bytes())
    if hold:
        workers.hold = trio.Event()
    return world, workers


# Custody.


@pytest.mark.invariant("R2")
def test_a_holder_says_what_a_token_is_to_it() -> None:
    world, workers = at_b()

    async def scene(world: MemoryWorld) -> None:
        assert await bring(world, token(), token()) == ["taken", "busy"]
        assert await bring(world, token()) == ["known"]
        assert await bring(world, token(attempt=2)) == ["taken"]
        assert await bring(world, token(sequence=5)) == ["stale"]
        assert await bring(world, token(attempt=2, sequence=3)) == ["taken"]
        assert await bring(world, token(2, deadline_ms=now_ms())) == ["over"]
        assert await bring(world, token(2, cursor=b"{}")) == ["refused"]
        assert await bring(world, token(2, state=b'{"task": 2}')) == ["refused"]
        assert await bring(world, token(2, state=b'{"task":"x"}')) == ["refused"]
        assert await bring(world, token(2, outcome=Outcome.DONE)) == ["refused"]
        assert [one.answer for one in await world.engine(B).take(A, [token(2)])] == [Answer.REFUSED]  # no agreement
        assert world.engine(B).counts.custody == 1
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.stores[B].held) == 1

    play(world, scene)
    assert sum(workers.begun.values()) <= 3


@pytest.mark.invariant("R4")
def test_custody_is_bounded_of_each_home_and_in_all() -> None:
    world, _ = at_b(replace(ALONE, custody=5, custody_per_home=3, retry_after_s=0.7))

    async def scene(world: MemoryWorld) -> None:
        assert await bring(world, *[token(number) for number in range(5)]) == ["taken"] * 3 + ["busy"] * 2
        others = [token(number, home=C) for number in range(5)]
        assert await bring(world, *others) == ["taken"] * 2 + ["busy"] * 3
        refused = await world.engine(B).take(A, [token(9, agreement=world.pact.agreement)])
        assert refused[0].retry_after_s == 0.7

    play(world, scene)


@pytest.mark.invariant("R1")
def test_a_token_that_cannot_be_journaled_is_not_taken() -> None:
    world, workers = at_b(hold=False)

    async def scene(world: MemoryWorld) -> None:
        def full(visits: Sequence[Held]) -> None:
            raise StorageFull("the disk is full")

        store = world.stores[B]
        store.take_now = full  # type: ignore[method-assign]
        assert await bring(world, token()) == ["busy"]
        assert world.engine(B).counts.custody == 0
        del store.take_now
        assert await bring(world, token()) == ["taken"]

    play(world, scene)
    assert sum(workers.begun.values()) <= 1


def test_so_many_last_visits_are_remembered_and_none_beyond_its_deadline() -> None:
    world, _ = at_b(replace(ALONE, seen=2), hold=True)

    async def scene(world: MemoryWorld) -> None:
        assert await bring(world, token(1), token(2), token(3)) == ["taken"] * 3
        assert await bring(world, token(3), token(2), token(1)) == ["known", "known", "taken"]
        await trio.sleep(70)
        assert world.engine(B).counts.custody == 0

    play(world, scene)


@pytest.mark.invariant("R4")
def test_only_so_many_agents_are_called_at_once_and_homes_take_turns() -> None:
    world, workers = at_b(replace(ALONE, window=2))
    workers.delay_s = lambda: 1.0

    async def scene(world: MemoryWorld) -> None:
        await bring(world, *[token(number) for number in range(100)])
        await bring(world, *[token(1000 + number, home=C) for number in range(2)])
        assert workers.hold is not None
        workers.hold.set()
        await trio.sleep(24.5)

    play(world, scene)
    assert workers.most == 2
    assert workers.done[1000, 0] == workers.done[1001, 0] == 1  # C's two did not wait for A's hundred


def test_rows_of_one_step_go_to_one_call() -> None:
    workers = Colleagues("s0")
    world = world_of(Colleagues(), workers, flow=trip(("others",), rows=4), limits=replace(ALONE, window=1))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(10))
        await world.sinks[A].wait(10)

    play(world, scene)
    assert max(workers.rows) == 4
    assert sum(workers.rows) == 10


def test_the_fair_queue_gives_each_source_its_share() -> None:
    queue: FairQueue[str] = FairQueue(quantum=4)
    for number in range(100):
        queue.put("greedy", "step", f"g{number}", rows=2)
    for number in range(8):
        queue.put("modest", "step", f"m{number}")
        queue.put("third", number % 2, f"t{number}", rows=8)
    taken: list[str] = []
    while len(taken) < 40:
        taken += queue.take()
    assert {each for each in taken if each[0] != "g"} == {f"{who}{number}" for who in "mt" for number in range(8)}
    assert [each for each in taken if each[0] == "g"] == [f"g{n}" for n in range(sum(each[0] == "g" for each in taken))]
    assert len(queue) == 116 - len(taken)
    while queue.take():
        pass
    assert len(queue) == 0


# Home.


@pytest.mark.invariant("R4")
def test_so_many_tasks_are_open_and_who_opens_more_waits() -> None:
    workers = Colleagues("s0")
    workers.hold = trio.Event()
    world = world_of(Colleagues(), workers, limits=replace(ALONE, open_tasks=5))

    async def scene(world: MemoryWorld) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.open, A, rows(12))
            await trio.testing.wait_all_tasks_blocked()
            assert world.engine(A).counts.open_tasks == len(world.stores[A].tasks) == 5
            assert workers.hold is not None
            workers.hold.set()
        await world.sinks[A].wait(12)
        assert await world.open(A, rows(12)) == 0  # none is opened twice
        assert world.engine(A).counts.open_tasks == 0

    play(world, scene)


def test_what_does_not_fit_is_not_opened() -> None:
    world = world_of(Colleagues(), Colleagues("s0"))

    async def scene(world: MemoryWorld) -> None:
        with pytest.raises(FlowMismatch):
            await world.open(A, [(bytes(16), {"task": "x"})])
        with pytest.raises(AgreementStopped):
            await world.engine(A).open(bytes(32), rows(1))
        assert world.engine(A).counts.open_tasks == 0

    play(world, scene)


@pytest.mark.invariant("R3")
def test_when_a_lease_is_over_somebody_else_takes_over_and_the_first_end_counts() -> None:
    slow, quick = Colleagues("s0", delay_s=lambda: 300.0), Colleagues("s0")
    world = world_of(Colleagues(), slow, quick, limits=PassingLimits(lease_s=8.0, hedge_share=0.0))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(4))
        await trio.sleep(0.1)
        taken = len(world.stores[B].held)
        assert 0 < taken < 4
        world.network.cut.add(frozenset((A, B)))  # B works on, and its notes do not arrive
        await trio.sleep(7.0)
        assert len(world.sinks[A].ends) == 4 - taken
        await trio.sleep(3.5)
        assert len(world.sinks[A].ends) == 4
        assert {each.attempt for each in world.sinks[A].ends.values()} == {1, 2}
        world.network.cut.clear()
        await trio.sleep(600.0)
        assert world.engine(B).counts.custody == 0

    play(world, scene)
    assert sum(quick.done.values()) == 4
    assert set(world.sinks[A].told.values()) == {1}


def test_a_holder_that_is_heard_of_keeps_its_lease() -> None:
    slow, other = Colleagues("s0", delay_s=lambda: 60.0), Colleagues("s0", delay_s=lambda: 60.0)
    world = world_of(Colleagues(), slow, other, limits=PassingLimits(lease_s=8.0, hedge_share=0.0))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(4))
        await world.sinks[A].wait(4)

    play(world, scene)
    assert {each.attempt for each in world.sinks[A].ends.values()} == {1}


def test_after_so_many_attempts_a_task_has_failed() -> None:
    world = world_of(Colleagues(), Colleagues("s0", delay_s=lambda: 1e6), limits=PassingLimits(lease_s=4.0, attempts=3))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(1))
        await trio.sleep(0.1)
        world.network.cut.add(frozenset((A, B)))
        await trio.sleep(200.0)
        (ending,) = world.sinks[A].ends.values()
        assert (ending.end, ending.attempt) == (End.FAILED, 3)
        assert "3 attempts" in ending.reason

    play(world, scene)


def hedging(slow: int, *, all_after: bool, flow: Any = ONE) -> tuple[MemoryWorld, list[Colleagues]]:
    """A world in which the hundredth call, and `slow` or all after it, take for ever; the ones before half a second."""
    calls = iter(range(1000))
    workers = [Colleagues("s0"), Colleagues("s0")]
    limits = replace(ALONE, hedge_factor=3.0, hedge_least_s=2.0, hedge_share=0.25, window=200)
    for each in workers:
        each.delay_s = lambda: 1000.0 if (at := next(calls)) >= 100 and (all_after or at < 100 + slow) else 0.5
    return world_of(Colleagues(), *workers, limits=limits, flow=flow), workers


@pytest.mark.invariant("R3")
def test_a_straggler_is_hedged_and_the_slower_one_is_told_to_stop() -> None:
    world, workers = hedging(5, all_after=False)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(100))
        await world.sinks[A].wait(100)
        await world.open(A, rows(20, 100))
        await trio.sleep(1.9)
        assert len(world.sinks[A].ends) == 115
        await world.sinks[A].wait(116)
        assert trio.current_time() < 6.0

    play(world, scene)
    hedged = [each for each in world.sinks[A].ends.values() if each.attempt == 2]
    assert len(hedged) >= 1
    assert workers[0].cancelled + workers[1].cancelled >= len(hedged)


@pytest.mark.parametrize("hedge", [True, False])
def test_a_task_of_a_flow_with_effects_is_not_given_away_twice(hedge: bool) -> None:
    world, workers = hedging(5, all_after=False, flow=trip(("others",), hedge=hedge))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(100))
        await world.sinks[A].wait(100)
        await world.open(A, rows(20, 100))
        await trio.sleep(30.0)

    play(world, scene)
    asked = sum(sum(worker.done.values()) + worker.cancelled for worker in workers)
    assert (asked > 120) is hedge
    assert (len(world.sinks[A].ends) > 115) is hedge


@pytest.mark.invariant("R4")
def test_only_a_share_of_all_is_hedged() -> None:
    world, _ = hedging(0, all_after=True)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(100))
        await world.sinks[A].wait(100)
        await world.open(A, rows(20, 100))
        await trio.sleep(30.0)
        assert world.engine(B).counts.custody + world.engine(C).counts.custody == 25

    play(world, scene)


def test_every_holder_drops_at_the_deadline_and_the_home_ends_it() -> None:
    slow = Colleagues("s0", delay_s=lambda: 1e6)
    world = world_of(Colleagues(), slow, limits=replace(ALONE, agent_s=1e6))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(3))
        await trio.sleep(0.1)
        world.network.cut.add(frozenset((A, B)))
        await trio.sleep(3602.0)
        assert {each.end for each in world.sinks[A].ends.values()} == {End.EXPIRED}
        assert not world.stores[B].held
        assert world.engine(B).counts.custody == world.engine(B).counts.running == 0

    play(world, scene)


def test_an_agent_has_only_so_long() -> None:
    slow = Colleagues("s0", delay_s=lambda: 1000.0)
    world = world_of(Colleagues(), slow, limits=replace(ALONE, agent_s=2.0), flow=trip(("others",), retries=1))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(1))
        await world.sinks[A].wait(1)
        assert trio.current_time() < 6.0
        (ending,) = world.sinks[A].ends.values()
        assert ending.end is End.FAILED
        assert "too slow" in ending.reason

    play(world, scene)
    assert sum(slow.begun.values()) == 2  # as often as the flow says


def test_a_cancelled_task_ends_and_its_holder_stops() -> None:
    slow = Colleagues("s0", delay_s=lambda: 1e6)
    world = world_of(Colleagues(), slow)

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(5))
        await trio.sleep(0.1)
        world.engine(B).told(C, [Note(Told.CANCEL, A, task_id, 9) for task_id, _ in rows(5)])  # not C's to cancel
        assert world.engine(B).counts.custody == 5
        assert world.engine(A).cancel(world.pact.agreement, [rows(1)[0][0], bytes(15) + b"\xff"]) == 1
        await trio.sleep(0.1)
        assert (world.engine(B).counts.custody, slow.cancelled) == (4, 1)
        assert world.engine(A).cancel(world.pact.agreement, reason="it is over") == 4
        await world.sinks[A].wait(5)
        await trio.sleep(0.1)
        assert (world.engine(B).counts.custody, slow.cancelled) == (0, 5)
        assert not world.stores[B].held
        assert {each.end for each in world.sinks[A].ends.values()} == {End.CANCELLED}

    play(world, scene)


# Refusals, and nobody to do it.


def test_whom_the_policy_refuses_is_not_asked_again_and_when_all_are_the_task_fails() -> None:
    workers = Colleagues("s0")
    denied = {B}
    world = world_of(
        Colleagues(),
        Colleagues("s0"),
        workers,
        denied=lambda to, role, token: "no rule lets it" if to in denied else "",
    )

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(6))
        await world.sinks[A].wait(6)
        assert {each.end for each in world.sinks[A].ends.values()} == {End.DONE}
        denied.add(C)
        await world.open(A, rows(1, 6))
        await world.sinks[A].wait(7)
        last = world.sinks[A].ends[rows(1, 6)[0][0]]
        assert (last.end, last.reason) == (End.FAILED, "nobody takes it: no rule lets it")

    play(world, scene)
    assert sum(workers.done.values()) == 6


def test_a_token_that_nobody_here_does_goes_back_and_to_somebody_else() -> None:
    gone, workers = Colleagues("s0"), Colleagues("s0")
    world = world_of(Colleagues(), gone, workers)
    gone.offered.clear()  # its worker is gone, and others have not heard of it

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(6))
        await world.sinks[A].wait(6)
        assert trio.current_time() < 1.0

    play(world, scene)
    assert sum(workers.done.values()) == 6


def test_a_token_that_nobody_at_all_does_waits_for_a_worker() -> None:
    gone = Colleagues("s0")
    world = world_of(Colleagues(), gone)
    gone.offered.clear()

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(2))
        await trio.sleep(30.0)
        assert world.engine(B).counts.custody == 2
        gone.offered.append("s0")
        world.engine(B).workers_changed()
        await trio.sleep(0.1)
        assert len(world.sinks[A].ends) == 2

    play(world, scene)


@pytest.mark.invariant("R3")
def test_who_cannot_be_reached_or_is_busy_holds_nothing_up_for_long() -> None:
    workers = Colleagues("s0")
    world = world_of(Colleagues(), Colleagues("s0"), workers, limits=replace(ALONE, patience_s=2.0))

    async def scene(world: MemoryWorld) -> None:
        world.network.cut.add(frozenset((A, B)))
        await world.open(A, rows(8))
        await trio.sleep(0.5)
        assert 0 < len(world.sinks[A].ends) < 8
        await trio.sleep(5.0)
        assert len(world.sinks[A].ends) == 8

    play(world, scene)
    assert sum(workers.done.values()) == 8


def test_pauses_between_deliveries_grow_and_are_bounded() -> None:
    world = world_of(Colleagues(), Colleagues("s0"), limits=replace(ALONE, backoff_s=1.0, backoff_most_s=10.0, lanes=1))
    tries: list[float] = []
    reach = world.network.reach

    def counted(sender: str, to: str) -> Any:
        tries.append(trio.current_time())
        return reach(sender, to)

    world.network.reach = counted  # type: ignore[method-assign]

    async def scene(world: MemoryWorld) -> None:
        world.network.cut.add(frozenset((A, B)))
        await world.open(A, rows(1))
        await trio.sleep(300.0)
        pauses = [after - before for before, after in pairwise(tries)]
        assert 20 <= len(pauses) <= 70
        assert all(0.5 <= pause <= 15.0 for pause in pauses), pauses
        assert max(pauses[:2]) < 3.5
        world.network.cut.clear()
        await world.sinks[A].wait(1)
        assert trio.current_time() < 320.0

    play(world, scene)


def test_deliveries_have_so_many_tokens_and_so_many_are_under_way() -> None:
    workers = Colleagues("s0")
    world = world_of(
        Colleagues(), workers, limits=replace(ALONE, batch=10, lanes=3), faults=Faults(delay_s=1.0, timeout_s=60.0)
    )
    sizes: list[int] = []
    deliver, at_once = world.network.deliver, [0, 0]

    async def measured(sender: str, to: str, tokens: Sequence[Token]) -> Any:
        sizes.append(len(tokens))
        at_once[0] += to == B
        at_once[1] = max(at_once)
        try:
            return await deliver(sender, to, tokens)
        finally:
            at_once[0] -= to == B

    world.network.deliver = measured  # type: ignore[method-assign]

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(100))
        await world.sinks[A].wait(100)

    play(world, scene)
    assert max(sizes) == 10
    assert at_once[1] == 3


@pytest.mark.invariant("R1")
def test_a_token_that_finds_its_receiver_busy_stays_in_the_journal() -> None:
    workers = Colleagues("s0")
    workers.hold = trio.Event()
    world = world_of(Colleagues(), workers, limits=replace(ALONE, custody=1), faults=Faults())

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(3))
        await trio.sleep(1.0)
        assert len(world.stores[B].held) == 1
        assert len(world.stores[A].outgoing) == 2
        world.crash(A)
        await world.restart(A)
        assert workers.hold is not None
        workers.hold.set()
        await world.sinks[A].wait(3)

    play(world, scene)
    assert {each.attempt for each in world.sinks[A].ends.values()} == {1}


# What comes back wrong.


def test_a_holder_that_sends_back_what_does_not_fit_is_not_believed() -> None:
    workers, other = Colleagues("s0"), Colleagues("s0")
    workers.hold = trio.Event()
    flow = trip(("others", "home"))
    world = MemoryWorld(
        {A: Colleagues("s1"), B: workers, C: other}, flow, limits=replace(ALONE, attempts=5), codec=Bytes()
    )

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(2))
        await trio.sleep(0.1)
        (held,) = world.stores[B].held.values()
        assert [each.end for each in world.sinks[A].ends.values()] == [End.DONE]
        back = replace(held.token, sequence=held.token.sequence + 1, outcome=Outcome.DONE)
        assert await self_answer(world, replace(back, attempt=2)) == "refused"
        assert await self_answer(world, replace(back, task_id=bytes(15) + b"\xaa")) == "over"
        assert await self_answer(world, replace(back, sequence=1, outcome=Outcome.UNDER_WAY)) == "known"
        assert await self_answer(world, back) == "refused"  # no way leads from s0 to the end
        await world.sinks[A].wait(2)

    async def self_answer(world: MemoryWorld, back: Token) -> str:
        (verdict,) = await world.engine(A).take(B, [back])
        return verdict.answer.value

    play(world, scene)
    assert {each.end for each in world.sinks[A].ends.values()} == {End.DONE}
    assert sum(other.done.values()) == 2


# Tokens.


def test_a_token_beyond_its_bounds_is_not_read() -> None:
    made = Token(bytes(16), bytes(32), A, "peer", 1, 0, b"{}", b"{}", (b"hop",), 1)
    check_token(made)
    bad: list[dict[str, Any]] = [
        {"task_id": bytes(15)}, {"agreement": bytes(31)}, {"home": "no name!"}, {"home_peer": ""}, {"attempt": 0},
        {"sequence": -1}, {"deadline_ms": 0},
    ]  # fmt: skip
    for changes in bad:
        with pytest.raises(UnexpectedMessage):
            check_token(replace(made, **changes))


@pytest.mark.parametrize(
    ("limit", "changes"),
    [
        ("peer_chars", {"home_peer": "x" * 11}),
        ("attempt", {"attempt": 11}),
        ("sequence", {"sequence": 11}),
        ("cursor_bytes", {"cursor": b"x" * 11}),
        ("state_bytes", {"state": b"x" * 11}),
        ("hops", {"hops": (b"",) * 11}),
        ("hop_bytes", {"hops": (b"x" * 11,)}),
        ("reason_chars", {"reason": "x" * 11}),
    ],
)
def test_each_bound_of_a_token_holds(limit: str, changes: dict[str, Any]) -> None:
    made = replace(Token(bytes(16), bytes(32), A, "peer", 1, 0, b"{}", b"{}", (b"hop",), 1), **changes)
    check_token(made)
    with pytest.raises(UnexpectedMessage):
        check_token(made, replace(TokenLimits(), **{limit: 10}))


def test_states_are_canonical_however_they_are_written() -> None:
    random = Random(1)
    values: list[Any] = [0.5, 1e-7, 3.0, -0.0, "ü\n\x07\u2028", True, None, [1, {"b": [0.1], "a": 2}], 1 << 52]
    values += [random.uniform(-1, 1) * 10 ** random.randrange(-9, 15) for _ in range(200)]
    for value in values:
        state = {"b": value, "a": 1}
        assert encode_state(state) == canonical_json(state)
        assert decode_state(encode_state(state)) == state
    assert encode_state({"é": 1, "\U0001f600": 2, "\ufb33": 3}) == canonical_json(
        {"é": 1, "\U0001f600": 2, "\ufb33": 3}
    )
    for data in (b'{"a":1,"a":2}', b'{"a": 1}', b"[]", b'{"a":NaN}', b"{", b'{"a":1.0}', b"\xff", b"[" * 5000):
        with pytest.raises(UnexpectedMessage):
            decode_state(data)


def test_agents_that_answer_at_once_leave_the_loop_its_turn() -> None:
    world = MemoryWorld(
        {A: Agents({}), B: Agents({"s0": lambda work: {"state": {"turn": 1}}})}, ONE, limits=PassingLimits()
    )

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(1000))
        await world.sinks[A].wait(1000)

    play(world, scene)
    assert {each.end for each in world.sinks[A].ends.values()} == {End.DONE}
