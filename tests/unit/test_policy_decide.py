"""Decisions, their reasons, and what explain says about them: scenarios as tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from comity_node.policy.engine import Policy
from comity_node.policy.explain import explain
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import ACTIONS, LabelValue, Obligations, Onward, Request

POLICY = """\
version: 1
organization: mercy.example
purposes: {research: {}, screening: {parent: research}, pricing: {}}
datasets:
  tumours:
    classification: confidential
    schema: {size: {type: number}, label: {type: integer}, name: {type: string}, notes.free: {type: string}}
  ledger: {classification: restricted}
rules:
  - id: send
    effect: allow
    action: record.send
    to: {organization: [stlukes.example], role: [validator]}
    data: {dataset: tumours, kind: synthetic}
    purpose: [research]
    when: {records: {max: 500}}
    obligations: {redact: [name], generalize: {size: 5}, rate: {records: 9, per: 1m}, onward: with_consent}
  - id: send-strict
    effect: allow
    action: record.send
    to: {organization: "*"}
    data: {kind: synthetic}
    when: {min_score: {min: 0.5}}
    obligations: {redact: [notes], generalize: {size: 2}, min_distance_to_private: 0.2}
  - id: cards
    effect: allow
    action: agent.discover
    to: {organization: "*"}
  - id: no-raw
    effect: forbid
    action: "*"
    data: {kind: raw}
  - id: no-restricted
    effect: forbid
    action: record.send
    data: {classification: restricted}
  - id: not-too-many
    effect: forbid
    action: record.release
    when: {records: {min: 100}}
"""
GOOD = Request(
    action="record.send",
    organization="stlukes.example",
    role="validator",
    purpose="screening",
    dataset="tumours",
    kind="synthetic",
    fields=frozenset({"size", "label"}),
    labels={"records": 10, "min_score": 0.5},
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return loads_policy(POLICY, file="p.yaml")


def labels(**values: LabelValue) -> Request:
    return replace(GOOD, labels=values)


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("request_", "rules", "reason"),
    [
        (replace(GOOD, labels={}), "send send-strict", "send cannot be decided: the request has no label 'records'"),
        (labels(records="10", min_score=0.5), "send", "the request's label 'records' is of another type"),
        (labels(records=True, min_score=0.5), "send", "another type"),
        (labels(records=float("nan"), min_score=0.5), "send", "another type"),
        (replace(GOOD, kind="raw"), "no-raw", "forbidden by no-raw"),
        (replace(GOOD, kind="raw", action="agent.discover"), "no-raw", "forbidden by no-raw"),
        (replace(GOOD, kind="Raw"), "comity.incomplete-request", "there is no kind 'Raw' of data"),
        (replace(GOOD, kind=""), "comity.incomplete-request", "does not state its kind"),
        (replace(GOOD, purpose="", dataset=""), "comity.incomplete-request", "its purpose and dataset"),
        (replace(GOOD, organization=""), "comity.incomplete-request", "its organization"),
        (replace(GOOD, action="record.sell"), "comity.unknown-action", "no action 'record.sell'"),
        (replace(GOOD, dataset="ledger"), "no-restricted", "forbidden by no-restricted"),
        (replace(GOOD, dataset="other"), "no-restricted", "'other' is not declared, so it has no classification"),
        (replace(GOOD, fields=frozenset({"size", "ssn"})), "comity.unknown-field", "no field ssn"),
        (replace(GOOD, action="record.release", kind="certified", labels={}), "not-too-many", "no label 'records'"),
        (
            replace(GOOD, organization="x.example", labels={"min_score": 0.4}),
            "",
            "nearest: send (organization is x.example, wanted stlukes.example)",
        ),
        (replace(GOOD, action="record.receive"), "", "no rule allows record.receive from stlukes.example"),
        (replace(GOOD, action="tunnel.open", kind=""), "", "no rule allows tunnel.open to stlukes.example"),
    ],
)
def test_denied(policy: Policy, request_: Request, rules: str, reason: str) -> None:
    decision = policy.decide(request_)
    assert not decision.allowed
    assert decision.rules == tuple(rules.split())
    assert reason in decision.reason
    assert decision.obligations == Obligations()


@pytest.mark.parametrize(
    ("request_", "rules", "redacted", "grid", "onward"),
    [
        (GOOD, "send send-strict", {"name", "notes"}, 10, Onward.WITH_CONSENT),
        (labels(records=10, min_score=0.1), "send", {"name"}, 5, Onward.WITH_CONSENT),
        (labels(records=501, min_score=0.5), "send-strict", {"notes"}, 2, Onward.NEVER),
        (replace(GOOD, purpose="pricing"), "send-strict", {"notes"}, 2, Onward.NEVER),
        (replace(GOOD, role="trainer"), "send-strict", {"notes"}, 2, Onward.NEVER),
        (replace(GOOD, organization="x.example"), "send-strict", {"notes"}, 2, Onward.NEVER),
    ],
)
def test_allowed_with_the_strictest_of_all_that_allow(
    policy: Policy, request_: Request, rules: str, redacted: set[str], grid: float, onward: Onward
) -> None:
    decision = policy.decide(request_)
    assert decision.allowed
    assert decision.rules == tuple(rules.split())
    assert decision.obligations.redact == redacted
    assert decision.obligations.generalize == {"size": grid}
    assert decision.obligations.onward is onward
    assert [rate.rule for rate in decision.obligations.rates] == ["send"] * ("send" in decision.rules)


@pytest.mark.invariant("S3")
def test_without_a_rule_everything_is_denied() -> None:
    empty = loads_policy("version: 1\norganization: mercy.example\nrules: []\n")
    for action in ACTIONS:
        decision = empty.decide(replace(GOOD, action=action))
        assert (decision.allowed, decision.rules) == (False, ())


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("fields", "exposed"),
    [
        ({"size"}, ""),
        ({"name"}, ""),  # redacted by both
        ({"notes"}, "notes.free"),
        ({"notes.free"}, "notes.free"),
        ({"notes.free.deep"}, "notes.free"),
        ({"name", "notes"}, "notes.free"),
    ],
)
def test_personal_fields_pass_only_redacted_or_by_name(policy: Policy, fields: set[str], exposed: str) -> None:
    only_send = replace(GOOD, labels={"records": 1, "min_score": 0.1}, fields=frozenset(fields))
    for _ in range(2):  # the second time from what the engine remembers
        decision = policy.decide(only_send)
        assert decision.allowed is not bool(exposed)
        if exposed:
            assert decision.rules == ("comity.personal-field",)
            assert exposed in decision.reason
    named = loads_policy(POLICY.replace("data: {dataset: tumours, kind: synthetic}", "data: {personal: [notes]}"))
    assert named.decide(only_send).allowed


def test_near_misses_say_what_is_missing_fewest_first(policy: Policy) -> None:
    request = replace(GOOD, purpose="pricing", labels={"records": 501, "min_score": 0.1})
    near = policy.decide(request).near_misses
    assert [miss.rule for miss in near] == ["send-strict", "send"]
    assert [str(each) for each in near[1].mismatches] == [
        "purpose is pricing, wanted research or screening",
        "label records is 501, wanted at most 500",
    ]


def test_explain_an_allow_names_the_source_of_each_obligation(policy: Policy) -> None:
    explanation = explain(policy, GOOD)
    text = explanation.text()
    assert text.splitlines()[0] == "ALLOW: allowed by send, send-strict"
    assert "send asks for redact: ['name']" in text
    assert "send-strict asks for redact: ['notes'], generalize: {'size': 2.0}, min_distance_to_private: 0.2" in text
    assert "cards" not in text
    silent = explain(policy, replace(GOOD, role="trainer"))
    assert silent.advice[-1] == "no rule says anything about onward, so it is never"


@pytest.mark.parametrize(
    ("request_", "advice"),
    [
        (replace(GOOD, kind="raw"), "no-raw (p.yaml:29:5) must not match: it forbids kind raw"),
        (replace(GOOD, labels={}), "send must be decidable: the request has no label 'records'"),
        (labels(records=501, min_score=0.4), "send would allow it if label records were at most 500"),
        (replace(GOOD, action="tunnel.open"), "no allow rule is about this action; one would have to be written"),
        (replace(GOOD, purpose=""), "state in the request what the reason names"),
        (replace(GOOD, fields=frozenset({"ssn"})), "leave these fields out, or declare them in the dataset's schema"),
    ],
)
def test_explain_a_denial_says_what_would_have_to_change(policy: Policy, request_: Request, advice: str) -> None:
    explanation = explain(policy, request_)
    assert explanation.text().startswith("DENY: ")
    assert advice in explanation.advice


def test_following_the_advice_allows(policy: Policy) -> None:
    request = replace(GOOD, purpose="pricing", labels={"records": 501, "min_score": 0.4})
    (near, *_) = (miss for miss in policy.decide(request).near_misses if miss.rule == "send")
    assert {each.condition for each in near.mismatches} == {"purpose", "label records"}
    assert policy.decide(replace(request, purpose="research", labels={"records": 500, "min_score": 0.4})).allowed


def test_an_explanation_is_json_data(policy: Policy) -> None:
    for request in (GOOD, replace(GOOD, kind="raw"), replace(GOOD, labels={}), replace(GOOD, action="x")):
        data = json.loads(json.dumps(explain(policy, request).to_json()))
        assert data["decision"] == ("allow" if policy.decide(request).allowed else "deny")
        assert data["determined_by"] == list(policy.decide(request).rules)
        assert [rule["id"] for rule in data["rules"]] == [rule.id for rule in policy.document.rules]
    outcomes = {rule["id"]: rule["outcome"] for rule in explain(policy, replace(GOOD, labels={})).to_json()["rules"]}
    assert outcomes == {
        "send": "undecided",
        "send-strict": "undecided",
        "cards": "other-action",
        "no-raw": "failed",
        "no-restricted": "failed",
        "not-too-many": "other-action",
    }
