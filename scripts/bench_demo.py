"""Runs the demo a few times and writes its rates to bench-out/demo.json.

The demo's report says under `timings` what took how long; the ending of a name is its unit: `_s` seconds, `_ms`
milliseconds, `_per_s` a second, `_bytes` bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench_form import cell, write

_UNITS = (("_per_s", "1/s"), ("_ms", "ms"), ("_s", "s"), ("_bytes", "B"))
_TIMEOUT_S = 900


def figures(timings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float, str]]:
    """Yield name, value and unit of every figure in a report's `timings`; mappings within it are named by a dot."""
    for name, value in timings.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            ending, unit = next(((ending, unit) for ending, unit in _UNITS if name.endswith(ending)), ("", "count"))
            yield f"{prefix}{name.removesuffix(ending)}", float(value), unit


def main() -> None:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    measured: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(1, runs + 1):
        print(f"demo, run {number} of {runs}", flush=True)
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "comity_node.cli", "demo", "--plain", "--out", out]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_TIMEOUT_S)
            report = json.loads((Path(out) / "report.json").read_text(encoding="utf-8"))
        for name, value, unit in figures(report["timings"]):
            measured[name, unit].append(value)
    write("demo", [cell(name, "demo", values, unit) for (name, unit), values in measured.items()])


if __name__ == "__main__":
    main()
