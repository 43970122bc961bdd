"""A first generator of synthetic rows: one Gaussian copula per class.

Each class's columns become normal scores by their ranks, their correlation is drawn to that of both classes pooled and
a little to none, normal vectors with that correlation are drawn and mapped back through the marginals (Nelsen, An
Introduction to Copulas, 2006, ch. 2-3). The marginals are interpolated and jittered, so no value of a
private row is copied, and a row that comes out too close to a private one is drawn again. That is no differential
privacy; the node measures the distance itself before a row leaves (`min_distance_to_private`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from comity.errors import ConfigError
from comity_node.demo.data import Table, to_records
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import Labels, Matrix, Schema, Vector

#: How far, in standardized units, the generator keeps its rows from private ones.
AVOID_DISTANCE = 0.2
#: How much of the latent spread a repaired row keeps: it is drawn closer to the middle of its class.
REPAIR_SPREAD = 0.7
#: Latent normal scores are cut here, so that smoothed tails stay near what was seen.
_MAX_SCORE = 2.6
_SIGNIFICANT_DIGITS = 6
#: Uniform noise on every value, in standard deviations of its column: more of it breaks what near-exact relations
#: between columns there are, and reviewers see that.
_JITTER = 0.005
#: A class counts against the pooled correlation as its rows count against this number.
_POOLED_ROWS = 30.0
_SHRINKAGE = 0.02
_MAX_REDRAWS = 8


@dataclass(frozen=True, slots=True)
class _ClassCopula:
    """One class: sorted marginals (n x features) and the Cholesky factor of the correlation of the normal scores."""

    quantiles: Matrix
    factor: Matrix

    def draw(self, rng: np.random.Generator, spread: Vector) -> Matrix:
        """Draw one row for each entry of `spread`, which scales the latent vector."""
        count, width = len(spread), self.factor.shape[0]
        latent = rng.standard_normal((count, width)) @ self.factor.T * spread[:, None]
        return self._values(rng, np.clip(latent, -_MAX_SCORE, _MAX_SCORE))

    def _values(self, rng: np.random.Generator, scores: Matrix) -> Matrix:
        """Map scores through the marginals: order statistics, interpolated and jittered, with short tails beyond."""
        size = len(self.quantiles)
        position = ndtr(scores) * (size + 1.0) - 1.0
        grid = np.arange(size, dtype=np.float64)
        out = np.empty_like(scores)
        for column in range(scores.shape[1]):
            values, place = self.quantiles[:, column], position[:, column]
            gaps = np.diff(values)
            beyond = np.maximum(place - (size - 1), 0.0) * gaps[-3:].mean()
            below = np.maximum(-place, 0.0) * gaps[:3].mean()
            jitter = rng.uniform(-_JITTER, _JITTER, len(place)) * values.std()
            out[:, column] = np.interp(place, grid, values) + beyond - below + jitter
        return out


def _fit(rows: Mapping[int, Matrix]) -> dict[int, _ClassCopula]:
    """Fit a copula a class; a small class's correlation is drawn to the pooled one of both."""
    scores = {label: _normal_scores(own) for label, own in rows.items()}
    total = sum(len(own) for own in scores.values())
    pooled: Matrix = np.sum([len(own) / total * _correlation(own) for own in scores.values()], axis=0)
    fitted = {}
    for label, own in scores.items():
        weight = len(own) / (len(own) + _POOLED_ROWS)
        correlation = weight * _correlation(own) + (1.0 - weight) * pooled
        shrunk: Matrix = (1.0 - _SHRINKAGE) * correlation + _SHRINKAGE * np.eye(correlation.shape[0])
        factor = np.linalg.cholesky(shrunk).astype(np.float64)
        fitted[label] = _ClassCopula(np.sort(rows[label], axis=0), factor)
    return fitted


def _normal_scores(rows: Matrix) -> Matrix:
    ranks = np.argsort(np.argsort(rows, axis=0, kind="stable"), axis=0, kind="stable") + 1.0
    scores: Matrix = ndtri(ranks / (len(rows) + 1.0))
    return scores


def _correlation(scores: Matrix) -> Matrix:
    covariance = scores.T @ scores / len(scores)
    scale = np.sqrt(np.diag(covariance))
    correlation: Matrix = covariance / np.outer(scale, scale)
    return correlation


class Generator:
    """Synthetic rows that look like one organization's private rows.

    Args:
        table: the private rows; at least five of each class.

    Raises:
        ConfigError: a class has too few rows.
    """

    def __init__(self, table: Table) -> None:
        self._schema = table.schema
        rows = {label: table.rows[table.labels == label] for label in (0, 1)}
        for label, own in rows.items():
            if len(own) < 5:
                raise ConfigError(f"class {label} has {len(own)} private rows; a generator needs five")
        self._classes = _fit(rows)
        self._share = float(table.labels.mean())
        self._private = PrivateReference(table.schema, table.rows)

    @property
    def schema(self) -> Schema:
        """The schema of the rows."""
        return self._schema

    def sample(self, count: int, seed: int) -> list[dict[str, float | int]]:
        """Draw `count` rows in the private rows' mix of classes; the same seed gives the same rows."""
        rng = np.random.default_rng([seed, 0xC0])
        labels = (rng.random(count) < self._share).astype(np.int64)
        return self._draw(rng, labels, np.ones(count))

    def repair(
        self, records: Sequence[Mapping[str, Any]], feedback: Sequence[Sequence[str]], seed: int
    ) -> list[dict[str, float | int]]:
        """Draw a row in place of each of `records`, of the same class, mindful of what the reviewers said.

        Feedback is "axis: text". A row that was implausible is drawn closer to the middle of its class; one that was
        too close to another is drawn anew over the whole class.
        """
        rng = np.random.default_rng([seed, 0xC1])
        labels = np.array([int(record[self._schema.label]) for record in records], dtype=np.int64)
        implausible = [any(_axis(text) not in _NOVELTY_AXES for text in texts) for texts in feedback]
        spread = np.where(np.array(implausible, dtype=bool), REPAIR_SPREAD, 1.0)
        return self._draw(rng, labels, spread)

    def _draw(self, rng: np.random.Generator, labels: Labels, spread: Vector) -> list[dict[str, float | int]]:
        rows = np.empty((len(labels), len(self._schema.features)))
        pending = np.arange(len(labels))
        for _ in range(_MAX_REDRAWS):
            for label, model in self._classes.items():
                index = pending[labels[pending] == label]
                rows[index] = self._fitted(model.draw(rng, spread[index]))
            pending = pending[self._private.distances_of(rows[pending]) < AVOID_DISTANCE]
            if not len(pending):
                break
        return to_records(self._schema, rows, labels)

    def _fitted(self, rows: Matrix) -> Matrix:
        """Round to six significant digits, or whole numbers, and fold values back into the declared range."""
        out = np.empty_like(rows)
        for column, name in enumerate(self._schema.features):
            spec = self._schema.fields[name]
            values = rows[:, column]
            values = np.where(values < spec.minimum, 2 * spec.minimum - values, values)
            values = np.round(values) if spec.type == "integer" else _significant(values)
            out[:, column] = np.clip(values, spec.minimum, spec.maximum)
        return out


#: Axes that say "too close to another row", not "not like a row of its class".
_NOVELTY_AXES = frozenset({"collapse", "copy", "private"})


def _axis(text: str) -> str:
    return text.partition(":")[0]


def _significant(values: Vector) -> Vector:
    return np.array([float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values.tolist()], dtype=np.float64)
