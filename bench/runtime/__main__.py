"""`make bench-runtime`: rows that find their own way beside orchestrators, brokers and barriers.

The grid (`bench/runtime/grid.py`) was chosen after first looks on a busy machine and fixed before the published run;
every case that runs is published. The default takes about an hour on two cores, `--full` hours, `--quick` seconds;
what was broken off goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.common import OUT, table
from bench.runtime import ceiling, ceiling_full, grid, inflight, page, result, runner
from bench.runtime.arms import MAKERS
from bench.runtime.client import BackendProcess
from bench.runtime.grid import Case
from bench.runtime.journal import GridJournal
from bench.runtime.runner import Arm

_QUICK_SCALE: Final = 0.05
_FULL_TURNS: Final = 10
PARTS: Final = ("grid", "ceiling", "inflight")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        cases: of the grid.
        arms: which.
        repeats: of each case.
        rows: of each workload.
        parts: of the benchmark.
        scale: of the other parts: how much smaller than usual they are.
        resume: whether the cases that an earlier run of the same grid has done are taken from it.
    """

    cases: tuple[Case, ...] = grid.DEFAULT
    arms: tuple[str, ...] = grid.ARMS
    repeats: int = grid.REPEATS
    rows: dict[str, int] = field(default_factory=lambda: dict(grid.ROWS))
    parts: tuple[str, ...] = PARTS
    scale: float = 1.0
    resume: bool = False


def run_ceiling(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure how many hops a second there are at most; return that part of the result."""
    repeats = 3 if plan.scale == 1 else 1
    cells = ceiling.memory_cells(repeats, plan.scale)
    if "comity-full" in plan.arms:
        tasks, turns = max(50, int(ceiling.MANY * plan.scale)), max(4, int(2 * _FULL_TURNS * plan.scale))
        cells += ceiling_full.full_cells(repeats, tasks, turns, say)
        cells += ceiling_full.node_cells(repeats, tasks, turns, say)
    cells += ceiling.ray_cells(3.0 * plan.scale, repeats, say)
    ratios = ceiling.ratios(cells)
    say(table(cells, ratios))
    return result.of_cells(cells, ratios)


def run_inflight(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Have many tasks in flight; return that part of the result."""
    arms = dict(inflight.ARMS)
    if "comity-full" not in plan.arms:
        arms.pop(ceiling_full.FULL)
    cells = inflight.cells(int(inflight.TASKS * plan.scale), arms)
    say(table(cells))
    return result.of_cells(cells)


def run_grid(plan: Plan, say: Callable[[str], None], out: Path = OUT) -> dict[str, Any]:
    """Run the grid; return its part of the result. Each case is in the journal in `out` once it is done."""
    fixed = grid.digest(plan.cases, plan.rows, plan.repeats)
    done = GridJournal(out, fixed, plan.arms, resume=plan.resume)
    found: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="comity-bench-") as name, ExitStack() as stack:
        backend = stack.enter_context(BackendProcess(Path(name)))
        arms = {arm: stack.enter_context(MAKERS[arm]()) for arm in plan.arms}
        warm = {work: max(1, count // 8) for work, count in plan.rows.items()}
        for case in grid.QUICK:  # once each, to warm up
            runner.run_case(case, arms, backend, 1, warm)
        gc.freeze()
        for at, case in enumerate(plan.cases, 1):
            known = done.get(case.name)
            say(f"[{at}/{len(plan.cases)}] {case.name}" + (": done before" if known else ""))
            found.append(known or _run_case(case, plan, arms, backend, say))
            if known is None:
                done.add(found[-1])
        gc.unfreeze()
    return result.of_grid(found, fixed)


def _run_case(
    case: Case, plan: Plan, arms: Mapping[str, Arm], backend: BackendProcess, say: Callable[[str], None]
) -> dict[str, Any]:
    said = runner.modelled(case, plan.repeats, plan.rows)
    runs, failed = runner.run_case(case, arms, backend, plan.repeats, plan.rows)
    for arm, why in failed.items():
        say(f"FAILED {case.name}, {arm}: {why}")
    compared = runner.compare(case, runs, said)
    say(runner.table(case, runs, said, compared))
    return result.of_case(case.name, runner.cells(case, runs), compared, said, failed)


def run(plan: Plan, say: Callable[[str], None], out: Path = OUT) -> dict[str, Any]:
    """Run the parts; return the content of the result's file."""
    load = os.getloadavg()[0]
    say(f"load before: {load:.2f} on {os.cpu_count()} processors")
    parts: list[dict[str, Any]] = [result.of_cells([], load=load)]
    if "grid" in plan.parts:
        parts.append(run_grid(plan, say, out))
    if "ceiling" in plan.parts:
        parts.append(run_ceiling(plan, say))
    if "inflight" in plan.parts:
        parts.append(run_inflight(plan, say))
    return result.joined(parts)


def plan_of(chosen: argparse.Namespace) -> Plan:
    """Return the plan that the command line asks for."""
    cases, rows = grid.DEFAULT, dict(grid.ROWS)
    repeats, scale = grid.REPEATS, 1.0
    if chosen.full:
        cases = grid.FULL
    if chosen.quick:
        cases, repeats, scale = grid.QUICK, 2, _QUICK_SCALE
        rows = {work: count // 4 for work, count in rows.items()}
    if chosen.cases:
        cases = tuple(case for case in grid.FULL if any(part in case.name for part in chosen.cases))
    return Plan(cases, tuple(chosen.arms), chosen.repeats or repeats, rows, tuple(chosen.parts), scale, chosen.resume)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; write bench-out/runtime.json."""
    parser = argparse.ArgumentParser(prog="bench.runtime", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="every case of the grid (hours)")
    size.add_argument("--quick", action="store_true", help="two cases, few rows, two repeats: whether it works")
    parser.add_argument("--cases", nargs="+", metavar="PART", help="the cases whose names have one of these in them")
    parser.add_argument("--arms", nargs="+", choices=grid.ARMS, default=grid.ARMS, help="only these")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--repeats", type=int, help=f"of each case ({grid.REPEATS})")
    parser.add_argument("--resume", action="store_true", help="go on with a grid that was broken off")
    parser.add_argument("--out", type=Path, default=OUT, help="where the file goes (bench-out)")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md and its plots, too")
    chosen = parser.parse_args(arguments)
    content = run(plan_of(chosen), lambda line: print(line, flush=True), chosen.out)
    print(result.write(content, chosen.out))
    if chosen.publish:
        print(page.publish(content))
    if content.get("failures"):
        raise SystemExit("arms failed: see failures in the result")


if __name__ == "__main__":
    main()
