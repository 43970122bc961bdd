"""Runs the grid: the arms in turn, each repeat with its own draws, all arms of a repeat with the same."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final, Protocol, Self

from bench.common import Cell, cell
from bench.runtime import central, grid, model, paired
from bench.runtime.central import Run
from bench.runtime.client import BackendProcess
from bench.runtime.grid import Case
from bench.runtime.paired import Interval
from bench.runtime.works import Row, Shape, draw_rows
from comity.errors import ComityError

#: The steady window: from the first share of the hops to the last.
WINDOW: Final = (0.15, 0.85)
#: The arms that a batch is compared with, and how large it is (None: C).
BATCHES: Final[Mapping[str, int | None]] = {"central-batch-50": grid.BATCH, "central-batch-C": None}
COMITY: Final = ("comity-memory", "comity-memory-home", "comity-full")


class Arm(Protocol):
    """One arm, ready to run any case."""

    def measure(self, run: Run) -> float:
        """Run once and return the makespan in seconds."""

    def cpu_seconds(self) -> float:
        """Return the processor time of its processes so far, without the back-end's."""


class Central:
    """An arm of `central`, in this process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def measure(self, run: Run) -> float:
        """Run once."""
        return central.measure(self._name, run)

    def cpu_seconds(self) -> float:
        """Return this process's processor time."""
        return time.process_time()


#: Makes an arm, which runs for as long as its block lasts.
Maker = Callable[[], AbstractContextManager[Arm]]


@dataclass(slots=True)
class Runs:
    """What was measured of one case at one arm, a figure for each repeat."""

    makespan: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Modelled:
    """What the model of a case says, in seconds for each repeat (see `model`).

    Attributes:
        row: row by row.
        batch: with a barrier, by the name of the arm that has it.
        bound: what nobody can beat.
        hops: that the rows make.
    """

    row: tuple[float, ...]
    batch: Mapping[str, tuple[float, ...]]
    bound: tuple[float, ...]
    hops: tuple[int, ...]

    def gain(self, arm: str) -> float:
        """Return how many times faster row by row is than `arm`, as the model has it."""
        return sum(self.batch[arm]) / sum(self.row)


@dataclass(frozen=True, slots=True)
class Compared:
    """How many times faster `arm` is than `peer`, from paired repeats.

    Attributes:
        work: the case.
        effect: `scheduling` (row by row or barrier, both central), `topology` (both row by row), or `both`.
        figure: `makespan` or `steady`.
        arm: the one.
        peer: the other.
        ratio: over 1: `arm` is faster; with its 95% interval.
        model: what scheduling alone could gain, where `peer` has a barrier.
    """

    work: str
    effect: str
    figure: str
    arm: str
    peer: str
    ratio: Interval
    model: float | None


def draw(case: Case, repeat: int, rows: Mapping[str, int]) -> tuple[Shape, tuple[Row, ...]]:
    """Draw the rows of a repeat: they depend on the case's workload and latency, and on nothing else of it."""
    shape = Shape(grid.SEED + repeat, case.latency, case.mean_s, case.stragglers)
    return shape, draw_rows(case.work, shape, case.count(rows))


def modelled(case: Case, repeats: int, rows: Mapping[str, int]) -> Modelled:
    """Simulate the repeats of a case. A stall is not in the model."""
    drawn = [draw(case, repeat, rows)[1] for repeat in range(repeats)]
    control_s, many, slots = case.control_ms / 1000, case.in_flight, (case.slots, grid.TOOL_SLOTS)
    return Modelled(
        row=tuple(model.row_level(each, many, slots, control_s) for each in drawn),
        batch={
            arm: tuple(model.barrier(each, size or many, many, slots, control_s) for each in drawn)
            for arm, size in BATCHES.items()
        },
        bound=tuple(model.bound(each, slots) for each in drawn),
        hops=tuple(central.totals(each) for each in drawn),
    )


def run_case(
    case: Case, arms: Mapping[str, Arm], backend: BackendProcess, repeats: int, rows: Mapping[str, int]
) -> tuple[dict[str, Runs], dict[str, str]]:
    """Run a case: in each repeat all arms in turn, every other repeat in the opposite order.

    Returns:
        What was measured, by arm; and why arms failed: one that lost a row has no figures in this case.
    """
    runs = {name: Runs() for name in arms if case.takes_part(name)}
    failed: dict[str, str] = {}
    for repeat in range(repeats):
        shape, drawn = draw(case, repeat, rows)
        order = list(runs)
        for name in order if repeat % 2 == 0 else reversed(order):
            try:
                _once(arms[name], Run(case, shape, drawn, backend.path), backend, runs[name])
            except (RuntimeError, ComityError) as error:  # it is in the result, and the other arms go on
                failed[name] = str(error)
                del runs[name]
    return runs, failed


def _once(arm: Arm, run: Run, backend: BackendProcess, into: Runs) -> None:
    gc.collect()
    backend.begin((run.case.slots, grid.TOOL_SLOTS), (1, *grid.STALL) if run.case.stall else None)
    before = arm.cpu_seconds()
    makespan = arm.measure(run)
    spent = arm.cpu_seconds() - before
    done, hops = backend.end(), central.totals(run.rows)
    if len(done) < hops:
        raise RuntimeError(f"{run.case.name}: {hops - len(done)} hops were not done")
    into.makespan.append(makespan)
    into.steady.append(steady(done))
    into.cpu.append(spent / hops * 1e6)


def steady(done: Sequence[float]) -> float:
    """Return hops a second while neither the beginning nor the end is near."""
    first, last = (int(len(done) * share) for share in WINDOW)
    return (last - first) / max(done[last] - done[first], 1e-9)


def cells(case: Case, runs: Mapping[str, Runs]) -> list[Cell]:
    """Return a case's cells: makespan, steady rate and processor time of each arm."""
    found = []
    for name, each in runs.items():
        found.append(cell(f"{case.name} makespan", name, each.makespan, "s"))
        found.append(cell(f"{case.name} steady", name, each.steady, "hops/s"))
        found.append(cell(f"{case.name} cpu", name, each.cpu, "us/hop"))
    return found


def compare(case: Case, runs: Mapping[str, Runs], said: Modelled) -> list[Compared]:
    """Compare the arms of a case, the effect of scheduling and that of topology apart."""
    found = []
    for effect, arm, peer in _pairs(runs):
        gain = said.gain(peer) if peer in BATCHES else None
        ours, other = runs[arm], runs[peer]
        makespan = paired.ratio(other.makespan, ours.makespan)
        found.append(Compared(case.name, effect, "makespan", arm, peer, makespan, gain))
        found.append(Compared(case.name, effect, "steady", arm, peer, paired.ratio(ours.steady, other.steady), gain))
    return found


def _pairs(runs: Mapping[str, Runs]) -> list[tuple[str, str, str]]:
    pairs = [("scheduling", "central-row", peer) for peer in BATCHES]
    pairs += [("topology", arm, "central-row") for arm in ("brokers", *COMITY)]
    pairs += [("both", arm, peer) for arm in COMITY for peer in BATCHES]
    pairs += [("hedging", "central-row-hedged", "central-row")]
    pairs += [("topology", arm, "central-row-hedged") for arm in COMITY]
    return [(effect, arm, peer) for effect, arm, peer in pairs if arm in runs and peer in runs]


def table(case: Case, runs: Mapping[str, Runs], said: Modelled, compared: Sequence[Compared]) -> str:
    """Return a case as lines: each arm's mean makespan beside the model's, then the ratios with their intervals."""
    lines = [
        f"{case.name}: {fmean(said.hops):.0f} hops; model: row by row {fmean(said.row):.3f} s, "
        + ", ".join(f"{arm.removeprefix('central-')} {fmean(value):.3f} s" for arm, value in said.batch.items())
    ]
    for name, each in runs.items():
        rates = f"{fmean(each.steady):7.1f} hops/s  {fmean(each.cpu):7.0f} us/hop"
        lines.append(f"  {name:20} {fmean(each.makespan):7.3f} s  {rates}")
    for one in compared:
        if one.figure == "makespan":
            beside = f"  model {one.model:.2f}x" if one.model else ""
            said_so = f"{one.ratio.value:.3f}x [{one.ratio.low:.3f}, {one.ratio.high:.3f}]{beside}"
            lines.append(f"    {one.effect:10} {one.arm:18} over {one.peer:18} {said_so}")
    return "\n".join(lines)
