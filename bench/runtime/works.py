"""The workloads: what each row's way is, decided before anything runs.

A row is a list of hops; a hop says whose turn it is (role), which back-end it needs (pool) and for how long it holds a
slot there. How many hops a row has is drawn like everything else, so it is the same in every arm. An arm learns of a
hop only when the one before it is done: none looks ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.runtime.draws import geometric, latency, unit

MODEL: Final = 0
TOOL: Final = 1
#: Turns of a dialogue: geometric of this mean, at most the cap.
_TURNS_MEAN, _TURNS_MOST = 6.0, 20
_FILTERS: Final = 4
#: Of the rows in a funnel, how many get through all its filters.
SURVIVAL: Final = 0.06
_ROUNDS_MEAN, _ROUNDS_MOST = 2.0, 8
_STRAGGLERS: Final = 0.02
_STRAGGLE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of one row.

    Attributes:
        role: whose turn it is.
        pool: the back-end, MODEL or TOOL.
        seconds: how long it holds a slot.
    """

    role: int
    pool: int
    seconds: float


Row = tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rows of a workload are drawn.

    Attributes:
        seed: of this repeat; the same for all arms.
        kind: of latency, see `draws.LATENCIES`.
        mean_s: of all latencies.
        stragglers: whether a few hops take many times longer (at their first attempt).
    """

    seed: int
    kind: str
    mean_s: float
    stragglers: bool = False

    def seconds(self, row: int, hop: int, attempt: int = 0) -> float:
        """Return how long a hop takes; another attempt is another draw."""
        key = (self.seed, row, hop, attempt)
        drawn = latency(self.kind, *key) * self.mean_s
        if self.stragglers and unit("straggler", *key) < _STRAGGLERS:
            return drawn * _STRAGGLE
        return drawn


def _fixed(shape: Shape, row: int) -> list[tuple[int, int]]:
    return [(0, MODEL), (1, MODEL), (2, MODEL)]


def _dialogue(shape: Shape, row: int) -> list[tuple[int, int]]:
    turns = geometric(unit("turns", shape.seed, row), _TURNS_MEAN, _TURNS_MOST)
    return [(turn % 2, MODEL) for turn in range(turns)]


def _funnel(shape: Shape, row: int) -> list[tuple[int, int]]:
    keep = SURVIVAL ** (1 / _FILTERS)
    way = [(0, MODEL)]
    while len(way) < _FILTERS and unit("keep", shape.seed, row, len(way)) < keep:
        way.append((len(way), MODEL))
    return way


def _tools(shape: Shape, row: int) -> list[tuple[int, int]]:
    rounds = geometric(unit("rounds", shape.seed, row), _ROUNDS_MEAN, _ROUNDS_MOST)
    return [(0, MODEL)] + [(1, TOOL), (0, MODEL)] * rounds


#: Each workload: the roles and pools of a row's hops.
WORKS: Final[Mapping[str, Callable[[Shape, int], list[tuple[int, int]]]]] = {
    "fixed": _fixed,
    "dialogue": _dialogue,
    "funnel": _funnel,
    "tools": _tools,
}
#: How many roles each has.
ROLES: Final[Mapping[str, int]] = {"fixed": 3, "dialogue": 2, "funnel": _FILTERS, "tools": 2}


def draw_rows(work: str, shape: Shape, count: int) -> tuple[Row, ...]:
    """Draw the rows of a workload."""
    return tuple(
        tuple(Hop(role, pool, shape.seconds(row, hop)) for hop, (role, pool) in enumerate(WORKS[work](shape, row)))
        for row in range(count)
    )
