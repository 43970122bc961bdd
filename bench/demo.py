"""The demo's own rates: `make bench-demo`, or `python -m bench.demo` in the repository's root.

One workflow of five organizations in three arms, in turn: `processes` (a node and a worker each, over libp2p, with
agents that cost next to nothing: the rate of the runtime), `memory` (the same organizations and agents in one process,
a message is a call) and `processes-models` (the demo as it is: generators, ONNX validators, a member that turns bad).
Then the parts alone (`bench.micro`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import journey, micro
from bench.common import Cell, Ratio, cell, compare_all, interleave, write
from bench.memory import InMemory
from bench.sites import InstantSite, Site
from comity.errors import ComityError
from comity_node.demo.data import breast_cancer
from comity_node.demo.homes import Home, make_homes
from comity_node.demo.scenario import Size

_SEED = 0


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for: repeats that count, the workflow's size, and whether to leave out the arm with models."""

    repeats: int
    micro_repeats: int
    size: Size
    models: bool


def measure(options: Options, scratch: Path, sockets: Path) -> tuple[list[Cell], list[Ratio]]:
    """Measure everything; nothing that was started runs on."""

    def homes(name: str) -> list[Home]:
        (sockets / name).mkdir()
        return make_homes(scratch / name, sockets / name, breast_cancer(), seed=_SEED)[0]

    in_memory = homes("m")
    with ExitStack() as stack:
        sites: dict[str, journey.Site] = {}
        processes = stack.enter_context(InstantSite(homes("p")))
        _say(f"processes: up after {processes.start():.1f} s")
        sites["processes"] = processes
        sites["memory"] = stack.enter_context(InMemory(in_memory))
        if options.models:
            models = stack.enter_context(Site(homes("d")))
            _say(f"processes-models: up after {models.start():.1f} s")
            sites["processes-models"] = models
        cells = _journeys(sites, options)
    ratios = compare_all(cells, "processes", "memory")
    _say("parts")
    part_cells, part_ratios = micro.measure(in_memory, scratch, options.micro_repeats)
    return cells + part_cells, ratios + part_ratios


def _journeys(sites: Mapping[str, journey.Site], options: Options) -> list[Cell]:
    def arm(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            values = journey.run(sites[name], options.size)
            _say(f"{name}: {values['records-decided']:.1f} records/s decided")
            return values

        return run

    results = interleave({name: arm(name) for name in sites}, options.repeats)
    return [
        cell(work, name, [run[work] for run in runs], unit)
        for work, unit in journey.UNITS.items()
        for name, runs in results.items()
        if all(work in run for run in runs)
    ]


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each arm that count (default: 3)")
    parser.add_argument("--micro-repeats", type=int, default=5, help="runs of each part that count (default: 5)")
    parser.add_argument("--records", type=int, default=60, help="records of each organization (default: 60)")
    parser.add_argument("--batch", type=int, default=10, help="records of a batch (default: 10)")
    parser.add_argument("--no-models", action="store_true", help="leave out the arm with the demo's models")
    parsed = parser.parse_args(arguments)
    if min(parsed.repeats, parsed.micro_repeats, parsed.records, parsed.batch) < 1:
        parser.error("numbers must be at least 1")
    size = Size(records=parsed.records, batch=parsed.batch)
    return Options(parsed.repeats, parsed.micro_repeats, size, not parsed.no_models)


def _say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}, load {os.getloadavg()[0]:.1f}] {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write `bench-out/demo.json`; returns the exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="comity-bench-"))
    sockets = Path(tempfile.mkdtemp(prefix="cb-"))
    try:
        cells, ratios = measure(options, scratch, sockets)
    except ComityError as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)
    write("demo", cells, ratios)
    _say(f"{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
