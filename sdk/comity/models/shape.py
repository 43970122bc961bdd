"""What a skill asked a model for, checked on what the model said: a part of JSON Schema.

The part: `type`, `properties`, `required`, `additionalProperties` (a boolean), `items`, `enum`, `const`, `minimum`,
`maximum`, `minLength`, `maxLength`, `minItems`, `maxItems`; `title` and `description` say something to the model alone.
Another keyword is refused, because a check that leaves something out would let through what was not asked for. Lengths
of texts are counted in Unicode code points (JSON Schema 2020-12, validation, section 6.3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comity.errors import ConfigError

_MAX_DEPTH = 16
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_NUMBERS = ("minimum", "maximum")
_KEYWORDS = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "title", "description"}
    | {*_COUNTS, *_NUMBERS}
)


def check_schema(schema: object, where: str = "schema", depth: int = 0) -> None:
    """Check that a schema can be checked against.

    Raises:
        ConfigError: says where it holds what this part of JSON Schema lacks.
    """
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{where} is no object")
    if depth >= _MAX_DEPTH:
        raise ConfigError(f"{where} is nested deeper than {_MAX_DEPTH} levels")
    if unknown := sorted(str(key) for key in schema if key not in _KEYWORDS):
        raise ConfigError(f"{where} has {unknown[0]!r}, which is not checked; known are {', '.join(sorted(_KEYWORDS))}")
    if any(one not in _TYPES for one in _types(schema, where)):
        raise ConfigError(f"{where}.type is none of {', '.join(_TYPES)}")
    for name in _COUNTS:
        if name in schema and (type(schema[name]) is not int or schema[name] < 0):
            raise ConfigError(f"{where}.{name} is no count")
    for name in _NUMBERS:
        if name in schema and not _is_number(schema[name]):
            raise ConfigError(f"{where}.{name} is no number")
    if not isinstance(schema.get("enum", []), list) or not isinstance(schema.get("additionalProperties", True), bool):
        raise ConfigError(f"{where}: enum is a list, additionalProperties true or false")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ConfigError(f"{where}.required is no list of names")
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise ConfigError(f"{where}.properties is no object")
    for name, inner in properties.items():
        check_schema(inner, f"{where}.properties.{name}", depth + 1)
    if "items" in schema:
        check_schema(schema["items"], f"{where}.items", depth + 1)


def find_misfit(schema: Mapping[str, Any], value: Any, where: str = "it") -> str:  # noqa: ANN401  (any JSON value)
    """Return where and how `value` does not fit a checked schema; empty if it fits."""
    return next(_misfits(schema, value, where), "")


def _misfits(schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:  # noqa: ANN401  (any JSON value)
    types = _types(schema, where)
    if types and not any(_is_a(value, one) for one in types):
        yield f"{where} is not of type {' or '.join(types)}"
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        yield f"{where} is none of the values of enum"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{where} is not the value of const"
    if _is_number(value):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            yield f"{where} is out of range"
    elif isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield f"{where} is too short or too long"
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where} has too few or too many items"
        for index, inner in enumerate(value if "items" in schema else ()):
            yield from _misfits(schema["items"], inner, f"{where}[{index}]")
    elif isinstance(value, dict):
        yield from _misfits_of_object(schema, value, where)


def _misfits_of_object(schema: Mapping[str, Any], value: dict[str, Any], where: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where} lacks {name!r}"
    for name, inner in value.items():
        if name in properties:
            yield from _misfits(properties[name], inner, f"{where}.{name}")
        elif not schema.get("additionalProperties", True):
            yield f"{where} has {name[:100]!r}, which was not asked for"


def _types(schema: Mapping[str, Any], where: str) -> Sequence[str]:
    types = schema.get("type", [])
    found = [types] if isinstance(types, str) else types
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"{where}.type is no type")
    return found


def _is_a(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()  # 1.0 is an integer (JSON Schema 2020-12, core, section 4.2.3)
    return isinstance(value, _TYPES[name])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: object, other: object) -> bool:
    """Whether two JSON values are equal; Python holds True and 1 for the same, also inside of lists and objects."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other
