"""Policies from YAML. Everything that is not understood is refused, with its place in the file (S3).

    version: 1
    organization: mercy.example
    purposes:                                   # optional; then no other word is a purpose
      medical-research: {}
      breast-cancer-screening: {parent: medical-research}
    datasets:
      tumour-features: {classification: confidential, subject: patient, schema: schemas/tumour.json}
    rules:
      - id: offer-synthetic-tumours
        effect: allow
        action: record.send
        to: {organization: [stlukes.example], role: [validator]}
        data: {dataset: tumour-features, kind: synthetic}
        purpose: [medical-research]             # and what lies below it
        when: {records: {max: 500}}
        obligations: {redact: [patient_id], onward: never}

The other side is `to` for an action that leads out, `from` for one that leads in, `with` for both or either. An allow
rule must name it (`{organization: "*"}` is everybody).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from comity.digest import canonical_json, hex_digest, sha256
from comity_node.policy.engine import Policy
from comity_node.policy.model import (
    ACTIONS,
    CLASSIFICATIONS,
    FIELD_TYPES,
    KINDS,
    LABELS,
    RESERVED,
    Condition,
    Dataset,
    Direction,
    Effect,
    Field,
    FlagCondition,
    Label,
    NumberCondition,
    PolicyDocument,
    Rule,
    TextCondition,
)
from comity_node.policy.obligations import MAX_GRID, Obligations, Onward, Rate, ReviewTerms
from comity_node.strictyaml import Node, Section, loads, read_file, shown, suggest

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_TOP = ("version", "organization", "purposes", "datasets", "rules")
_RULE = ("id", "effect", "action", "to", "from", "with", "data", "purpose", "when", "obligations")
_OBLIGATIONS = ("redact", "generalize", "min_distance_to_private", "rate", "retain", "review", "onward")
_YEARS_MS = 100 * 366 * 86_400_000


def load(path: Path) -> Policy:
    """Read a policy and the schemas that it names (paths are relative to its directory).

    The digest is SHA-256 over the RFC 8785 form of `{"policy": hex SHA-256 of the file, "schemas": {path as written:
    hex SHA-256 of that file}}`.

    Raises:
        ConfigError: a file cannot be read or something in it is not understood; it carries file, line and column.
    """
    return loads_policy(read_file(path), file=str(path), base=path.parent)


def loads_policy(data: bytes | str, *, file: str = "<policy>", base: Path = Path()) -> Policy:
    """Read a policy from text; schemas are looked for under `base`.

    Raises:
        ConfigError: see `load`.
    """
    raw = data.encode() if isinstance(data, str) else data
    reader = _Reader(loads(raw, file).mapping(*_TOP), base)
    return Policy(reader.document(raw, file))


@dataclass(slots=True)
class _Schemas:
    base: Path
    digests: dict[str, str]

    def read(self, node: Node) -> Mapping[str, Field]:
        """Read a schema that is written out or named by its file."""
        if node.is_mapping:
            return _fields(node.table())
        path = node.file_path(self.base)
        data = read_file(path)
        self.digests[node.string()] = hex_digest(data)
        top = loads(data, str(path)).mapping("version", "label", "fields")
        top.required("version").integer(1, 1)
        fields = _fields(top.required("fields").table())
        if (label := top.optional("label")) is not None:
            label.choice(fields.keys(), "field")
        return fields


class _Reader:
    """Reads the top of a policy; what a rule needs to know about the rest is kept here."""

    def __init__(self, top: Section, base: Path) -> None:
        top.required("version").integer(1, 1)
        self._top = top
        self._schemas = _Schemas(base, {})
        self._purposes = self._read_purposes()
        self._datasets = self._read_datasets()

    def document(self, raw: bytes, file: str) -> PolicyDocument:
        organization = self._top.required("organization").organization()
        rules = self._rules()
        name = {"policy": hex_digest(raw), "schemas": self._schemas.digests}
        return PolicyDocument(organization, rules, self._datasets, self._purposes, sha256(canonical_json(name)), file)

    def _read_purposes(self) -> dict[str, frozenset[str]] | None:
        node = self._top.optional("purposes")
        if node is None:
            return None
        table = node.table()
        known = [name for name, _, _ in table]
        parents: dict[str, frozenset[str]] = {}
        for name, mark, value in table:
            if not _ID.fullmatch(name):
                mark.fail(f"{shown(name)} is no name: lower-case letters, digits, '.', '_' and '-', at most 100")
            parent = None if value.is_empty else value.mapping("parent").optional("parent")
            parents[name] = frozenset(parent.choices(known, "purpose")) if parent else frozenset()
        for name, mark, _ in table:
            if _reaches(name, parents):
                mark.fail(f"the purpose {shown(name)} is its own ancestor")
        return parents

    def _read_datasets(self) -> dict[str, Dataset]:
        node = self._top.optional("datasets")
        datasets: dict[str, Dataset] = {}
        for name, mark, value in node.table() if node is not None else ():
            if not _ID.fullmatch(name):
                mark.fail(f"{shown(name)} is no name: lower-case letters, digits, '.', '_' and '-', at most 100")
            entry = value.mapping("classification", "subject", "schema")
            schema = entry.optional("schema")
            datasets[name] = Dataset(
                name=name,
                classification=entry.required("classification").choice(CLASSIFICATIONS, "classification"),
                subject=entry.string("subject", ""),
                fields=self._schemas.read(schema) if schema is not None else None,
                place=str(mark),
            )
        return datasets

    def _rules(self) -> tuple[Rule, ...]:
        rules: dict[str, Rule] = {}
        for node in self._top.required("rules").items():
            section = node.mapping(*_RULE)
            rule = self._rule(section)
            if rule.id in rules:
                section.required("id").fail(f"the id {shown(rule.id)} is already taken by {rules[rule.id].place}")
            rules[rule.id] = rule
        return tuple(rules.values())

    def _rule(self, section: Section) -> Rule:
        id_ = _rule_id(section.required("id"))
        effect = Effect(section.required("effect").choice([each.value for each in Effect], "effect"))
        actions = _actions(section.required("action"))
        organizations, roles = _other_side(section, effect, actions)
        data = section.section("data", "dataset", "kind", "classification", "personal")
        duties = section.optional("obligations")
        if effect is Effect.FORBID and duties is not None:
            duties.fail("a forbid rule has no obligations: what it matches is not done at all")
        return Rule(
            id=id_,
            effect=effect,
            actions=actions,
            organizations=organizations,
            roles=roles,
            datasets=_closed(data.optional("dataset"), self._datasets, "dataset"),
            kinds=_closed(data.optional("kind"), KINDS, "kind of data"),
            classifications=_closed(data.optional("classification"), CLASSIFICATIONS, "classification"),
            personal=_personal(data.optional("personal"), effect),
            purposes=self._rule_purposes(section.optional("purpose")),
            conditions=_conditions(section.optional("when")),
            obligations=read_obligations(duties, id_) if duties is not None else Obligations(),
            states_onward=duties is not None and "onward" in duties.mapping(*_OBLIGATIONS),
            place=str(section.node.mark),
        )

    def _rule_purposes(self, node: Node | None) -> frozenset[str] | None:
        if node is None or _is_any(node):
            return None
        if self._purposes is None:
            return frozenset(node.strings())
        return frozenset(node.choices(self._purposes.keys(), "purpose"))


def _reaches(name: str, parents: Mapping[str, frozenset[str]]) -> bool:
    """Whether `name` is among its own ancestors."""
    seen: set[str] = set()
    ahead = set(parents[name])
    while ahead - seen:
        seen |= ahead
        ahead = {parent for one in ahead for parent in parents[one]}
    return name in seen


def _is_any(node: Node) -> bool:
    return node.value == "*"


def _closed(node: Node | None, known: Mapping[str, object] | tuple[str, ...], what: str) -> frozenset[str] | None:
    return None if node is None or _is_any(node) else frozenset(node.choices(tuple(known), what))


def _rule_id(node: Node) -> str:
    text = node.string()
    if not _ID.fullmatch(text):
        node.fail(f"{shown(text)} is no id: lower-case letters, digits, '.', '_' and '-', at most 100")
    if text.startswith(RESERVED):
        node.fail(f"ids that begin with {RESERVED!r} are those of built-in rules")
    return text


def _actions(node: Node) -> frozenset[str]:
    return frozenset(ACTIONS if _is_any(node) else node.choices(tuple(ACTIONS), "action"))


def _other_side(
    section: Section, effect: Effect, actions: frozenset[str]
) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Read `to`, `from` or `with`: the organizations and roles of the other side (None: any)."""
    present = [key for key in ("to", "from", "with") if key in section]
    if not present:
        if effect is Effect.ALLOW:
            section.node.fail('an allow rule must say who: to, from or with: {organization: [...]} ("*" for everybody)')
        return None, None
    if len(present) > 1:
        section.required(present[1]).fail("a rule names the other side once: to, from or with")
    (key,) = present
    node = section.required(key)
    if key != "with" and (wrong := sorted(each for each in actions if ACTIONS[each] != key)):
        other = Direction.IN if key == Direction.OUT else Direction.OUT
        node.fail(f"{wrong[0]} does not go {key} the other side; write {other.value}, or with for both directions")
    side = node.mapping("organization", "role")
    names = side.required("organization")
    organizations = None
    if not _is_any(names):
        names.strings()
        organizations = frozenset(each.organization() for each in names.one_or_more())
    role = side.optional("role")
    return organizations, None if role is None or _is_any(role) else frozenset(role.strings())


def _personal(node: Node | None, effect: Effect) -> frozenset[str]:
    if node is None:
        return frozenset()
    if effect is Effect.FORBID:
        node.fail("personal names fields that an allow rule lets pass; a forbid rule has none")
    return _paths(node)


def _paths(node: Node) -> frozenset[str]:
    node.strings()
    return frozenset(_path(each, each.string()) for each in node.one_or_more())


def _path(node: Node, text: str) -> str:
    if not all(text.split(".")):
        node.fail(f"{shown(text)} is no path of a field: names joined by dots")
    return text


def _conditions(node: Node | None) -> tuple[Condition, ...]:
    if node is None:
        return ()
    conditions: list[Condition] = []
    for label, mark, value in node.table():
        if label not in LABELS:
            mark.fail(
                f"unknown label {shown(label)}{suggest(label, LABELS) or '; known: ' + ', '.join(sorted(LABELS))}"
            )
        conditions.append(_condition(label, value))
    return tuple(conditions)


def _condition(label: str, node: Node) -> Condition:
    if LABELS[label] is Label.FLAG:
        return FlagCondition(label, node.boolean())
    if LABELS[label] is Label.TEXT:
        return TextCondition(label, frozenset(node.strings()))
    limits = node.mapping("min", "max")
    if not list(limits):
        node.fail("a condition on a number needs min, max or both")
    low, high = limits.optional("min"), limits.optional("max")
    minimum = low.number() if low is not None else float("-inf")
    maximum = high.number() if high is not None else float("inf")
    if minimum > maximum:
        node.fail("min is above max: nothing meets that")
    return NumberCondition(label, minimum, maximum)


def read_obligations(node: Node, rule: str) -> Obligations:
    """Read the `obligations` of the rule with this id."""
    section = node.mapping(*_OBLIGATIONS)
    redact, grids, rate = section.optional("redact"), section.optional("generalize"), section.optional("rate")
    retain, review, onward = section.optional("retain"), section.optional("review"), section.optional("onward")
    return Obligations(
        redact=_paths(redact) if redact is not None else frozenset(),
        generalize=_grids(grids) if grids is not None else {},
        min_distance_to_private=section.number("min_distance_to_private", 0, 0, 1e9) or None,
        rates=(_rate(rate, rule),) if rate is not None else (),
        retain_ms=retain.duration_ms(1000, _YEARS_MS) if retain is not None else None,
        review=_review(review) if review is not None else None,
        onward=Onward.parse(onward.choice([each.word for each in Onward], "value")) if onward else Onward.ALLOWED,
    )


def _grids(node: Node) -> dict[str, float]:
    grids: dict[str, float] = {}
    for path, mark, value in node.table():
        if not all(path.split(".")):
            mark.fail(f"{shown(path)} is no path of a field: names joined by dots")
        grid = value.number(1e-6, MAX_GRID)
        if round(grid, 6) != grid:
            value.fail("a grid has at most six decimals")
        grids[path] = grid
    return grids


def _rate(node: Node, rule: str) -> Rate:
    section = node.mapping("records", "per")
    return Rate(section.required("records").integer(0, 2**53), section.required("per").duration_ms(1, _YEARS_MS), rule)


def _review(node: Node) -> ReviewTerms:
    section = node.mapping("quorum", "distinct_organizations", "min_score")
    return ReviewTerms(
        quorum=section.required("quorum").integer(1, 1000),
        distinct_organizations=section.boolean("distinct_organizations", True),
        min_score=section.number("min_score", 0, 0, 1),
    )


def _fields(table: tuple[tuple[str, object, Node], ...]) -> dict[str, Field]:
    return {path: _field(node) for path, _, node in table}


def _field(node: Node) -> Field:
    section = node.mapping("type", "personal", "min", "max", "values")
    type_ = section.required("type").choice(FIELD_TYPES, "type")
    low, high, values = section.optional("min"), section.optional("max"), section.optional("values")
    if type_ not in ("number", "integer") and (bound := low or high) is not None:
        bound.fail(f"a {type_} has no range")
    if values is not None and type_ != "string":
        values.fail(f"values are for the type string, this is a {type_}")
    minimum = low.number() if low is not None else None
    maximum = high.number() if high is not None else None
    if minimum is not None and maximum is not None and minimum > maximum:
        node.fail("min is above max")
    words = values.strings() if values is not None else ()
    # A string that may hold anything may hold a name; the author has to say that it does not.
    return Field(type_, section.boolean("personal", type_ == "string" and not words), minimum, maximum, words)
