"""What a tabular record looks like: its fields, their ranges, its label.

A schema is published to every organization, so it must not say anything about a private row: its ranges are declared,
never measured (`comity_node.demo.data` says how).

    {"version": 1, "label": "label",
     "fields": {"mean_radius": {"type": "number", "min": 0, "max": 100},
                "label": {"type": "integer", "min": 0, "max": 1}}}

Policies read the same file. Their mark `personal` on a field is kept and means nothing here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comity.errors import ConfigError, InvalidRecord

Record = Mapping[str, Any]
Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Labels = NDArray[np.int64]
FieldType = Literal["number", "integer"]

MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field: its type, the closed range of its values, and whether it is personal."""

    type: FieldType
    minimum: float
    maximum: float
    personal: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        mark = {"personal": True} if self.personal else {}
        return {"type": self.type, **mark, "min": self.minimum, "max": self.maximum}


@dataclass(frozen=True, slots=True)
class Schema:
    """Fields of a record in their order, and which of them is the binary label."""

    label: str
    fields: Mapping[str, FieldSpec]

    def __post_init__(self) -> None:
        if self.label not in self.fields:
            raise ConfigError(f"the schema's label {self.label!r} is not among its fields")
        if not 2 <= len(self.fields) <= MAX_FIELDS:
            raise ConfigError(f"a schema has a label and 1 to {MAX_FIELDS - 1} other fields")
        for name, spec in self.fields.items():
            if not (math.isfinite(spec.minimum) and math.isfinite(spec.maximum) and spec.minimum < spec.maximum):
                raise ConfigError(f"field {name!r}: min must be less than max, and both finite")

    @property
    def features(self) -> tuple[str, ...]:
        """The fields without the label, in order."""
        return tuple(name for name in self.fields if name != self.label)

    def without(self, names: Collection[str]) -> Schema:
        """Return the schema of records from which these fields are redacted; the label stays."""
        kept = {name: spec for name, spec in self.fields.items() if name not in names or name == self.label}
        return self if len(kept) == len(self.fields) else Schema(self.label, kept)

    def problem(self, record: Record) -> str:
        """Return why `record` does not fit, or "" when it does."""
        for name in record:
            if name not in self.fields:
                return f"{name!r} is no field of the schema"
        for name, spec in self.fields.items():
            if name not in record:
                return f"{name!r} is missing"
            value = record[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return f"{name!r} is no number"
            if not spec.minimum <= value <= spec.maximum:  # also refuses NaN
                return f"{name!r} is outside {spec.minimum:g} to {spec.maximum:g}"
            if spec.type == "integer" and value != int(value):
                return f"{name!r} is no integer"
        return ""

    def check(self, record: Record) -> None:
        """Refuse a record that does not fit.

        Raises:
            InvalidRecord: a field is missing, unknown, of the wrong type or out of range.
        """
        if problem := self.problem(record):
            raise InvalidRecord(problem)

    def matrix(self, records: Sequence[Record]) -> tuple[Matrix, Labels]:
        """Return features (rows x features, float64, in schema order) and labels of records that fit.

        Raises:
            InvalidRecord: a record does not fit.
        """
        for record in records:
            self.check(record)
        values = np.array([[float(record[name]) for name in self.features] for record in records], dtype=np.float64)
        labels = np.array([int(record[self.label]) for record in records], dtype=np.int64)
        return values.reshape(len(records), len(self.features)), labels

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, which `from_json` reads back."""
        fields = {name: spec.to_json() for name, spec in self.fields.items()}
        return {"version": 1, "label": self.label, "fields": fields}

    @classmethod
    def from_json(cls, value: object, *, file: str = "") -> Schema:
        """Read the JSON form strictly.

        Raises:
            ConfigError: a key is unknown, missing or of the wrong type.
        """
        try:
            return cls._parse(value)
        except ConfigError as error:
            raise ConfigError(f"schema: {error}", file=file) from None

    @classmethod
    def _parse(cls, value: object) -> Schema:
        if not isinstance(value, dict) or set(value) != {"version", "label", "fields"} or value["version"] != 1:
            raise ConfigError("it needs exactly the keys version (1), label and fields")
        if not isinstance(value["label"], str) or not isinstance(value["fields"], dict):
            raise ConfigError("label must be a string and fields a mapping")
        return cls(value["label"], {str(name): _field(str(name), spec) for name, spec in value["fields"].items()})

    def save(self, path: Path) -> None:
        """Write the JSON form to `path`."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Schema:
        """Read a schema's file.

        Raises:
            ConfigError: the file is missing or no schema.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the schema: {error.strerror}", file=str(path)) from error
        except ValueError as error:
            raise ConfigError(f"the schema is no JSON: {error}", file=str(path)) from error
        return cls.from_json(value, file=str(path))


def _field(name: str, spec: object) -> FieldSpec:
    if not isinstance(spec, dict) or set(spec) - {"personal"} != {"type", "min", "max"}:
        raise ConfigError(f"field {name!r} needs type, min and max, may have personal, and nothing else")
    if spec["type"] not in ("number", "integer") or not isinstance(spec.get("personal", False), bool):
        raise ConfigError(f"field {name!r}: type is number or integer, personal is true or false")
    bounds = (spec["min"], spec["max"])
    if any(isinstance(bound, bool) or not isinstance(bound, (int, float)) for bound in bounds):
        raise ConfigError(f"field {name!r}: min and max must be numbers")
    return FieldSpec(spec["type"], float(bounds[0]), float(bounds[1]), spec.get("personal", False))
