"""The engine against Cedar, against the slow definition of a match, and what more rules may never do."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import cedarpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity_node.policy import cedar
from comity_node.policy.engine import Policy
from comity_node.policy.matching import examine, nearest
from comity_node.policy.model import (
    ACTIONS,
    CLASSIFICATIONS,
    INCOMPLETE,
    KINDS,
    PERSONAL,
    UNKNOWN_FIELD,
    Condition,
    Dataset,
    Effect,
    Field,
    FlagCondition,
    LabelValue,
    NumberCondition,
    Obligations,
    PolicyDocument,
    Request,
    Rule,
    TextCondition,
)
from comity_node.policy.obligations import Onward, covers, merge

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
DATASETS = ["tumours", "letters", "nowhere"]
FIELDS = ["age", "name", "notes", "size"]
NUMBERS = [0.0, 0.25, 0.7, 1.0, 100.0, 500.0]


class Maker:
    """Draws policies, and requests that are like one of the policy's rules more often than chance would have it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def some(self, values: Sequence[str], least: int = 1) -> frozenset[str]:
        return frozenset(self.random.sample(values, self.random.randint(least, len(values))))

    def maybe(self, values: Sequence[str], share: float = 0.5) -> frozenset[str] | None:
        return self.some(values) if self.chance(share) else None

    def number(self, label: str) -> NumberCondition:
        low, high = sorted(self.random.choices(NUMBERS, k=2))
        return NumberCondition(label, low if self.chance(0.6) else -math.inf, high if self.chance(0.6) else math.inf)

    def conditions(self) -> tuple[Condition, ...]:
        made: list[Condition] = [
            self.number("records"),
            self.number("min_score"),
            TextCondition("tunnel", self.some(["flower", "ssh"])),
            FlagCondition("distinct_organizations", self.chance(0.5)),
        ]
        return tuple(self.random.sample(made, self.random.choice([0, 0, 0, 1, 1, 2])))

    def obligations(self) -> Obligations:
        return Obligations(
            redact=self.some(FIELDS, 0) if self.chance(0.4) else frozenset(),
            generalize={name: self.random.choice([0.5, 5.0, 10.0]) for name in self.some(FIELDS, 0)},
            min_distance_to_private=self.random.choice([None, 0.1, 0.2]),
            onward=self.random.choice(list(Onward)),
        )

    def rule(self, number: int, effect: Effect | None = None) -> Rule:
        effect = effect or (Effect.ALLOW if self.chance(0.7) else Effect.FORBID)
        allows = effect is Effect.ALLOW
        return Rule(
            id=f"rule-{number}",
            effect=effect,
            actions=frozenset(ACTIONS) if self.chance(0.2) else self.some(ACTION_NAMES),
            organizations=self.maybe(ORGANIZATIONS),
            roles=self.maybe(ROLES, 0.3),
            datasets=self.maybe(DATASETS, 0.4),
            kinds=self.maybe(KINDS),
            classifications=self.maybe(CLASSIFICATIONS, 0.2),
            personal=self.some(FIELDS, 0) if allows and self.chance(0.3) else frozenset(),
            purposes=self.maybe(list(PURPOSES)),
            conditions=self.conditions(),
            obligations=self.obligations() if allows else Obligations(),
            states_onward=self.chance(0.5),
        )

    def document(self) -> PolicyDocument:
        fields = {
            "age": Field("number", personal=False),
            "name": Field("string", personal=self.chance(0.7)),
            "notes": Field("string", personal=self.chance(0.7)),
        }
        datasets = {
            "tumours": Dataset("tumours", self.random.choice(CLASSIFICATIONS), fields=fields),
            "letters": Dataset("letters", self.random.choice(CLASSIFICATIONS)),
        }
        made = tuple(self.rule(number) for number in range(self.random.randint(0, 7)))
        return PolicyDocument("own.example", made, datasets, PURPOSES if self.chance(0.5) else None)

    def request(self, document: PolicyDocument) -> Request:
        like = (
            self.random.choice(document.rules)
            if document.rules and self.chance(0.7)
            else Rule("-", Effect.ALLOW, frozenset())
        )

        def one(wanted: frozenset[str] | None, others: Sequence[str]) -> str:
            return self.random.choice(sorted(wanted) if wanted and self.chance(0.95) else list(others))

        records: list[LabelValue] = [*NUMBERS, *NUMBERS, "many", True, math.nan]
        tunnels: list[LabelValue] = ["flower", "ssh", "web", 3]
        labels: dict[str, LabelValue] = {
            "records": self.random.choice(records),
            "min_score": self.random.choice(NUMBERS),
            "tunnel": self.random.choice(tunnels),
            "distinct_organizations": self.random.choice([True, False, 1]),
        }
        return Request(
            action=one(like.actions & frozenset(ACTION_NAMES), ACTION_NAMES),
            organization=one(like.organizations, [*ORGANIZATIONS * 4, "other.example", ""]),
            role=one(like.roles, [*ROLES, ""]),
            purpose=one(like.purposes, [*list(PURPOSES) * 4, "marketing", ""]),
            dataset=one(like.datasets, [*DATASETS * 4, ""]),
            kind=one(like.kinds, [*KINDS * 4, "", "Raw"]),
            fields=self.some(FIELDS[:3], 0) if self.chance(0.9) else self.some(FIELDS),
            labels={name: value for name, value in labels.items() if self.chance(0.8)},
        )


SEEDS = st.integers(0, 2**64 - 1)


def ask_cedar(exported: cedar.Export, asked: list[Request]) -> list[tuple[bool, tuple[str, ...]]]:
    requests = [cedar.to_request(each) for each in asked]
    answers = cedarpy.is_authorized_batch(requests, exported.policies, list(exported.entities))
    out = []
    for answer in answers:
        assert not answer.diagnostics.errors
        rules = {exported.ids[int(reason.removeprefix("policy"))] for reason in answer.diagnostics.reasons}
        out.append((answer.decision == cedarpy.Decision.Allow, tuple(sorted(rules))))
    return out


@pytest.mark.invariant("S3")
@given(SEEDS)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_decisions_and_determining_rules_equal_cedars(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    asked = [maker.request(document) for _ in range(10)]
    policy = Policy(document)
    ours = [policy.decide(request) for request in asked]
    assert [(decision.allowed, decision.rules) for decision in ours] == ask_cedar(cedar.export(document), asked)


def test_the_oracle_sees_every_kind_of_decision() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1000):
        maker = Maker(seed)
        document = maker.document()
        decision = Policy(document).decide(maker.request(document))
        seen["allow" if decision.allowed else "default" if not decision.rules else "stop"] += 1
        seen["undecided"] += "cannot be decided" in decision.reason
        seen["forbidden"] += "forbidden by" in decision.reason
        seen.update(rule for rule in decision.rules if rule.startswith("comity."))
    kinds = ("allow", "default", "stop", "undecided", "forbidden", INCOMPLETE, PERSONAL, UNKNOWN_FIELD)
    assert all(seen[kind] >= 3 for kind in kinds), seen


@given(SEEDS)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_compiled_match_is_the_examined_one(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    policy = Policy(document)
    for request in [maker.request(document) for _ in range(10)]:
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
        if not decision.allowed and not decision.rules:
            assert decision.near_misses == nearest(document, request)


@pytest.mark.invariant("S1")
@given(SEEDS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_forbid_rule_never_widens_access(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    extra = maker.rule(99, Effect.FORBID)
    before, after = Policy(document), Policy(replace(document, rules=(*document.rules, extra)))
    for request in [maker.request(document) for _ in range(20)]:
        assert after.decide(request).allowed <= before.decide(request).allowed


@pytest.mark.invariant("S1")
@given(SEEDS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_another_obligation_never_widens_access_nor_loosens_what_is_asked_for(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    if not (allowing := [rule for rule in document.rules if rule.allows]):
        return
    chosen = maker.random.choice(allowing)
    more = replace(chosen, obligations=merge(chosen.obligations, Obligations(min_distance_to_private=0.9)))
    rules = tuple(more if rule is chosen else rule for rule in document.rules)
    before, after = Policy(document), Policy(replace(document, rules=rules))
    for request in [maker.request(document) for _ in range(20)]:
        old, new = before.decide(request), after.decide(request)
        assert (new.allowed, new.rules) == (old.allowed, old.rules)
        assert covers(new.obligations, old.obligations)
        if chosen.id in new.rules and new.allowed:
            assert new.obligations.min_distance_to_private == 0.9


@given(SEEDS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_another_allow_rule_never_loosens_what_was_asked_for_already(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    extra = maker.rule(99, Effect.ALLOW)
    before, after = Policy(document), Policy(replace(document, rules=(*document.rules, extra)))
    for request in [maker.request(document) for _ in range(20)]:
        old, new = before.decide(request), after.decide(request)
        if old.allowed and new.allowed:
            # Onward apart: `never` where no rule says anything, until one does.
            assert covers(new.obligations, replace(old.obligations, onward=Onward.ALLOWED))


@given(SEEDS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_decision_depends_neither_on_earlier_ones_nor_on_the_rules_order(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    policy, backwards = Policy(document), Policy(replace(document, rules=document.rules[::-1]))
    for request in [maker.request(document) for _ in range(10)]:
        first, other = policy.decide(request), backwards.decide(request)
        assert Policy(document).decide(request) == policy.decide(request) == first
        assert (other.allowed, other.rules, other.obligations) == (first.allowed, first.rules, first.obligations)
