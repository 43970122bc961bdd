"""The grid: which cases, how many rows, how often. Its digest stands in the result.

Cases were chosen after first looks on a busy machine, and fixed before the run that is published.

A case is a workload, a latency, and C/K: how many rows may be under way for each slot of the back-end. The default is
two planes through the middle of the grid and what goes wrong; `--full` is every combination. A result is published for
every case that ran.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from bench.runtime.draws import LATENCIES
from bench.runtime.works import WORKS

#: Slots of the model's back-end, and of the tools'.
SLOTS: Final = 8
TOOL_SLOTS: Final = 4
#: Organizations (in the central arms: groups of workers) through which the back-end is called.
SITES: Final = 4
#: Mean of all latencies; and in the cases that the arm in full takes part in. Real models take ten times that and more.
MEAN_S: Final = 0.012
SLOW_S: Final = 0.08
RATIOS: Final = (1, 2, 4, 8)
BATCH: Final = 50
REPEATS: Final = 10
SEED: Final = 20_260
#: Rows of a run: about 400 hops.
ROWS: Final = {"fixed": 120, "dialogue": 72, "funnel": 200, "tools": 72}
#: Where latencies are long, so many times fewer rows are run.
SLOW_FEWER: Final = 2.4
#: A stalled organization: from when on, and for how long (seconds).
STALL: Final = (0.2, 0.6)
#: Arms in the order in which they are run and shown.
ARMS: Final = (
    "central-row",
    "central-row-hedged",
    "central-batch-50",
    "central-batch-C",
    "brokers",
    "comity-memory",
    "comity-memory-home",
    "comity-full",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the grid, for all arms.

    Attributes:
        work: see `works.WORKS`.
        latency: see `draws.LATENCIES`.
        ratio: rows under way for each slot.
        control_ms: what each hop costs whoever decides on it, one hop after the other.
        stall: whether one organization (or group of workers) stands still for a while.
        stragglers: whether a few hops take many times longer.
        slow: whether latencies are `SLOW_S` in the mean, not `MEAN_S`.
        slots: of the model's back-end.
    """

    work: str
    latency: str
    ratio: int
    control_ms: float = 0.0
    stall: bool = False
    stragglers: bool = False
    slow: bool = False
    slots: int = SLOTS

    @property
    def name(self) -> str:
        """Its name in the result."""
        parts = [self.work, self.latency, f"C/K={self.ratio}"]
        if self.slots != SLOTS:
            parts.append(f"K={self.slots}")
        if self.control_ms:
            parts.append(f"control={self.control_ms:g}ms")
        if self.stall:
            parts.append("stall")
        if self.stragglers:
            parts.append("stragglers")
        if self.slow:
            parts.append(f"mean={SLOW_S * 1000:g}ms")
        return " ".join(parts)

    @property
    def in_flight(self) -> int:
        """C, the rows that may be under way."""
        return self.ratio * self.slots

    @property
    def mean_s(self) -> float:
        """The mean of its latencies, in seconds."""
        return SLOW_S if self.slow else MEAN_S

    @property
    def harmed(self) -> bool:
        """Whether something is slow or stands still."""
        return self.stall or self.stragglers

    def count(self, rows: Mapping[str, int]) -> int:
        """Return how many rows are run, where `rows` says how many of its workload are usual."""
        return max(1, int(rows[self.work] / SLOW_FEWER)) if self.slow else rows[self.work]

    def takes_part(self, arm: str) -> bool:
        """Whether `arm` is run here: a few only in some cases."""
        match arm:
            case "central-row-hedged":
                return self.harmed
            case "comity-memory-home":
                return self.harmed or self.control_ms > 0
            case "comity-full":
                return self.slow or self == _MIDDLE
            case "brokers":
                return not self.slow
        return True


#: The case in the middle of the grid: the arm in full is run in it, too, though it cannot keep up with such latencies.
_MIDDLE: Final = Case("fixed", "lognormal-1", 2)


def _all() -> tuple[Case, ...]:
    plain = [Case(work, kind, ratio) for work in WORKS for kind in LATENCIES for ratio in RATIOS]
    costly = [Case(work, "lognormal-1", 2, control_ms=cost) for work in WORKS for cost in (1.0, 5.0)]
    crowded = [Case(work, "lognormal-1", 2, control_ms=1.0, slots=32) for work in WORKS]
    faulty = [Case(work, "lognormal-1", ratio, stall=True) for work in WORKS for ratio in (1, 2)]
    late = [Case(work, "lognormal-0.5", 2, stragglers=True) for work in WORKS]
    slow = [Case(work, kind, ratio, slow=True) for work in WORKS for kind in LATENCIES for ratio in RATIOS]
    return tuple(plain + costly + crowded + faulty + late + slow)


FULL: Final[tuple[Case, ...]] = _all()


def _default() -> tuple[Case, ...]:
    """Return two planes through the middle of the grid, then what goes wrong, then the arm in full.

    The planes: every workload with every latency at the middle C/K, and with every C/K at the middle latency. Constant
    latency is the null control.
    """
    lines = [Case(work, kind, 2) for work in WORKS for kind in LATENCIES]
    lines += [Case(work, "lognormal-1", ratio) for work in WORKS for ratio in RATIOS]
    lines += [Case("fixed", "constant", 1)]
    harmed = [
        Case("fixed", "lognormal-1", 2, control_ms=1.0),
        Case("fixed", "lognormal-1", 2, control_ms=1.0, slots=32),
        Case("fixed", "lognormal-1", 2, control_ms=5.0),
        Case("fixed", "lognormal-1", 1, stall=True),
        *(Case(work, "lognormal-0.5", 2, stragglers=True) for work in WORKS),
    ]
    slow = [
        Case("fixed", "constant", 2, slow=True),
        Case("fixed", "lognormal-1", 2, slow=True),
        *(Case(work, "lognormal-1", 1, slow=True) for work in WORKS),
    ]
    return tuple(dict.fromkeys(lines + harmed + slow))


DEFAULT: Final[tuple[Case, ...]] = _default()
QUICK: Final[tuple[Case, ...]] = (Case("fixed", "lognormal-1", 2), Case("dialogue", "lognormal-1", 2))


def digest(cases: tuple[Case, ...], rows: dict[str, int], repeats: int) -> str:
    """Return the SHA-256 of what was fixed before the published run."""
    fixed = {
        "cases": [asdict(case) for case in cases],
        "rows": rows,
        "repeats": repeats,
        "slots": [SLOTS, TOOL_SLOTS],
        "sites": SITES,
        "mean_s": [MEAN_S, SLOW_S],
        "slow_fewer": SLOW_FEWER,
        "batch": BATCH,
        "seed": SEED,
        "stall": STALL,
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
