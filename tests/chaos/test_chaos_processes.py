"""A fault plan with real processes: `kill -9` of the home, of a worker, and a node that is stopped for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.chaos_check import check, facts
from kit.chaos_plan import Fault, Kind, Plan
from kit.chaos_processes import play_processes

PLAN = Plan(
    1,
    records=12,
    bad=0,
    repairs=0,
    lease_s=30,
    faults=(
        Fault(Kind.KILL, 0, 600, 200),
        Fault(Kind.WORKER, 1, 900, 300),
        Fault(Kind.FREEZE, 2, 1_500, 1_000),
    ),
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
@pytest.mark.invariant("R5")
def test_killed_and_frozen_processes_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    played = play_processes(PLAN, tmp_path)
    assert played.hit == {Kind.KILL: 1, Kind.WORKER: 1, Kind.FREEZE: 1}
    assert not check(played)
    assert facts(played)["records"] == 3 * facts(played)["tasks"]["certified"]
