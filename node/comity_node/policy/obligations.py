"""Obligations: what an allow decision asks to be done, how they combine, and how a record is brought under them.

Obligations form a lattice in which stricter is higher. `merge` is the least upper bound: what satisfies `merge(a, b)`
satisfies `a` and satisfies `b`, and it is idempotent, commutative and associative. `Obligations()` asks for nothing and
is its neutral element. `covers(a, b)` is the order: `merge(a, b)` asks for no more than `a` does.

    redact          union of the paths; a path covers everything below it
    generalize      least common multiple of the grids; a field without a common grid up to 1e9 is redacted
    min_distance    greatest
    rates           all of them hold, each counted by its rule
    retain          shortest
    review          greatest quorum, greatest score, distinct organizations if either asks for it
    onward          never < with_consent < allowed: the first in this order

A path names a field of a record, `notes.free_text` one inside another; lists on the way are entered. A key that itself
holds a dot (`"notes.free_text"`) is the same path, so that no spelling gets around a redaction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any, TypeVar

from comity.errors import AgreementError, ConfigError, PolicyDenied
from comity.v1 import agreement_pb2

MAX_GRID = 1e9
MAX_NESTING = 64
#: A value is on the grid when it is this near to a multiple of it, relative to its size: room for the rounding of a
#: 64-bit float (2e-16 each operation), far from any digit that means something.
GRID_TOLERANCE = 1e-12

_T = TypeVar("_T", int, float)

_GRID_UNIT = 1_000_000  # grids are whole millionths
_MAX_UNITS = int(MAX_GRID) * _GRID_UNIT
_SCORE_UNIT = 10_000
_MAX_NUMBER = 10**300
_EXACT_RATIO = 2.0**48  # below it a quotient of floats is nearer to the right whole number than to any other


class Onward(IntEnum):
    """Whether who receives a record may pass it on; the smaller is the stricter."""

    NEVER = 0
    WITH_CONSENT = 1
    ALLOWED = 2

    @property
    def word(self) -> str:
        """The word for it in YAML and on the wire."""
        return self.name.lower()

    @classmethod
    def parse(cls, word: str) -> Onward:
        """Return the value that `word` stands for.

        Raises:
            AgreementError: it is none of never, with_consent and allowed.
        """
        for value in cls:
            if value.word == word:
                return value
        raise AgreementError(f"onward is {word[:40]!r}; it must be never, with_consent or allowed")


@dataclass(frozen=True, slots=True, order=True)
class Rate:
    """At most `records` records in any `per_ms` milliseconds, counted over all that `rule` allows."""

    records: int
    per_ms: int
    rule: str


@dataclass(frozen=True, slots=True)
class ReviewTerms:
    """What a certificate must hold: votes of `quorum` reviewers, each with a score (0 to 1) of `min_score` or more."""

    quorum: int
    distinct_organizations: bool = True
    min_score: float = 0.0


@dataclass(frozen=True, slots=True)
class Obligations:
    """What must be done; by default nothing.

    Kept in one normal form, so that equal obligations are equal values: no redacted path lies below another, no
    generalized field is redacted, a distance is positive, rates are sorted.

    Attributes:
        redact: paths that are removed.
        generalize: path to grid; numbers there are rounded to a multiple of it. Grids are whole millionths up to 1e9.
        min_distance_to_private: least distance of a synthetic row to any private one, in the validators' unit.
        rates: limits on how many records leave; only the sender's own counters hold them, they are in no agreement.
        retain_ms: how long a recipient may keep a record, in milliseconds.
        review: what a certificate of the record must hold.
        onward: whether the recipient may pass it on.

    Raises:
        ConfigError: a grid or a distance is out of range.
    """

    redact: frozenset[str] = frozenset()
    generalize: Mapping[str, float] = field(default_factory=dict)
    min_distance_to_private: float | None = None
    rates: tuple[Rate, ...] = ()
    retain_ms: int | None = None
    review: ReviewTerms | None = None
    onward: Onward = Onward.ALLOWED

    def __post_init__(self) -> None:
        redact = frozenset(path for path in self.redact if not _below(path, self.redact))
        grids = {
            path: _units(grid) / _GRID_UNIT for path, grid in self.generalize.items() if not is_under(path, redact)
        }
        distance = self.min_distance_to_private
        if distance is not None and not 0 <= distance < math.inf:
            raise ConfigError(f"min_distance_to_private must be a finite number of at least 0, is {distance}")
        object.__setattr__(self, "redact", redact)
        object.__setattr__(self, "generalize", MappingProxyType(dict(sorted(grids.items()))))
        object.__setattr__(self, "min_distance_to_private", distance or None)
        object.__setattr__(self, "rates", tuple(sorted(set(self.rates))))


def is_under(path: str, roots: Iterable[str]) -> bool:
    """Whether `path` is one of `roots` or lies below one."""
    known = roots if isinstance(roots, frozenset) else frozenset(roots)
    return path in known or _below(path, known)


def _below(path: str, roots: frozenset[str]) -> bool:
    end = path.rfind(".")
    while end > 0:
        if path[:end] in roots:
            return True
        end = path.rfind(".", 0, end)
    return False


def _units(grid: float) -> int:
    units = round(grid * _GRID_UNIT) if math.isfinite(grid) else 0
    if not 1 <= units <= _MAX_UNITS or not math.isclose(units / _GRID_UNIT, grid, rel_tol=1e-9):
        raise ConfigError(f"a grid must be from 0.000001 to 1e9 with at most six decimals, is {grid!r}")
    return units


# Combining.


def merge(a: Obligations, b: Obligations) -> Obligations:
    """Return the least obligations that are at least as strict as both."""
    grids: dict[str, float] = {}
    redact = set(a.redact | b.redact)
    for path in a.generalize.keys() | b.generalize.keys():
        units = math.lcm(*(_units(one.generalize[path]) for one in (a, b) if path in one.generalize))
        if units > _MAX_UNITS:
            redact.add(path)
        else:
            grids[path] = units / _GRID_UNIT
    return Obligations(
        redact=frozenset(redact),
        generalize=grids,
        min_distance_to_private=_stricter(max, a.min_distance_to_private, b.min_distance_to_private),
        rates=a.rates + b.rates,
        retain_ms=_stricter(min, a.retain_ms, b.retain_ms),
        review=_merge_review(a.review, b.review),
        onward=min(a.onward, b.onward),
    )


def merge_all(parts: Iterable[Obligations]) -> Obligations:
    """Return the least obligations that are at least as strict as all of `parts`."""
    merged = Obligations()
    for part in parts:
        merged = merge(merged, part)
    return merged


def covers(strict: Obligations, loose: Obligations) -> bool:
    """Whether `strict` is at least as strict as `loose` in everything that an agreement can hold (not in rates)."""
    return replace(merge(strict, loose), rates=()) == replace(strict, rates=())


def _stricter(choose: Callable[[_T, _T], _T], a: _T | None, b: _T | None) -> _T | None:
    if a is None or b is None:
        return b if a is None else a
    return choose(a, b)


def _merge_review(a: ReviewTerms | None, b: ReviewTerms | None) -> ReviewTerms | None:
    if a is None or b is None:
        return b if a is None else a
    distinct = a.distinct_organizations or b.distinct_organizations
    return ReviewTerms(max(a.quorum, b.quorum), distinct, max(a.min_score, b.min_score))


# On records.


def apply(obligations: Obligations, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record (a JSON object) brought under `redact` and `generalize`; `fields` itself stays as it is.

    Empty values (`None`) stay empty. What comes out passes `verify`.

    Raises:
        PolicyDenied: a field to be generalized is no finite number, or lists are nested too deep.
    """
    record: Any = dict(fields)
    for path in obligations.redact:
        record = _change(record, tuple(path.split(".")), lambda _: _GONE)
    for path, grid in obligations.generalize.items():
        record = _change(record, tuple(path.split(".")), _rounder(path, grid))
    return dict(record)


def verify(obligations: Obligations, fields: Mapping[str, Any]) -> None:
    """Check, on the receiver's side, that a record was brought under `redact` and `generalize`.

    A value is on its grid when it is within `GRID_TOLERANCE` of a multiple, relative to its size. The other obligations
    cannot be seen on a record.

    Raises:
        PolicyDenied: a redacted field is there, or a generalized one is no number on its grid.
    """
    for path in obligations.redact:
        _change(fields, tuple(path.split(".")), _refuse(path))
    for path, grid in obligations.generalize.items():
        _change(fields, tuple(path.split(".")), _grid_check(path, grid))


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


def _refuse(path: str) -> _Change:
    def refuse(_: object) -> None:
        raise PolicyDenied(f"the field {path!r} should have been redacted")

    return refuse


def _rounder(path: str, grid: float) -> _Change:
    return lambda value: _each_number(path, value, lambda number: _round(number, grid))


def _grid_check(path: str, grid: float) -> _Change:
    def check(number: float) -> float:
        if abs(number - _round(number, grid)) > GRID_TOLERANCE * abs(number):
            raise PolicyDenied(f"the field {path!r} should have been rounded to multiples of {grid:g}")
        return number

    return lambda value: _each_number(path, value, check)


def _each_number(path: str, value: object, change: Callable[[float], float]) -> object:
    if isinstance(value, list | tuple):
        return [_one_number(path, item, change) for item in value]
    return _one_number(path, value, change)


def _one_number(path: str, value: object, change: Callable[[float], float]) -> object:
    if value is None:
        return None
    finite = -_MAX_NUMBER < value < _MAX_NUMBER if isinstance(value, int | float) else False
    if isinstance(value, bool) or not isinstance(value, int | float) or not finite:
        raise PolicyDenied(f"the field {path!r} is to be rounded, but it is no finite number")
    return change(value)


def _round(number: float, grid: float) -> float:
    """Return the multiple of `grid` nearest to `number` (of two, the even one); an int when both are whole."""
    units = _units(grid)
    if isinstance(number, float) and abs(number / grid) < _EXACT_RATIO:
        return round(number / grid) * units / _GRID_UNIT
    multiple = round(Fraction(number) * _GRID_UNIT / units) * units
    whole = isinstance(number, int) and units % _GRID_UNIT == 0
    return multiple // _GRID_UNIT if whole else multiple / _GRID_UNIT


# On the wire.


def to_terms(obligations: Obligations) -> agreement_pb2.Obligations:
    """Return the wire form: all but rates (the sender's own business) and review (a message of its own)."""
    return agreement_pb2.Obligations(
        redact=sorted(obligations.redact),
        generalize=dict(obligations.generalize),
        min_distance_to_private=obligations.min_distance_to_private or 0.0,
        onward=obligations.onward.word,
        retain_seconds=max(obligations.retain_ms // 1000, 1) if obligations.retain_ms is not None else 0,
    )


def from_terms(message: agreement_pb2.Obligations, review: agreement_pb2.ReviewTerms | None = None) -> Obligations:
    """Return what an agreement asks for; with its review terms if they are given. No word about onward means never.

    Raises:
        AgreementError: a path is empty, a number is out of range, or onward is an unknown word.
    """
    if not all((*message.redact, *message.generalize)):
        raise AgreementError("the agreement's obligations name an empty path")
    try:
        return Obligations(
            redact=frozenset(message.redact),
            generalize=dict(message.generalize),
            min_distance_to_private=message.min_distance_to_private,
            retain_ms=message.retain_seconds * 1000 or None,
            review=_read_review(review) if review is not None else None,
            onward=Onward.parse(message.onward) if message.onward else Onward.NEVER,
        )
    except ConfigError as error:
        raise AgreementError(f"the agreement's obligations: {error}") from error


def to_score(score: float) -> int:
    """Return a score from 0 to 1 in the wire's ten-thousandths, rounded up, so that it never gets looser."""
    return math.ceil(round(score * _SCORE_UNIT, 6))


def _read_review(review: agreement_pb2.ReviewTerms) -> ReviewTerms:
    if review.min_score > _SCORE_UNIT:
        raise AgreementError(f"the agreement's min_score is {review.min_score}; it must be at most {_SCORE_UNIT}")
    return ReviewTerms(review.quorum, True, review.min_score / _SCORE_UNIT)


def to_json(obligations: Obligations) -> dict[str, Any]:
    """Return what is asked for, in the words of the policy language; only what is there, and always onward."""
    review = obligations.review
    entries: dict[str, Any] = {
        "redact": sorted(obligations.redact),
        "generalize": dict(obligations.generalize),
        "min_distance_to_private": obligations.min_distance_to_private,
        "rate": [{"records": rate.records, "per_ms": rate.per_ms, "rule": rate.rule} for rate in obligations.rates],
        "retain_ms": obligations.retain_ms,
        "review": review
        and {
            "quorum": review.quorum,
            "distinct_organizations": review.distinct_organizations,
            "min_score": review.min_score,
        },
    }
    return {**{key: value for key, value in entries.items() if value}, "onward": obligations.onward.word}
