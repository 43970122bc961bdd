"""What all benchmarks share: interleaved repeats, the form of their results, and the table on the terminal.

The form of `bench-out/NAME.json`, with exactly these keys:

    {"machine": {"cpus", "platform", "python", "versions"},
     "cells": [{"work", "arm", "value", "unit", "spread": [low, high], "runs"}],
     "ratios": [{"work", "arm", "peer", "ratio"}]}

`value` is the median of the runs. `spread` is their lowest and highest (the 0 and 1 quantiles: with three or five runs
anything narrower would be invented). A ratio over 1 means that ours is better, whichever way the unit points.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

OUT = Path("bench-out")
#: Units of which less is better; of one that ends in "/s", and of tasks, more is.
_COSTS = frozenset({"s", "ms", "us", "bytes", "ms/record", "us/request", "us/hop", "us/MB"})
_PACKAGES = (
    "comity", "casbin", "cedarpy", "cryptography", "grpcio", "libp2p", "numpy", "onnxruntime", "onnxruntime-gpu",
    "protobuf", "pynacl", "trio",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """What one arm reached in one work.

    Attributes:
        work: what was done.
        arm: how, or by whom.
        value: median of the runs.
        unit: of `value`; `is_rate` knows which way it points.
        spread: lowest and highest of the runs.
        runs: how many there were, without the warm-up.
    """

    work: str
    arm: str
    value: float
    unit: str
    spread: tuple[float, float]
    runs: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times better `arm` is than `peer` in a work; below 1 it is worse."""

    work: str
    arm: str
    peer: str
    ratio: float


def is_rate(unit: str) -> bool:
    """Whether more of `unit` is better.

    Raises:
        ValueError: the unit does not say; name it in `_COSTS` or let it end in "/s".
    """
    if unit in _COSTS:
        return False
    if unit.endswith("/s") or unit == "tasks":
        return True
    raise ValueError(f"is more {unit!r} better, or less?")


def cell(work: str, arm: str, runs: Sequence[float], unit: str) -> Cell:
    """Make a cell of what at least one run measured.

    Raises:
        ValueError: there is no run, or nobody knows which way the unit points.
    """
    is_rate(unit)
    if not runs:
        raise ValueError(f"{work}: {arm} has no runs")
    return Cell(work, arm, statistics.median(runs), unit, (min(runs), max(runs)), len(runs))


def compare(ours: Cell, peer: Cell) -> Ratio:
    """Compare two cells of the same work by their medians.

    Raises:
        ValueError: they measure different things, or a median is not positive.
    """
    if (ours.work, ours.unit) != (peer.work, peer.unit) or min(ours.value, peer.value) <= 0:
        raise ValueError(f"{ours} and {peer} cannot be compared")
    more = ours.value / peer.value
    return Ratio(ours.work, ours.arm, peer.arm, more if is_rate(ours.unit) else 1 / more)


def compare_all(cells: Sequence[Cell], arm: str, peer: str) -> list[Ratio]:
    """Compare `arm` with `peer` in every work that both have a cell of."""
    peers = {each.work: each for each in cells if each.arm == peer}
    return [compare(each, peers[each.work]) for each in cells if each.arm == arm and each.work in peers]


def interleave(arms: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Run the arms in turn, A B A B, so that what else the machine does meets all of them alike.

    Each runs once before to warm up; what that returns is dropped.

    Args:
        arms: by name.
        repeats: runs that count, of each arm.

    Returns:
        What the runs of each arm returned, in their order.
    """
    for run in arms.values():
        run()
    results: dict[str, list[T]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            results[name].append(run())
    return results


def rate(operation: Callable[[], object], *, seconds: float = 0.25, count: int = 1) -> float:
    """Call `operation` again and again for at least `seconds`; return how often a second, times `count`.

    Args:
        operation: what is measured.
        seconds: least time; the clock is read after 1, 2, 4, ... calls, so that reading it costs nothing.
        count: how many things one call does.
    """
    calls, step = 0, 1
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(step):
            operation()
        calls += step
        step = min(2 * step, max(1, int(calls / max(passed, 1e-6) * seconds / 4)))
    return calls * count / passed


def machine() -> dict[str, Any]:
    """Return what the figures depend on; no name of the machine, no path."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpus": os.cpu_count() or 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions,
    }


def write(name: str, cells: Sequence[Cell], ratios: Sequence[Ratio] = (), *, out: Path = OUT) -> Path:
    """Write `bench-out/NAME.json`, print the table, and return the file.

    Raises:
        ValueError: a figure is no number.
    """
    result = {
        "machine": machine(),
        "cells": [asdict(each) for each in cells],
        "ratios": [asdict(each) for each in ratios],
    }
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(text, encoding="utf-8")
    print(table(cells, ratios))
    print(f"\n{path}")
    return path


def table(cells: Sequence[Cell], ratios: Sequence[Ratio] = ()) -> str:
    """Return cells, and below them ratios, as aligned lines."""
    rows: list[tuple[str, ...]] = [("work", "arm", "median", "lowest", "highest", "unit", "runs")]
    for each in cells:
        figures = (_short(value) for value in (each.value, *each.spread))
        rows.append((each.work, each.arm, *figures, each.unit, str(each.runs)))
    lines = _aligned(rows, right={2, 3, 4})
    if ratios:
        compared: list[tuple[str, ...]] = [("work", "arm", "peer", "ratio")]
        compared += [(each.work, each.arm, each.peer, f"{each.ratio:.2f}x") for each in ratios]
        lines += ["", *_aligned(compared, right={3}), "over 1x: ours is better"]
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]], *, right: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            part.rjust(width) if number in right else part.ljust(width)
            for number, (part, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
