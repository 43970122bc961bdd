"""From a statistic to a p-value, by what the reviewer's own rows show when they are left out of the fit.

Between observations the p-value is the empirical one. Past the last tenth of the observations it follows an
exponential tail fitted to the excesses (peaks over threshold with shape 0: Coles, An Introduction to Statistical
Modeling of Extreme Values, 2001, ch. 4), so that a hospital with eighty rows can still tell "one in a hundred" from
"one in ten thousand". Because the tail's scale comes from few excesses, the predictive form is used, (1 + x/(k s))^-k
for k excesses of mean s: the plain exponential would refuse half as many good rows again as it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc

from comity_node.validators.schema import Vector

_BODY_POINTS = 200
_TAIL_SHARE = 0.1
_MIN_TAIL = 5


@dataclass(frozen=True, slots=True)
class Tail:
    """Calibration of one statistic of which large values are bad.

    Attributes:
        body: quantiles of the calibration values up to the threshold, ascending, equally spaced in probability.
        share: probability that a good row's value is above the threshold.
        scale: mean excess over the threshold.
        count: how many excesses that is the mean of.
    """

    body: tuple[float, ...]
    share: float
    scale: float
    count: int

    @classmethod
    def fit(cls, values: Vector) -> Tail:
        """Calibrate on observations of good rows (at least ten, finite).

        Raises:
            ValueError: there are fewer.
        """
        ordered = np.sort(values[np.isfinite(values)])
        count = len(ordered)
        if count < 10:
            raise ValueError(f"ten observations are needed to calibrate, there are {count}")
        above = max(_MIN_TAIL, math.ceil(_TAIL_SHARE * count))
        share = (above + 1.0) / (count + 1.0)  # what lies above the m-th of n values, on average: 1 - m/(n+1)
        threshold = float(ordered[count - above - 1])
        scale = float((ordered[count - above :] - threshold).mean())
        points = np.linspace(0.0, 1.0, min(_BODY_POINTS, count - above))
        body = np.quantile(ordered[: count - above], points)
        return cls(tuple(body.tolist()), share, max(scale, 1e-9), above)

    def p_value(self, values: Vector) -> Vector:
        """Return how probable a good row's value at least this large is, each in (0, 1]."""
        threshold = self.body[-1]
        grid = np.linspace(1.0, self.share, len(self.body))
        inside = np.interp(values, np.asarray(self.body), grid)
        excess = np.maximum(values - threshold, 0.0) / (self.scale * self.count)
        beyond = self.share * np.exp(-self.count * np.log1p(excess))
        return np.where(values > threshold, beyond, inside)

    def to_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return {"body": list(self.body), "share": self.share, "scale": self.scale, "count": self.count}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Tail:
        """Read what `to_json` made (a pinned file: it is trusted)."""
        body, share, scale, count = value["body"], value["share"], value["scale"], value["count"]
        if not isinstance(body, list) or not isinstance(share, float) or not isinstance(scale, float):
            raise TypeError("not a tail")
        if not isinstance(count, int):
            raise TypeError("not a tail")
        return cls(tuple(float(point) for point in body), share, scale, count)


def closest_of(p_pair: Vector, count: int) -> Vector:
    """Return the p-value of the closest of `count` rows from that of one pair (Sidak); 1 when there are none."""
    if count == 0:
        return np.ones_like(p_pair)
    result: Vector = -np.expm1(count * np.log1p(-np.minimum(p_pair, 1.0 - 1e-12)))
    return result


def binomial_tail(hits: int, trials: int, rate: float) -> float:
    """Return the probability of at least `hits` in `trials` at `rate`."""
    return 1.0 if hits <= 0 else float(bdtrc(hits - 1, trials, rate))
