"""The engine against Cedar, against the slow definition of a match, and what more rules may never do."""

from __future__ import annotations

import dataclasses
from typing import Any

import cedarpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity_node.policy import cedar
from comity_node.policy.engine import Policy
from comity_node.policy.matching import examine
from comity_node.policy.model import (
    ACTIONS,
    CLASSIFICATIONS,
    KINDS,
    Condition,
    Dataset,
    Effect,
    Field,
    FlagCondition,
    NumberCondition,
    Obligations,
    PolicyDocument,
    Request,
    Rule,
    TextCondition,
)
from comity_node.policy.obligations import Onward, covers

# Few values, so that rules and requests meet often.
ACTION_NAMES = ["agent.discover", "agreement.accept", "record.send", "record.receive", "update.send", "tunnel.serve"]
ORGANIZATIONS = ["a.example", "b.example", "c.example"]
ROLES = ["validator", "trainer"]
PURPOSES = {
    "research": frozenset[str](),
    "screening": frozenset(["research"]),
    "triage": frozenset(["screening", "care"]),
    "care": frozenset[str](),
}
FIELDS = ["age", "name", "notes", "size"]
NUMBERS = [0.0, 0.25, 0.7, 1.0, 100.0, 500.0]


def some(values: list[str], *, least: int = 1) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(values), min_size=least)


def maybe(values: list[str]) -> st.SearchStrategy[frozenset[str] | None]:
    return st.none() | some(values)


@st.composite
def conditions(draw: st.DrawFn) -> tuple[Condition, ...]:
    number = st.builds(
        lambda label, bounds: NumberCondition(label, min(bounds), max(bounds)),
        st.sampled_from(["records", "min_score"]),
        st.tuples(st.sampled_from([*NUMBERS, float("-inf")]), st.sampled_from([*NUMBERS, float("inf")])),
    )
    text = st.builds(TextCondition, st.just("tunnel"), some(["flower", "ssh"]))
    flag = st.builds(FlagCondition, st.just("distinct_organizations"), st.booleans())
    return tuple(draw(st.lists(number | text | flag, max_size=2, unique_by=lambda each: each.label)))


@st.composite
def obligations(draw: st.DrawFn) -> Obligations:
    return Obligations(
        redact=draw(some(FIELDS, least=0)),
        generalize=draw(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from([0.5, 5.0, 10.0]), max_size=2)),
        min_distance_to_private=draw(st.none() | st.sampled_from([0.1, 0.2])),
        onward=draw(st.sampled_from(Onward)),
    )


@st.composite
def rules(draw: st.DrawFn, number: int) -> Rule:
    allows = draw(st.booleans()) or draw(st.booleans())
    return Rule(
        id=f"rule-{number}",
        effect=Effect.ALLOW if allows else Effect.FORBID,
        actions=draw(some(ACTION_NAMES) | st.just(frozenset(ACTIONS))),
        organizations=draw(maybe(ORGANIZATIONS)),
        roles=draw(maybe(ROLES)),
        datasets=draw(maybe(["tumours", "letters", "nowhere"])),
        kinds=draw(maybe(list(KINDS))),
        classifications=draw(st.none() | st.none() | some(list(CLASSIFICATIONS))),
        personal=draw(some(FIELDS, least=0)) if allows else frozenset(),
        purposes=draw(maybe(list(PURPOSES))),
        conditions=draw(st.just(()) | conditions()),
        obligations=draw(obligations()) if allows else Obligations(),
        states_onward=draw(st.booleans()),
    )


@st.composite
def documents(draw: st.DrawFn) -> PolicyDocument:
    fields = {
        "age": Field("number", personal=False),
        "name": Field("string", personal=draw(st.booleans())),
        "notes": Field("string", personal=draw(st.booleans())),
    }
    datasets = {
        "tumours": Dataset("tumours", draw(st.sampled_from(CLASSIFICATIONS)), fields=fields),
        "letters": Dataset("letters", draw(st.sampled_from(CLASSIFICATIONS))),
    }
    made = tuple(draw(rules(number)) for number in range(draw(st.integers(0, 6))))
    return PolicyDocument("own.example", made, datasets, draw(st.none() | st.just(PURPOSES)))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    labels: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "records": st.sampled_from([*NUMBERS, "many", True]),
                "min_score": st.sampled_from(NUMBERS),
                "tunnel": st.sampled_from(["flower", "ssh", "web", 3]),
                "distinct_organizations": st.sampled_from([True, False, 1]),
            },
        )
    )
    return Request(
        action=draw(st.sampled_from(ACTION_NAMES)),
        organization=draw(st.sampled_from([*ORGANIZATIONS, *ORGANIZATIONS, "other.example", ""])),
        role=draw(st.sampled_from([*ROLES, ""])),
        purpose=draw(st.sampled_from([*PURPOSES, *PURPOSES, "marketing", ""])),
        dataset=draw(st.sampled_from(["tumours", "tumours", "letters", "nowhere", ""])),
        kind=draw(st.sampled_from([*KINDS, *KINDS, "", "Raw"])),
        fields=draw(st.just(frozenset[str]()) | some(FIELDS, least=0)),
        labels=labels,
    )


def ask_cedar(exported: cedar.Export, policies: Any, asked: list[Request]) -> list[tuple[bool, tuple[str, ...]]]:
    answers = cedarpy.is_authorized_batch([cedar.to_request(each) for each in asked], policies, list(exported.entities))
    out = []
    for answer in answers:
        assert not answer.diagnostics.errors
        rules = {exported.ids[int(reason.removeprefix("policy"))] for reason in answer.diagnostics.reasons}
        out.append((answer.decision == cedarpy.Decision.Allow, tuple(sorted(rules))))
    return out


@pytest.mark.invariant("S3")
@given(documents(), st.lists(requests(), min_size=8, max_size=8))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_decisions_and_determining_rules_equal_cedars(document: PolicyDocument, asked: list[Request]) -> None:
    exported = cedar.export(document)
    policy = Policy(document)
    ours = [policy.decide(request) for request in asked]
    theirs = ask_cedar(exported, exported.policies, asked)
    assert [(decision.allowed, decision.rules) for decision in ours] == theirs


@given(documents(), st.lists(requests(), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_compiled_match_is_the_examined_one(document: PolicyDocument, asked: list[Request]) -> None:
    policy = Policy(document)
    for request in asked:
        examined = {rule.id: examine(document, rule, request).matches for rule in document.rules}
        allows = {rule.id for rule in document.rules if rule.allows and examined[rule.id]}
        stops = {
            rule.id for rule in document.rules if examined[rule.id] is None or (not rule.allows and examined[rule.id])
        }
        decision = policy.decide(request)
        written = {rule for rule in decision.rules if not rule.startswith("comity.")}
        assert written == (allows if decision.allowed else stops)
        assert not (decision.allowed and stops)
        assert decision.allowed <= bool(allows)
        assert decision.reason


@pytest.mark.invariant("S1")
@given(documents(), st.data(), st.lists(requests(), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_forbid_rule_or_an_obligation_never_widens_access(
    document: PolicyDocument, data: st.DataObject, asked: list[Request]
) -> None:
    extra = dataclasses.replace(
        data.draw(rules(99)), effect=Effect.FORBID, personal=frozenset(), obligations=Obligations()
    )
    before, after = Policy(document), Policy(dataclasses.replace(document, rules=(*document.rules, extra)))
    for request in asked:
        assert after.decide(request).allowed <= before.decide(request).allowed

    if not (allowing := [rule for rule in document.rules if rule.allows]):
        return
    chosen = data.draw(st.sampled_from(allowing))
    more = dataclasses.replace(chosen, obligations=dataclasses.replace(chosen.obligations, min_distance_to_private=0.9))
    stricter = Policy(
        dataclasses.replace(document, rules=tuple(more if rule is chosen else rule for rule in document.rules))
    )
    for request in asked:
        old, new = before.decide(request), stricter.decide(request)
        assert new.allowed == old.allowed
        assert new.rules == old.rules
        assert covers(new.obligations, old.obligations)


@given(documents(), st.data(), requests())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_another_allow_rule_never_loosens_what_was_allowed_already(
    document: PolicyDocument, data: st.DataObject, request_: Request
) -> None:
    extra = dataclasses.replace(data.draw(rules(99)), effect=Effect.ALLOW, states_onward=True)
    before = Policy(document).decide(request_)
    after = Policy(dataclasses.replace(document, rules=(*document.rules, extra))).decide(request_)
    if before.allowed and after.allowed:
        stated = dataclasses.replace(before.obligations, onward=Onward.ALLOWED)
        assert covers(after.obligations, stated)


@given(documents(), requests())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_decision_depends_on_nothing_but_the_request(document: PolicyDocument, request_: Request) -> None:
    policy = Policy(document)
    first = policy.decide(request_)
    assert policy.decide(request_) == first
    backwards = Policy(dataclasses.replace(document, rules=document.rules[::-1])).decide(request_)
    assert (backwards.allowed, backwards.rules, backwards.obligations) == (
        first.allowed,
        first.rules,
        first.obligations,
    )
