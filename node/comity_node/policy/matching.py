"""What a rule asks of a request, condition by condition: the definition that the engine's fast path must agree with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from heapq import nsmallest

from comity_node.policy.conditions import DAY, DAYS, WEEK, Condition, Labels, TimeCondition, minute_of_week, show_zone
from comity_node.policy.lattice import is_under
from comity_node.policy.model import Mismatch, NearMiss, PolicyDocument, Request, Rule, overlaps

#: Words of a condition that are told, and conditions that are kept in words.
_MOST_SHOWN = 8
_MAX_LISTED = 4096
#: Characters that are told of a word of a request, which may be a peer's.
_LONGEST_WORD = 80
#: How many near misses are told.
NEAREST = 3


@dataclass(frozen=True, slots=True)
class Examination:
    """How a rule and a request compare.

    Attributes:
        matches: True or False, or None if it cannot be decided: what the rule asks about is not known.
        mismatches: the conditions that do not hold.
        unknown: what could not be decided, in words.
    """

    matches: bool | None
    mismatches: tuple[Mismatch, ...]
    unknown: tuple[str, ...]


def examine(document: PolicyDocument, rule: Rule, request: Request) -> Examination:
    """Compare all conditions of `rule` with `request`.

    One that does not hold settles it, whatever is unknown; if none fails and something is unknown, the rule is
    undecided (Kleene's strong three-valued "and").
    """
    mismatches = list(_scope(document, rule, request))
    unknown: list[str] = []
    if rule.classifications is not None and request.dataset:
        dataset = document.datasets.get(request.dataset)
        if dataset is None:
            unknown.append(f"the dataset {_cut(request.dataset)!r} is not declared, so it has no classification")
        elif dataset.classification not in rule.classifications:
            mismatches.append(Mismatch("classification", _listed(rule.classifications), dataset.classification))
    if rule.jurisdictions is not None:
        places = document.jurisdictions_of(request.organization)
        if places is None:
            unknown.append(f"the policy states no jurisdiction of {request.organization[:80] or 'nobody'}")
        elif not places & rule.jurisdictions:
            mismatches.append(Mismatch("jurisdiction", _listed(rule.jurisdictions), _listed(places)))
    if rule.fields is not None:
        outside = misfits(document, rule, request)
        if outside is None:
            unknown.append("the request does not state its fields")
        elif outside:
            mismatches.append(Mismatch("fields", _wanted_fields(rule), _said(outside)))
    for condition in rule.conditions:
        holds = condition.holds(request.labels)
        if holds is None:
            unknown.append(_unknown_label(condition.label, request))
        elif not holds:
            got = shown_label(condition, request.labels)
            mismatches.append(Mismatch(f"label {condition.label}", str(condition), got))
    matches = False if mismatches else None if unknown else True
    return Examination(matches, tuple(mismatches), tuple(unknown))


def misfits(document: PolicyDocument, rule: Rule, request: Request) -> frozenset[str] | None:
    """Return the fields for which the `fields` of a rule do not let it match; None if the request states none.

    For an allow rule these are the fields that it neither names nor redacts; a forbid rule matches as soon as one of
    its own is there, and otherwise all fields of the request are in its way.
    """
    wanted = rule.fields or frozenset()
    if not request.fields:
        return None
    if not rule.allows:
        touched = any(overlaps(path, wanted) for path in request.fields)
        return frozenset() if touched else request.fields
    covered = wanted | rule.obligations.redact
    if rule.obligations.drop_personal:
        covered |= document.personal_of(request.dataset) or frozenset()
    return frozenset(path for path in request.fields if not is_under(path, covered))


def nearest(document: PolicyDocument, request: Request) -> tuple[NearMiss, ...]:
    """Return the allow rules for the request's action that come nearest to matching: fewest mismatches first."""
    misses = [
        NearMiss(rule.id, examine(document, rule, request).mismatches)
        for rule in document.rules
        if rule.allows and request.action in rule.actions
    ]
    failed = sorted((miss for miss in misses if miss.mismatches), key=lambda miss: len(miss.mismatches))
    return tuple(failed[:NEAREST])


def _scope(document: PolicyDocument, rule: Rule, request: Request) -> Iterable[Mismatch]:
    purposes = None if rule.purposes is None else document.purposes_under(rule.purposes)
    for condition, wanted, got in (
        ("action", rule.actions, request.action),
        ("organization", rule.organizations, request.organization),
        ("role", rule.roles, request.role),
        ("dataset", rule.datasets, request.dataset),
        ("kind", rule.kinds, request.kind),
        ("purpose", purposes, request.purpose),
    ):
        if wanted is not None and got not in wanted:
            yield Mismatch(condition, _listed(wanted), _cut(got) or "not stated")
    if rule.classifications is not None and not request.dataset:
        yield Mismatch("classification", _listed(rule.classifications), "not stated")


def _wanted_fields(rule: Rule) -> str:
    return f"{'only' if rule.allows else 'one of'} {_listed(rule.fields or frozenset())}"


def shown_label(condition: Condition, labels: Labels) -> str:
    """Return the value of a condition's label in words; of a time, the moment as the condition sees it."""
    minute = minute_of_week(labels) if isinstance(condition, TimeCondition) else None
    if minute is None or not isinstance(condition, TimeCondition):
        return _cut(str(labels[condition.label]))
    day, minute = divmod((minute + condition.offset) % WEEK, DAY)
    return f"{DAYS[day]} {minute // 60:02}:{minute % 60:02} ({show_zone(condition.offset)})"


def _unknown_label(label: str, request: Request) -> str:
    if label in request.labels:
        return f"the request's label {label!r} is of another type or out of range"
    return f"the request has no label {label!r}"


def _cut(word: str) -> str:
    """Return a word of a request, or its beginning."""
    return word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}…"


def _said(values: frozenset[str]) -> str:
    """Return words of a request: not remembered, for a peer may say other ones each time."""
    more = f" or {len(values) - _MOST_SHOWN} others" if len(values) > _MOST_SHOWN else ""
    return " or ".join(map(_cut, nsmallest(_MOST_SHOWN, values))) + more


@lru_cache(maxsize=_MAX_LISTED)
def _listed(values: frozenset[str]) -> str:
    """Return words of the policy."""
    words = sorted(values)
    more = f" or {len(words) - _MOST_SHOWN} others" if len(words) > _MOST_SHOWN else ""
    return " or ".join(words[:_MOST_SHOWN]) + more
