"""Seeded fault plans, played in one process in virtual time: nothing is lost, nothing is done twice.

`make chaos` plays a hundred of them. One that breaks something is written to a file with the command that plays it
again; once mended, it is kept in `FOUND`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.chaos_check import check
from kit.chaos_plan import Fault, Kind, On, Plan, from_json, make, shrink, to_json
from kit.chaos_run import main, try_plan
from kit.chaos_world import play

#: Plans that have broken the product, each as small as it could be made.
FOUND = {
    "a clock that was behind dated a certified record before its agreement, and nobody took it":
    '{"bad": 0, "faults": [{"amount": -90000, "at": 472, "for_ms": 250, "kind": "clock", "who": 2}],'
    ' "records": 6, "repairs": 0, "seed": 3}',
    "a clock that was set back dated a hop before the one that it follows":
    '{"bad": 0, "faults": [{"amount": 90000, "at": 1201, "for_ms": 625, "kind": "clock", "who": 2}],'
    ' "records": 2, "repairs": 0, "seed": 7}',
    "a home that was killed while a task was out gave its next hop the place of its last one":
    '{"faults": [{"at": 2891, "for_ms": 12000, "kind": "worker", "who": 3},'
    ' {"amount": 1000, "at": 2100, "for_ms": 15000, "kind": "damage", "other": 0, "who": 2},'
    ' {"amount": 1000, "at": 959, "for_ms": 300, "kind": "damage", "who": 2},'
    ' {"at": 87, "for_ms": 200, "kind": "stop", "who": 3},'
    ' {"at": 137, "for_ms": 3000, "kind": "kill", "on": "committed", "who": 0},'
    ' {"amount": 200, "at": 794, "for_ms": 36000, "kind": "damage", "other": 3, "who": 1},'
    ' {"at": 1043, "for_ms": 5000, "kind": "disk", "who": 2}, {"at": 810, "for_ms": 3000, "kind": "freeze", "who": 0}],'
    ' "flow": true, "lease_s": 10, "organizations": 4, "records": 6, "repairs": 0, "seed": 3}',
    "a clock that was behind dated votes before their agreement, and their home refused them for good":
    '{"bad": 0, "faults": [{"amount": -90000, "at": 571, "for_ms": 312, "kind": "clock", "who": 2}],'
    ' "records": 2, "repairs": 0, "seed": 14}',
}  # fmt: skip


def seed_parameters() -> list[object]:
    """Fifteen plans, of which the first three are quick enough for `make test-fast`."""
    return [pytest.param(seed, marks=[pytest.mark.slow] if seed > 3 else []) for seed in range(1, 16)]


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
@pytest.mark.invariant("R5")
@pytest.mark.invariant("S8")
@pytest.mark.parametrize("seed", seed_parameters())
def test_a_seeded_fault_plan_loses_nothing_and_does_nothing_twice(seed: int) -> None:
    trial = try_plan(make(seed))
    assert not trial.wrong, "\n".join((*trial.wrong, to_json(trial.plan), *trial.trace))
    assert sum(trial.facts["tasks"].values()) == trial.plan.organizations * trial.plan.records


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
@pytest.mark.parametrize("seed", [5, pytest.param(9, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)])
def test_a_fault_plan_loses_no_task_that_is_on_its_way(seed: int) -> None:
    trial = try_plan(make(seed, flow=True))
    assert not trial.wrong, "\n".join((*trial.wrong, to_json(trial.plan), *trial.trace))
    assert sum(trial.facts["tasks"].values()) == trial.plan.organizations * trial.plan.records


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.parametrize("what", FOUND)
def test_a_plan_that_broke_the_product_once_does_not_do_so_again(what: str) -> None:
    trial = try_plan(from_json(FOUND[what]))
    assert not trial.wrong, "\n".join(trial.wrong)


def test_the_same_plan_takes_the_same_way_each_time(tmp_path: Path) -> None:
    plan = from_json(to_json(make(5)))
    assert plan == make(5)
    first, again = (play(plan, tmp_path / name) for name in ("first", "again"))
    assert first.trace == again.trace
    assert first.hit == again.hit
    assert [(one.sender, one.receiver, one.kind) for one in first.left] == [
        (one.sender, one.receiver, one.kind) for one in again.left
    ]


def test_what_was_not_mended_in_time_is_told(tmp_path: Path) -> None:
    gone = Plan(1, records=2, faults=(Fault(Kind.KILL, 1, 400, 10_000_000),))
    wrong = check(play(gone, tmp_path, patience_s=30.0))
    assert any("not at its end after all faults were mended: nothing" in line for line in wrong), wrong


def test_a_plan_is_made_as_small_as_it_can_be() -> None:
    def breaks(plan: Plan) -> bool:
        return any(fault.kind is Kind.KILL and fault.on is On.COMMITTED for fault in plan.faults)

    plan = next(plan for plan in map(make, range(1, 200)) if breaks(plan) and len(plan.faults) > 3)
    small = shrink(plan, breaks)
    assert breaks(small)
    assert len(small.faults) == 1
    assert (small.records, small.repairs, small.bad) == (small.batch, 0, 0)
    assert small.faults[0].for_ms <= 200


def test_a_plan_that_breaks_is_written_down_with_the_command_that_plays_it_again(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    said: list[str] = []
    file.write_text(to_json(Plan(4, records=2, repairs=0, bad=0)))
    arguments = ["--plan", str(file), "--bug", "late-log", "--no-shrink", "--out", str(tmp_path / "out")]
    assert main(arguments, said.append) == 1
    kept = tmp_path / "out" / "plan-4.json"
    assert from_json(kept.read_text()) == from_json(file.read_text())
    assert any(f"--plan {kept} --bug late-log" in line for line in said)
    assert "left before that was decided" in kept.with_suffix(".txt").read_text()
    assert main(["--plan", str(kept)], said.append) == 0
