"""Messages as values, and JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from comity.errors import ControlError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

V = TypeVar("V", bound="DataclassInstance")


def read_value(kind: type[V], message: Message, **others: object) -> V:
    """Return the value of a message: its fields by their names, lists of scalars as tuples and maps as dicts.

    Args:
        kind: a dataclass; each field that `others` lacks is one of the message.
        message: what the node sent.
        others: fields that are not read from the message as they are.
    """
    make: Callable[..., V] = kind
    names = (each.name for each in fields(kind) if each.name not in others)
    return make(**{name: _plain(getattr(message, name)) for name in names}, **others)


def read_values(kind: type[V], messages: Iterable[Message]) -> tuple[V, ...]:
    """Return the values of messages; see `read_value`."""
    return tuple(read_value(kind, each) for each in messages)


def _plain(field: Any) -> Any:  # noqa: ANN401  (any field of any message)
    if isinstance(field, str | bytes | int | float):
        return field
    return dict(field) if isinstance(field, Mapping) else tuple(field)


def to_json(value: Any, what: str) -> bytes:  # noqa: ANN401  (any JSON value)
    """Return `value` as JSON.

    Raises:
        ControlError: it is no JSON value.
    """
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ControlError(f"{what} is not JSON: {error}") from error


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that `data` is.

    Raises:
        ControlError: it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ControlError(f"{what} is no JSON object")
    return value
