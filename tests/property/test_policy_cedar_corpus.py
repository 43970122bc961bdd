"""A small corpus of edge cases: the decision that is written there, ours and Cedar's are one."""

from __future__ import annotations

from pathlib import Path

import cedarpy
import pytest

from comity_node.policy import cedar
from comity_node.policy.cases import read_request
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request
from comity_node.strictyaml import Node, load

CORPUS = Path(__file__).parent / "corpus" / "policy-cedar.yaml"
TOP = """\
version: 1
organization: own.example
organizations: {a.example: {jurisdiction: EU}, b.example: {jurisdiction: [EU, DE]}, u.example: {jurisdiction: US}}
groups:
  north: {organization: a.example}
  south: {organization: b.example}
  all: {group: [north, south]}
datasets:
  people: {classification: restricted, schema: {name: {type: string}, age: {type: integer}}}
  plain: {classification: public}
rules: """
_REQUEST = ("action", "organization", "role", "purpose", "dataset", "kind", "fields", "labels")

Case = tuple[str, Policy, list[tuple[Request, bool, tuple[str, ...]]]]


def read(node: Node) -> Case:
    section = node.mapping("name", "rules", "asked")
    asked = []
    for each in section.required("asked").items():
        said = each.mapping(*_REQUEST, "allow", "deny")
        allowed = "allow" in said
        rules = said.required("allow" if allowed else "deny")
        entries = {key: (entry.mark, entry) for key in _REQUEST if (entry := said.optional(key)) is not None}
        request = read_request(Node(each.mark, entries))
        asked.append((request, allowed, rules.strings() if rules.items() else ()))
    policy = loads_policy(TOP + section.required("rules").string())
    return section.required("name").string(), policy, asked


CASES = [read(node) for node in load(CORPUS).mapping("version", "cases").required("cases").items()]


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_an_edge_is_decided_alike(case: Case) -> None:
    _, policy, asked = case
    exported = cedar.export(policy.document)
    for request, allowed, rules in asked:
        ours = policy.decide(request)
        assert (ours.allowed, ours.rules) == (allowed, rules), ours.reason
        theirs = cedarpy.is_authorized(cedar.to_request(request), exported.policies, list(exported.entities))
        assert not theirs.diagnostics.errors
        determined = {exported.ids[int(each.removeprefix("policy"))] for each in theirs.diagnostics.reasons}
        assert ((theirs.decision == cedarpy.Decision.Allow), tuple(sorted(determined))) == (allowed, rules)
