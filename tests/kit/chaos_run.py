"""Plays plans one after the other and says what was wrong.

    PYTHONPATH=tests python -m kit.chaos_run --seeds 1-100
    PYTHONPATH=tests:. python -m kit.chaos_run --processes --seeds 1-3          (real processes, which are killed)
    PYTHONPATH=tests python -m kit.chaos_run --plan chaos-out/plan-17.json      (plays a plan again)
    PYTHONPATH=tests python -m kit.chaos_run --seeds 1-100 --bug late-journal   (does the checker find a planted bug?)

A plan that breaks something is made as small as it can be and written to a file, with the command that plays it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kit.chaos_bugs import BUGS, planted
from kit.chaos_check import check, facts
from kit.chaos_plan import Plan, from_json, make, make_for_processes, shrink, to_json
from kit.chaos_processes import play_processes
from kit.chaos_world import PATIENCE_S, play

#: Where memory is a file system, databases cost no disk.
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one plan.

    Attributes:
        plan: that was played.
        wrong: what was wrong; empty if nothing was.
        took_s: seconds, and seconds of the world.
        hit: how often each kind of fault happened.
        facts: tasks by state, and records.
        trace: what happened when.
    """

    plan: Plan
    wrong: tuple[str, ...]
    took_s: tuple[float, float] = (0.0, 0.0)
    hit: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    trace: tuple[str, ...] = ()


def try_plan(plan: Plan, bug: str = "", *, patience_s: float = PATIENCE_S) -> Trial:
    """Play a plan in a directory of its own, with a planted bug if one is named, and check what came of it.

    An error that ends the world (a node that fails on its own) is what is wrong then.
    """
    begun = time.perf_counter()
    home = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="comity-chaos-", dir=home) as directory, planted(bug), quiet():
        try:
            played = play(plan, Path(directory), patience_s=patience_s)
        except Exception as error:  # noqa: BLE001  (reported: whatever it is, a node must not end by itself)
            return Trial(plan, (f"a node ended by itself: {error!r}",), (time.perf_counter() - begun, 0.0))
        wrong = tuple(check(played))
        took_s = (time.perf_counter() - begun, played.took_s)
        return Trial(plan, wrong, took_s, dict(played.hit), facts(played), played.trace)


def try_processes(plan: Plan) -> Trial:
    """Play a plan with real processes, and check what came of it."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="comity-chaos-") as directory:
        played = play_processes(plan, Path(directory))
        took_s = (time.perf_counter() - begun, played.took_s)
        return Trial(plan, tuple(check(played)), took_s, dict(played.hit), facts(played))


def breaks(plan: Plan, bug: str = "") -> bool:
    """Whether anything is wrong after a plan."""
    return bool(try_plan(plan, bug).wrong)


def save(plan: Plan, trial: Trial, directory: Path) -> Path:
    """Write a plan that breaks something to a file, and return the file."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"plan-{plan.seed}.json"
    file.write_text(to_json(plan) + "\n")
    file.with_suffix(".txt").write_text("\n".join((*trial.wrong, "", *trial.trace, "")))
    return file


def seeds(text: str) -> list[int]:
    """Return the numbers of "3", "1-100" or "1,5,7-9"."""
    parts = [part.split("-") for part in text.split(",")]
    return [number for first, *last in parts for number in range(int(first), int((last or [first])[0]) + 1)]


def trials(plans: Sequence[Plan], bug: str, jobs: int) -> Iterator[Trial]:
    """Play plans, `jobs` side by side."""
    if jobs == 1:
        yield from map(partial(try_plan, bug=bug), plans)
        return
    with ProcessPoolExecutor(jobs) as executor:
        yield from executor.map(partial(try_plan, bug=bug), plans)


@contextmanager
def quiet() -> Iterator[None]:
    """Write no log: a world of faults has a lot to say, and all of it is in the journals."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Play what the command line asks for; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="kit.chaos_run", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=seeds, default=seeds("1-100"), help="such as 1-100 or 1,5,7")
    parser.add_argument("--plan", type=Path, help="a plan to play again, instead of seeds")
    parser.add_argument("--processes", action="store_true", help="play with real processes")
    parser.add_argument("--flows", action="store_true", help="tasks travel before they are reviewed")
    parser.add_argument("--bug", default="", choices=["", *BUGS], help="a bug to plant: the plans have to find it")
    parser.add_argument("--jobs", type=int, default=1, help="plans that are played side by side")
    parser.add_argument("--out", type=Path, default=Path("chaos-out"), help="where plans that break something go")
    parser.add_argument("--no-shrink", action="store_true", help="write plans as they are")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    chosen = parser.parse_args(arguments)
    made = make_for_processes if chosen.processes else partial(make, flow=chosen.flows)
    plans = [from_json(chosen.plan.read_text())] if chosen.plan else [made(seed) for seed in chosen.seeds]
    begun, broken, played = time.perf_counter(), 0, []
    for trial in map(try_processes, plans) if chosen.processes else trials(plans, chosen.bug, chosen.jobs):
        played.append(trial)
        if trial.wrong:
            broken += 1
            _report(trial, chosen, say)
    summary = _summary(played, broken, time.perf_counter() - begun)
    say(json.dumps(summary))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(summary, indent=2) + "\n")
    return int(broken > 0)


def _report(trial: Trial, chosen: argparse.Namespace, say: Callable[[str], None]) -> None:
    plan = trial.plan if chosen.no_shrink or chosen.processes else shrink(trial.plan, partial(breaks, bug=chosen.bug))
    how = " --processes" if chosen.processes else f" --bug {chosen.bug}" if chosen.bug else ""
    last = trial if plan == trial.plan else try_plan(plan, chosen.bug)
    file = save(plan, last, chosen.out)
    say(f"plan {plan.seed} breaks: {trial.wrong[0]}")
    for line in last.wrong[:5]:
        say(f"    {line}")
    say(f"  play it again: PYTHONPATH=tests:. python -m kit.chaos_run --plan {file}{how}")


def _summary(played: Sequence[Trial], broken: int, took_s: float) -> dict[str, Any]:
    hit: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    for trial in played:
        hit.update({str(kind): count for kind, count in trial.hit.items()})
        tasks.update(trial.facts.get("tasks", {}))
    worlds = sum(trial.took_s[1] for trial in played)
    return {
        "plans": len(played),
        "broken": broken,
        "seconds": round(took_s, 1),
        "seconds_of_the_worlds": round(worlds, 1),
        "faults": dict(sorted(hit.items())),
        "tasks": dict(sorted(tasks.items())),
    }


if __name__ == "__main__":
    sys.exit(main())
