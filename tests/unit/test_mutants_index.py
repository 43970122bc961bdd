"""The index says of every rule and request what `matching.examine` says, request by request of a grid."""

from __future__ import annotations

from itertools import product

import pytest

from comity_node.policy.engine import Policy
from comity_node.policy.index import RuleIndex
from comity_node.policy.loader import loads_policy
from comity_node.policy.matching import examine
from comity_node.policy.model import PolicyDocument, Request

#: Each asks for one thing, two things or nothing; the first forbids, so that none of the others stands at bit 0.
ASKS = (
    "",
    "to: {organization: [b.example]}",
    "to: {organization: [c.example, d.example], role: [validator]}",
    'to: {organization: "*", role: [trainer]}',
    "data: {classification: restricted}",
    "data: {classification: [public, restricted], kind: raw}",
    "data: {dataset: rows}",
    "data: {fields: [size]}",
    "data: {fields: [size, name], dataset: rows}",
    "when: {jurisdiction: EU}",
    "when: {jurisdiction: EU, records: {max: 5}}",
    "when: {records: {max: 5}, min_score: {min: 0.5}}",
    "when: {records: {min: 6}}",
    "purpose: [research]",
    "purpose: [care], to: {organization: [b.example], role: [validator]}",
)


def policy_of(copies: int) -> Policy:
    rules = [
        "  - {id: no-news, effect: forbid, action: [news.send, record.send], data: {kind: raw, dataset: secrets}}",
        *(
            f"  - {{id: {effect}-{copy}-{at}, effect: {effect}, action: record.send, "
            + ", ".join(part for part in (asks, "" if "to:" in asks else 'to: {organization: "*"}') if part)
            + "}"
            for copy, (at, asks), effect in product(range(copies), enumerate(ASKS), ("allow", "forbid"))
            if asks or effect == "allow"
        ),
    ]
    return loads_policy(
        "version: 1\norganization: a.example\npurposes: {research: {}, screening: {parent: research}, care: {}}\n"
        "organizations: {b.example: {jurisdiction: [EU]}, c.example: {jurisdiction: [US]}}\n"
        "datasets: {rows: {classification: public}, secrets: {classification: restricted}}\n"
        "rules:\n" + "\n".join(rules) + "\n"
    )


LABELS: tuple[dict[str, float], ...] = ({}, {"records": 5, "min_score": 0.5}, {"records": 6, "min_score": 0.4})
REQUESTS = [
    Request("record.send", organization, role, purpose, dataset, kind, frozenset(fields), labels)
    for organization, role, purpose, dataset, kind, fields, labels in product(
        ("b.example", "c.example", "d.example", ""),
        ("validator", ""),
        ("screening", "care"),
        ("rows", "secrets", "elsewhere", ""),
        ("raw", "synthetic"),
        ((), ("size",), ("size", "name"), ("other",)),
        LABELS,
    )
]


def index_of(document: PolicyDocument) -> RuleIndex:
    return RuleIndex(document, [rule for rule in document.rules if "record.send" in rule.actions])


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("copies", [1, 3])
def test_the_index_matches_what_the_definition_matches(copies: int) -> None:
    document = policy_of(copies).document
    index = index_of(document)
    seen: dict[bool | None, int] = {True: 0, False: 0, None: 0}
    for request in REQUESTS[:: 1 if copies == 1 else 11]:
        said = [examine(document, rule, request).matches for rule in index.rules]
        matched, undecided = index.match(request)
        assert [None if undecided >> at & 1 else bool(matched >> at & 1) for at in range(len(index.rules))] == said, (
            request
        )
        assert matched & undecided == 0
        for each in said:
            seen[each] += 1
    assert min(seen.values()) > 100


@pytest.mark.parametrize("most", [1, 3, 40])
def test_the_nearest_rules_are_those_of_the_definition(most: int) -> None:
    document = policy_of(1).document
    first, *rules = index_of(document).rules
    assert not first.allows
    indices: dict[tuple[str, ...], RuleIndex] = {}
    for request in REQUESTS[::5]:
        examined = {rule.id: examine(document, rule, request) for rule in rules if rule.allows}
        far = [rule for rule in rules if rule.id in examined and examined[rule.id].matches is False]
        names = tuple(rule.id for rule in far)
        index = indices.setdefault(names, RuleIndex(document, [first, *far]))
        wanted = sorted(names, key=lambda rule: len(examined[rule].mismatches))[:most]
        assert [rule.id for rule in index.nearest(request, most)] == wanted, request
    assert len(indices) > 50
