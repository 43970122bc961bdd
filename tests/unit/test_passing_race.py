"""Calls of agents that take very long are made a second time: when, how often, and which answer counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio

from comity.errors import Busy
from comity_node.protocol.flow import read_flow
from comity_node.protocol.flow_write import write_flow
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.world import MemoryWorld
from kit.passing import A, B, Colleagues, play, rows, trip

LIMITS = PassingLimits(lease_s=1e6, hedge_share=0.0, patience_s=1e6, window=4, call_hedge_share=0.1)
SLOW_S = 100.0


def hedged(slow: int, *, limits: PassingLimits = LIMITS, pending: int = 0, fail: bool = False, **step: Any) -> Any:
    """Have B do forty quick calls, then `slow` ones that take long; returns B's agents and how long it took."""
    workers, took, counted = Colleagues("s0"), [], []
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",), **step), limits=limits)

    async def scene(world: MemoryWorld) -> None:
        workers.delay_s = lambda: 1.0
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        delays = [SLOW_S] * slow
        workers.delay_s = lambda: delays.pop() if delays else 1.0
        if fail:
            workers.fail = lambda task, turn: "no" if task >= 40 and workers.begun[task, turn] == 2 else ""
        began = trio.current_time()
        await world.open(A, rows(slow + pending, 40))
        await world.sinks[A].wait(40 + slow + pending)
        took.append(trio.current_time() - began)
        await trio.sleep(0.1)
        assert not workers.running  # nobody is at what has been answered

        counted.append(world.engine(B).counts.called_twice)

    play(world, scene)
    assert set(world.sinks[A].told.values()) == {1}
    if not fail:  # what fails is called again, too
        assert counted == [sum(times == 2 for times in workers.begun.values())]
    return workers, took[0]


def test_a_call_that_takes_long_is_made_again_and_the_first_answer_counts() -> None:
    workers, took_s = hedged(1)
    assert took_s == pytest.approx(3.0, abs=0.1)  # twice the 95th percentile, and a call
    assert workers.begun[40, 0] == 2
    assert workers.done[40, 0] == 1
    assert workers.cancelled == 1
    assert workers.running == 0


def test_only_a_share_of_the_calls_is_made_twice() -> None:
    workers, took_s = hedged(3)
    assert sum(workers.begun[task, 0] == 2 for task in range(40, 43)) == 1  # there is no more credit than one
    assert took_s >= 100.0


def test_no_call_is_made_twice_where_all_places_are_taken() -> None:
    workers, _ = hedged(4)
    assert all(workers.begun[task, 0] == 1 for task in range(40, 44))


@pytest.mark.parametrize("step", [{"hedge": False}, {"lease": "box", "release": "box"}])
def test_a_step_with_effects_or_with_a_lease_is_not_called_twice(step: dict[str, Any]) -> None:
    workers, took_s = hedged(1, **step)
    assert workers.begun[40, 0] == 1
    assert took_s >= 100.0


def test_without_a_share_nothing_is_called_twice() -> None:
    workers, _ = hedged(1, limits=replace(LIMITS, call_hedge_share=0.0))
    assert workers.begun[40, 0] == 1


def test_hedge_is_said_in_the_flow_and_written_again() -> None:
    flow = trip(("others",), hedge=False)
    assert not flow.steps["s0"].hedge
    assert trip(("others",)).steps["s0"].hedge
    assert read_flow(write_flow(flow)) == flow


def test_when_one_of_two_calls_fails_the_other_is_waited_for() -> None:
    workers, took_s = hedged(1, fail=True)
    assert workers.begun[40, 0] >= 2
    assert took_s > 3.0


class Full(Colleagues):
    """Agents that have no room for tasks from `since` on, once for each, but for so many seconds."""

    since, busy_s = 1_000_000, 50.0

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:
        task = payload["state"].get("task", 0)
        if task >= self.since and not self.begun[task, 0]:
            self.begun[task, 0] += 1
            raise Busy("no room", retry_after_ms=int(self.busy_s * 1000))
        return await super().call(skill, payload, deadline_s=deadline_s)


def test_a_call_for_which_there_is_no_room_is_made_again_later_and_not_beside() -> None:
    workers = Full("s0", delay_s=lambda: 1.0)
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=replace(LIMITS, backoff_most_s=1e3))

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        workers.since = 40
        await world.open(A, rows(2, 40))
        await trio.sleep(workers.busy_s - 1)
        assert [workers.begun[task, 0] for task in (40, 41)] == [1, 1]
        assert world.engine(B).counts.running == 2  # they keep their places
        await world.sinks[A].wait(42)

    play(world, scene)
    assert [workers.begun[task, 0] for task in (40, 41)] == [2, 2]
    assert [workers.done[task, 0] for task in (40, 41)] == [1, 1]


def test_of_two_calls_that_both_fail_the_first_error_counts() -> None:
    workers = Colleagues("s0")
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",), retries=0), limits=LIMITS)

    async def scene(world: MemoryWorld) -> None:
        workers.delay_s = lambda: 1.0
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        delays = [7.0, 9.0]  # the second one begins after 2 s, and ends after 11
        workers.delay_s = lambda: delays.pop(0)
        workers.fail = lambda task, turn: f"error after {trio.current_time() - began:.0f} s"
        began = trio.current_time()
        await world.open(A, rows(1, 40))
        await world.sinks[A].wait(41)
        assert trio.current_time() - began == pytest.approx(11.0, abs=0.2)

    play(world, scene)
    assert workers.begun[40, 0] == 2
    assert workers.running == 0
    (failed,) = [each for each in world.sinks[A].ends.values() if each.reason]
    assert "error after 7 s" in failed.reason


def test_nobody_works_for_a_call_that_is_made_twice_once_it_is_not_wanted() -> None:
    workers = Colleagues("s0")
    world = MemoryWorld({A: Colleagues(), B: workers}, trip(("others",)), limits=LIMITS)

    async def scene(world: MemoryWorld) -> None:
        workers.delay_s = lambda: 1.0
        await world.open(A, rows(40))
        await world.sinks[A].wait(40)
        workers.delay_s = lambda: SLOW_S
        await world.open(A, rows(1, 40))
        await trio.sleep(4)
        assert workers.running == world.engine(B).counts.running == 2
        world.engine(A).cancel(world.pact.agreement)
        await trio.sleep(1)
        assert workers.running == world.engine(B).counts.running == 0

    play(world, scene)
    assert workers.cancelled == 2
