"""Which decisions another policy changes: by kind of change, counted, streamed, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity_node.policy import diff
from comity_node.policy.diff import Asked, Change, compare
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import ACTIONS, KINDS, Request
from kit.decided import OTHER, PEER, POLICY, asking

OLD = loads_policy(POLICY)
WIDER = loads_policy(POLICY.replace(f"organization: [{PEER}]", f"organization: [{PEER}, {OTHER}]"))
NARROWER = loads_policy(POLICY.replace("kind: synthetic", "kind: certified"))
LOOSER = loads_policy(POLICY.replace("retain: 30d", "retain: 90d"))
RENAMED = loads_policy(POLICY.replace("send-synthetic", "send-made-up"))


@pytest.mark.parametrize(
    ("new", "request_", "change"),
    [
        (WIDER, asking(organization=OTHER), Change.WIDENED),
        (NARROWER, asking(), Change.NARROWED),
        (LOOSER, asking(), Change.OBLIGATIONS),
        (RENAMED, asking(), Change.RULES),
        (LOOSER, asking("raw"), Change.SAME),
    ],
)
def test_an_answer_changes_in_one_of_four_ways(new: Policy, request_: Request, change: Change) -> None:
    found = compare(OLD, new, [Asked(request_, origin="here")])
    assert found.changes == {change: 1}
    assert found.fails("widen") is (change in (Change.WIDENED, Change.OBLIGATIONS)), "less is asked of it"
    assert found.fails("any") is (change is not Change.SAME)
    assert not found.fails("none")
    assert [each.asked.origin for each in found.examples.get(change, ())] == ([] if change is Change.SAME else ["here"])


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("redact: [name]", "redact: [name, age]"),
        ("onward: allowed", "onward: with_consent"),
        ("rate: {records: 20, per: 1m}", "rate: {records: 10, per: 1m}"),
        ("rate: {records: 10, per: 1s}", "rate: {records: 10, per: 1m}"),
        ("onward: never", "quota: {records: 5}, onward: never"),
        ("quota: {records: 6}", "quota: {records: 5}"),
        ("budget: {epsilon: 2}", "budget: {epsilon: 1}"),
        ("notify: [a]", "notify: [a, b]"),
        ("retain: 30d", "approval: {within: 1d}, retain: 30d"),
    ],
)
def test_what_asks_for_less_is_wider_and_what_asks_for_more_is_not(less: str, more: str) -> None:
    def policy(owed: str) -> Policy:
        return loads_policy(
            "version: 1\norganization: own.example\nrules:\n"
            f'  - {{id: r, effect: allow, action: record.send, to: {{organization: "*"}}, obligations: {{{owed}}}}}\n'
        )

    asked = [Asked(asking(), b"a"), Asked(asking(), b"a")]
    loosened, tightened = compare(policy(more), policy(less), asked), compare(policy(less), policy(more), asked)
    assert (loosened.loosened, loosened.fails("widen")) == (2, True)
    assert (tightened.loosened, tightened.fails("widen")) == (0, False)
    assert loosened.changes == tightened.changes == {Change.OBLIGATIONS: 2}


def test_a_request_that_was_asked_often_is_one_and_counts_as_often() -> None:
    alike = [Asked(asking(organization=OTHER), b"a" * 32, f"entry {index}", False) for index in range(50)]
    found = compare(OLD, WIDER, [*alike, Asked(asking(), b"b" * 32, "entry 50", True)])
    assert (found.asked, found.distinct, found.changes[Change.WIDENED]) == (51, 2, 50)
    assert found.groups == {(Change.WIDENED, "record.send", OTHER, "screening"): 50}
    assert len(found.examples[Change.WIDENED]) == 1
    assert found.drifted == 0


def test_what_the_log_says_otherwise_is_told() -> None:
    found = compare(OLD, OLD, [Asked(asking(), b"a", "entry 0", False), Asked(asking(), b"a", "entry 1", None)])
    assert (found.drifted, found.changes) == (1, {Change.SAME: 2})


def test_requests_that_are_alike_but_for_their_time_are_told_apart_where_the_time_matters() -> None:
    by_day = POLICY.replace(
        "    purpose: [screening]\n", "    purpose: [screening]\n    when: {time: {from: '08:00', to: '18:00'}}\n"
    )
    hours = [replace(asking(), labels={"time_ms": hour * 3_600_000}) for hour in (7, 8, 12, 17, 18)]
    found = compare(OLD, loads_policy(by_day), [Asked(each, b"alike") for each in hours])
    assert found.changes == {Change.NARROWED: 2, Change.SAME: 3}
    assert found.distinct == 1


def test_what_was_not_asked_about_then_cannot_be_known_now() -> None:
    asks = POLICY.replace(
        "    purpose: [screening]\n", "    purpose: [screening]\n    when: {reliability: {min: 0.4}}\n"
    )
    new = loads_policy(asks)
    found = compare(
        OLD, new, [Asked(asking(), b"a"), Asked(asking(organization=OTHER), b"b"), Asked(asking("raw"), b"c")]
    )
    assert found.changes == {Change.UNKNOWN: 1, Change.SAME: 2}
    assert not found.fails("widen")
    assert found.fails("any")
    known = replace(asking(), labels={"reliability": 0.1})
    assert compare(OLD, new, [Asked(known)]).changes == {Change.NARROWED: 1}
    assert compare(new, new, [Asked(asking())]).changes == {Change.SAME: 1}, "the node never knew it"


def test_memory_is_bounded_and_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "_MAX_DISTINCT", 10)
    monkeypatch.setattr(diff, "_MAX_GROUPS", 5)

    def stream() -> Iterator[Asked]:
        for index in range(100):
            request = replace(asking(organization=OTHER), purpose="screening", role=f"role-{index}")
            yield Asked(replace(request, action="record.send"), index.to_bytes(4, "big"), f"entry {index}")

    everybody = loads_policy(POLICY.replace(f"organization: [{PEER}]", 'organization: "*"'))
    found = compare(OLD, everybody, stream(), examples=2)
    assert found.changes[Change.WIDENED] == 100
    assert found.bounded
    assert found.distinct == 11
    assert len(found.examples[Change.WIDENED]) == 2
    names = [
        Asked(replace(asking(), organization=f"org-{index}.example"), index.to_bytes(4, "big")) for index in range(20)
    ]
    groups = compare(OLD, everybody, names).groups
    assert len(groups) == 6
    assert groups[(Change.WIDENED, "(others)", "(others)", "(others)")] == 15


REQUESTS = st.builds(
    Request,
    action=st.sampled_from(sorted(ACTIONS)),
    organization=st.sampled_from([PEER, OTHER]),
    role=st.sampled_from(["", "validator"]),
    purpose=st.sampled_from(["", "screening", "pricing"]),
    dataset=st.sampled_from(["", "tumours"]),
    kind=st.sampled_from(["", *KINDS]),
    fields=st.sampled_from([frozenset(), frozenset({"age"})]),
)
POLICIES = st.sampled_from([OLD, WIDER, NARROWER, LOOSER, RENAMED])


@given(old=POLICIES, new=POLICIES, requests=st.lists(REQUESTS, max_size=20))
def test_every_request_is_counted_once_under_what_the_policies_say(
    old: Policy, new: Policy, requests: list[Request]
) -> None:
    found = compare(old, new, [Asked(each, repr(each).encode()) for each in requests])
    assert sum(found.changes.values()) == found.asked == len(requests)
    assert found.distinct == len(set(map(repr, requests)))
    widened = [each for each in requests if new.decide(each).allowed and not old.decide(each).allowed]
    assert found.changes[Change.WIDENED] == len(widened)
    same = [each for each in requests if old.decide(each) == new.decide(each)]
    assert found.changes[Change.SAME] >= len(same)
    if old is new:
        assert not found.fails("any")
