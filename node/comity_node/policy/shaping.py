"""Obligations on records: what the sender does to them, and what the receiver can check."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from comity.digest import canonical_json
from comity.errors import PolicyDenied
from comity_node.policy.lattice import GRID_UNIT, Noise, Obligations, multiples_within, units_of

MAX_NESTING = 64
#: A value is on the grid when it is this near to a multiple of it, relative to its size: room for the rounding of a
#: 64-bit float (2e-16 each operation), far from any digit that means something.
GRID_TOLERANCE = 1e-12
#: What a pseudonym begins with; 64 hexadecimal digits follow.
PSEUDONYM = "hmac-sha256:"

#: Makes the pseudonym of the value at a path.
Pseudonym = Callable[[str, object], str]
#: Draws the noisy value of a number at a path.
Drawing = Callable[[str, float, Noise], float]

_GREATEST_NUMBER = 10**300
_EXACT_RATIO = 2.0**48  # below it a quotient of floats is nearer to the right whole number than to any other
_PSEUDONYM = re.compile(rf"{PSEUDONYM}[0-9a-f]{{64}}")
_BLANK = "*"
_MIN_KEY = 16


def pseudonyms(key: bytes) -> Pseudonym:
    """Return the function that makes pseudonyms with a key: HMAC-SHA-256 (RFC 2104) over the RFC 8785 form of
    `[path, value]`, so that equal values of one field have one pseudonym, and equal values of two fields have two.

    Raises:
        PolicyDenied: the key has fewer than 16 bytes.
    """  # noqa: D205  (the first sentence is one)
    if len(key) < _MIN_KEY:
        raise PolicyDenied(f"a key for pseudonyms has at least {_MIN_KEY} bytes")
    return lambda path, value: PSEUDONYM + hmac.new(key, canonical_json([path, value]), hashlib.sha256).hexdigest()


def apply(
    obligations: Obligations,
    fields: Mapping[str, Any],
    *,
    pseudonym: Pseudonym | None = None,
    noise: Drawing | None = None,
) -> dict[str, Any]:
    """Return a record (a JSON object) in the form that the obligations ask for; `fields` itself stays as it is.

    Empty values (`None`) stay empty. What comes out passes `verify`.

    Args:
        obligations: what to bring the record under.
        fields: the record.
        pseudonym: makes the pseudonyms of `hash`; see `pseudonyms`.
        noise: draws the noise; the result is clamped to the bounds here, and rounded to a whole number if the value
            was one.

    Raises:
        PolicyDenied: a value is not of the type that its form is for, lists are nested too deep, or there is no key or
            no source of noise where one is needed.
    """
    record: Any = dict(fields)
    for path in obligations.redact:
        record = _change(record, tuple(path.split(".")), lambda _: _GONE)
    for path, kept in obligations.mask.items():
        record = _change(record, tuple(path.split(".")), _each(_masker(path, kept)))
    for path in sorted(obligations.hash):
        record = _change(record, tuple(path.split(".")), _each(_hasher(path, pseudonym)))
    for path, one in obligations.noise.items():
        record = _change(record, tuple(path.split(".")), _each(_noiser(path, one, noise)))
    for path, grid in obligations.generalize.items():
        record = _change(record, tuple(path.split(".")), _each(_rounder(path, grid, obligations.noise.get(path))))
    return dict(record)


def verify(obligations: Obligations, fields: Mapping[str, Any]) -> None:
    """Check, on the receiver's side, that a record has the form that the obligations ask for.

    A value is on its grid when it is within `GRID_TOLERANCE` of a multiple, relative to its size; a masked text may be
    a pseudonym, which is stricter; of noise only the bounds can be seen. The other obligations cannot be seen on one
    record.

    Raises:
        PolicyDenied: a redacted field is there, or another one has not its form.
    """
    for path in obligations.redact:
        _change(fields, tuple(path.split(".")), _refuse(path))
    for path, kept in obligations.mask.items():
        _change(fields, tuple(path.split(".")), _each(_mask_check(path, kept)))
    for path in obligations.hash:
        _change(fields, tuple(path.split(".")), _each(_hash_check(path)))
    for path, one in obligations.noise.items():
        _change(fields, tuple(path.split(".")), _each(_bounds_check(path, one)))
    for path, grid in obligations.generalize.items():
        _change(fields, tuple(path.split(".")), _each(_grid_check(path, grid)))


def verify_batch(obligations: Obligations, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check rows that came together: each by itself, and all of them for `k_anonymity`.

    Raises:
        PolicyDenied: a row has not its form, or too few rows share a combination of values.
    """
    for row in rows:
        verify(obligations, row)
    if rare := too_rare(obligations, rows):
        anonymity = obligations.k_anonymity
        least = anonymity.k if anonymity else 0
        raise PolicyDenied(f"{len(rare)} of {len(rows)} rows share their identifying values with fewer than {least}")


def too_rare(obligations: Obligations, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the positions of the rows, in their final form, that `k_anonymity` does not let leave together.

    Without them the others satisfy it.

    Raises:
        PolicyDenied: lists are nested too deep.
    """
    anonymity = obligations.k_anonymity
    if anonymity is None:
        return []
    paths = sorted(anonymity.fields)
    seen = [canonical_json([reached(row, path) for path in paths]) for row in rows]
    counts = Counter(seen)
    return [position for position, each in enumerate(seen) if counts[each] < anonymity.k]


_GONE = object()
_Change = Callable[[Any], Any]


def _change(value: Any, path: tuple[str, ...], change: _Change, depth: int = 0) -> Any:  # noqa: ANN401  (any JSON)
    """Return `value` with `change` made to all that `path` reaches in it; `_GONE` removes it."""
    if depth > MAX_NESTING:
        raise PolicyDenied(f"a record is nested over {MAX_NESTING} levels deep")
    if isinstance(value, list | tuple):
        return [_change(item, path, change, depth + 1) for item in value]
    if not isinstance(value, Mapping):
        return value
    changed = dict(value)
    for length in range(1, len(path) + 1):
        key, rest = ".".join(path[:length]), path[length:]
        if key not in changed:
            continue
        after = _change(changed[key], rest, change, depth + 1) if rest else change(changed[key])
        if after is _GONE:
            del changed[key]
        else:
            changed[key] = after
    below = ".".join(path) + "."
    for key in [key for key in changed if key.startswith(below)]:  # a key that spells out what lies below the path
        if change({key.removeprefix(below): changed[key]}) is _GONE:
            del changed[key]
    return changed


def reached(row: Mapping[str, Any], path: str) -> list[Any]:
    """Return all that a path reaches, in the order of the record's keys."""
    found: list[Any] = []

    def keep(value: object) -> object:
        found.append(value)
        return value

    _change(row, tuple(path.split(".")), keep)
    return found


def _refuse(path: str) -> _Change:
    def refuse(_: object) -> None:
        raise PolicyDenied(f"the field {path!r} should have been redacted")

    return refuse


def _each(change: _Change) -> _Change:
    """Return `change` made to each item of a list, or to what is none; what is empty stays empty."""

    def every(value: object) -> object:
        if isinstance(value, list | tuple):
            return [None if item is None else change(item) for item in value]
        return None if value is None else change(value)

    return every


# Text.


def _masked(text: str, kept: int) -> str:
    visible = min(kept, len(text) // 2)
    return _BLANK * (len(text) - visible) + text[len(text) - visible :]


def _masker(path: str, kept: int) -> _Change:
    return lambda value: _masked(_text(path, value), kept)


def _mask_check(path: str, kept: int) -> _Change:
    def check(value: object) -> object:
        text = _text(path, value)
        if text != _masked(text, kept) and not _PSEUDONYM.fullmatch(text):
            raise PolicyDenied(f"the field {path!r} should have been masked but for its last {kept} characters")
        return value

    return check


def _text(path: str, value: object) -> str:
    if not isinstance(value, str):
        raise PolicyDenied(f"the field {path!r} is to be masked, but it is no text")
    return value


def _hasher(path: str, pseudonym: Pseudonym | None) -> _Change:
    def change(value: object) -> str:
        if pseudonym is None:
            raise PolicyDenied(f"the field {path!r} is to be hashed, but there is no key for it here")
        number = isinstance(value, int | float) and -_GREATEST_NUMBER < value < _GREATEST_NUMBER
        if not (isinstance(value, str) or number):
            raise PolicyDenied(f"the field {path!r} is to be hashed, but it is no text, number or boolean")
        text = pseudonym(path, value)
        if not _PSEUDONYM.fullmatch(text):
            raise PolicyDenied(f"what was made of the field {path!r} is no pseudonym")
        return text

    return change


def _hash_check(path: str) -> _Change:
    def check(value: object) -> object:
        if not isinstance(value, str) or not _PSEUDONYM.fullmatch(value):
            raise PolicyDenied(f"the field {path!r} should have been hashed")
        return value

    return check


# Numbers.


def _noiser(path: str, noise: Noise, draw: Drawing | None) -> _Change:
    def change(value: object) -> float:
        number = _number(path, value, "to get noise")
        if draw is None:
            raise PolicyDenied(f"the field {path!r} is to get noise, but there is no source of it here")
        low, high = float(noise.lower), float(noise.upper)
        drawn = draw(path, min(max(number, low), high), noise)
        if isinstance(number, int):
            low, high = math.ceil(low), math.floor(high)
            drawn = round(drawn) if math.isfinite(drawn) else drawn
        if math.isnan(drawn) or low > high:
            raise PolicyDenied(f"the field {path!r} has no value within its bounds")
        return min(max(drawn, low), high)

    return change


def _bounds_check(path: str, noise: Noise) -> _Change:
    def check(value: object) -> object:
        if not noise.lower <= _number(path, value, "to get noise") <= noise.upper:
            raise PolicyDenied(f"the field {path!r} should be within {noise.lower:g} and {noise.upper:g}")
        return value

    return check


def _rounder(path: str, grid: float, noise: Noise | None) -> _Change:
    def change(value: object) -> float:
        number = _number(path, value, "to be rounded")
        rounded = _round(number, grid)
        if noise is None or noise.lower <= rounded <= noise.upper:
            return rounded
        within = multiples_within(grid, noise)
        if within is None:
            raise PolicyDenied(f"the field {path!r} has no multiple of {grid:g} within its bounds")
        return _multiple(within[1 if rounded > noise.upper else 0], grid, whole=isinstance(number, int))

    return change


def _grid_check(path: str, grid: float) -> _Change:
    def check(value: object) -> object:
        number = _number(path, value, "to be rounded")
        if abs(number - _round(number, grid)) > GRID_TOLERANCE * abs(number):
            raise PolicyDenied(f"the field {path!r} should have been rounded to multiples of {grid:g}")
        return value

    return check


def _number(path: str, value: object, why: str) -> float:
    finite = -_GREATEST_NUMBER < value < _GREATEST_NUMBER if isinstance(value, int | float) else False
    if isinstance(value, bool) or not isinstance(value, int | float) or not finite:
        raise PolicyDenied(f"the field {path!r} is {why}, but it is no finite number")
    return value


def _round(number: float, grid: float) -> float:
    """Return the multiple of `grid` nearest to `number` (of two, the even one); an int when both are whole."""
    units = units_of(grid)
    if isinstance(number, float) and abs(number / grid) < _EXACT_RATIO:
        return round(number / grid) * units / GRID_UNIT
    return _multiple(round(Fraction(number) * GRID_UNIT / units), grid, whole=isinstance(number, int))


def _multiple(count: int, grid: float, *, whole: bool) -> float:
    """Return `count` times `grid`; an int if `whole` and the grid is."""
    units = units_of(grid)
    exact = count * units
    return exact // GRID_UNIT if whole and units % GRID_UNIT == 0 else exact / GRID_UNIT
