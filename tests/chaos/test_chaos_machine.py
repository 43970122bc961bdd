"""A state machine over a world of three organizations: hypothesis chooses what goes wrong, step by step.

What breaks something comes out as the fewest steps that do. Between the steps journals only grow: what has ended stays
as it ended, and what has been acknowledged stays there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kit.chaos_check import FINAL, check
from kit.chaos_plan import ALL, Fault, Kind, Plan
from kit.chaos_steps import Stepped
from kit.chaos_world import World

WHO = st.integers(0, 2)
MILLISECONDS = st.sampled_from((50, 500, 4_000))


async def _states(world: World) -> dict[str, dict[bytes, str]]:
    up = [member for member in world.by_number if member.alive]
    return {member.name: dict(member.rows("SELECT task_id, state FROM tasks")) for member in up}


class Organizations(RuleBasedStateMachine):
    """Three organizations at work."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="comity-machine-"))
        self.world: Stepped | None = None
        self.ended: dict[tuple[str, bytes], str] = {}

    @initialize(seed=st.integers(0, 5), bad=st.sampled_from((0, 50)))
    def begin(self, seed: int, bad: int) -> None:
        self.world = Stepped(Plan(seed, records=2, bad=bad), self.directory)

    def _happen(self, fault: Fault) -> None:
        async def happen(world: World) -> None:
            world.happen(fault)
            await trio.sleep(0.001)

        assert self.world is not None
        self.world.step(happen)

    @rule(milliseconds=MILLISECONDS)
    def time_passes(self, milliseconds: int) -> None:
        async def wait(world: World) -> None:
            await trio.sleep(milliseconds / 1000)

        assert self.world is not None
        self.world.step(wait)

    @rule(
        who=WHO, kind=st.sampled_from((Kind.KILL, Kind.STOP, Kind.FREEZE, Kind.WORKER, Kind.DISK)), for_ms=MILLISECONDS
    )
    def something_happens_to_one(self, who: int, kind: Kind, for_ms: int) -> None:
        self._happen(Fault(kind, who, 0, for_ms))

    @rule(who=WHO, other=st.sampled_from((ALL, 0, 1, 2)), for_ms=MILLISECONDS)
    def a_link_is_silent(self, who: int, other: int, for_ms: int) -> None:
        if who != other:
            self._happen(Fault(Kind.PARTITION, who, 0, for_ms, other=other))

    @rule(who=WHO, amount=st.sampled_from((-20_000, -1_000, 1_000, 20_000)), for_ms=MILLISECONDS)
    def a_clock_is_off(self, who: int, amount: int, for_ms: int) -> None:
        self._happen(Fault(Kind.CLOCK, who, 0, for_ms, amount=amount))

    @precondition(lambda self: self.world is not None)
    @invariant()
    def what_has_ended_stays_as_it_ended(self) -> None:
        assert self.world is not None
        for name, states in self.world.step(_states).items():
            for (of, task), state in self.ended.items():
                assert of != name or states.get(task) == state
            self.ended |= {(name, task): state for task, state in states.items() if state in FINAL}

    def teardown(self) -> None:
        try:
            if self.world is not None:
                wrong = check(self.world.end())
                assert not wrong, "\n".join(wrong)
        finally:
            if self.world is not None:
                self.world.close()
            shutil.rmtree(self.directory, ignore_errors=True)


def test_whatever_happens_in_whatever_order_nothing_is_lost_or_done_twice() -> None:
    run_state_machine_as_test(
        Organizations,
        settings=settings(
            max_examples=6, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck), database=None
        ),
    )
