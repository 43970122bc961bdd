"""How soon an organization goes on after a process of it was killed: `make chaos` writes bench-out/recovery.json.

    PYTHONPATH=tests:. python -m kit.chaos_recovery --json bench-out/recovery.json

Real processes. One workflow runs undisturbed; then one for each process, which is killed (`kill -9`) in the middle of
it and started again at once, as a supervisor does. All is measured from the moment of the kill.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comity_node.demo.homes import Home
from kit.chaos_check import check
from kit.chaos_plan import Fault, Kind, Plan
from kit.chaos_processes import Progress, Site, at_end, over, progress, ready, site, strike, wait_for

_ORGANIZATIONS = 3


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a kill has cost.

    Attributes:
        killed: whose process, and which.
        up_s: seconds until the process answered again (a node), or was at work again (a worker).
        progress_s: seconds until its organization had judged or decided something more.
        end_s: seconds until everything was decided, everywhere.
        total_s: seconds of the whole workflow, from its submission.
        delay_s: how much longer the workflow took than undisturbed ones.
    """

    killed: str
    up_s: float
    progress_s: float
    end_s: float
    total_s: float
    delay_s: float


def measure(records: int, undisturbed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill every process once, each in a workflow of its own, and return the figures."""
    plan = Plan(1, organizations=_ORGANIZATIONS, records=records, batch=2, lease_s=20)
    with tempfile.TemporaryDirectory(prefix="comity-recovery-") as directory:
        with site(Path(directory), _ORGANIZATIONS) as running:
            done = 0
            usual = []
            for _ in range(undisturbed):
                usual.append(_whole(running, plan, done))
                done += records
                say(f"undisturbed: {usual[-1]:.2f} s")
            rows = []
            for kind in (Kind.KILL, Kind.WORKER):
                for who in range(_ORGANIZATIONS):
                    rows.append(_killed(running, plan, Fault(kind, who, 0), done, statistics.median(usual)))
                    done += records
                    say(f"{rows[-1].killed}: at work after {rows[-1].progress_s:.2f} s")
            played = over(running, plan, Path(directory), {})
        wrong = check(played)
    return {
        "organizations": _ORGANIZATIONS,
        "records_of_each": records,
        "cores": os.cpu_count(),
        "undisturbed_s": [round(each, 3) for each in usual],
        "wrong": wrong,
        "killed": [{key: _rounded(value) for key, value in asdict(row).items()} for row in rows],
    }


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def _whole(running: Site, plan: Plan, before: int) -> float:
    begun = time.monotonic()
    running.submit(plan)
    wait_for("everything is decided", lambda: at_end(running.homes, before + plan.records), running)
    return time.monotonic() - begun


def _killed(running: Site, plan: Plan, fault: Fault, before: int, usual_s: float) -> Recovery:
    victim = running.homes[fault.who]
    begun = time.monotonic()
    running.submit(plan)
    wait_for("the work is half way", lambda: progress(victim).decided >= before + plan.records // 3, running)
    mend = strike(running, fault)
    killed = time.monotonic()
    seen = progress(victim)
    mend()
    if fault.kind is Kind.KILL:
        wait_for("the node answers", lambda: ready(victim), running)
        up_s = time.monotonic() - killed
        wait_for("it goes on", lambda: _more(victim, seen), running)
    else:
        wait_for("it goes on", lambda: _more(victim, seen), running)
        up_s = time.monotonic() - killed
    progress_s = time.monotonic() - killed
    wait_for("everything is decided", lambda: at_end(running.homes, before + plan.records), running)
    end = time.monotonic()
    role = " (home of the workflow)" if fault.who == 0 else ""
    what = "node" if fault.kind is Kind.KILL else "worker"
    return Recovery(
        f"{victim.organization} {what}{role if what == 'node' else ''}",
        up_s, progress_s, end - killed, end - begun, end - begun - usual_s,
    )  # fmt: skip


def _more(home: Home, seen: Progress) -> bool:
    now = progress(home)
    return now.decided > seen.decided or now.judged > seen.judged


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as a table for a page."""
    lines = ["| killed (`kill -9`) | up again | first progress | all decided | delay |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['killed']} | {row['up_s']:.1f} s | {row['progress_s']:.1f} s | {row['end_s']:.1f} s "
        f"| {row['delay_s']:+.1f} s |"
        for row in figures["killed"]
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(prog="kit.chaos_recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=24, help="of each organization, in each workflow")
    parser.add_argument("--undisturbed", type=int, default=3, help="workflows without a kill")
    parser.add_argument("--json", type=Path, default=Path("bench-out/recovery.json"), help="where the figures go")
    chosen = parser.parse_args(arguments)
    figures = measure(chosen.records, chosen.undisturbed, lambda line: print(line, flush=True))
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print("\n".join(figures["wrong"]) or "nothing was lost or done twice")
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
