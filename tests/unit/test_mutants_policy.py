"""Policies at the edges: each test here goes red for a line of the engine that is a little wrong."""

from __future__ import annotations

import math

import pytest

from comity_node.policy.conditions import (
    DAY,
    DAYS,
    TIME,
    WEEK,
    FlagCondition,
    NumberCondition,
    TimeCondition,
    minute_of_week,
    show_zone,
)
from comity_node.policy.engine import Policy
from comity_node.policy.loader import loads_policy
from comity_node.policy.matching import examine, nearest, shown_label
from comity_node.policy.model import PERSONAL, UNKNOWN_FIELD, Mismatch, Request

MINUTE_MS = 60_000
#: 1970-01-05, the first Monday.
MONDAY = 4 * DAY


def at(minute: int) -> dict[str, int]:
    """The labels of a request in a minute of the week, in UTC."""
    return {TIME: (MONDAY + minute) * MINUTE_MS}


# Conditions.


@pytest.mark.parametrize(
    "condition",
    [
        TimeCondition(8 * 60, 18 * 60, frozenset({0, 4})),
        TimeCondition(8 * 60, 18 * 60, frozenset({0, 6}), offset=14 * 60),
        TimeCondition(22 * 60, 6 * 60, frozenset({5, 6}), offset=-90),
        TimeCondition(0, DAY, frozenset({6})),
        TimeCondition(60, 60, frozenset({2})),
        TimeCondition(0, DAY, frozenset(range(7)), offset=-719),
        TimeCondition(1, 2, frozenset({0}), offset=1),
    ],
    ids=str,
)
def test_the_minutes_of_a_window_are_those_in_which_it_holds(condition: TimeCondition) -> None:
    ranges = list(condition.intervals())
    assert all(0 <= begin < end <= WEEK for begin, end in ranges)
    within = {minute for begin, end in ranges for minute in range(begin, end)}
    assert len(within) == sum(end - begin for begin, end in ranges), "none twice"
    assert {minute for minute in range(WEEK) if condition.holds(at(minute))} == within


def test_a_window_that_ends_when_it_begins_lasts_a_day() -> None:
    condition = TimeCondition(60, 60, frozenset({0}))
    assert [condition.holds(at(minute)) for minute in (59, 60, DAY + 59, DAY + 60)] == [False, True, True, False]


def test_the_first_and_the_last_moment_that_are_known() -> None:
    last = 253_402_300_800_000 - 1
    assert minute_of_week({TIME: 0}) == 3 * DAY, "a Thursday"
    assert minute_of_week({TIME: last}) == 5 * DAY - 1, "a Friday"
    assert minute_of_week({TIME: last + 1}) is minute_of_week({TIME: -1}) is minute_of_week({TIME: True}) is None


@pytest.mark.parametrize("wanted", [True, False])
def test_a_flag_is_as_wanted_or_not_or_unknown(wanted: bool) -> None:
    condition = FlagCondition("flag", wanted)
    said: list[bool | int] = [True, False, 1, 0]
    assert [condition.holds({"flag": value}) for value in said] == [wanted, not wanted, None, None]
    assert condition.holds({}) is None


def test_conditions_in_words() -> None:
    words = [(3, math.inf), (-math.inf, 5), (3, 5)]
    assert [str(NumberCondition("records", low, high)) for low, high in words] == [
        "at least 3",
        "at most 5",
        "at least 3 and at most 5",
    ]
    assert [show_zone(offset) for offset in (0, -1, 1, 59, 90, -720)] == [
        "+00:00",
        "-00:01",
        "+00:01",
        "+00:59",
        "+01:30",
        "-12:00",
    ]
    window = TimeCondition(0, 60, frozenset({0}), offset=60)
    assert shown_label(window, at(DAY + 61)) == f"{DAYS[1]} 02:01 (+01:00)"
    assert shown_label(window, {TIME: "noon"}) == "noon"
    assert shown_label(NumberCondition("records", 3, 5), {"records": 9, **at(0)}) == "9"


# What a rule asks, and which rules come near.

NEAR = """\
version: 1
organization: a.example
datasets: {rows: {classification: public}, secrets: {classification: restricted}}
rules:
  - {id: public, effect: allow, action: record.send, to: {organization: b.example}, data: {classification: public}}
  - {id: b-only, effect: allow, action: record.send, to: {organization: b.example}}
  - {id: other-action, effect: allow, action: record.release, to: {organization: b.example}}
  - {id: no-raw, effect: forbid, action: record.send, data: {kind: raw}}
"""


def test_only_rules_that_would_allow_the_action_come_near() -> None:
    policy = loads_policy(NEAR)
    request = Request("record.send", "c.example", "validator", "screening", "secrets", "synthetic")
    misses = nearest(policy.document, request)
    assert [(miss.rule, len(miss.mismatches)) for miss in misses] == [("b-only", 1), ("public", 2)]
    assert policy.decide(request).near_misses == misses


@pytest.mark.parametrize(
    ("dataset", "got"), [("", "not stated"), ("secrets", "restricted"), ("rows", None)], ids=["none", "wrong", "right"]
)
def test_a_classification_takes_a_dataset(dataset: str, got: str | None) -> None:
    policy = loads_policy(NEAR)
    public, b_only = policy.document.rules[:2]
    request = Request("record.send", "b.example", dataset=dataset)
    wanted = (Mismatch("classification", "public", got),) if got else ()
    assert examine(policy.document, public, request).mismatches == wanted
    assert examine(policy.document, b_only, request).matches is True


@pytest.mark.parametrize(("count", "tail"), [(8, "org7.example"), (9, "org7.example or 1 others")])
def test_eight_words_are_told_and_the_others_counted(count: int, tail: str) -> None:
    names = ", ".join(f"org{number}.example" for number in range(count))
    policy = loads_policy(
        "version: 1\norganization: a.example\nrules:\n"
        f"  - {{id: one, effect: allow, action: agent.discover, to: {{organization: [{names}]}}}}\n"
    )
    (miss,) = nearest(policy.document, Request("agent.discover", "c.example"))
    assert miss.mismatches[0].wanted.endswith(tail)


# Fields.

FIELDS = """\
version: 1
organization: a.example
datasets:
  rows: {classification: public, schema: {size: {type: number}, name: {type: string, personal: true}}}
  loose: {classification: public}
rules:
  - {id: plain, effect: allow, action: record.send, to: {organization: "*"}, data: {kind: synthetic}}
  - id: dropping
    effect: allow
    action: record.send
    to: {organization: "*"}
    data: {kind: raw}
    obligations: {drop_personal: true}
"""


def ask(policy: Policy, *fields: str, kind: str = "synthetic", dataset: str = "rows") -> tuple[str, ...]:
    request = Request("record.send", "b.example", "validator", "p", dataset, kind, frozenset(fields))
    return policy.decide(request).rules


@pytest.mark.invariant("S3")
def test_all_the_schemas_fields_and_one_more_are_denied() -> None:
    policy = loads_policy(FIELDS)
    assert ask(policy, "size") == ("plain",)
    assert ask(policy, "size", "name", kind="raw") == ("dropping",)
    assert ask(policy, "size", "name", "more", kind="raw") == (UNKNOWN_FIELD,)


@pytest.mark.invariant("S3")
def test_dropping_is_the_rules_that_allow_wherever_it_stands() -> None:
    """The second rule drops personal fields, so that they may be in the request; the first does not."""
    policy = loads_policy(FIELDS)
    assert ask(policy, "name", kind="raw") == ("dropping",)
    assert ask(policy, "name") == (PERSONAL,)
    assert ask(policy, "name", kind="raw", dataset="loose") == (PERSONAL,), "nobody knows which those are"
    assert ask(policy, "name", dataset="loose") == ("plain",)


@pytest.mark.invariant("S7")
def test_fields_that_a_peer_made_up_are_not_remembered() -> None:
    """The schema's own are: there are only so many sets of those."""
    policy = loads_policy(FIELDS)
    for number in range(3):
        assert ask(policy, "size", "name", f"size.part{number}", kind="raw") == ("dropping",)
    assert not policy._clear
    for _ in range(2):
        assert ask(policy, "size", "name", kind="raw") == ("dropping",)
    assert len(policy._clear) == 1


def test_five_fields_are_told_each_in_eighty_characters() -> None:
    policy = loads_policy(FIELDS)

    def reason(count: int) -> str:
        fields = frozenset(f"{number}{'x' * 79}y" for number in range(count))
        return policy.decide(Request("record.send", "b.example", "validator", "p", "rows", "synthetic", fields)).reason

    shown = ", ".join(f"{number}{'x' * 79}" for number in range(5))
    assert reason(5) == f"the schema of rows has no field {shown}"
    assert reason(6) == f"the schema of rows has no field {shown}, …"


@pytest.mark.parametrize("count", [8, 9])
def test_eight_fields_of_a_request_are_told_and_the_others_counted(count: int) -> None:
    """Each in eighty characters: it may be a peer's word."""
    policy = loads_policy(
        "version: 1\norganization: a.example\nrules:\n"
        '  - {id: one, effect: allow, action: record.send, to: {organization: "*"}, data: {fields: [size]}}\n'
    )
    fields = [f"{number}{'x' * (79 + number % 2)}" for number in range(count)]
    request = Request("record.send", "b.example", "validator", "p", "rows", "synthetic", frozenset(fields))
    (miss,) = nearest(policy.document, request)
    shown = " or ".join(field if len(field) <= 80 else f"{field[:80]}…" for field in fields[:8])
    assert miss.mismatches[0].got == shown + (" or 1 others" if count > 8 else "")


@pytest.mark.parametrize("count", [8, 9])
def test_eight_reasons_are_told_and_the_others_counted(count: int) -> None:
    rules = "".join(
        f"  - {{id: no-{number}, effect: forbid, action: record.send, data: {{kind: raw}}}}\n"
        for number in range(count)
    )
    policy = loads_policy(f"version: 1\norganization: a.example\nrules:\n{rules}")
    decision = policy.decide(Request("record.send", "b.example", "validator", "p", "rows", "raw", frozenset({"x"})))
    assert len(decision.rules) == count
    told = "; ".join(f"forbidden by no-{number}" for number in range(8))
    assert decision.reason == told + ("; and 1 more" if count > 8 else "")


@pytest.mark.parametrize("count", [8, 9])
def test_eight_rules_that_allow_are_told_and_the_others_counted(count: int) -> None:
    rules = "".join(
        f"  - {{id: r{number}, effect: allow, action: agent.discover, to: {{organization: b.example}}}}\n"
        for number in range(count)
    )
    decision = loads_policy(f"version: 1\norganization: a.example\nrules:\n{rules}").decide(
        Request("agent.discover", "b.example")
    )
    assert len(decision.rules) == count
    told = ", ".join(f"r{number}" for number in range(8))
    assert decision.reason == f"allowed by {told}" + (" and 1 others" if count > 8 else "")
