"""Certified records as arrays that a model can be trained on.

Members standardize with constants that all of them know beforehand (a `Scale` in the workflow's or the run's
configuration): the mean of anybody's private rows would leave with every coefficient.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comity.errors import ConfigError, InvalidRecord

Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scale:
    """Agreed constants: a value x of field i becomes (x - center[i]) / scale[i].

    The fields are in the order of a row's columns; `label` names the field with the class, 0 or 1.
    """

    fields: tuple[str, ...]
    label: str
    center: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields) | {self.label}) != len(self.fields) + 1:
            raise ConfigError("a scale needs fields with different names, and a label that is none of them")
        if not len(self.fields) == len(self.center) == len(self.scale):
            raise ConfigError("a scale needs a center and a scale for each field")
        if not all(map(math.isfinite, self.center)) or not all(math.isfinite(s) and s > 0 for s in self.scale):
            raise ConfigError("centers must be finite, and scales positive")

    def apply(self, rows: npt.NDArray[Any]) -> Matrix:
        """Standardize rows of shape (n, d)."""
        standardized: Matrix = (np.asarray(rows, dtype=np.float64) - np.array(self.center)) / np.array(self.scale)
        return standardized

    def to_json(self) -> dict[str, Any]:
        """Return the constants as JSON."""
        return {
            "fields": list(self.fields),
            "label": self.label,
            "center": list(self.center),
            "scale": list(self.scale),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, file: str = "") -> Scale:
        """Read what `to_json` returned.

        Raises:
            ConfigError: it is something else.
        """
        try:
            return cls(
                fields=tuple(str(name) for name in value["fields"]),
                label=str(value["label"]),
                center=tuple(float(number) for number in value["center"]),
                scale=tuple(float(number) for number in value["scale"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a scale (fields, label, center, scale): {error}", file=file) from error

    @classmethod
    def load(cls, path: Path) -> Scale:
        """Read a JSON file.

        Raises:
            ConfigError: the file is missing or holds no scale.
        """
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the scale: {error}", file=str(path)) from error
        if not isinstance(value, dict):
            raise ConfigError("a scale is a JSON object", file=str(path))
        return cls.from_json(value, file=str(path))


def records_to_arrays(records: Iterable[Mapping[str, Any]], fields: Sequence[str], label: str) -> tuple[Matrix, Labels]:
    """Return records as rows of shape (n, d), in the order of `fields`, and labels of shape (n,).

    Raises:
        InvalidRecord: a record lacks a field, a value is no finite number, or a label is not 0 or 1.
    """
    rows: list[list[float]] = []
    labels: list[int] = []
    for number, record in enumerate(records):
        rows.append([_number(record, name, number) for name in fields])
        value = _number(record, label, number)
        if value not in (0.0, 1.0):
            raise InvalidRecord(f"record {number}: the label {label!r} is {value:g}, not 0 or 1")
        labels.append(int(value))
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(fields)), np.array(labels, dtype=np.int64)


def _number(record: Mapping[str, Any], name: str, number: int) -> float:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRecord(f"record {number}: {name!r} is missing or no finite number")
    return float(value)
