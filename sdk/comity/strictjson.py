"""JSON from outside, read without surprises: I-JSON (RFC 7493).

Python's reader takes duplicate keys, NaN, halves of characters and numbers that other readers round. This one refuses
them, and `Fields` takes an object apart field by field so that a wrong type or an unknown key is an error instead of a
guess.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

#: Integers beyond it do not survive JSON readers that keep numbers as doubles (RFC 8785, section 3.2.2.3).
MAX_INTEGER = 2**53 - 1
#: The escape of a half of a character (RFC 8259, section 7): two of them, in the right order, make a whole one.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, *, limit: int) -> Any:  # noqa: ANN401  (any JSON value)
    """Parse UTF-8 JSON of at most `limit` bytes.

    Raises:
        ValueError: too long, no JSON, a duplicate key, a number that is not finite or an integer over 2^53 - 1, half
            a character, or nested too deep.
    """
    if len(data) > limit:
        raise ValueError(f"{len(data)} bytes are over the limit of {limit}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_exact,
        )
        if _HALF.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("a text holds half a character") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is larger than can be")
    return number


def _exact(text: str) -> int:
    if len(text) > 17 or abs(number := int(text)) > MAX_INTEGER:
        raise ValueError("an integer is over 2^53 - 1: write it as text")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class Fields:
    """One JSON object, taken apart field by field; `close` refuses what nobody asked for."""

    def __init__(self, value: object, what: str) -> None:
        """Wrap `value`, which messages call `what`.

        Raises:
            ValueError: it is no JSON object.
        """
        if not isinstance(value, dict):
            raise ValueError(f"{what} is no JSON object")  # noqa: TRY004  (bad input, not a programming error)
        self._fields: dict[str, Any] = value
        self._left = set(value)
        self._what = what

    def get(self, key: str) -> Any:  # noqa: ANN401  (any JSON value)
        """Return the value of `key`.

        Raises:
            ValueError: there is none.
        """
        if key not in self._fields:
            raise ValueError(f"{self._what} has no {key!r}")
        self._left.discard(key)
        return self._fields[key]

    def text(self, key: str, *, longest: int = 4096) -> str:
        """Return a string of at most `longest` characters.

        Raises:
            ValueError: missing, no string or too long.
        """
        value = self.get(key)
        if not isinstance(value, str) or len(value) > longest:
            raise ValueError(f"{key!r} of {self._what} is no string of at most {longest} characters")
        return value

    def integer(self, key: str) -> int:
        """Return an integer from 0 to 2^53 - 1.

        Raises:
            ValueError: missing, no integer or out of range.
        """
        value = self.get(key)
        if type(value) is not int or not 0 <= value <= MAX_INTEGER:
            raise ValueError(f"{key!r} of {self._what} is no integer from 0 to 2^53 - 1")
        return value

    def array(self, key: str, *, longest: int) -> Sequence[Any]:
        """Return an array of at most `longest` items.

        Raises:
            ValueError: missing, no array or too long.
        """
        value = self.get(key)
        if not isinstance(value, list) or len(value) > longest:
            raise ValueError(f"{key!r} of {self._what} is no array of at most {longest} items")
        return value

    def texts(self, key: str, *, most: int, longest: int = 4096) -> tuple[str, ...]:
        """Return an array of strings.

        Raises:
            ValueError: missing, no array of strings, or over a limit.
        """
        values = self.array(key, longest=most)
        if not all(isinstance(value, str) and len(value) <= longest for value in values):
            raise ValueError(
                f"{key!r} of {self._what} holds something else than strings of at most {longest} characters"
            )
        return tuple(values)

    def object(self, key: str) -> Fields:
        """Return an object.

        Raises:
            ValueError: missing or no object.
        """
        return Fields(self.get(key), f"{key!r} of {self._what}")

    def mapping(self, key: str, *, most: int) -> Fields:
        """Return an object of at most `most` fields, whose names are data: see `names`.

        Raises:
            ValueError: missing, no object or over the limit.
        """
        fields = self.object(key)
        if len(fields.names()) > most:
            raise ValueError(f"{key!r} of {self._what} has more than {most} fields")
        return fields

    def names(self) -> tuple[str, ...]:
        """Return the names of all fields, sorted."""
        return tuple(sorted(self._fields))

    def close(self) -> None:
        """Refuse fields that were not asked for.

        Raises:
            ValueError: there are some.
        """
        if self._left:
            raise ValueError(f"{self._what} has an unknown field {min(self._left)!r}")
