"""What cases cover of a policy: rules that decide one, conditions that fail in one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from comity_node.policy.coverage import conditions_of, cover
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from kit.decided import OTHER, PEER, POLICY, asking

Cli = Callable[..., tuple[int, str, str]]
CASES = f"""\
version: 1
policy: policy.yaml
cases:
  - name: to a partner
    request: {{action: record.send, organization: {PEER}, purpose: screening, dataset: tumours, kind: synthetic}}
    expect: allow
  - name: to another
    request: {{action: record.send, organization: {OTHER}, purpose: pricing, dataset: tumours, kind: synthetic}}
    expect: deny
"""


def test_a_condition_counts_when_it_fails() -> None:
    policy = loads_policy(POLICY)
    asked = [asking(), asking(organization=OTHER), asking("raw"), Request("relay.carry", PEER)]
    coverage = cover(policy.document, [(each, policy.decide(each)) for each in asked])
    send, cards, raw = coverage.rules
    assert (send.decided, dict(send.failed)) == (1, {"organization": 1, "dataset": 0, "kind": 1, "purpose": 0})
    assert (cards.decided, dict(cards.failed)) == (0, {})
    assert (raw.decided, dict(raw.failed)) == (1, {"kind": 3})
    assert coverage.untested == ("show-cards",)
    assert send.unfailed == ("dataset", "purpose")
    assert coverage.counts == (2, 3, 3, 5)
    assert coverage.percent == pytest.approx(100 * 5 / 8)


def test_every_condition_of_the_language_is_one() -> None:
    text = """\
version: 1
organization: me.example
organizations: {a.example: {jurisdiction: EU}}
datasets: {d: {classification: public}}
rules:
  - id: x
    effect: allow
    action: record.send
    to: {organization: [a.example], role: [validator], skill: [s]}
    data: {dataset: d, kind: synthetic, classification: public, fields: [age]}
    purpose: [p]
    when: {jurisdiction: EU, records: {max: 1}, time: {days: [mon]}}
"""
    (rule,) = loads_policy(text).document.rules
    assert conditions_of(rule) == (
        "organization", "role", "dataset", "kind", "purpose", "classification", "jurisdiction", "fields",
        "label skill", "label records", "label time_ms",
    )  # fmt: skip


def test_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    cases = tmp_path / "policy.tests.yaml"
    cases.write_text(CASES)
    code, out, _ = cli("policy", "test", cases, "--coverage")
    assert code == 0
    assert "no case is decided by never-raw-rows" in out
    assert "no case fails send-synthetic by its kind" in out
    assert "covered: 1 of 3 rules, 3 of 5 conditions: 50 %" in out
    assert cli("policy", "test", cases, "--fail-under", "50")[0] == 0
    code, _, err = cli("policy", "test", cases, "--fail-under", "50.1")
    assert (code, "50.0 % is covered, 50.1 % is the least" in err) == (1, True)
    assert cli("policy", "test", cases, "--fail-under", "101")[0] == 2
    answer = json.loads(cli("policy", "test", cases, "--json")[1])
    assert answer["coverage"][str(tmp_path / "policy.yaml")]["percent"] == 50
