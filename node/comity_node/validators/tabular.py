"""The tabular validator: is a row plausible, rightly labelled and new, in the eyes of one organization's own data?

Every axis is the p-value of one question, calibrated on the reviewer's own real rows, divided by the axis's share of
the error budget and cut at 1 (weighted Bonferroni: Genovese, Roeder and Wasserman 2006). The score is the smallest
axis, so a good row scores below s with a probability of at most about s, and `min_score` reads as the share of good
rows that a reviewer is ready to lose.

    axis       question                                                            catches
    schema     does it fit the schema?                                             anything else
    range      is the largest deviation of any field one that a good row has?      wrong units, shifts
    density    is the row as a whole one of its class?                             broken correlations, flipped labels
    label      how sure is a model of another label?                               flipped labels
    labels     does the whole batch disagree with the model more than good ones?   shuffled labels
    collapse   is it too close to another row of the batch?                        collapse, repetition
    copy       is it too close to a row seen before, whoever sent it?              copies, replays
    private    is it too close to one of the reviewer's own private rows?          leaks, theft
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comity.digest import canonical_json, hex_digest
from comity.errors import ConfigError, ModelError
from comity_node.validators import models
from comity_node.validators.calibrate import Tail, binomial_tail, closest_of
from comity_node.validators.distance import closest
from comity_node.validators.memory import SeenRows
from comity_node.validators.runtime import (
    MANIFEST_FILE,
    PRECISION,
    Manifest,
    Model,
    ProviderChoice,
    array_bytes,
    load_array,
    open_model,
    runtime,
)
from comity_node.validators.schema import Labels, Matrix, Schema, Vector

KIND = "comity-tabular/1"
SCALE = 10_000
#: Of good rows, a reviewer loses about this share; see the module's docstring.
DEFAULT_MIN_SCORE = 500

#: Shares of the error budget. The label model errs on a few good rows in a hundred, so it needs most of it.
WEIGHTS: Mapping[str, float] = {
    "range": 0.1,
    "density": 0.2,
    "label": 0.5,
    "labels": 0.05,
    "collapse": 0.05,
    "copy": 0.05,
    "private": 0.05,
}
#: Added to the label model's own error rate when a batch's is judged: other organizations' patients differ.
_FOREIGN_ERROR = 0.05
MAX_BATCH = 1000
#: Author in the memory of rows that the reviewer's own organization made; no organization has an empty name.
_SELF = ""

_SETTINGS, _ROWS, _LABEL_MODEL = "validator.json", "rows.npy", "label.onnx"
_DENSITY_MODELS = ("density0.onnx", "density1.onnx")


@dataclass(frozen=True, slots=True)
class RowReview:
    """The judgement of one row: score and axes 0..10000 (the score is the smallest axis), and what to do about it."""

    score: int
    axes: Mapping[str, int]
    feedback: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the form that the `review` skill answers with."""
        return {"score": self.score, "axes": dict(self.axes), "feedback": list(self.feedback)}


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a validator judges with, once its pinned files are read."""

    schema: Schema
    transform: models.Transform
    calibration: models.Calibration
    private: Matrix
    densities: tuple[models.ClassDensity, models.ClassDensity]
    label_model: Model
    density_models: tuple[Model, Model]


class Validator:
    """Judges batches of rows. Not for the event loop: a review computes. One review at a time.

    Make one with `build` or `load`.
    """

    def __init__(self, manifest: Manifest, parts: _Parts, seen: SeenRows) -> None:
        self._manifest, self._parts, self._seen = manifest, parts, seen

    @classmethod
    def build(
        cls,
        directory: Path,
        rows: Matrix,
        labels: Labels,
        schema: Schema,
        *,
        provider: ProviderChoice = "auto",
    ) -> Validator:
        """Fit models to private rows, write and pin them in `directory`, and load them.

        The directory holds private rows and models fitted to them: it stays with its organization.

        Args:
            directory: made when it is not there, mode 0700; what it held is replaced.
            rows: n x features in the schema's order, finite.
            labels: n of 0 or 1, at least eight of each.
            schema: what records look like.
            provider: see `runtime.Model`.

        Raises:
            ConfigError: there are too few rows of a class, or they do not fit the schema's width.
        """
        if rows.ndim != 2 or rows.shape[1] != len(schema.features) or len(rows) != len(labels):
            raise ConfigError(f"rows must be n x {len(schema.features)} with n labels, not {rows.shape}")
        if not np.isfinite(rows).all():
            raise ConfigError("the private rows have missing or infinite values")
        files = _fit(rows, labels, schema)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        manifest = Manifest.of(files)
        for name, data in {**files, MANIFEST_FILE: json.dumps(manifest.to_json(), indent=1).encode()}.items():
            _write(directory / name, data)
        return cls.load(directory, provider=provider)

    @classmethod
    def load(cls, directory: Path, *, manifest: str | None = None, provider: ProviderChoice = "auto") -> Validator:
        """Open a validator that `build` made.

        Args:
            directory: where it is.
            manifest: the manifest's expected digest, when the caller has pinned it elsewhere.
            provider: see `runtime.Model`.

        Raises:
            ModelError: a file is missing, not the pinned one, or not safe to open.
            StorageError: the memory of rows cannot be opened.
        """
        pinned = Manifest.load(directory / MANIFEST_FILE)
        if manifest is not None and pinned.digest != manifest:
            raise ModelError(f"{directory}: the manifest is not the pinned one")
        parts = _load_parts(directory, pinned, provider)
        return cls(pinned, parts, SeenRows(len(parts.schema.features), directory / "seen.sqlite"))

    @property
    def schema(self) -> Schema:
        """The schema of the rows that it judges."""
        return self._parts.schema

    def describe(self) -> dict[str, Any]:
        """Return what made the scores: goes into each signed review."""
        judged_by = (self._parts.label_model, *self._parts.density_models)
        return {
            "kind": KIND,
            "manifest": self._manifest.digest,
            "models": {model.name: model.digest for model in judged_by},
            "onnxruntime": str(runtime().__version__),
            "precision": PRECISION,
            "providers": list(self._parts.label_model.providers),
        }

    def remember(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows that were not reviewed here, such as those one's own generator made, to know their copies.

        Raises:
            InvalidRecord: a record does not fit the schema.
        """
        rows, _ = self._parts.schema.matrix(records)
        self._seen.add(self._standard(rows), _SELF, [_digest(record) for record in records])

    def review(
        self,
        author: str,
        records: Sequence[Mapping[str, Any]],
        min_score: int = DEFAULT_MIN_SCORE,
        *,
        tasks: Sequence[str] | None = None,
    ) -> list[RowReview]:
        """Judge a batch.

        Every row that fits the schema is remembered, and close copies of it score low from then on.

        Args:
            author: the organization that the rows come from.
            records: at most `MAX_BATCH` flat JSON objects; whatever they hold, nothing but a review comes of it.
            min_score: 0..10000.
            tasks: an identifier a row that stays the same when the row is repaired or sent again. Without them, only
                the same batch sent again by the same author is not taken for copies.

        Raises:
            ConfigError: the batch is too large, or `tasks` has another length.
        """
        if len(records) > MAX_BATCH or (tasks is not None and len(tasks) != len(records)):
            raise ConfigError(f"a batch is at most {MAX_BATCH} rows, with one task each")
        problems = [_problem(self._parts.schema, record) for record in records]
        good = [number for number, problem in enumerate(problems) if not problem]
        reviews = [RowReview(0, {"schema": 0}, (f"schema: {problem}",)) for problem in problems]
        if good:
            fitting = [records[n] for n in good]
            named = _batch_tasks(fitting) if tasks is None else [tasks[n] for n in good]
            judged = self._judge(author, fitting, named, min_score)
            for number, review in zip(good, judged, strict=True):
                reviews[number] = review
        return reviews

    def close(self) -> None:
        """Close the memory's file."""
        self._seen.close()

    def _judge(
        self, author: str, records: Sequence[Mapping[str, Any]], tasks: Sequence[str], min_score: int
    ) -> list[RowReview]:
        raw, labels = self._parts.schema.matrix(records)
        rows = self._standard(raw)
        p_values = {**self._row_axes(rows, labels), **self._novelty_axes(rows, author, tasks)}
        self._seen.add(rows, author, tasks)
        axes = {name: _scores(values, WEIGHTS[name]) for name, values in p_values.items()}
        reviews = []
        for number in range(len(rows)):
            own = {"schema": SCALE, **{name: int(values[number]) for name, values in axes.items()}}
            feedback = self._feedback(own, rows[number], int(labels[number]), min_score)
            reviews.append(RowReview(min(own.values()), own, feedback))
        return reviews

    def _standard(self, raw: Matrix) -> Matrix:
        return self._parts.transform.apply(raw)

    def _row_axes(self, rows: Matrix, labels: Labels) -> dict[str, Vector]:
        calibration = self._parts.calibration
        inputs = rows.astype(np.float32)
        probabilities = self._parts.label_model.run(inputs)[1]
        deviation = np.empty(len(rows))
        for label, model in enumerate(self._parts.density_models):
            of_class = labels == label
            if of_class.any():
                log_density = model.run(inputs[of_class])[-1].reshape(-1).astype(np.float64)
                deviation[of_class] = 2.0 * (self._parts.densities[label].log_peak - log_density)
        disagreeing = int((probabilities.argmax(axis=1) != labels).sum())
        batch = binomial_tail(disagreeing, len(labels), min(0.5, calibration.disagreement + _FOREIGN_ERROR))
        return {
            "range": calibration.spread.p_value(np.abs(rows).max(axis=1)),
            "density": calibration.density.p_value(deviation),
            "label": calibration.label.p_value(models.surprise(probabilities, labels)),
            "labels": np.full(len(labels), batch),
        }

    def _novelty_axes(self, rows: Matrix, author: str, tasks: Sequence[str]) -> dict[str, Vector]:
        width = np.sqrt(rows.shape[1])
        private = self._parts.private
        within = np.array([closest(rows[[n]], np.delete(rows, n, axis=0))[0] for n in range(len(rows))])
        found = {
            "collapse": (within, len(rows) - 1),
            "copy": (self._seen.distances(rows, author, tasks), len(self._seen)),
            "private": (closest(rows, private), len(private)),
        }
        return {name: self._novelty(distances / width, count) for name, (distances, count) in found.items()}

    def _novelty(self, distances: Vector, count: int) -> Vector:
        return closest_of(self._parts.calibration.pair.p_value(models.closeness(distances)), count)

    def _feedback(self, axes: Mapping[str, int], row: Vector, label: int, min_score: int) -> tuple[str, ...]:
        failed = [name for name, score in axes.items() if score < min_score]
        return tuple(f"{name}: {self._advice(name, row, label)}" for name in failed)

    def _advice(self, axis: str, row: Vector, label: int) -> str:
        if axis in _ADVICE:
            return _ADVICE[axis]
        if axis == "range":
            deviations = row
        else:
            deviations = self._parts.densities[label].residuals(row[None, :])[0]
        worst = int(np.abs(deviations).argmax())
        side = "large" if deviations[worst] > 0 else "small"
        beside = "" if axis == "range" else " beside the row's other fields"
        return f"{self._parts.schema.features[worst]} is too {side}{beside}"


_ADVICE = {
    "label": "the fields speak for the other label",
    "labels": "too many labels of this batch disagree with their rows",
    "collapse": "too close to another row of this batch",
    "copy": "too close to a row that came before",
    "private": "too close to one of the reviewer's own rows",
}


def _problem(schema: Schema, record: object) -> str:
    return schema.problem(record) if isinstance(record, Mapping) else "it is no JSON object"


def _scores(p_values: Vector, weight: float) -> NDArray[np.int64]:
    scores: NDArray[np.int64] = np.round(np.minimum(p_values / weight, 1.0) * SCALE).astype(np.int64)
    return scores


def _digest(record: Mapping[str, Any]) -> str:
    return hex_digest(canonical_json(dict(record)))


def _batch_tasks(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name tasks that have no name after the whole batch, so that it can be sent again."""
    batch = hex_digest("".join(_digest(record) for record in records).encode())
    return [f"{batch}/{number}" for number in range(len(records))]


def _fit(rows: Matrix, labels: Labels, schema: Schema) -> dict[str, bytes]:
    """Return the validator's files."""
    transform = models.Transform.fit(rows)
    standard = transform.apply(rows)
    calibration = models.calibrate(standard, labels)
    densities = models.fit_densities(standard, labels)
    settings = {
        "kind": KIND,
        "schema": schema.to_json(),
        "transform": transform.to_json(),
        "tails": {name: getattr(calibration, name).to_json() for name in ("spread", "density", "label", "pair")},
        "disagreement": calibration.disagreement,
    }
    moments = np.stack([np.vstack([d.mean[None, :], d.covariance]) for d in densities])
    return {
        _SETTINGS: json.dumps(settings).encode(),
        _ROWS: array_bytes(standard),
        "densities.npy": array_bytes(moments),
        _LABEL_MODEL: models.label_onnx(models.fit_label_model(standard, labels)),
        _DENSITY_MODELS[0]: models.density_onnx(densities[0]),
        _DENSITY_MODELS[1]: models.density_onnx(densities[1]),
    }


def _load_parts(directory: Path, manifest: Manifest, provider: ProviderChoice) -> _Parts:
    try:
        settings = json.loads(manifest.read(directory, _SETTINGS))
        if settings["kind"] != KIND:
            raise ModelError(f"{directory}: a validator of the kind {settings['kind']!r}; build it again")
        schema = Schema.from_json(settings["schema"])
        transform = models.Transform.from_json(settings["transform"])
        tails = {name: Tail.from_json(value) for name, value in settings["tails"].items()}
        calibration = models.Calibration(**tails, disagreement=float(settings["disagreement"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{directory}: made by another version of the validator; build it again") from error
    moments = load_array(manifest.read(directory, "densities.npy"))
    first, second = (models.ClassDensity(m[0], m[1:], np.linalg.inv(m[1:])) for m in moments)
    open_one = [open_model(directory, manifest, name, provider=provider) for name in (_LABEL_MODEL, *_DENSITY_MODELS)]
    private = load_array(manifest.read(directory, _ROWS))
    return _Parts(schema, transform, calibration, private, (first, second), open_one[0], (open_one[1], open_one[2]))


def _write(path: Path, data: bytes) -> None:
    """Write a private file, mode 0600, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
