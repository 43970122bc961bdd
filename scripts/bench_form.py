"""The form that every benchmark writes: `bench-out/NAME.json`, and a table on the terminal.

    {"machine": {...},
     "cells": [{"work", "arm", "value", "unit", "spread": [low, high], "runs"}],
     "ratios": [{"work", "arm", "peer", "ratio"}]}

`value` is the median of the runs and `spread` their lowest and highest. A ratio over 1 means that ours is better.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("grpcio", "libp2p", "onnxruntime", "onnxruntime-gpu", "flwr", "trio", "cryptography", "numpy")


@dataclass(frozen=True)
class Cell:
    """What one arm reached in one work."""

    work: str
    arm: str
    value: float
    unit: str
    spread: tuple[float, float]
    runs: int


@dataclass(frozen=True)
class Ratio:
    """How many times better than a peer an arm is."""

    work: str
    arm: str
    peer: str
    ratio: float


def cell(work: str, arm: str, values: Sequence[float], unit: str) -> Cell:
    """Make a cell of repeated measurements (at least one)."""
    return Cell(work, arm, statistics.median(values), unit, (min(values), max(values)), len(values))


def ratio(ours: Cell, peer: Cell, *, more_is_better: bool) -> Ratio:
    """Compare two cells of the same work and unit.

    Raises:
        ValueError: they measure different things, or the peer's value is 0.
    """
    if (ours.work, ours.unit) != (peer.work, peer.unit) or not peer.value or not ours.value:
        raise ValueError(f"{ours} and {peer} cannot be compared")
    value = ours.value / peer.value if more_is_better else peer.value / ours.value
    return Ratio(ours.work, ours.arm, peer.arm, value)


def machine() -> dict[str, object]:
    """Return what the figures depend on: processors, memory, system, Python and the versions of what does the work."""
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def write(name: str, cells: Sequence[Cell], ratios: Sequence[Ratio] = (), *, root: Path = ROOT) -> Path:
    """Write `bench-out/NAME.json`, print the table, and return the file's path."""
    path = root / "bench-out" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    report: Mapping[str, object] = {
        "machine": machine(),
        "cells": [asdict(each) for each in cells],
        "ratios": [asdict(each) for each in ratios],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(cells, ratios))
    print(f"\n{path.relative_to(root)}")
    return path


def table(cells: Sequence[Cell], ratios: Sequence[Ratio] = ()) -> str:
    """Return cells and ratios as aligned lines."""
    rows = [("WORK", "ARM", "MEDIAN", "LOWEST", "HIGHEST", "UNIT", "RUNS")]
    rows += [
        (
            each.work,
            each.arm,
            _short(each.value),
            _short(each.spread[0]),
            _short(each.spread[1]),
            each.unit,
            str(each.runs),
        )
        for each in cells
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{each.work}: {each.arm} is {each.ratio:.2f} times {each.peer}" for each in ratios]
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
