"""What a rule asks of a request, condition by condition: the definition that the engine's fast path must agree with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from comity_node.policy.model import Mismatch, NearMiss, PolicyDocument, Request, Rule

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
            unknown.append(f"the dataset {request.dataset!r} is not declared, so it has no classification")
        elif dataset.classification not in rule.classifications:
            mismatches.append(Mismatch("classification", _listed(rule.classifications), dataset.classification))
    for condition in rule.conditions:
        holds = condition.holds(request.labels)
        if holds is None:
            unknown.append(_unknown_label(condition.label, request))
        elif not holds:
            got = str(request.labels[condition.label])
            mismatches.append(Mismatch(f"label {condition.label}", str(condition), got))
    matches = False if mismatches else None if unknown else True
    return Examination(matches, tuple(mismatches), tuple(unknown))


def nearest(document: PolicyDocument, request: Request) -> tuple[NearMiss, ...]:
    """Return the allow rules for the request's action that come nearest to matching: fewest mismatches first."""
    misses = [
        NearMiss(rule.id, examine(document, rule, request).mismatches)
        for rule in document.rules
        if rule.allows and request.action in rule.actions
    ]
    failed = sorted((miss for miss in misses if miss.mismatches), key=lambda miss: (len(miss.mismatches), miss.rule))
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
            yield Mismatch(condition, _listed(wanted), got or "not stated")
    if rule.classifications is not None and not request.dataset:
        yield Mismatch("classification", _listed(rule.classifications), "not stated")


def _unknown_label(label: str, request: Request) -> str:
    if label in request.labels:
        return f"the request's label {label!r} is of another type"
    return f"the request has no label {label!r}"


def _listed(values: Iterable[str], most: int = 8) -> str:
    words = sorted(values)
    more = f" or {len(words) - most} others" if len(words) > most else ""
    return " or ".join(words[:most]) + more
