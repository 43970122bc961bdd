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
from comity_node.policy.conditions import DAY, TIME
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
    Facts,
    Field,
    FlagCondition,
    LabelValue,
    NumberCondition,
    Obligations,
    PolicyDocument,
    Request,
    Rule,
    TextCondition,
    TimeCondition,
)
from comity_node.policy.obligations import Approval, KAnonymity, Noise, Onward, Quota, covers, merge

# Few values, so that rules and requests meet often.
ACTION_NAMES = ["agent.discover", "agreement.accept", "record.send", "record.receive", "update.send", "tunnel.serve"]
ORGANIZATIONS = ["a.example", "b.example", "c.example"]
GROUPS = {
    "north": frozenset({"a.example"}),
    "south": frozenset({"b.example", "c.example"}),
    "all": frozenset({"a.example", "b.example", "c.example"}),
}
JURISDICTIONS = ["EU", "DE", "US"]
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
            self.window(),
        ]
        return tuple(self.random.sample(made, self.random.choice([0, 0, 0, 1, 1, 2])))

    def window(self) -> TimeCondition:
        start, end = self.random.sample([0, 1, 8 * 60, 18 * 60, 18 * 60 + 1, DAY - 1], 2)
        days = self.random.sample(range(7), self.random.randint(1, 7))
        return TimeCondition(start, end if end else DAY, frozenset(days), self.random.choice([0, 60, -719, 840]))

    def time(self, rule: Rule) -> LabelValue:
        """A time, at the edges of the rule's window more often than not."""
        windows = [each for each in rule.conditions if isinstance(each, TimeCondition)]
        if not windows or self.chance(0.1):
            times: list[LabelValue] = [0, 1.5, -1, 253_402_300_800_000, 1_700_000_000_000, "noon", True, math.nan]
            return self.random.choice(times)
        begin, end = self.random.choice(list(windows[0].intervals()))
        minute = self.random.choice([begin, end - 1, end, begin - 1, (begin + end) // 2])
        minutes = 4 * DAY + self.random.randint(0, 2900) * 7 * DAY + minute  # the first Monday was the 5th
        return minutes * 60_000 + self.random.choice([0, 59_999])

    def obligations(self) -> Obligations:
        return Obligations(
            redact=self.some(FIELDS, 0) if self.chance(0.4) else frozenset(),
            generalize={name: self.random.choice([0.5, 5.0, 10.0]) for name in self.some(FIELDS, 0)},
            hash=self.some(FIELDS, 0) if self.chance(0.2) else frozenset(),
            drop_personal=self.chance(0.15),
            min_distance_to_private=self.random.choice([None, 0.1, 0.2]),
            onward=self.random.choice(list(Onward)),
        )

    def rule(self, number: int, effect: Effect | None = None) -> Rule:
        effect = effect or (Effect.ALLOW if self.chance(0.7) else Effect.FORBID)
        allows = effect is Effect.ALLOW
        groups = self.some(list(GROUPS)) if self.chance(0.2) else frozenset()
        organizations = self.maybe(ORGANIZATIONS, 0.2 if groups else 0.5)
        if groups:
            organizations = (organizations or frozenset()).union(*(GROUPS[name] for name in groups))
        return Rule(
            id=f"rule-{number}",
            effect=effect,
            actions=frozenset(ACTIONS) if self.chance(0.2) else self.some(ACTION_NAMES),
            organizations=organizations,
            groups=groups,
            jurisdictions=self.maybe(JURISDICTIONS, 0.15),
            fields=self.maybe(FIELDS, 0.15),
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
        facts = {name: Facts(self.some(JURISDICTIONS)) for name in self.some(ORGANIZATIONS)}
        purposes = PURPOSES if self.chance(0.5) else None
        return PolicyDocument("own.example", made, datasets, purposes, groups=GROUPS, organizations=facts)

    def fields(self, like: Rule) -> frozenset[str]:
        if like.fields and self.chance(0.6):
            return self.some(sorted(like.fields | like.obligations.redact))
        return self.some(FIELDS[:3], 0) if self.chance(0.9) else self.some(FIELDS)

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
            TIME: self.time(like),
        }
        return Request(
            action=one(like.actions & frozenset(ACTION_NAMES), ACTION_NAMES),
            organization=one(like.organizations, [*ORGANIZATIONS * 4, "other.example", ""]),
            role=one(like.roles, [*ROLES, ""]),
            purpose=one(like.purposes, [*list(PURPOSES) * 4, "marketing", ""]),
            dataset=one(like.datasets, [*DATASETS * 4, ""]),
            kind=one(like.kinds, [*KINDS * 4, "", "Raw"]),
            fields=self.fields(like),
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
@settings(max_examples=350, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_decisions_and_determining_rules_equal_cedars(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    asked = [maker.request(document) for _ in range(10)]
    policy = Policy(document)
    ours = [policy.decide(request) for request in asked]
    assert [(decision.allowed, decision.rules) for decision in ours] == ask_cedar(cedar.export(document), asked)


def test_the_oracle_sees_every_kind_of_decision() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1500):
        maker = Maker(seed)
        document = maker.document()
        decision = Policy(document).decide(maker.request(document))
        seen["allow" if decision.allowed else "default" if not decision.rules else "stop"] += 1
        seen["undecided"] += "cannot be decided" in decision.reason
        seen["no jurisdiction"] += "states no jurisdiction" in decision.reason
        seen["no fields"] += "does not state its fields" in decision.reason
        seen["no time"] += "label 'time_ms'" in decision.reason
        seen["nothing to drop"] += "personal fields are to be dropped" in decision.reason
        chosen = [rule for rule in document.rules if rule.id in decision.rules]
        seen["group"] += any(rule.groups for rule in chosen)
        seen["window"] += any(isinstance(each, TimeCondition) for rule in chosen for each in rule.conditions)
        seen["jurisdiction"] += decision.allowed and any(rule.jurisdictions for rule in chosen)
        seen["fields"] += decision.allowed and any(rule.fields for rule in chosen)
        seen["dropped"] += decision.allowed and any(rule.obligations.drop_personal for rule in chosen)
        seen["forbidden"] += "forbidden by" in decision.reason
        seen.update(rule for rule in decision.rules if rule.startswith("comity."))
    kinds = (
        "allow", "default", "stop", "undecided", "forbidden", "no jurisdiction", "no fields", "no time", "group",
        "window", "nothing to drop", "jurisdiction", "fields", "dropped", INCOMPLETE, PERSONAL, UNKNOWN_FIELD,
    )  # fmt: skip
    assert all(seen[kind] >= 3 for kind in kinds), seen


@given(SEEDS)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_forbid_rule_never_widens_access(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    extra = maker.rule(99, Effect.FORBID)
    before, after = Policy(document), Policy(replace(document, rules=(*document.rules, extra)))
    for request in [maker.request(document) for _ in range(20)]:
        assert after.decide(request).allowed <= before.decide(request).allowed


@pytest.mark.invariant("S1")
@given(SEEDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_another_obligation_never_widens_access_nor_loosens_what_is_asked_for(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    if not (allowing := [rule for rule in document.rules if rule.allows]):
        return
    chosen = maker.random.choice(allowing)
    # The loader refuses a rule that asks for two forms of a field which exclude each other.
    formless = [name for name in FIELDS if name not in {*chosen.obligations.generalize, *chosen.obligations.hash}]
    some = maker.some(formless or ["other"])
    extra = [
        Obligations(min_distance_to_private=0.9),
        Obligations(mask=dict.fromkeys(some, 2)),
        Obligations(hash=some),
        Obligations(noise={name: Noise(1, 0, 10) for name in some}),
        Obligations(k_anonymity=KAnonymity(5, some), expire_ms=5, retain_ms=5, onward=Onward.NEVER),
        Obligations(quotas=(Quota(1, "r"),), notify=frozenset({"dpo"}), approvals=(Approval(1, "r"),)),
    ]
    added = maker.random.choice(extra)
    more = replace(chosen, obligations=merge(chosen.obligations, added))
    rules = tuple(more if rule is chosen else rule for rule in document.rules)
    before, after = Policy(document), Policy(replace(document, rules=rules))
    for request in [maker.request(document) for _ in range(20)]:
        old, new = before.decide(request), after.decide(request)
        assert (new.allowed, new.rules) == (old.allowed, old.rules)
        assert covers(new.obligations, old.obligations)
        if chosen.id in new.rules and new.allowed:
            assert covers(new.obligations, added)
            assert set(new.obligations.quotas) >= set(added.quotas)
            assert set(new.obligations.approvals) >= set(added.approvals)
            assert new.obligations.notify >= added.notify


@pytest.mark.invariant("S1")
@given(SEEDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_another_redaction_lets_through_has_no_personal_field(seed: int) -> None:
    """Redacting personal fields is one of the two ways in which they are settled; nothing else passes by it."""
    maker = Maker(seed)
    document = maker.document()
    if not (allowing := [rule for rule in document.rules if rule.allows]):
        return
    chosen = maker.random.choice(allowing)
    redaction = Obligations(redact=maker.some(FIELDS)) if maker.chance(0.5) else Obligations(drop_personal=True)
    more = replace(chosen, obligations=merge(chosen.obligations, redaction))
    rules = tuple(more if rule is chosen else rule for rule in document.rules)
    before, after = Policy(document), Policy(replace(document, rules=rules))
    for request in [maker.request(document) for _ in range(20)]:
        old, new = before.decide(request), after.decide(request)
        if new.allowed and not old.allowed:
            passed = {path for rule in rules if rule.id in new.rules for path in rule.personal}
            personal = document.personal_of(request.dataset) or frozenset()
            assert (personal & request.fields) - passed <= new.obligations.redact
            assert request.fields & new.obligations.redact
        if new.allowed and old.allowed:
            # Onward apart: another rule may match by now, and say something where none did.
            assert covers(new.obligations, replace(old.obligations, onward=Onward.ALLOWED))


@given(SEEDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_decision_depends_neither_on_earlier_ones_nor_on_the_rules_order(seed: int) -> None:
    maker = Maker(seed)
    document = maker.document()
    policy, backwards = Policy(document), Policy(replace(document, rules=document.rules[::-1]))
    for request in [maker.request(document) for _ in range(10)]:
        first, other = policy.decide(request), backwards.decide(request)
        assert Policy(document).decide(request) == policy.decide(request) == first
        assert (other.allowed, other.rules, other.obligations) == (first.allowed, first.rules, first.obligations)
