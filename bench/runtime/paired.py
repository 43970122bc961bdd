"""Paired bootstrap: how sure a ratio of two arms is, when both ran in the same repeats with the same draws.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13: repeats are drawn with replacement,
both arms' runs of a repeat together, and the interval is what lies between the 2.5th and the 97.5th percentile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and between what 95% of its resamples lie."""

    value: float
    low: float
    high: float


def ratio(above: Sequence[float], below: Sequence[float], *, resamples: int = _RESAMPLES, seed: int = 1) -> Interval:
    """Return the ratio of sums of paired runs with its 95% interval.

    Raises:
        ValueError: the runs are not pairs, there are none, or one is not positive.
    """
    if len(above) != len(below) or not above or min(*above, *below) <= 0:
        raise ValueError("a ratio needs pairs of positive figures")
    chance, count = Random(seed), len(above)
    drawn = []
    for _ in range(resamples):
        picked = [chance.randrange(count) for _ in range(count)]
        drawn.append(sum(above[i] for i in picked) / sum(below[i] for i in picked))
    drawn.sort()
    return Interval(sum(above) / sum(below), percentile(drawn, 0.025), percentile(drawn, 0.975))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the ordered values lie, interpolated between its neighbours."""
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)
