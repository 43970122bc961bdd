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
rule must name it (`{organization: "*"}` is everybody). All of the language is in docs/policy.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from comity.digest import canonical_json, hex_digest, sha256
from comity_node.policy.engine import Policy
from comity_node.policy.model import (
    ACTIONS,
    CLASSIFICATIONS,
    KINDS,
    RESERVED,
    Dataset,
    Effect,
    Obligations,
    PolicyDocument,
    Rule,
)
from comity_node.policy.read_duties import OBLIGATIONS, read_obligations, read_paths
from comity_node.policy.read_schema import Schemas
from comity_node.policy.read_sides import NAME, check_name, is_any, read_facts, read_groups, read_side
from comity_node.policy.read_when import read_when
from comity_node.strictyaml import Node, Section, loads, read_file, shown

__all__ = ["load", "loads_policy", "read_obligations"]

TOP_KEYS = ("version", "organization", "organizations", "groups", "purposes", "datasets", "rules")
DATASET_KEYS = ("classification", "subject", "schema")
RULE_KEYS = ("id", "effect", "action", "to", "from", "with", "data", "purpose", "when", "obligations")
DATA_KEYS = ("dataset", "kind", "classification", "fields", "personal")
_ID = re.compile(NAME)


def load(path: Path) -> Policy:
    """Read a policy and the schemas that it names (paths are relative to its directory).

    The digest is SHA-256 over the RFC 8785 form of `{"policy": hex SHA-256 of the file, "schemas": {path as written:
    hex SHA-256 of that file}}`.

    Raises:
        ConfigError: a file cannot be read or something in it is not understood; it carries file, line and column.
    """
    return loads_policy(read_file(path), file=str(path), base=path.parent)


def loads_policy(
    data: bytes | str, *, file: str = "<policy>", base: Path = Path(), schemas: Mapping[str, bytes] | None = None
) -> Policy:
    """Read a policy from text; schemas are looked for under `base`, or, if they are given, in `schemas` alone.

    Raises:
        ConfigError: see `load`.
    """
    raw = data.encode() if isinstance(data, str) else data
    reader = _Reader(loads(raw, file).mapping(*TOP_KEYS), Schemas(base, {}, {}, schemas))
    return Policy(reader.document(raw, file))


class _Reader:
    """Reads the top of a policy; what a rule needs to know about the rest is kept here."""

    def __init__(self, top: Section, schemas: Schemas) -> None:
        top.required("version").integer(1, 1)
        self._top = top
        self._schemas = schemas
        self._organizations = read_facts(top.optional("organizations"))
        known = (each.jurisdictions or frozenset() for each in self._organizations.values())
        self._jurisdictions = sorted(frozenset[str]().union(*known))
        self._groups = read_groups(top.optional("groups"))
        self._purposes = self._read_purposes()
        self._datasets = self._read_datasets()

    def document(self, raw: bytes, file: str) -> PolicyDocument:
        organization = self._top.required("organization").organization()
        rules = self._rules()
        name = {"policy": hex_digest(raw), "schemas": self._schemas.digests}
        digest = sha256(canonical_json(name))
        files = MappingProxyType({"": raw, **self._schemas.files})
        return PolicyDocument(
            organization, rules, self._datasets, self._purposes, digest, file,
            groups=self._groups, organizations=self._organizations, files=files,
        )  # fmt: skip

    def _read_purposes(self) -> dict[str, frozenset[str]] | None:
        node = self._top.optional("purposes")
        if node is None:
            return None
        table = node.table()
        known = [name for name, _, _ in table]
        parents: dict[str, frozenset[str]] = {}
        for name, mark, value in table:
            check_name(name, mark)
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
            check_name(name, mark)
            entry = value.mapping(*DATASET_KEYS)
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
            section = node.mapping(*RULE_KEYS)
            rule = self._rule(section)
            if rule.id in rules:
                section.required("id").fail(f"the id {shown(rule.id)} is already taken by {rules[rule.id].place}")
            rules[rule.id] = rule
        return tuple(rules.values())

    def _rule(self, section: Section) -> Rule:
        id_ = _rule_id(section.required("id"))
        effect = Effect(section.required("effect").choice([each.value for each in Effect], "effect"))
        actions = _actions(section.required("action"))
        side = read_side(section, effect, actions, self._groups)
        data = section.section("data", *DATA_KEYS)
        fields, duties = data.optional("fields"), section.optional("obligations")
        conditions, jurisdictions = read_when(section.optional("when"), self._jurisdictions)
        if effect is Effect.FORBID and duties is not None:
            duties.fail("a forbid rule has no obligations: what it matches is not done at all")
        return Rule(
            id=id_,
            effect=effect,
            actions=actions,
            organizations=side.organizations,
            groups=side.groups,
            jurisdictions=jurisdictions,
            roles=side.roles,
            datasets=_closed(data.optional("dataset"), self._datasets, "dataset"),
            kinds=_closed(data.optional("kind"), KINDS, "kind of data"),
            classifications=_closed(data.optional("classification"), CLASSIFICATIONS, "classification"),
            fields=None if fields is None or is_any(fields) else read_paths(fields),
            personal=_personal(data.optional("personal"), effect),
            purposes=self._rule_purposes(section.optional("purpose")),
            conditions=(*side.conditions, *conditions),
            obligations=read_obligations(duties, id_) if duties is not None else Obligations(),
            states_onward=duties is not None and "onward" in duties.mapping(*OBLIGATIONS),
            place=str(section.node.mark),
        )

    def _rule_purposes(self, node: Node | None) -> frozenset[str] | None:
        if node is None or is_any(node):
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


def _closed(node: Node | None, known: Mapping[str, object] | tuple[str, ...], what: str) -> frozenset[str] | None:
    return None if node is None or is_any(node) else frozenset(node.choices(tuple(known), what))


def _rule_id(node: Node) -> str:
    text = node.string()
    if not _ID.fullmatch(text):
        node.fail(f"{shown(text)} is no id: lower-case letters, digits, '.', '_' and '-', at most 100")
    if text.startswith(RESERVED):
        node.fail(f"ids that begin with {RESERVED!r} are those of built-in rules")
    return text


def _actions(node: Node) -> frozenset[str]:
    return frozenset(ACTIONS if is_any(node) else node.choices(tuple(ACTIONS), "action"))


def _personal(node: Node | None, effect: Effect) -> frozenset[str]:
    if node is None:
        return frozenset()
    if effect is Effect.FORBID:
        node.fail("personal names fields that an allow rule lets pass; a forbid rule has none")
    return read_paths(node)
