"""Obligations as values, and how they combine; what they mean is told in `obligations`.

Everything is kept in one normal form, so that equal obligations are equal values, and so that `merge` is no more than
to put two together and bring the whole into normal form again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from fractions import Fraction
from types import MappingProxyType
from typing import TypeVar

from comity.errors import AgreementError, ConfigError

MAX_GRID = 1e9
#: Of a bound of noise, either sign.
MAX_BOUND = 1e12
MAX_EPSILON = 1e6
#: Characters that a mask may leave.
MAX_KEPT = 64
MAX_K = 1_000_000
GRID_UNIT = 1_000_000  # grids are whole millionths
#: What one budget can be kept for separately.
PER = ("purpose", "recipient")

_T = TypeVar("_T", int, float)
_V = TypeVar("_V")
_GREATEST_UNITS = int(MAX_GRID) * GRID_UNIT


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


@dataclass(frozen=True, slots=True, order=True)
class Quota:
    """At most `records` records, counted for ever over all that `rule` allows."""

    records: int
    rule: str


@dataclass(frozen=True, slots=True, order=True)
class Budget:
    """At most `epsilon` of privacy loss, summed for ever over all noise that `rule` allows to be spent.

    Attributes:
        epsilon: the total.
        per: of what each has a total of its own (`PER`, in this order); empty for one total over all.
        rule: whose it is.
    """

    epsilon: float
    per: tuple[str, ...]
    rule: str


@dataclass(frozen=True, slots=True, order=True)
class Approval:
    """A person of this organization has to say yes for `rule` within `deadline_ms` milliseconds; otherwise it is no."""

    deadline_ms: int
    rule: str


@dataclass(frozen=True, slots=True)
class ReviewTerms:
    """What a certificate must hold: votes of `quorum` reviewers, each with a score (0 to 1) of `min_score` or more."""

    quorum: int
    distinct_organizations: bool = True
    min_score: float = 0.0


@dataclass(frozen=True, slots=True)
class KAnonymity:
    """In each batch that leaves, every combination of values of `fields` that occurs occurs in `k` rows at least.

    Raises:
        ConfigError: `k` is not 2 to a million.
    """

    k: int
    fields: frozenset[str]

    def __post_init__(self) -> None:
        if not 2 <= self.k <= MAX_K:
            raise ConfigError(f"k must be from 2 to {MAX_K}, is {self.k}")
        if not self.fields:
            raise ConfigError("k_anonymity names no fields: say which of them together could tell who somebody is")


@dataclass(frozen=True, slots=True)
class Noise:
    """A number is clamped to `lower`..`upper` and noise is added that is worth `epsilon`; the sum is clamped again.

    Raises:
        ConfigError: `epsilon` is not over 0, or the bounds are no range of finite numbers up to 1e12.
    """

    epsilon: float
    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= MAX_EPSILON:
            raise ConfigError(f"epsilon must be over 0 and at most {MAX_EPSILON:g}, is {self.epsilon}")
        if not -MAX_BOUND <= self.lower < self.upper <= MAX_BOUND:
            raise ConfigError(f"noise needs lower below upper, both within 1e12, has {self.lower} and {self.upper}")


@dataclass(frozen=True, slots=True)
class Obligations:
    """What must be done; by default nothing.

    Kept in one normal form, so that equal obligations are equal values: no redacted path lies below another; no path
    that is redacted has another form; one that is hashed is not masked; one that would have to be a number and a text,
    or has no value that meets all, is redacted; a distance is positive; what is counted by rules is sorted.

    Attributes:
        redact: paths that are removed.
        generalize: path to grid; numbers there are rounded to a multiple of it. Grids are whole millionths up to 1e9.
        mask: path to how many of a text's last characters stay; never more than half of them do.
        hash: paths whose value is replaced by a keyed pseudonym.
        noise: path to the noise that is added to its number.
        drop_personal: all personal fields of the dataset are removed. The engine puts them into `redact`, so that no
            decision has it.
        k_anonymity: what a batch must hold together.
        min_distance_to_private: least distance of a synthetic row to any private one, in the validators' unit.
        rates: limits on how many records leave in a time; like all that follows up to `approvals` it is the sender's
            own business and is in no agreement.
        quotas: limits on how many records leave at all.
        budgets: limits on the privacy loss by noise.
        notify: names of persons or lists who are told.
        approvals: who is asked first; each of these rules has its answer.
        retain_ms: how long a recipient may keep a record, in milliseconds.
        expire_ms: when it must be gone at the latest, in milliseconds since 1970.
        review: what a certificate of the record must hold.
        onward: whether the recipient may pass it on.

    Raises:
        ConfigError: a grid, a mask, a distance or a budget is out of range.
    """

    redact: frozenset[str] = frozenset()
    generalize: Mapping[str, float] = field(default_factory=dict)
    min_distance_to_private: float | None = None
    rates: tuple[Rate, ...] = ()
    retain_ms: int | None = None
    review: ReviewTerms | None = None
    onward: Onward = Onward.ALLOWED
    mask: Mapping[str, int] = field(default_factory=dict)
    hash: frozenset[str] = frozenset()
    noise: Mapping[str, Noise] = field(default_factory=dict)
    drop_personal: bool = False
    k_anonymity: KAnonymity | None = None
    quotas: tuple[Quota, ...] = ()
    budgets: tuple[Budget, ...] = ()
    notify: frozenset[str] = frozenset()
    approvals: tuple[Approval, ...] = ()
    expire_ms: int | None = None

    def __post_init__(self) -> None:
        distance = self.min_distance_to_private
        if distance is not None and not 0 <= distance < math.inf:
            raise ConfigError(f"min_distance_to_private must be a finite number of at least 0, is {distance}")
        grids = {path: units_of(grid) / GRID_UNIT for path, grid in self.generalize.items()}
        if wrong := next((kept for kept in self.mask.values() if not 0 <= kept <= MAX_KEPT), None):
            raise ConfigError(f"a mask leaves 0 to {MAX_KEPT} characters, not {wrong}")
        if any(not 0 < budget.epsilon <= MAX_EPSILON for budget in self.budgets):
            raise ConfigError(f"a budget's epsilon must be over 0 and at most {MAX_EPSILON:g}")
        numbers, texts = grids.keys() | self.noise.keys(), self.mask.keys() | self.hash
        roots = self.redact | (numbers & texts) | {
            path for path in grids.keys() & self.noise.keys() if multiples_within(grids[path], self.noise[path]) is None
        }  # fmt: skip
        redact = frozenset(path for path in roots if not _below(path, roots))
        hashed = frozenset(path for path in self.hash if not is_under(path, redact))
        kept = {path: count for path, count in self.mask.items() if path not in hashed}
        object.__setattr__(self, "redact", redact)
        object.__setattr__(self, "generalize", _without(grids, redact))
        object.__setattr__(self, "mask", _without(kept, redact))
        object.__setattr__(self, "hash", hashed)
        object.__setattr__(self, "noise", _without(self.noise, redact))
        object.__setattr__(self, "min_distance_to_private", distance or None)
        for name in ("rates", "quotas", "budgets"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        soonest = {each.rule: each for each in sorted(self.approvals, reverse=True)}
        object.__setattr__(self, "approvals", tuple(sorted(soonest.values())))


def _without(forms: Mapping[str, _V], redact: frozenset[str]) -> Mapping[str, _V]:
    return MappingProxyType({path: form for path, form in sorted(forms.items()) if not is_under(path, redact)})


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


def units_of(grid: float) -> int:
    """Return a grid in millionths.

    Raises:
        ConfigError: it is out of range, or has more than six decimals.
    """
    units = round(grid * GRID_UNIT) if math.isfinite(grid) else 0
    if not 1 <= units <= _GREATEST_UNITS or not math.isclose(units / GRID_UNIT, grid, rel_tol=1e-9):
        raise ConfigError(f"a grid must be from 0.000001 to 1e9 with at most six decimals, is {grid!r}")
    return units


def multiples_within(grid: float, noise: Noise) -> tuple[int, int] | None:
    """Return the least and the greatest number of units of `grid` within the bounds of `noise`; None if there is none.

    A multiple is within when the float nearest to it is.
    """
    units = units_of(grid)
    least = math.ceil(Fraction(noise.lower) * GRID_UNIT / units)
    most = math.floor(Fraction(noise.upper) * GRID_UNIT / units)
    least -= (least - 1) * units / GRID_UNIT >= noise.lower
    most += (most + 1) * units / GRID_UNIT <= noise.upper
    return (least, most) if least <= most else None


# Combining.


def merge(a: Obligations, b: Obligations) -> Obligations:
    """Return the least obligations that are at least as strict as both."""
    redact = set(a.redact | b.redact)
    return Obligations(
        generalize=_joined(a.generalize, b.generalize, _common_grid, redact),
        mask=_joined(a.mask, b.mask, min, redact),
        noise=_joined(a.noise, b.noise, _common_noise, redact),
        redact=frozenset(redact),
        hash=a.hash | b.hash,
        drop_personal=a.drop_personal or b.drop_personal,
        k_anonymity=_merge_anonymity(a.k_anonymity, b.k_anonymity),
        min_distance_to_private=_stricter(max, a.min_distance_to_private, b.min_distance_to_private),
        rates=a.rates + b.rates,
        quotas=a.quotas + b.quotas,
        budgets=a.budgets + b.budgets,
        notify=a.notify | b.notify,
        approvals=a.approvals + b.approvals,
        retain_ms=_stricter(min, a.retain_ms, b.retain_ms),
        expire_ms=_stricter(min, a.expire_ms, b.expire_ms),
        review=_merge_review(a.review, b.review),
        onward=min(a.onward, b.onward),
    )


def merge_all(parts: Iterable[Obligations]) -> Obligations:
    """Return the least obligations that are at least as strict as all of `parts`."""
    merged = Obligations()
    for part in parts:
        merged = merge(merged, part)
    return merged


def shared(obligations: Obligations) -> Obligations:
    """Return what both sides of an agreement hold: without what the sender alone counts, asks and tells."""
    return replace(obligations, rates=(), quotas=(), budgets=(), notify=frozenset(), approvals=())


def covers(strict: Obligations, loose: Obligations) -> bool:
    """Whether `strict` is at least as strict as `loose` in everything that both sides hold (`shared`)."""
    return shared(merge(strict, loose)) == shared(strict)


def resolve(obligations: Obligations, personal: frozenset[str]) -> Obligations:
    """Return obligations with `drop_personal` written out: the dataset's `personal` fields are redacted by name."""
    if not obligations.drop_personal:
        return obligations
    return replace(obligations, redact=obligations.redact | personal, drop_personal=False)


def _joined(
    a: Mapping[str, _V], b: Mapping[str, _V], join: Callable[[_V, _V], _V | None], redact: set[str]
) -> dict[str, _V]:
    """Return both together; a path whose two forms have none in common is redacted."""
    joined = {**a, **b}
    for path in a.keys() & b.keys():
        common = join(a[path], b[path])
        if common is None:
            redact.add(path)
            del joined[path]
        else:
            joined[path] = common
    return joined


def _common_grid(a: float, b: float) -> float | None:
    units = math.lcm(units_of(a), units_of(b))
    return units / GRID_UNIT if units <= _GREATEST_UNITS else None


def _common_noise(a: Noise, b: Noise) -> Noise | None:
    lower, upper = max(a.lower, b.lower), min(a.upper, b.upper)
    return Noise(min(a.epsilon, b.epsilon), lower, upper) if lower < upper else None


def _stricter(choose: Callable[[_T, _T], _T], a: _T | None, b: _T | None) -> _T | None:
    if a is None or b is None:
        return b if a is None else a
    return choose(a, b)


def _merge_anonymity(a: KAnonymity | None, b: KAnonymity | None) -> KAnonymity | None:
    if a is None or b is None:
        return b if a is None else a
    return KAnonymity(max(a.k, b.k), a.fields | b.fields)


def _merge_review(a: ReviewTerms | None, b: ReviewTerms | None) -> ReviewTerms | None:
    if a is None or b is None:
        return b if a is None else a
    distinct = a.distinct_organizations or b.distinct_organizations
    return ReviewTerms(max(a.quorum, b.quorum), distinct, max(a.min_score, b.min_score))
