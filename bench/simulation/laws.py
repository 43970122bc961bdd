"""The simplest law that fits a figure over sizes: constant, logarithmic or linear, by least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.simulation.world import Figure

#: A law fits when its residual is no more than this share of the figure's mean.
FITS: Final = 0.05
#: Fewer sizes than these say nothing about a law.
LEAST_SIZES: Final = 3
#: By which term each law grows, the simplest first.
TERMS: Final[Mapping[str, Callable[[float], float]]] = {
    "constant": lambda n: 0.0,
    "log n": math.log2,
    "n": lambda n: n,
}


@dataclass(frozen=True, slots=True)
class Fit:
    """One law, fitted: value = base + slope * term(n).

    Attributes:
        law: a key of `TERMS`; "log n" is to base 2.
        base: as above.
        slope: as above; 0 for a constant.
        residual: root of the mean squared error, as a share of the mean of the figure's magnitude.
    """

    law: str
    base: float
    slope: float
    residual: float

    @property
    def fits(self) -> bool:
        """Whether it is off by no more than `FITS`."""
        return self.residual <= FITS

    def at(self, n: float) -> float:
        """Return what the law says at a size."""
        return self.base + self.slope * TERMS[self.law](n)


def fit(sizes: Sequence[float], values: Sequence[float]) -> list[Fit]:
    """Fit each law, in the order of `TERMS`.

    Raises:
        ValueError: there are fewer than `LEAST_SIZES` different sizes, or not as many values.
    """
    if len(set(sizes)) < LEAST_SIZES or len(sizes) != len(values):
        raise ValueError(f"a law takes at least {LEAST_SIZES} sizes, and a value for each")
    return [_least_squares(law, sizes, values) for law in TERMS]


def simplest(fits: Sequence[Fit]) -> Fit:
    """Return the first law that fits, or else the one with the least residual, which then is over `FITS`."""
    good = [one for one in fits if one.fits]
    return good[0] if good else min(fits, key=lambda one: one.residual)


def fit_all(figures: Sequence[Figure]) -> dict[tuple[str, str], list[Fit]]:
    """Fit the laws of each figure that is there at enough sizes."""
    lines: dict[tuple[str, str], list[Figure]] = {}
    for each in figures:
        lines.setdefault((each.part, each.name), []).append(each)
    return {
        key: fit([each.size for each in line], [each.value for each in line])
        for key, line in lines.items()
        if len(line) >= LEAST_SIZES
    }


def _least_squares(law: str, sizes: Sequence[float], values: Sequence[float]) -> Fit:
    terms = [TERMS[law](n) for n in sizes]
    middle, mean = sum(terms) / len(terms), sum(values) / len(values)
    spread = sum((term - middle) ** 2 for term in terms)
    products = sum((term - middle) * (value - mean) for term, value in zip(terms, values, strict=True))
    slope = products / spread if spread else 0.0
    base = mean - slope * middle
    errors = [base + slope * term - value for term, value in zip(terms, values, strict=True)]
    magnitude = sum(map(abs, values)) / len(values)
    rms = math.sqrt(sum(error * error for error in errors) / len(errors))
    return Fit(law, base, slope, rms / magnitude if magnitude else 0.0)
