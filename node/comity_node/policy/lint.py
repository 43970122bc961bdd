"""What is probably not meant in a policy that loads: names nobody has, rules that can never decide anything.

Errors are what the loader refuses. A finding here is a warning, or a note where it may well be meant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from comity_node.policy.engine import Policy
from comity_node.policy.model import (
    ACTIONS,
    Dataset,
    FlagCondition,
    NumberCondition,
    Obligations,
    PolicyDocument,
    Rule,
    TextCondition,
)
from comity_node.policy.obligations import covers, is_under, merge_all
from comity_node.strictyaml import suggest

_RECORD_ACTIONS = frozenset(action for action in ACTIONS if action.startswith("record."))
_TAKING = frozenset(("record.receive", "record.accept"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at: `level` is `warning` or `note`, `code` names the check and never changes."""

    level: str
    code: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.level}: {self.message} [{self.code}]"

    def to_json(self) -> dict[str, str]:
        """Return the finding as JSON data."""
        return {"level": self.level, "code": self.code, "place": self.place, "message": self.message}


def lint(policy: Policy, members: Collection[str] | None = None) -> tuple[Finding, ...]:
    """Look a policy over; with the consortium's `members`, names of organizations are checked against them."""
    document = policy.document
    checks: tuple[Callable[[PolicyDocument], Iterable[Finding]], ...] = (
        _own_organization, _no_allow, _datasets, _unmeetable, _forbids_all, _unreachable, _shadowed, _broad, _fields,
        _floor,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(document)]
    if members is not None:
        findings += _unknown_organizations(document, members)
    return tuple(sorted(findings, key=lambda finding: (_line(finding.place), finding.code)))


def _line(place: str) -> tuple[int, ...]:
    return tuple(int(part) for part in place.rsplit(":", 2)[1:] if part.isdigit())


def _warn(code: str, place: str, message: str) -> Finding:
    return Finding("warning", code, place, message)


def _note(code: str, place: str, message: str) -> Finding:
    return Finding("note", code, place, message)


def _unknown_organizations(document: PolicyDocument, members: Collection[str]) -> Iterator[Finding]:
    if document.organization not in members:
        near = suggest(document.organization, members)
        message = f"the policy is of {document.organization}, which is no member{near}"
        yield _warn("unknown-organization", document.source, message)
    for rule in document.rules:
        for name in sorted((rule.organizations or frozenset()) - frozenset(members)):
            message = f"{rule.id} names {name}, which is no member{suggest(name, members)}"
            yield _warn("unknown-organization", rule.place, message)


def _own_organization(document: PolicyDocument) -> Iterator[Finding]:
    for rule in document.rules:
        if document.organization in (rule.organizations or ()):
            yield _warn("own-organization", rule.place, f"{rule.id} names {document.organization} as the other side")


def _no_allow(document: PolicyDocument) -> Iterator[Finding]:
    if not any(rule.allows for rule in document.rules):
        yield _note("nothing-allowed", document.source, "no rule allows anything, so everything is denied")


def _datasets(document: PolicyDocument) -> Iterator[Finding]:
    for dataset in document.datasets.values():
        if dataset.fields is None:
            message = f"{dataset.name} has no schema, so no field of it is known to be personal and any field may pass"
            yield _warn("no-schema", dataset.place, message)
        if not any(_speaks_of(rule, dataset) for rule in document.rules):
            yield _warn("unused-dataset", dataset.place, f"no rule speaks of {dataset.name}")


def _speaks_of(rule: Rule, dataset: Dataset) -> bool:
    if rule.classifications is not None and dataset.classification not in rule.classifications:
        return False
    return rule.datasets is None or dataset.name in rule.datasets


def _unmeetable(document: PolicyDocument) -> Iterator[Finding]:
    for rule in document.rules:
        if rule.datasets is None and rule.classifications is None:
            continue
        if not any(_speaks_of(rule, each) for each in document.datasets.values()):
            yield _warn("unmeetable", rule.place, f"{rule.id} asks for a classification that none of its datasets has")


def _forbids_all(document: PolicyDocument) -> Iterator[Finding]:
    for rule in document.rules:
        if not rule.allows and _bare(rule):
            what = "everything" if rule.actions == frozenset(ACTIONS) else f"every {', '.join(sorted(rule.actions))}"
            yield _warn("forbids-all", rule.place, f"{rule.id} forbids {what}, with anybody, for any data")


def _bare(rule: Rule) -> bool:
    scope = (rule.organizations, rule.roles, rule.datasets, rule.kinds, rule.classifications, rule.purposes)
    return not rule.conditions and all(values is None for values in scope)


def _unreachable(document: PolicyDocument) -> Iterator[Finding]:
    """Find allow rules that can never allow: one forbid rule matches wherever they do."""
    for rule in document.rules:
        for forbid in document.rules:
            if rule.allows and not forbid.allows and _contains(document, forbid, rule):
                message = f"{rule.id} never allows anything: {forbid.id} forbids all of it"
                yield _warn("unreachable", rule.place, message)
                break


def _shadowed(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules that change nothing: another of the same effect matches wherever they do and asks for as much."""
    for position, rule in enumerate(document.rules):
        for other_position, other in enumerate(document.rules):
            if other is rule or other.effect is not rule.effect or not _contains(document, other, rule):
                continue
            same = _contains(document, rule, other)
            if _adds_nothing(rule, other) and (not same or other_position < position or not _adds_nothing(other, rule)):
                yield _warn("shadowed", rule.place, f"{rule.id} changes nothing: {other.id} matches wherever it does")
                break


def _adds_nothing(rule: Rule, other: Rule) -> bool:
    stated = other.states_onward or not rule.states_onward
    personal = all(is_under(path, other.personal) for path in rule.personal)
    return stated and personal and not rule.obligations.rates and covers(other.obligations, rule.obligations)


def _contains(document: PolicyDocument, wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` surely matches every request that `narrow` matches."""
    pairs = (
        (wide.actions, narrow.actions),
        (wide.organizations, narrow.organizations),
        (wide.roles, narrow.roles),
        (wide.kinds, narrow.kinds),
        (_under(document, wide), _under(document, narrow)),
        (wide.datasets, narrow.datasets),
        (wide.classifications, narrow.classifications),
    )
    if not all(w is None or (n is not None and n <= w) for w, n in pairs):
        return False
    return all(any(_implies(n, w) for n in narrow.conditions) for w in wide.conditions)


def _under(document: PolicyDocument, rule: Rule) -> frozenset[str] | None:
    return None if rule.purposes is None else document.purposes_under(rule.purposes)


def _implies(narrow: object, wide: object) -> bool:
    if isinstance(narrow, NumberCondition) and isinstance(wide, NumberCondition) and narrow.label == wide.label:
        return wide.minimum <= narrow.minimum and narrow.maximum <= wide.maximum
    if isinstance(narrow, TextCondition) and isinstance(wide, TextCondition) and narrow.label == wide.label:
        return narrow.words <= wide.words
    return isinstance(narrow, FlagCondition) and narrow == wide


def _broad(document: PolicyDocument) -> Iterator[Finding]:
    for rule in document.rules:
        if rule.allows and rule.kinds is None and rule.actions & _RECORD_ACTIONS:
            message = f"{rule.id} allows records of every kind, raw ones too; say data: {{kind: ...}}"
            yield _warn("any-kind", rule.place, message)
        if rule.allows and rule.actions == frozenset(ACTIONS):
            yield _warn("any-action", rule.place, f"{rule.id} allows every action that there is")


def _fields(document: PolicyDocument) -> Iterator[Finding]:
    """Find paths in obligations that no dataset of the rule has, and grids that make a whole number a fraction."""
    for rule in document.rules:
        schemas = [each.fields for each in document.datasets.values() if _speaks_of(rule, each)]
        if not schemas or any(fields is None for fields in schemas):
            continue
        known = {path: field for fields in schemas for path, field in (fields or {}).items()}
        duties = rule.obligations
        for path in sorted({*duties.redact, *duties.generalize, *rule.personal}):
            if path not in known and not any(name.startswith(f"{path}.") for name in known):
                message = f"{rule.id}: no dataset that it speaks of has a field {path}{suggest(path, known)}"
                yield _warn("unknown-field", rule.place, message)
        for path, grid in duties.generalize.items():
            type_ = known[path].type if path in known else "number"
            if type_ not in ("number", "integer") or (type_ == "integer" and grid != int(grid)):
                message = f"{rule.id}: {path} is of type {type_}, and a grid of {grid:g} breaks that"
                yield _warn("bad-grid", rule.place, message)


def _floor(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules for taking records that check for more than this organization ever demands of an agreement."""
    signing = [rule for rule in document.rules if rule.allows and "agreement.accept" in rule.actions]
    if not signing:
        return
    floor = merge_all(rule.obligations for rule in signing)
    for rule in document.rules:
        checked = Obligations(redact=rule.obligations.redact, generalize=rule.obligations.generalize)
        if rule.allows and rule.actions & _TAKING and not covers(floor, checked):
            message = (
                f"{rule.id} refuses records that are not redacted or rounded as no agreement.accept rule demands it"
            )
            yield _warn("beyond-agreement", rule.place, message)
