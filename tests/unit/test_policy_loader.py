"""A policy that loads means what it says; what is not understood is refused with its place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from comity.errors import ConfigError
from comity_node.policy.engine import Policy
from comity_node.policy.loader import load, loads_policy
from comity_node.policy.model import ACTIONS, Effect, Field, FlagCondition, NumberCondition, TextCondition
from comity_node.policy.obligations import Obligations, Onward, Rate, ReviewTerms
from kit.bad_policies import DATA, FILES, MORE, ONE_RULE, SCHEMA_IS, WHOLE_RULES

FULL = """\
version: 1
organization: mercy.example
purposes:
  research:
  screening: {parent: research}
datasets:
  tumours:
    classification: confidential
    subject: patient
    schema: schemas/t.json
  notes: {classification: restricted, schema: {text: {type: string}, kind: {type: string, values: [a, b]}}}
rules:
  - id: send
    effect: allow
    action: record.send
    to: {organization: [stlukes.example, hope.example], role: [validator]}
    data: {dataset: tumours, kind: synthetic, personal: [name]}
    purpose: [research]
    when: {records: {max: 500}, tunnel: [a, b], distinct_organizations: true}
    obligations:
      redact: [patient_id, notes.free_text]
      generalize: {age: 5, size: 0.1}
      min_distance_to_private: 0.15
      rate: {records: 200, per: 1m}
      retain: 30d
      review: {quorum: 2, min_score: 0.7}
      onward: with_consent
  - {id: never, effect: forbid, action: "*", data: {classification: [restricted]}}
"""
SCHEMA = {"version": 1, "label": "age", "fields": {"age": {"type": "integer", "min": 0, "max": 120}}}


def test_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas/t.json").write_text(json.dumps(SCHEMA))
    path = tmp_path / "policy.yaml"
    path.write_text(FULL)
    policy = load(path)
    document = policy.document

    assert policy.organization == "mercy.example"
    assert policy.purposes == {"research": frozenset(), "screening": frozenset({"research"})}
    assert policy.datasets["tumours"].fields == {"age": Field("integer", False, 0, 120)}
    notes = policy.datasets["notes"]
    assert (notes.classification, notes.subject, notes.personal) == ("restricted", "", frozenset({"text"}))
    send, never = document.rules
    assert (send.id, send.effect, send.actions) == ("send", Effect.ALLOW, frozenset({"record.send"}))
    assert send.organizations == frozenset({"stlukes.example", "hope.example"})
    assert (send.roles, send.datasets, send.kinds) == (
        frozenset({"validator"}),
        frozenset({"tumours"}),
        frozenset({"synthetic"}),
    )
    assert (send.purposes, send.personal) == (frozenset({"research"}), frozenset({"name"}))
    assert send.conditions == (
        NumberCondition("records", float("-inf"), 500),
        TextCondition("tunnel", frozenset({"a", "b"})),
        FlagCondition("distinct_organizations", True),
    )
    assert send.obligations == Obligations(
        redact=frozenset({"patient_id", "notes.free_text"}),
        generalize={"age": 5.0, "size": 0.1},
        min_distance_to_private=0.15,
        rates=(Rate(200, 60_000, "send"),),
        retain_ms=30 * 86_400_000,
        review=ReviewTerms(2, True, 0.7),
        onward=Onward.WITH_CONSENT,
    )
    assert send.states_onward
    assert send.place == f"{path}:13:5"
    assert (never.actions, never.organizations, never.kinds) == (frozenset(ACTIONS), None, None)
    assert never.classifications == frozenset({"restricted"})


def test_the_digest_is_over_the_bytes_of_policy_and_schemas(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    schema = tmp_path / "schemas/t.json"
    schema.write_text(json.dumps(SCHEMA))
    path = tmp_path / "policy.yaml"
    path.write_text(FULL)
    before = load(path).digest

    def sha(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    named = {"policy": sha(FULL.encode()), "schemas": {"schemas/t.json": sha(schema.read_bytes())}}
    canonical = json.dumps(named, separators=(",", ":"), sort_keys=True).encode()
    assert before == hashlib.sha256(canonical).digest()
    schema.write_text(json.dumps(SCHEMA) + "\n")
    assert load(path).digest != before


def policy(rules: str, top: str = "") -> Policy:
    return loads_policy(f"version: 1\norganization: mercy.example\n{top}\nrules:\n{rules}", file="p.yaml")


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(("more", "message"), MORE)
def test_a_rule_is_refused_with_its_place(more: str, message: str) -> None:
    """`@` marks where the error must point to."""
    with pytest.raises(ConfigError, match=message) as caught:
        policy(ONE_RULE.format(more=more.replace("@", "")), DATA)
    column = ONE_RULE.format(more=more).index("@") + 1
    assert (caught.value.file, caught.value.line, caught.value.column) == ("p.yaml", 5, column)


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(("rule", "message"), WHOLE_RULES)
def test_a_rule_is_refused(rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        policy(f"  - {rule}")
    assert caught.value.line >= 4


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_policy_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        loads_policy(text)
    assert caught.value.line or "no such file" in message


def test_a_broken_schema_file_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"version": 1, "fields": {"a": {"type": "numbr"}}}')
    path = tmp_path / "p.yaml"
    path.write_text(SCHEMA_IS + "s.json}}")
    with pytest.raises(ConfigError, match='did you mean "number"') as caught:
        load(path)
    assert (caught.value.file, caught.value.line, caught.value.column) == (str(tmp_path / "s.json"), 1, 41)


def test_undeclared_purposes_are_any_words_and_declared_ones_are_not() -> None:
    rule = ONE_RULE.format(more=", purpose: [anything]")
    assert policy(rule).document.rules[0].purposes == frozenset({"anything"})
    with pytest.raises(ConfigError, match="unknown purpose"):
        policy(rule, "purposes: {research: {}}")
