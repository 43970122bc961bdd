"""The shape of a task's state: a subset of JSON Schema (draft 2020-12) that is cheap to check and always bounded.

`type` (one of object, array, string, number, integer, boolean), `properties`, `required`, `items`, `enum`, `minimum`,
`maximum`, `minLength`, `maxLength`, `minItems`, `maxItems`, `description`. Objects have the properties that are named
and no others, so `additionalProperties` is false whether it says so or not. A value fits here if and only if it fits in
JSON Schema; what not every JSON reader keeps (numbers over 2^53 - 1, half characters) never fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from comity.strictjson import MAX_INTEGER
from comity_node.protocol.flow_spot import Spot

#: Levels of a state.
MAX_DEPTH = 8
#: Fields of a state, on all levels together.
MAX_FIELDS = 256
#: Values of an `enum`.
MAX_ENUM = 64
#: Characters of a `description`.
MAX_DESCRIPTION = 1000
#: Bytes that a state may have as canonical JSON.
MAX_STATE = 256 * 1024
#: Names of fields. ASCII, so that their order is the same everywhere (RFC 8785 sorts by UTF-16 units).
FIELD = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
_FIELD = re.compile(FIELD)

Type = Literal["object", "array", "string", "number", "integer", "boolean"]
_TYPES: tuple[Type, ...] = ("object", "array", "string", "number", "integer", "boolean")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("enum", "minLength", "maxLength"),
    "number": ("enum", "minimum", "maximum"),
    "integer": ("enum", "minimum", "maximum"),
    "boolean": ("enum",),
}
_SIZES = ("minLength", "maxLength", "minItems", "maxItems")
_PYTHON: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
    "boolean": (bool,),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a value has to be.

    Attributes:
        source: itself as JSON Schema, in its normal form.
        type: its type.
        properties: of an object: its fields.
        required: of an object: those that it has to have.
        items: of an array: what each item is.
        enum: the values that it may have; none: any.
        minimum: the least number, or the least characters or items.
        maximum: the most.
    """

    source: Mapping[str, Any]
    type: Type
    properties: Mapping[str, Shape] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    items: Shape | None = None
    enum: tuple[Any, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf

    def misfit(self, value: object, where: str) -> str:
        """Return what is wrong with `value`, which a message calls `where`; empty: nothing, it fits."""
        kind = self.type
        wrong = type(value) is bool and kind != "boolean"
        if wrong or not isinstance(value, _PYTHON[kind]) or (kind == "integer" and not _is_whole(value)):
            return f"{where} is no {kind}"
        if self.enum and value not in self.enum:
            return f"{where} is none of the values that it may have"
        if isinstance(value, dict):
            return self._misfit_object(value, where)
        if isinstance(value, list):
            return self._misfit_array(value, where)
        if isinstance(value, str):
            return self._misfit_text(value, where)
        return self._misfit_number(cast("float", value), where)

    def _misfit_object(self, value: dict[Any, Any], where: str) -> str:
        for name, inner in value.items():
            shape = self.properties.get(name) if isinstance(name, str) else None
            if shape is None:
                return f"{where} has a field {str(name)[:64]!r}, which the state does not have"
            if wrong := shape.misfit(inner, f"{where}.{name}"):
                return wrong
        missing = self.required - value.keys()
        return f"{where} lacks {min(missing)!r}" if missing else ""

    def _misfit_array(self, value: list[Any], where: str) -> str:
        if not self.minimum <= len(value) <= self.maximum:
            return f"{where} has {len(value)} items"
        items = cast("Shape", self.items)
        for number, inner in enumerate(value):
            if wrong := items.misfit(inner, f"{where}[{number}]"):
                return wrong
        return ""

    def _misfit_text(self, value: str, where: str) -> str:
        if not self.minimum <= len(value) <= self.maximum:
            return f"{where} has {len(value)} characters"
        if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
            return f"{where} holds half a character"
        return ""

    def _misfit_number(self, value: float, where: str) -> str:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:  # a float, too: RFC 8785 writes 1e17 as an integer
            return f"{where} is over 2^53 - 1"
        if not self.minimum <= value <= self.maximum:
            return f"{where} is out of range"
        return ""

    def at(self, path: tuple[str, ...]) -> Shape | None:
        """Return the shape of the field that `path` leads to; None: there is none."""
        shape: Shape | None = self
        for name in path:
            shape = shape.properties.get(name) if shape is not None else None
        return shape


def _is_whole(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def weight(value: object) -> int:
    """Return a bound on the bytes of a value that fits a shape, as canonical JSON: never less than they are."""
    if isinstance(value, str):
        return (len(value) if value.isascii() and value.isalnum() else 6 * len(value)) + 2
    if isinstance(value, dict):
        return 2 + sum(map(weight, value.values())) + sum(map(len, value)) + 4 * len(value)
    if isinstance(value, list):
        return 2 + len(value) + sum(map(weight, value))
    return 26


def read_shape(spot: Spot) -> Shape:
    """Read the shape of a state: an object, none of whose fields has to be there from the beginning.

    Raises:
        ConfigError: it is none.
    """
    fields = [MAX_FIELDS]
    shape = _read(spot, 1, fields)
    if shape.type != "object":
        spot.fail("a state is an object: say type: object, and its properties")
    if shape.required:
        spot.fail("a task begins with an empty state: nothing of it is required; `record` says what is at the end")
    return shape


def _read(spot: Spot, depth: int, left: list[int]) -> Shape:
    if depth > MAX_DEPTH:
        spot.fail(f"is nested over {MAX_DEPTH} levels deep")
    kind = spot.mapping_with("type").choice(_TYPES, "type")
    entries = spot.mapping(("type", "description", *_KEYS[kind]))
    source: dict[str, Any] = {"type": kind}
    if "description" in entries:
        source["description"] = entries["description"].text(MAX_DESCRIPTION)
    if kind == "object":
        return _read_object(spot, entries, source, depth, left)
    if kind == "array":
        if "items" not in entries:
            spot.fail("an array needs items: what each of them is")
        items = _read(entries["items"], depth + 1, left)
        low, high = _range(entries, source, "minItems", "maxItems")
        return Shape({**source, "items": items.source}, "array", items=items, minimum=low, maximum=high)
    names = ("minLength", "maxLength") if kind == "string" else ("minimum", "maximum")
    low, high = _range(entries, source, *names)
    shape = Shape(source, kind, minimum=low, maximum=high)
    return _with_enum(shape, source, entries["enum"]) if "enum" in entries else shape


def _read_object(
    spot: Spot, entries: Mapping[str, Spot], source: dict[str, Any], depth: int, left: list[int]
) -> Shape:  # fmt: skip
    if "additionalProperties" in entries and entries["additionalProperties"].value is not False:
        entries["additionalProperties"].fail(
            "a state has the fields that are named and no others: say false or nothing"
        )
    if "properties" not in entries:
        spot.fail("an object needs properties: its fields")
    properties: dict[str, Shape] = {}
    for name, inner in entries["properties"].table(MAX_FIELDS).items():
        left[0] -= 1
        if left[0] < 0:
            spot.fail(f"a state has at most {MAX_FIELDS} fields")
        if not _FIELD.fullmatch(name):
            inner.fail("a field's name has letters, digits, '_' and '-', at most 64, and begins with a letter or '_'")
        properties[name] = _read(inner, depth + 1, left)
    required = entries["required"].words(MAX_FIELDS) if "required" in entries else ()
    if unknown := sorted(set(required) - properties.keys()):
        entries["required"].fail(f"there is no field {unknown[0]!r}")
    source |= {"properties": {name: shape.source for name, shape in properties.items()}, "additionalProperties": False}
    if required:
        source["required"] = sorted(required)
    return Shape(source, "object", properties=properties, required=frozenset(required))


def _range(entries: Mapping[str, Spot], source: dict[str, Any], low: str, high: str) -> tuple[float, float]:
    span = [-math.inf, math.inf]
    for index, key in enumerate((low, high)):
        if key in entries:
            spot = entries[key]
            source[key] = span[index] = spot.integer(0, MAX_STATE) if key in _SIZES else spot.number()
    if span[0] > span[1]:
        entries[high].fail(f"is below {low}: no value fits")
    return span[0], span[1]


def _with_enum(shape: Shape, source: dict[str, Any], spot: Spot) -> Shape:
    values = [item.value for item in spot.items(MAX_ENUM)]
    if not values:
        spot.fail("an enum without values: no value fits")
    for number, value in enumerate(values):
        if wrong := shape.misfit(value, f"value {number}"):
            spot.fail(wrong)
    return replace(shape, source={**source, "enum": values}, enum=tuple(values))
