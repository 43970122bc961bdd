"""Fitting what the tabular validator judges with: from a reviewer's own private rows to ONNX models and calibrations.

Small data: eighty rows of thirty fields are common, so everything is shrunk, and every calibration comes from rows
that the fit has not seen (`FOLDS`-fold leave-out).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comity.errors import ConfigError
from comity_node.validators.calibrate import Tail
from comity_node.validators.schema import Labels, Matrix, Vector

FOLDS = 8
BLOCKS = 4
MIN_CLASS_ROWS = 8
_OPSET = 17
#: Inverse penalty of the label model. Small: a confident model on eighty rows is an overfitted one.
_LABEL_C = 0.1
_LOG_OFFSET = 0.1


@dataclass(frozen=True, slots=True)
class Transform:
    """Private rows to standardized ones: log(x + offset) for skewed positive fields, then centre and scale.

    Each is one value a feature; an offset of -1 means the field is taken as it is.
    """

    offset: tuple[float, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, rows: Matrix) -> Transform:
        """Choose the transform of each feature of `rows` (n x features)."""
        offset = np.full(rows.shape[1], -1.0)
        for column in range(rows.shape[1]):
            values = rows[:, column]
            positive = values[values > 0]
            if values.min() >= 0 and len(positive) > len(values) // 2 and _skewness(values) > 0.5:
                offset[column] = _LOG_OFFSET * float(np.median(positive))
        logged = _logged(rows, offset)
        scale = logged.std(axis=0)
        return cls(
            tuple(offset.tolist()),
            tuple(logged.mean(axis=0).tolist()),
            tuple(np.where(scale > 1e-12, scale, 1.0).tolist()),
        )

    def apply(self, rows: Matrix) -> Matrix:
        """Return standardized rows (n x features)."""
        logged = _logged(rows, np.asarray(self.offset))
        result: Matrix = (logged - np.asarray(self.centre)) / np.asarray(self.scale)
        return result

    def to_json(self) -> dict[str, list[float]]:
        """Return the JSON form."""
        return {"offset": list(self.offset), "centre": list(self.centre), "scale": list(self.scale)}

    @classmethod
    def from_json(cls, value: Mapping[str, list[float]]) -> Transform:
        """Read what `to_json` made."""
        return cls(tuple(value["offset"]), tuple(value["centre"]), tuple(value["scale"]))


def _logged(rows: Matrix, offset: Vector) -> Matrix:
    positive = offset >= 0
    shifted = np.where(positive, np.maximum(rows, 0.0) + np.where(positive, offset, 0.0), 1.0)
    result: Matrix = np.where(positive, np.log(shifted), rows)
    return result


def _skewness(values: Vector) -> float:
    centred = values - values.mean()
    spread = float(values.std())
    return float((centred**3).mean()) / spread**3 if spread > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ClassDensity:
    """A Gaussian for one class: mean (features), covariance and precision (features x features)."""

    mean: Vector
    covariance: Matrix
    precision: Matrix

    @property
    def log_peak(self) -> float:
        """The log density at the mean."""
        _, log_determinant = np.linalg.slogdet(self.covariance)
        return -0.5 * (float(log_determinant) + len(self.mean) * math.log(2 * math.pi))

    def deviation(self, rows: Matrix) -> Vector:
        """Return each row's squared Mahalanobis distance."""
        centred = rows - self.mean
        distance: Vector = np.einsum("ij,jk,ik->i", centred, self.precision, centred)
        return distance

    def residuals(self, rows: Matrix) -> Matrix:
        """Return, in standard deviations, how far each field is from what the row's other fields tell of it."""
        result: Matrix = (rows - self.mean) @ self.precision / np.sqrt(np.diag(self.precision))
        return result


def fit_densities(rows: Matrix, labels: Labels) -> tuple[ClassDensity, ClassDensity]:
    """Fit a Gaussian a class, shrunk (Ledoit and Wolf 2004) and drawn to the pooled one if small (Friedman 1989)."""
    from sklearn.covariance import ledoit_wolf

    means = [rows[labels == label].mean(axis=0) for label in (0, 1)]
    centred = rows - np.where((labels == 1)[:, None], means[1], means[0])
    pooled, _ = ledoit_wolf(centred, assume_centered=True)
    densities = []
    for label in (0, 1):
        own = centred[labels == label]
        covariance, _ = ledoit_wolf(own, assume_centered=True)
        weight = len(own) / (len(own) + rows.shape[1])
        blended = weight * covariance + (1.0 - weight) * pooled
        densities.append(ClassDensity(means[label], blended, np.linalg.inv(blended)))
    return densities[0], densities[1]


def fit_label_model(rows: Matrix, labels: Labels) -> Any:  # noqa: ANN401  (scikit-learn ships no types)
    """Fit a logistic regression of the label on standardized rows, both classes weighing the same."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_LABEL_C, class_weight="balanced", max_iter=1000).fit(rows, labels)


def surprise(probabilities: Matrix, labels: Labels) -> Vector:
    """Return -log of the probability of each row's given label (n x 2 probabilities, n labels)."""
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    result: Vector = -np.log(np.clip(given, 1e-12, 1.0))
    return result


@dataclass(frozen=True, slots=True)
class Calibration:
    """Tails of the statistics, and the label model's error rate on rows it has not seen."""

    spread: Tail
    density: Tail
    label: Tail
    pair: Tail
    disagreement: float


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """Statistics of rows that the fit has not seen."""

    spread: Vector
    density: Vector
    label: Vector
    wrong: int


def calibrate(rows: Matrix, labels: Labels) -> Calibration:
    """Calibrate every statistic on standardized rows that the fit in question has left out.

    The rows are left out twice: at random, and in blocks along the axis on which a class's rows differ most, because
    another organization's good rows are not a random sample of one's own.

    Raises:
        ConfigError: a class has fewer than `MIN_CLASS_ROWS` rows.
    """
    for label in (0, 1):
        if (count := int((labels == label).sum())) < MIN_CLASS_ROWS:
            raise ConfigError(f"class {label} has {count} private rows; a validator needs {MIN_CLASS_ROWS} of each")
    ways = (_dealt(labels), _blocks(rows, labels))
    parts = [_leave_out(rows, labels, folds == number) for folds in ways for number in range(int(folds.max()) + 1)]
    wrong = sum(part.wrong for part in parts)
    return Calibration(
        Tail.fit(np.concatenate([part.spread for part in parts])),
        Tail.fit(np.concatenate([part.density for part in parts])),
        Tail.fit(np.concatenate([part.label for part in parts])),
        Tail.fit(_pair_closeness(rows)),
        (wrong + 1.0) / (2.0 * len(labels) + 2.0),
    )


def _leave_out(rows: Matrix, labels: Labels, out: NDArray[np.bool_]) -> _LeftOut:
    inside, given = rows[~out], labels[out]
    densities = fit_densities(inside, labels[~out])
    probabilities = np.asarray(fit_label_model(inside, labels[~out]).predict_proba(rows[out]))
    deviation = np.array(
        [densities[label].deviation(row[None])[0] for row, label in zip(rows[out], given, strict=True)]
    )
    return _LeftOut(
        spread_of(rows[out], inside.mean(axis=0), inside.std(axis=0)),
        deviation,
        surprise(probabilities, given),
        int((probabilities.argmax(axis=1) != given).sum()),
    )


def spread_of(rows: Matrix, centre: Vector, scale: Vector) -> Vector:
    """Return each row's largest deviation from the centre over its fields, in units of `scale`."""
    largest: Vector = np.abs((rows - centre) / np.where(scale > 1e-12, scale, 1.0)).max(axis=1)
    return largest


def closeness(distances: Vector) -> Vector:
    """Return -log of distances: large for rows that are nearly copies."""
    result: Vector = -np.log(np.maximum(distances, 1e-9))
    return result


def _pair_closeness(rows: Matrix) -> Vector:
    upper = np.triu_indices(min(len(rows), 400), k=1)
    differences = rows[upper[0]] - rows[upper[1]]
    return closeness(np.sqrt(np.square(differences).mean(axis=1)))


def _dealt(labels: Labels) -> Labels:
    """Deal the rows of each class to the folds in turn."""
    fold = np.empty(len(labels), dtype=np.int64)
    for label in (0, 1):
        index = np.flatnonzero(labels == label)
        fold[index] = np.arange(len(index)) % FOLDS
    return fold


def _blocks(rows: Matrix, labels: Labels) -> Labels:
    """Cut each class into `BLOCKS` equal parts along the first principal axis within the classes."""
    means = np.stack([rows[labels == label].mean(axis=0) for label in (0, 1)])
    within = rows - means[labels]
    _, vectors = np.linalg.eigh(within.T @ within)
    place = within @ vectors[:, -1]
    block = np.empty(len(labels), dtype=np.int64)
    for label in (0, 1):
        index = np.flatnonzero(labels == label)
        ranks = np.argsort(np.argsort(place[index]))
        block[index] = ranks * BLOCKS // len(index)
    return block


def label_onnx(model: Any) -> bytes:  # noqa: ANN401
    """Export the label model: rows (n x features, float32) to labels and probabilities (n x 2)."""
    return _export(model, model.coef_.shape[1], {"zipmap": False})


def density_onnx(density: ClassDensity) -> bytes:
    """Export a class's Gaussian as a mixture of one: rows to labels, probabilities and log densities (n x 1)."""
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(n_components=1, covariance_type="full")
    model.weights_ = np.ones(1)
    model.means_ = density.mean[None, :]
    model.covariances_ = density.covariance[None, :, :]
    model.precisions_cholesky_ = np.linalg.cholesky(density.precision)[None, :, :]
    model.n_features_in_ = len(density.mean)
    return _export(model, len(density.mean), {"score_samples": True})


def _export(model: Any, width: int, options: dict[str, bool]) -> bytes:  # noqa: ANN401
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    kinds = [("rows", FloatTensorType([None, width]))]
    exported = to_onnx(model, initial_types=kinds, options={id(model): options}, target_opset=_OPSET)
    data: bytes = exported.SerializeToString()
    return data
