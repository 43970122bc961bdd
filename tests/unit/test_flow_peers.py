"""What a peer sends of a task: a cursor and a state that fit the flow, or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from comity.errors import FlowMismatch
from comity_node.protocol.flow import (
    MAX_CURSOR,
    MAX_STATE,
    Cursor,
    Done,
    Flow,
    Goes,
    Lease,
    advance,
    begin,
    check_cursor,
    check_done,
    check_follows,
    check_state,
    decode_cursor,
    decode_state,
    encode_cursor,
    encode_state,
    lost,
    read_flow,
)
from kit.flows import TRIAGE, flow_of

pytestmark = pytest.mark.invariant("S2")

NOW_MS = 1_800_000_000_000
HOME, OTHER = "mercy.example", "hope.example"
FLOW = read_flow(TRIAGE)


def under_way() -> Cursor:
    """A cursor in the middle: the sandbox is held, one try of `clean` has failed."""
    cursor = begin(FLOW, NOW_MS)
    state: Mapping[str, Any] = {}
    outputs = [
        {"state": {"question": "q"}},
        {"state": {"answer": "a", "confidence": 0.9}},
        {"state": {"verdict": "good"}, "usage": {"tokens": 10, "cost": 0.5}},
        {"state": {"done": True}},
        {"state": {"count": 1}, "lease": "box-1"},
        {"error": "no"},
    ]
    for output in outputs:
        outcome = advance(FLOW, cursor, state, output, NOW_MS, by=OTHER)
        assert isinstance(outcome, Goes), outcome
        cursor, state = outcome.cursor, outcome.state
    return cursor


GOOD = under_way()


def test_what_a_task_on_its_way_has_fits() -> None:
    assert (GOOD.step, GOOD.tries, GOOD.steps) == ("clean", 1, 6)
    check_cursor(FLOW, GOOD, HOME)
    assert decode_cursor(encode_cursor(GOOD)) == GOOD


VISITS = dict(GOOD.visits)
LEASE = GOOD.leases["sandbox"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": "other"}, "no step 'other'"),
        ({"step": "x" * 7000}, "no step"),
        ({"turn": 1}, "no turn 1"),
        ({"step": "talk", "turn": 4}, "no turn 4"),
        ({"tries": 3}, "tried 3 times"),
        ({"visits": {**VISITS, "other": 1}}, "'other' cannot have 1 visits"),
        ({"visits": {**VISITS, "critique": 3}}, "'critique' cannot have 3 visits"),
        ({"visits": {**VISITS, "answer": 0}}, "'answer' cannot have 0 visits"),
        ({"visits": {"draft": 1}}, "has had no visit"),
        ({"visits": {"clean": 1}}, "has had no visit"),
        ({"visits": {**VISITS, "answer": 3}}, "more visits, turns and tries than performances"),
        ({"steps": 5}, "more visits, turns and tries than performances"),
        ({"steps": 32}, "used up what it may"),
        ({"tokens": 1001}, "used up what it may"),
        ({"cost": 5_000_001}, "used up what it may"),
        ({"losses": {"other": 1}}, "a lease was lost that there is not"),
        ({"losses": {"sandbox": 0}}, "or not at all"),
        ({"losses": {"sandbox": 7}}, "more leases were lost than steps done"),
        ({"leases": {"other": LEASE}}, "'other' is none of the flow"),
        ({"leases": {"sandbox": Lease(OTHER, "draft", "x")}}, "'sandbox' is none of the flow"),
        ({"leases": {"sandbox": Lease(OTHER, "nowhere", "x")}}, "'sandbox' is none of the flow"),
        ({"leases": {"sandbox": Lease(OTHER, "run", "x" * 129)}}, "'sandbox' is none of the flow"),
        ({"leases": {"sandbox": Lease(OTHER, "run", "a\nb")}}, "'sandbox' is none of the flow"),
        ({"leases": {"sandbox": Lease("Hope", "run", "x")}}, "held by nobody"),
        ({"leases": {"sandbox": Lease(HOME, "run", "x")}}, "mercy.example may not hold"),
    ],
)
@pytest.mark.invariant("S2")
def test_a_cursor_that_no_way_leads_to_is_refused(changes: Mapping[str, Any], says: str) -> None:
    with pytest.raises(FlowMismatch, match=says) as caught:
        check_cursor(FLOW, dataclasses.replace(GOOD, **changes), HOME)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": "talk", "visits": {"draft": 1, "talk": 1}}, "'draft' was left, and nowhere"),
        ({"step": "talk", "visits": {"draft": 1, "answer": 1, "talk": 1}}, "'answer' was left, and nowhere"),
        ({"step": "clean", "visits": {"draft": 1, "answer": 1, "critique": 1, "clean": 1}}, "'clean' was come to more"),
        ({"step": "answer", "visits": {"draft": 1, "answer": 3, "critique": 1}}, "'answer' was come to more often"),
        ({"step": "critique", "visits": {"draft": 1, "answer": 2, "critique": 1}}, "'answer' was come to more often"),
        ({"step": "draft", "visits": {"draft": 2}}, "'draft' was come to more often"),
        ({"step": "draft", "visits": {"draft": 1, "talk": 1, "run": 1}}, "'draft' was come to|'talk' was come to"),
    ],
)
def test_a_cursor_that_jumps_over_steps_is_refused(changes: Mapping[str, Any], says: str) -> None:
    jumped = dataclasses.replace(GOOD, turn=0, tries=0, steps=31, leases={}, **changes)
    with pytest.raises(FlowMismatch, match=says):
        check_cursor(FLOW, jumped, HOME)


def test_a_circle_that_no_way_leads_to_is_refused() -> None:
    flow = flow_of(
        {
            "a": {"skill": "s", "next": [{"when": {"done": True}, "go": "x"}, {"go": "d"}]},
            "x": {"skill": "s", "next": "b"},
            "b": {"skill": "s", "next": "c"},
            "c": {"skill": "s", "most": 9, "next": [{"when": {"done": True}, "go": "b"}, {"go": "d"}]},
            "d": {"skill": "s"},
        },
        start="a",
    )
    check_cursor(flow, Cursor("d", visits={"a": 1, "x": 1, "b": 2, "c": 2, "d": 1}, steps=6))
    with pytest.raises(FlowMismatch, match="'b' has visits, and is on no way from 'a' to 'd'"):
        check_cursor(flow, Cursor("d", visits={"a": 1, "b": 2, "c": 2, "d": 1}, steps=5))


FUNNEL = flow_of(
    {
        "answer": {
            "skill": "answer", "writes": ["confidence"], "retries": 1,
            "next": [{"when": {"confidence": {"below": 0.4}}, "go": "drop"}, {"go": "critique"}],
        },
        "critique": {
            "skill": "critique", "writes": ["verdict"], "most": 1, "otherwise": "end",
            "next": [{"when": {"verdict": "bad"}, "go": "answer"}, {"go": "end"}],
        },
    },
    start="answer",
    record=["confidence"],
)  # fmt: skip
SURE, UNSURE = {"confidence": 0.9}, {"confidence": 0.1}
BOTH = {"answer": 1, "critique": 1}


@pytest.mark.parametrize(
    ("cursor", "state", "says"),
    [
        (Cursor("critique", visits=BOTH, steps=2), {**SURE, "verdict": "good"}, ""),
        (Cursor("critique", visits=BOTH, steps=2), SURE, ""),
        (Cursor("critique", visits=BOTH, steps=2), {**SURE, "verdict": "bad"}, "no way leads from step 'critique'"),
        (Cursor("critique", visits=BOTH, steps=2), {}, "done without 'confidence'"),
        (Cursor("critique", visits=BOTH, steps=4, tries=2), {**SURE, "verdict": "bad"}, ""),
        (Cursor("answer", visits={"answer": 2, "critique": 1}, steps=3), {**SURE, "verdict": "bad"}, ""),
        (Cursor("answer", visits={"answer": 2, "critique": 1}, steps=3), UNSURE, "no way leads from step 'answer'"),
        (Cursor("answer", visits={"answer": 1}, steps=1), SURE, "no way leads from step 'answer'"),
    ],
)
def test_a_task_is_done_where_the_flow_says_so(cursor: Cursor, state: Mapping[str, Any], says: str) -> None:
    check_cursor(FUNNEL, cursor, HOME, over=True)
    with pytest.raises(FlowMismatch, match=says) if says else contextlib.nullcontext():
        check_done(FUNNEL, cursor, state)


@pytest.mark.parametrize(("turn", "done", "says"), [(0, True, ""), (3, False, ""), (2, False, "no way leads")])
def test_a_dialogue_is_done_when_it_is_over(turn: int, done: bool, says: str) -> None:
    flow = flow_of({"talk": {**TRIAGE["steps"]["talk"], "next": "end"}})
    with pytest.raises(FlowMismatch, match=says) if says else contextlib.nullcontext():
        check_done(flow, Cursor("talk", turn, visits={"talk": 1}, steps=turn + 1), {"done": done})


@pytest.mark.parametrize(("losses", "says"), [(0, "no way leads"), (1, ""), (2, "")])
@pytest.mark.parametrize("most", [1, 2])
def test_a_task_is_done_that_lost_a_lease_and_cannot_acquire_it_again(losses: int, says: str, most: int) -> None:
    flow = flow_of(
        {
            "run": {"skill": "run", "lease": "box", "retries": 1, "most": most, "otherwise": "end", "next": "look"},
            "look": {"skill": "look", "release": "box", "next": "more"},
            "more": {"skill": "look", "next": "end"},
        },
        start="run",
    )
    cursor = Cursor("look", visits={"run": 1, "look": 1}, losses={"box": losses} if losses else {}, steps=2 + losses)
    if losses == 1 and most == 2:  # it goes back to `run`
        says = "no way leads"
    with pytest.raises(FlowMismatch, match=says) if says else contextlib.nullcontext():
        check_done(flow, cursor, {})
    if losses == 1 and most == 1:
        held = dataclasses.replace(cursor, losses={}, steps=2, leases={"box": Lease(OTHER, "run", "box-1")})
        outcome = lost(flow, held, {}, "box", NOW_MS)
        assert isinstance(outcome, Done)
        check_done(flow, outcome.cursor, outcome.state)


def test_a_task_at_its_end_may_have_used_up_what_it_may() -> None:
    """It comes home with its last step, or says that it failed since it has used up more: neither is a lie."""
    last = dataclasses.replace(GOOD, steps=32, tokens=5000, cost=9_000_000)
    check_cursor(FLOW, last, HOME, over=True)
    for cursor, over in ((last, False), (dataclasses.replace(GOOD, steps=33), True)):
        with pytest.raises(FlowMismatch, match="used up what it may"):
            check_cursor(FLOW, cursor, HOME, over=over)


def test_who_holds_a_lease_is_not_looked_at_where_the_home_is_not_known() -> None:
    check_cursor(FLOW, dataclasses.replace(GOOD, leases={"sandbox": Lease(HOME, "run", "x")}))
    check_cursor(FLOW, dataclasses.replace(GOOD, leases={"sandbox": Lease("", "run")}), HOME)


def json_with(**changes: Any) -> bytes:
    value = {**json.loads(encode_cursor(GOOD)), **changes}
    return json.dumps({k: v for k, v in value.items() if v is not ...}, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"[" * 8000,
        b" " + encode_cursor(GOOD),
        encode_cursor(GOOD) + b"\n",
        encode_cursor(GOOD).replace(b'"cost":500000', b'"cost":500000.0'),
        encode_cursor(GOOD).replace(b'"cost":500000', b'"cost":5e5'),
        encode_cursor(GOOD).replace(b'"cost":500000', b'"cost":500000,"cost":500000'),
        json_with(more=1),
        json_with(turn=...),
        json_with(step=1),
        json_with(step=None),
        json_with(turn=-1),
        json_with(turn=True),
        json_with(turn="1"),
        json_with(tokens=2**53),
        json_with(visits=[]),
        json_with(visits={"draft": "1"}),
        json_with(losses=None),
        json_with(leases=[]),
        json_with(leases={"sandbox": "x"}),
        json_with(leases={"sandbox": ["a", "b"]}),
        json_with(leases={"sandbox": ["a", "b", 1]}),
        json_with(step="x" * 8192),
    ],
)
def test_bytes_that_are_no_cursor_are_refused(data: bytes) -> None:
    with pytest.raises(FlowMismatch):
        decode_cursor(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"3",
        b"{",
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b"[" * 90_000,
    ],
)
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(FlowMismatch):
        decode_state(data)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"topic": "x"}, "a field 'topic'"),
        ({"answer": 1}, "the state.answer is no string"),
        ({"answer": None}, "the state.answer is no string"),
        ({"score": {"why": "x"}}, "the state.score lacks 'total'"),
        ({"score": {"total": 1, "by": "x"}}, "a field 'by'"),
        ({"lines": ["a", 1]}, r"the state.lines\[1\] is no string"),
        ({"lines": ["a"] * 41}, "41 items"),
        ({"count": 1.5}, "no integer"),
        ({"count": 2**53}, "over 2"),
        ({"verdict": "fine"}, "none of the values"),
    ],
)
@pytest.mark.invariant("S2")
def test_a_state_that_does_not_have_the_flows_shape_is_refused(state: Mapping[str, Any], says: str) -> None:
    with pytest.raises(FlowMismatch, match=says):
        check_state(FLOW, state)


@pytest.mark.invariant("S7")
def test_a_state_from_a_peer_has_256_kib_and_a_cursor_8() -> None:
    wide = read_flow(
        {"state": {"type": "object", "properties": {"a": {"type": "string"}}}, "steps": {"a": {"skill": "work"}}}
    )
    most = {"a": "x" * (MAX_STATE - len('{"a":""}'))}
    assert len(encode_state(most)) == MAX_STATE == 256 * 1024
    check_state(wide, decode_state(encode_state(most)))
    over = {"a": most["a"] + "x"}
    for refuses in (encode_state, lambda state: check_state(wide, state)):
        with pytest.raises(FlowMismatch, match="bytes; at most 262144"):
            refuses(over)
    with pytest.raises(FlowMismatch, match="over the limit"):
        decode_state(b'{"a":"' + over["a"].encode() + b'"}')
    with pytest.raises(FlowMismatch, match="over the limit"):
        decode_cursor(encode_cursor(dataclasses.replace(GOOD, step="x" * 8192)))


def largest() -> tuple[Flow, Cursor]:
    """The flow with the longest names, and a cursor with everything that it can have."""
    names = [f"s{number:063}" for number in range(64)]
    leases = [f"l{number:063}" for number in range(4)]
    steps = [
        {"name": name, "skill": "w", "lease": leases[number % 4], "retries": 16} for number, name in enumerate(names)
    ]
    flow = read_flow({"state": TRIAGE["state"], "steps": steps, "limits": {"steps": 500}})
    held = {lease: Lease("a" * 63 + ".b" * 96, names[number], "~" * 128) for number, lease in enumerate(leases)}
    visits = dict.fromkeys(names, 7)
    return flow, Cursor(
        names[-1], 0, 16, visits, dict.fromkeys(leases, 99), held, 499, 10**9, 10**12, 4_102_444_800_000
    )


def test_the_longest_cursor_that_fits_a_flow_can_be_sent() -> None:
    flow, cursor = largest()
    limits = dataclasses.replace(flow.limits, tokens=10**9, cost=10**12)
    check_cursor(dataclasses.replace(flow, limits=limits), cursor)
    assert 7000 < len(encode_cursor(cursor)) <= MAX_CURSOR
    assert decode_cursor(encode_cursor(cursor)) == cursor


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 5},
        {"tokens": 9},
        {"cost": 499_999},
        {"visits": {**VISITS, "answer": 0}},
        {"visits": {}},
        {"begun_ms": NOW_MS + 1},
        {"begun_ms": 0},
    ],
)
def test_what_is_used_up_does_not_come_back(changes: Mapping[str, Any]) -> None:
    check_follows(GOOD, GOOD)
    check_follows(begin(FLOW), GOOD)
    check_follows(GOOD, dataclasses.replace(GOOD, steps=7, losses={"sandbox": 1}))
    with pytest.raises(FlowMismatch, match="gone back"):
        check_follows(GOOD, dataclasses.replace(GOOD, **changes))


def test_losses_do_not_come_back_either() -> None:
    with pytest.raises(FlowMismatch, match="gone back"):
        check_follows(dataclasses.replace(GOOD, losses={"sandbox": 1}), GOOD)
