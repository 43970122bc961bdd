"""The linter's checks of obligations: what the data cannot meet, what allows nothing, what promises too little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from comity_node.policy.findings import Finding, note, warn
from comity_node.policy.lattice import Obligations, covers, is_under, merge_all
from comity_node.policy.model import FIELD_TYPES, Field, PolicyDocument, Rule, overlaps
from comity_node.policy.scopes import Wider, contains, speaks_of
from comity_node.strictyaml import suggest

_TAKING = frozenset(("record.receive", "record.accept"))
_GIVING = frozenset(("record.send", "record.release", "bulk.send"))
_NUMBERS = ("number", "integer")


def _known(document: PolicyDocument, rule: Rule) -> Mapping[str, Field] | None:
    """Return the fields of the datasets that a rule speaks of; None if one of them has no schema, or there is none."""
    schemas = [each.fields for each in document.datasets.values() if speaks_of(rule, each)]
    if not schemas or any(fields is None for fields in schemas):
        return None
    return {path: field for fields in schemas for path, field in (fields or {}).items()}


def fields(document: PolicyDocument) -> Iterator[Finding]:
    """Find paths that no dataset of the rule has."""
    for rule in document.rules:
        known = _known(document, rule)
        if known is None:
            continue
        duties = rule.obligations
        together = duties.k_anonymity.fields if duties.k_anonymity else frozenset[str]()
        named = {
            *duties.redact, *duties.generalize, *duties.mask, *duties.hash, *duties.noise, *together, *rule.personal,
            *(rule.fields or ()),
        }  # fmt: skip
        for path in sorted(named):
            if path not in known and not any(name.startswith(f"{path}.") for name in known):
                message = f"speaks of no dataset that has a field {path}{suggest(path, known)}"
                yield warn("unknown-field", rule, message)


def forms(document: PolicyDocument) -> Iterator[Finding]:
    """Find forms that break a field's type or leave nothing of it."""
    for rule in document.rules:
        known = _known(document, rule) or {}
        duties = rule.obligations
        for path, grid in duties.generalize.items():
            field = known.get(path)
            type_ = field.type if field else "number"
            if type_ not in _NUMBERS or (type_ == "integer" and grid != int(grid)):
                yield warn(
                    "bad-grid", rule, f"rounds {path} to {grid:g}: {path} is of type {type_}, and that breaks it"
                )
            elif field and field.minimum is not None and field.maximum is not None:
                if grid > field.maximum - field.minimum:
                    span = f"{field.minimum:g} to {field.maximum:g}"
                    yield note("bad-grid", rule, f"rounds {path}, which is from {span}, to {grid:g}: nothing is left")
        for name, paths, types in (
            ("adds noise to", duties.noise, _NUMBERS),
            ("masks", duties.mask, ("string",)),
            ("hashes", duties.hash, FIELD_TYPES),
        ):
            for path in sorted(paths):
                if path in known and known[path].type not in types:
                    message = f"{name} {path}, which is of type {known[path].type}: that cannot be done"
                    yield warn("bad-form", rule, message)
                elif path in known and known[path].values and name != "adds noise to":
                    message = f"{name} {path}, which has a closed list of values: it can be guessed which one it was"
                    yield warn("bad-form", rule, message)


def clashes(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules that match together and ask for forms of a field that no value has: the field is redacted then."""
    shaping = [rule for rule in document.rules if rule.allows and _shapes(rule.obligations)]
    wider = Wider(shaping)
    for position, other in enumerate(shaping):
        for place, rule in wider.of(other):
            if rule is other or not contains(document, rule, other):
                continue
            if place > position and contains(document, other, rule):
                continue  # each contains the other: told once
            together = merge_all((rule.obligations, other.obligations)).redact
            lost = [p for p in together if not is_under(p, rule.obligations.redact | other.obligations.redact)]
            for path in sorted(lost):
                message = f"and {rule.id} ask for forms of {path} that no value has: where both match it is redacted"
                yield warn("clash", other, message)


def _shapes(duties: Obligations) -> bool:
    return bool(duties.generalize or duties.mask or duties.hash or duties.noise)


def limits(document: PolicyDocument) -> Iterator[Finding]:
    """Find limits that allow nothing or bound nothing, and approvals of which nobody hears."""
    for rule in document.rules:
        duties = rule.obligations
        if any(not quota.records for quota in duties.quotas) or any(not rate.records for rate in duties.rates):
            yield warn("nothing-left", rule, "has a limit of 0 records, so it allows nothing")
        if duties.approvals and not duties.notify:
            yield note("approval-unannounced", rule, "waits for a person's approval and tells nobody")
        if duties.noise and not duties.budgets:
            yield warn("noise-unbounded", rule, "adds noise without a budget, so that asking often enough takes it off")
        if duties.budgets and not duties.noise:
            yield note("budget-unused", rule, "has a budget and adds no noise, so nothing is spent")


def expired(document: PolicyDocument, now_ms: int) -> Iterator[Finding]:
    """Find dates that have passed."""
    for rule in document.rules:
        expire_ms = rule.obligations.expire_ms
        if expire_ms is not None and expire_ms <= now_ms:
            day = datetime.fromtimestamp(expire_ms / 1000, UTC).date().isoformat()
            yield warn("expired", rule, f"lets pass what had to be gone by {day}")


def personal(document: PolicyDocument) -> Iterator[Finding]:
    """Find personal fields that a rule for giving data neither protects nor lets pass: such rows are denied."""
    for rule in document.rules:
        if not (rule.allows and rule.actions & _GIVING):
            continue
        duties = rule.obligations
        settled = rule.personal | duties.redact
        for dataset in document.datasets.values():
            if not speaks_of(rule, dataset):
                continue
            if duties.drop_personal:
                if dataset.fields is None:
                    message = f"drops the personal fields of {dataset.name}, which has no schema to say which those are"
                    yield warn("no-schema-to-drop", rule, message)
                continue
            for path in sorted(dataset.personal):
                open_ = not is_under(path, settled) and (rule.fields is None or overlaps(path, rule.fields))
                if open_:
                    message = (
                        f"says nothing about {path} of {dataset.name}, which is personal: rows that have it are denied"
                    )
                    yield warn("personal-unsettled", rule, message)


def floor(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules for taking records that check for more than this organization ever demands of an agreement."""
    signing = [rule for rule in document.rules if rule.allows and "agreement.accept" in rule.actions]
    if not signing:
        return
    demanded = merge_all(rule.obligations for rule in signing)
    for rule in document.rules:
        own = rule.obligations
        checked = Obligations(
            redact=own.redact, generalize=own.generalize, mask=own.mask, hash=own.hash, k_anonymity=own.k_anonymity
        )
        if rule.allows and rule.actions & _TAKING and not covers(demanded, checked):
            message = "refuses records that are not brought into a form that no agreement.accept rule demands"
            yield warn("beyond-agreement", rule, message)
