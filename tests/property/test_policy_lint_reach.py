"""What the linter calls unreachable is: no request of a node is allowed by such a rule, or matches it at all."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from comity_node.policy.asked import asked
from comity_node.policy.conditions import LABELS, TIME, Label
from comity_node.policy.lint import UNMATCHED, UNREACHABLE, lint
from comity_node.policy.loader import loads_policy
from comity_node.policy.matching import examine
from comity_node.policy.model import ACTIONS, Request

MANY = ["record.send", "record.accept", "agreement.accept", "update.send", "tunnel.open", "bulk.send", "agent.discover"]
ORGANIZATIONS = ["a.example", "b.example", "c.example"]
FIELDS = ["age", "name", "t.x"]
WEEK_MS = 7 * 86_400_000
NUMBERS = st.sampled_from([-1, 0, 0.5, 1, 2])

ranges = st.tuples(NUMBERS, NUMBERS).map(lambda two: {"min": min(two), "max": max(two)})
windows = st.fixed_dictionaries(
    {"from": st.sampled_from(["00:00", "08:00", "22:00"]), "to": st.sampled_from(["06:00", "09:00", "24:00"])},
    optional={
        "days": st.lists(st.sampled_from(["mon", "thu", "sun"]), min_size=1, max_size=2, unique=True),
        "zone": st.sampled_from(["Z", "+05:30", "-10:00"]),
    },
)
moments = st.integers(0, 3 * WEEK_MS)
times = st.tuples(moments, moments).map(lambda two: {"min": min(two), "max": max(two)})


def some(words: list[str], most: int = 2) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=most, unique=True)


whens = st.fixed_dictionaries(
    {},
    optional={
        "score": ranges, "records": ranges, "skill": some(["s", "t"]), "time": windows, TIME: times,
        "jurisdiction": some(["EU", "US"]),
    },
)  # fmt: skip
datas = st.fixed_dictionaries(
    {},
    optional={
        "kind": some(["raw", "synthetic", "certified", "update"]), "dataset": some(["d", "e"]),
        "classification": some(["public", "restricted"]), "fields": some(FIELDS),
    },
)  # fmt: skip


@st.composite
def rules(draw: st.DrawFn, number: int) -> dict[str, Any]:
    effect = draw(st.sampled_from(["allow", "forbid"]))
    side: dict[str, Any] = {"organization": draw(some(ORGANIZATIONS) | st.just("*"))}
    if draw(st.booleans()):
        side["role"] = draw(some(["validator", "trainer"]))
    if draw(st.booleans()):
        side["skill"] = draw(some(["s", "t"], 1))
    rule = {
        "id": f"r{number}", "effect": effect, "action": draw(some(MANY) | st.just("*")), "with": side,
        "data": draw(datas), "when": draw(whens),
    }  # fmt: skip
    if draw(st.booleans()):
        rule["purpose"] = draw(some(["p", "q"]))
    if effect == "allow" and draw(st.booleans()):
        rule["obligations"] = {"redact": draw(some(FIELDS))}
    return rule


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 5))
    written = [draw(rules(number)) for number in range(count)]
    for number in range(draw(st.integers(0, 2))):  # narrower and opposite ones of those that are there
        copy = dict(draw(st.sampled_from(written)), id=f"c{number}")
        if draw(st.booleans()):
            copy.pop("obligations", None)
            copy["effect"] = "forbid"
        for key in draw(st.lists(st.sampled_from(["purpose", "when", "data"]), max_size=2, unique=True)):
            copy.pop(key, None)
        written.append(copy)
    return {
        "version": 1, "organization": "me.example", "purposes": {"p": {}, "q": {"parent": "p"}},
        "organizations": {"a.example": {"jurisdiction": "EU"}, "b.example": {"jurisdiction": "US"}},
        "datasets": {
            "d": {"classification": "public", "schema": {path: {"type": "number"} for path in FIELDS}},
            "e": {"classification": "restricted"},
        },
        "rules": written,
    }  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request as a node makes it: it states what requests about its action state, and no more."""
    action = draw(st.sampled_from(MANY) | st.sampled_from(sorted(ACTIONS)))
    asks = asked(action)
    labels: dict[str, Any] = {}
    for label in sorted(asks.labels & {"score", "records", "skill", TIME}):
        if LABELS[label] is Label.TEXT:
            labels[label] = draw(st.sampled_from(["s", "t"]))
        elif label == TIME:
            labels[label] = draw(moments)
        else:
            labels[label] = draw(st.sampled_from([0, 0.5, 1]))
    return Request(
        action,
        draw(st.sampled_from(ORGANIZATIONS)),
        role=draw(st.sampled_from(sorted(asks.roles))) if asks.roles else "",
        purpose=draw(st.sampled_from(["p", "q"])) if asks.data else "",
        dataset=draw(st.sampled_from(["d", "e"])) if asks.data else "",
        kind=draw(st.sampled_from(sorted(asks.kinds))) if asks.kinds else "",
        fields=frozenset(draw(some(FIELDS, 3))) if asks.fields else frozenset(),
        labels=labels,
    )


@settings(max_examples=25)
@given(document=policies(), questions=st.lists(requests(), min_size=5, max_size=15))
def test_what_is_called_unreachable_never_allows_and_what_is_called_unmatched_never_matches(
    document: dict[str, Any], questions: list[Request]
) -> None:
    policy = loads_policy(json.dumps(document, indent=1), file="p.yaml")
    by_place = {rule.place: rule for rule in policy.document.rules}
    found = [(each.code, by_place[each.place]) for each in lint(policy) if each.code in UNREACHABLE]
    for code in {code for code, _ in found}:
        event(code)
    for request in questions:
        decision = policy.decide(request)
        for code, rule in found:
            assert not (decision.allowed and rule.id in decision.rules), code
            if code in UNMATCHED:
                assert examine(policy.document, rule, request).matches is not True, code


@settings(max_examples=25)
@given(document=policies(), questions=st.lists(requests(), min_size=5, max_size=15))
def test_a_shadowed_rule_can_go_and_nothing_changes(document: dict[str, Any], questions: list[Request]) -> None:
    policy = loads_policy(json.dumps(document, indent=1), file="p.yaml")
    places = {each.place for each in lint(policy) if each.code == "shadowed"}
    shadowed = next((rule.id for rule in policy.document.rules if rule.place in places), None)
    if shadowed is None:
        return
    event("shadowed")
    rest = [rule for rule in document["rules"] if rule["id"] != shadowed]
    without = loads_policy(json.dumps({**document, "rules": rest}))
    for request in questions:
        before, after = policy.decide(request), without.decide(request)
        if any(examine(policy.document, rule, request).matches is None for rule in policy.document.rules):
            continue  # what cannot be decided denies, and the rule may be the one
        assert (before.allowed, before.obligations) == (after.allowed, after.obligations)
