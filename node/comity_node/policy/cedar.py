r"""Policies as Cedar, for who wants to read or check them there.

Cedar: https://docs.cedarpolicy.com/policies/syntax-policy.html. The other organization is the principal, with its
groups as parents and its jurisdictions as an attribute; the dataset is the resource with its classification as parent,
the purpose an entity below its parents; role, kind, fields and labels are the context. Cedar computes no day of the
week: a time window asks about `context.labels.minute_of_week`, which `to_request` makes of the label `time_ms`.

Cedar skips a policy whose condition errors, and so allows what an undecidable `forbid` should stop; here each rule with
conditions gets a second, `forbid` policy that matches when it cannot be decided. The built-in rules are written out in
the same way. Obligations, which Cedar does not have, are an annotation.

Equal in decision and determining rules, with two limits: field paths are compared as written (records without nesting),
and numbers have at most four decimals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comity.errors import ConfigError
from comity_node.policy.conditions import minute_of_week
from comity_node.policy.lattice import is_under
from comity_node.policy.model import (
    ACTIONS,
    INCOMPLETE,
    KINDS,
    LABELS,
    PERSONAL,
    REQUIRED,
    UNKNOWN_FIELD,
    Condition,
    Dataset,
    FlagCondition,
    Label,
    NumberCondition,
    PolicyDocument,
    Request,
    Rule,
    TimeCondition,
)
from comity_node.policy.terms import to_json

_MINUTE = "minute_of_week"
_DECLARED = 'Classification::"comity.declared"'


@dataclass(frozen=True, slots=True)
class Export:
    """A policy in Cedar.

    Attributes:
        policies: Cedar source.
        ids: for each policy in the source, in its order, the id of the rule that it stands for.
        entities: datasets with their classifications, and purposes with their parents, in Cedar's JSON form.
    """

    policies: str
    ids: tuple[str, ...]
    entities: tuple[Mapping[str, Any], ...]


def export(document: PolicyDocument) -> Export:
    """Write a policy in Cedar.

    Raises:
        ConfigError: a number in a condition has more than four decimals or is over 9e14.
    """
    policies: list[tuple[str, str]] = [(INCOMPLETE, _policy(INCOMPLETE, "forbid", _incomplete(document)))]
    for rule in document.rules:
        effect = "permit" if rule.allows else "forbid"
        policies.append((rule.id, _policy(rule.id, effect, _matches(rule, document), rule)))
        if _open_conditions(rule, document):
            policies.append((rule.id, _policy(f"{rule.id}?undecided", "forbid", _undecided(rule, document))))
    for dataset in document.datasets.values():
        policies += [
            (id_, _policy(f"{id_}?{dataset.name}", "forbid", body)) for id_, body in _guards(document, dataset)
        ]
    if drops := [rule for rule in document.rules if _drops_personal(rule)]:
        known = _set("Dataset", (each.name for each in document.datasets.values() if each.fields is not None))
        body = f"!(resource in {known}) && ({_any(_matches(rule, document) for rule in drops)})"
        policies.append((PERSONAL, _policy(f"{PERSONAL}?unknown", "forbid", body)))
    return Export(
        "\n".join(text for _, text in policies), tuple(id_ for id_, _ in policies), tuple(_entities(document))
    )


def to_request(request: Request) -> dict[str, Any]:
    """Return a request in the form that cedarpy takes.

    Raises:
        ConfigError: a label has more than four decimals or is over 9e14.
    """
    labels = {name: _label(value) for name, value in request.labels.items() if _is_typed(name, value)}
    if (minute := minute_of_week(request.labels)) is not None:
        labels[_MINUTE] = minute
    return {
        "principal": {"type": "Organization", "id": request.organization},
        "action": {"type": "Action", "id": request.action},
        "resource": {"type": "Dataset", "id": request.dataset},
        "context": {
            "role": request.role,
            "purpose": {"__entity": {"type": "Purpose", "id": request.purpose}},
            "kind": request.kind,
            "fields": sorted(request.fields),
            "labels": labels,
        },
    }


def _is_typed(name: str, value: object) -> bool:
    """Whether a label is of its type; one that is not counts as missing, here as in the engine."""
    wanted = LABELS.get(name)
    if isinstance(value, bool):
        return wanted is Label.FLAG
    if isinstance(value, str):
        return wanted is Label.TEXT
    return wanted is Label.NUMBER and isinstance(value, int | float) and not math.isnan(value)


def _label(value: float | str | bool) -> object:
    if isinstance(value, bool | str):
        return value
    return {"__extn": {"fn": "decimal", "arg": _decimal(value)}}


def _decimal(value: float) -> str:
    if not abs(value) < 9e14 or round(value, 4) != value:
        raise ConfigError(f"{value!r} is no Cedar decimal: at most four decimals and 9e14")
    return f"{value:.4f}"


def _quoted(text: str) -> str:
    escaped = (f"\\u{{{ord(c):x}}}" if ord(c) < 32 or ord(c) == 127 else f"\\{c}" if c in '"\\' else c for c in text)
    return f'"{"".join(escaped)}"'


def _set(type_: str, values: Iterable[str]) -> str:
    prefix = f"{type_}::" if type_ else ""
    return f"[{', '.join(prefix + _quoted(value) for value in sorted(values))}]"


def _policy(id_: str, effect: str, body: str, rule: Rule | None = None) -> str:
    lines = [f"@id({_quoted(id_)})"]
    if rule is not None and rule.allows:
        asked = {**to_json(rule.obligations), "states_onward": rule.states_onward, "personal": sorted(rule.personal)}
        lines.append(f"@obligations({_quoted(json.dumps(asked, sort_keys=True))})")
    return "\n".join([*lines, f"{effect} (principal, action, resource) when {{ {body} }};"])


def _all(parts: Iterable[str]) -> str:
    return " && ".join(parts) or "true"


def _any(parts: Iterable[str]) -> str:
    return " || ".join(f"({part})" for part in parts) or "false"


def _principals(rule: Rule, document: PolicyDocument) -> str:
    grouped = frozenset[str]().union(*(document.groups[name] for name in rule.groups))
    named = [f"Group::{_quoted(name)}" for name in sorted(rule.groups)]
    named += [f"Organization::{_quoted(name)}" for name in sorted((rule.organizations or frozenset()) - grouped)]
    return f"[{', '.join(named)}]"


def _scope(rule: Rule, document: PolicyDocument) -> list[str]:
    """Return the conditions of a rule that can always be decided."""
    parts = [f"action in {_set('Action', rule.actions)}"]
    if rule.organizations is not None:
        parts.append(f"principal in {_principals(rule, document)}")
    if rule.roles is not None:
        parts.append(f"{_set('', rule.roles)}.contains(context.role)")
    if rule.datasets is not None:
        parts.append(f"resource in {_set('Dataset', rule.datasets)}")
    if rule.kinds is not None:
        parts.append(f"{_set('', rule.kinds)}.contains(context.kind)")
    if rule.purposes is not None:
        parts.append(f"context.purpose in {_set('Purpose', rule.purposes)}")
    if rule.classifications is not None:
        parts.append('resource != Dataset::""')
    return parts


def _open_conditions(rule: Rule, document: PolicyDocument) -> list[tuple[str, str]]:
    """Return the conditions that may be undecidable: what it takes to decide each, and then the condition."""
    found = [(f"context.labels has {_name(each)}", _condition(each)) for each in rule.conditions]
    if rule.jurisdictions is not None:
        within = f"principal.jurisdiction.containsAny({_set('', rule.jurisdictions)})"
        found.append(("principal has jurisdiction", within))
    if rule.fields is not None:
        found.append(("!context.fields.isEmpty()", _fields(rule, document)))
    if rule.classifications is not None:
        found.append((f"resource in {_DECLARED}", f"resource in {_set('Classification', rule.classifications)}"))
    return found


def _fields(rule: Rule, document: PolicyDocument) -> str:
    wanted = rule.fields or frozenset()
    if not rule.allows:
        return f"{_set('', wanted)}.containsAny(context.fields)"
    covered = wanted | rule.obligations.redact
    parts = [f"{_set('', covered)}.containsAll(context.fields)"]
    if rule.obligations.drop_personal:
        for each in document.datasets.values():
            if each.personal:
                holds = f"{_set('', covered | each.personal)}.containsAll(context.fields)"
                parts.append(f"resource == Dataset::{_quoted(each.name)} && {holds}")
    return _any(parts)


def _name(condition: Condition) -> str:
    return _MINUTE if isinstance(condition, TimeCondition) else condition.label


def _condition(condition: Condition) -> str:
    name = f"context.labels.{_name(condition)}"
    if isinstance(condition, TimeCondition):
        return _any(f"{name} >= {begin} && {name} < {end}" for begin, end in condition.intervals())
    if isinstance(condition, FlagCondition):
        return f"{name} == {str(condition.value).lower()}"
    if not isinstance(condition, NumberCondition):
        return f"{_set('', condition.words)}.contains({name})"
    parts = []
    if condition.minimum > -math.inf:
        parts.append(f'{name}.greaterThanOrEqual(decimal("{_decimal(condition.minimum)}"))')
    if condition.maximum < math.inf:
        parts.append(f'{name}.lessThanOrEqual(decimal("{_decimal(condition.maximum)}"))')
    return _all(parts)


def _matches(rule: Rule, document: PolicyDocument) -> str:
    conditions = (f"{known} && ({holds})" for known, holds in _open_conditions(rule, document))
    return _all([*_scope(rule, document), *conditions])


def _undecided(rule: Rule, document: PolicyDocument) -> str:
    conditions = _open_conditions(rule, document)
    none_fails = [f"(!({known}) || ({holds}))" for known, holds in conditions]
    return _all([*_scope(rule, document), *none_fails, f"({_any(f'!({known})' for known, _ in conditions)})"])


def _incomplete(document: PolicyDocument) -> str:
    empty = {
        "purpose": 'context.purpose == Purpose::""',
        "dataset": 'resource == Dataset::""',
        "kind": 'context.kind == ""',
    }
    parts = ['principal == Organization::""', f"!({_set('', ('', *KINDS))}.contains(context.kind))"]
    for name, is_empty in empty.items():
        actions = [action for action in ACTIONS if name in REQUIRED.get(action, ())]
        parts.append(f"action in {_set('Action', actions)} && {is_empty}")
    if document.purposes is not None:
        parts.append(f"!({_set('Purpose', ('', *document.purposes))}.contains(context.purpose))")
    return _any(parts)


def _guards(document: PolicyDocument, dataset: Dataset) -> Iterable[tuple[str, str]]:
    """Yield the built-in rules about the fields of a dataset; they apply where an allow rule does."""
    if dataset.fields is None:
        return
    allows = [rule for rule in document.rules if rule.allows]
    here = f"resource == Dataset::{_quoted(dataset.name)} && ({_any(_matches(rule, document) for rule in allows)})"
    yield UNKNOWN_FIELD, f"{here} && !({_set('', dataset.fields)}.containsAll(context.fields))"
    for path in sorted(dataset.personal):
        settled = [
            rule
            for rule in allows
            if _drops_personal(rule) or is_under(path, rule.obligations.redact) or is_under(path, rule.personal)
        ]
        exposed = f"context.fields.contains({_quoted(path)}) && !({_any(_matches(rule, document) for rule in settled)})"
        yield PERSONAL, f"{here} && {exposed}"


def _drops_personal(rule: Rule) -> bool:
    return rule.allows and rule.obligations.drop_personal


def _entities(document: PolicyDocument) -> Iterable[dict[str, Any]]:
    for name in sorted({*document.organizations, *(each for group in document.groups.values() for each in group)}):
        groups = [{"type": "Group", "id": group} for group, members in document.groups.items() if name in members]
        places = document.jurisdictions_of(name)
        attributes = {"jurisdiction": sorted(places)} if places else {}
        yield {"uid": {"type": "Organization", "id": name}, "attrs": attributes, "parents": groups}
    for dataset in document.datasets.values():
        parents = [
            {"type": "Classification", "id": dataset.classification},
            {"type": "Classification", "id": "comity.declared"},
        ]
        yield {"uid": {"type": "Dataset", "id": dataset.name}, "attrs": {}, "parents": parents}
    for name, above in (document.purposes or {}).items():
        parents = [{"type": "Purpose", "id": parent} for parent in sorted(above)]
        yield {"uid": {"type": "Purpose", "id": name}, "attrs": {}, "parents": parents}
