"""Certified records as arrays that a model can be trained on.

Members standardize with constants that all of them share, and that say nothing about anybody's private rows: they
come from the certified records, which were released and reviewed already, or from declared ranges. The server
computes them and sends them with each round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comity.errors import ConfigError, InvalidRecord

Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scale:
    """Shared constants: a value x of field i becomes (x - center[i]) / scale[i].

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

    @classmethod
    def of_rows(cls, fields: Sequence[str], label: str, rows: npt.NDArray[Any]) -> Scale:
        """Return the mean and the standard deviation of rows that everybody may know, shape (n, d) with n > 1.

        Raises:
            ConfigError: there are too few rows.
        """
        if len(rows) < 2:
            raise ConfigError("a scale needs at least two rows")
        center = np.mean(rows, axis=0)
        spread = np.std(rows, axis=0)
        # A field that is the same in all rows tells nothing; it must not become infinite in somebody's other rows.
        spread = np.where(spread > 0, spread, np.maximum(np.abs(center), 1.0))
        return cls(tuple(fields), label, tuple(map(float, center)), tuple(map(float, spread)))

    @classmethod
    def of_ranges(cls, ranges: Mapping[str, tuple[float, float]], label: str) -> Scale:
        """Return constants that put declared ranges (field to minimum and maximum) to -3..3."""
        center = tuple((low + high) / 2 for low, high in ranges.values())
        return cls(tuple(ranges), label, center, tuple((high - low) / 6 for low, high in ranges.values()))

    def to_config(self) -> dict[str, list[float]]:
        """Return the constants for a configuration record of a train message."""
        return {"center": list(self.center), "scale": list(self.scale)}

    @classmethod
    def from_config(cls, fields: Sequence[str], label: str, config: Mapping[str, Any]) -> Scale:
        """Read what `to_config` returned; fields and label are the member's own knowledge.

        Raises:
            ConfigError: the constants are missing or do not fit.
        """
        center, scale = config.get("center"), config.get("scale")
        if not isinstance(center, list) or not isinstance(scale, list):
            raise ConfigError("the train message holds no constants (center, scale)")
        if not all(isinstance(number, float | int) for number in (*center, *scale)):
            raise ConfigError("the constants of a train message are not numbers")
        return cls(tuple(fields), label, tuple(map(float, center)), tuple(map(float, scale)))


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
