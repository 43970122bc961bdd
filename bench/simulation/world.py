"""What the simulations share: a virtual clock, random links, and the form of a figure."""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from comity_node.protocol.routing import jain as jain


class Clock:
    """Virtual time in milliseconds: it passes only in `run` and `drain`."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.now_ms = now_ms
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, ms: int, step: Callable[[], None]) -> None:
        """Call `step` in so many milliseconds; what is due at the same time comes in the order of these calls."""
        heapq.heappush(self._heap, (self.now_ms + ms, next(self._order), step))

    def run(self, ms: int) -> None:
        """Let so much time pass."""
        end_ms = self.now_ms + ms
        while self._heap and self._heap[0][0] <= end_ms:
            self._step()
        self.now_ms = end_ms

    def drain(self) -> None:
        """Let time pass until nothing is due any more."""
        while self._heap:
            self._step()

    def _step(self) -> None:
        at_ms, _, step = heapq.heappop(self._heap)
        self.now_ms = max(self.now_ms, at_ms)
        step()


def random_links(count: int, degree: int, random: Random) -> Iterator[tuple[int, int]]:
    """Yield who dials whom, so that every node has about so many links and all hang together; a pair may come twice."""
    for number in range(1, count):
        yield number, random.randrange(number)
    for number in range(count):
        for other in random.sample(range(count), min(degree // 2, count)):
            if other != number:
                yield number, other


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure at one size: a cell of `bench-out/simulation.json`.

    Attributes:
        part: gossip, lookup, routing or quorum, with the arm behind a slash where there are several.
        name: what was counted.
        unit: of `value`.
        over: what `size` counts: organizations, or reviewers that are eligible.
        size: how many of them.
        value: the mean over nodes, messages or searches (`samples` says how many), unless the name says otherwise.
        spread: the lowest and the highest of them.
        samples: how many there were.
    """

    part: str
    name: str
    unit: str
    over: str
    size: int
    value: float
    spread: tuple[float, float]
    samples: int


class Figures:
    """Collects the figures of one part at one size."""

    def __init__(self, part: str, size: int, over: str = "organizations") -> None:
        self._part, self._size, self._over = part, size, over
        self.all: list[Figure] = []

    def mean(self, name: str, unit: str, values: Sequence[float]) -> None:
        """Add the mean of at least one value."""
        self._add(name, unit, statistics.fmean(values), values)

    def quantile(self, name: str, unit: str, values: Sequence[float], share: float) -> None:
        """Add the value that a share of the values does not exceed."""
        self._add(name, unit, quantile(values, share), values)

    def one(self, name: str, unit: str, value: float) -> None:
        """Add what is one value."""
        self._add(name, unit, value, (value,))

    def _add(self, name: str, unit: str, value: float, values: Sequence[float]) -> None:
        spread = (_rounded(min(values)), _rounded(max(values)))
        entry = Figure(self._part, name, unit, self._over, self._size, _rounded(value), spread, len(values))
        self.all.append(entry)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the values that `share` of them do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a quantile of nothing")
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _rounded(value: float) -> float:
    """Six significant digits: what is beyond them says nothing."""
    return float(f"{value:.6g}")
