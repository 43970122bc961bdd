"""What links make of bad networks: `make chaos`, or `PYTHONPATH=tests python -m bench.chaos` in the repository's root.

Two processes in network namespaces, a user-space wire between them (`tests/kit/netlab`), a load of requests
and one fault for each scenario; the links have the times that a node gives them. Needs root on Linux.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.common import Cell, cell, write
from kit.consortium import consortium
from kit.netlab import unavailable
from kit.netlab_scenarios import SCENARIOS, run
from kit.netlab_world import Outcome, Pace

_ARM = "links"
_ORGANIZATIONS = ("mercy.example", "stlukes.example")
#: What is measured in every scenario, and what only where it has a meaning.
_ALWAYS: dict[str, tuple[str, Callable[[Outcome], float | None]]] = {
    "p50": ("ms", lambda outcome: outcome.p50_ms),
    "p99": ("ms", lambda outcome: outcome.p99_ms),
    "longest": ("ms", lambda outcome: outcome.longest_ms),
    "answered": ("requests/s", lambda outcome: outcome.rate),
    "found dead": ("s", lambda outcome: outcome.detected_s),
    "back": ("s", lambda outcome: outcome.recovered_s),
}
_EXTRA = {"alone_p50_ms": "ms", "alone_p99_ms": "ms", "beside_p50_ms": "ms", "beside_p99_ms": "ms", "bulk_bps": "bit/s"}


def measure(names: Sequence[str], repeats: int, jobs: int) -> dict[str, list[Outcome]]:
    """Run scenarios, `jobs` side by side, each `repeats` times with another seed.

    Raises:
        SystemExit: something that was counted is lost: then there is no figure to show.
    """
    members = consortium(*_ORGANIZATIONS)

    def one(name: str, seed: int) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="comity-chaos-") as directory:
            outcome = run(name, Path(directory), members, Pace(), seed=seed)
        _say(f"{name} (seed {seed}): {outcome.acked} answered, p99 {outcome.p99_ms:.0f} ms, {outcome.figures or ''}")
        return outcome

    with ThreadPoolExecutor(jobs) as executor:
        futures = [(name, executor.submit(one, name, seed)) for seed in range(1, repeats + 1) for name in names]
        outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
        for name, future in futures:
            outcomes[name].append(future.result())
    for name, runs in outcomes.items():
        for outcome in runs:
            if outcome.verdict.lost or outcome.verdict.contradicted or outcome.wrong:
                sys.exit(f"error: {name}: {outcome.verdict} {outcome.wrong}")
    return outcomes


def cells(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Cell]:
    """Return the figures of all scenarios."""
    made = []
    for name, runs in outcomes.items():
        for what, (unit, read) in _ALWAYS.items():
            values = [value for outcome in runs if (value := read(outcome)) is not None]
            if values:
                made.append(cell(f"{name}: {what}", _ARM, values, unit))
        for key, unit in _EXTRA.items():
            values = [outcome.figures[key] for outcome in runs if key in outcome.figures]
            if values:
                made.append(cell(f"{name}: {_words(key)}", _ARM, values, unit))
    return made


def markdown(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Return the table for the README: medians over the runs."""
    lines = [
        "| network | answered/s | p50 ms | p99 ms | found dead after s | back after s | reconnects | lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in outcomes.items():
        middle = sorted(runs, key=lambda outcome: outcome.p99_ms)[len(runs) // 2]
        lost = sum(len(outcome.verdict.lost) for outcome in runs)
        seconds = ("" if value is None else f"{value:.1f}" for value in (middle.detected_s, middle.recovered_s))
        extra = middle.figures
        latency = (extra.get("alone_p50_ms", middle.p50_ms), extra.get("alone_p99_ms", middle.p99_ms))
        figures = f"{middle.rate:.0f} | {latency[0]:.0f} | {latency[1]:.0f}"
        lines.append(f"| {name} | {figures} | {' | '.join(seconds)} | {middle.reconnects} | {lost} |")
        if "beside_p50_ms" in extra:
            beside = f"{extra['beside_p50_ms']:.0f} | {extra['beside_p99_ms']:.0f}"
            lines.append(
                f"| {name}, beside a bulk stream of {extra['bulk_bps'] / 1e6:.2f} Mbit/s | | {beside} | | | | |"
            )
    return "\n".join(lines)


def _words(key: str) -> str:
    return key.removesuffix("_ms").removesuffix("_bps").replace("_", " ")


def _say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}, load {os.getloadavg()[0]:.1f}] {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write `bench-out/chaos.json`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each scenario (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="scenarios side by side (default: 2)")
    parser.add_argument("--only", nargs="*", default=list(SCENARIOS), choices=list(SCENARIOS), help="these scenarios")
    options = parser.parse_args(arguments)
    if min(options.repeats, options.jobs) < 1:
        parser.error("numbers must be at least 1")
    if reason := unavailable():
        print(f"error: no network lab: {reason}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    outcomes = measure(options.only, options.repeats, options.jobs)
    write("chaos", cells(outcomes))
    print(f"\n{markdown(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
