"""How a task goes on: one test for each rule of `flow_advance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from comity.errors import FlowMismatch
from comity_node.protocol.flow import (
    MAX_STATE,
    Cursor,
    Done,
    Dropped,
    Failed,
    Flow,
    Goes,
    Lease,
    Outcome,
    Place,
    Where,
    advance,
    answers_of,
    batch_of,
    begin,
    check_cursor,
    current,
    failed,
    lost,
    read_flow,
    record_of,
    work_of,
)
from kit.flows import STATE, TRIAGE, flow_of, step

NOW_MS = 1_800_000_000_000
US, THEM = "mercy.example", "hope.example"


def run(flow: Flow, *outputs: object, now_ms: int = NOW_MS, by: str = THEM) -> Outcome:
    """The outcome after these answers."""
    outcome: Outcome = Goes(begin(flow, NOW_MS), {})
    for output in outputs:
        assert isinstance(outcome, Goes), outcome
        check_cursor(flow, outcome.cursor)
        outcome = advance(flow, outcome.cursor, outcome.state, output, now_ms, by=by)
    return outcome


def going(outcome: Outcome) -> Goes:
    assert isinstance(outcome, Goes), outcome
    return outcome


def says(**state: Any) -> dict[str, Any]:
    return {"state": state}


GOOD = (says(question="q?"), says(answer="a", confidence=0.9), says(verdict="good"))
TALKED = (*GOOD, says(lines=["x"]), says(done=True))


def test_the_whole_way_of_a_task() -> None:
    outcome = run(read_flow(TRIAGE), *TALKED, {"state": {"count": 3}, "lease": "box-1"}, {})
    assert isinstance(outcome, Done)
    assert outcome.state == {
        "question": "q?", "answer": "a", "confidence": 0.9, "verdict": "good", "lines": ["x"], "done": True, "count": 3,
    }  # fmt: skip
    assert record_of(read_flow(TRIAGE), outcome.state) == {"question": "q?", "answer": "a"}
    assert outcome.cursor.steps == 7
    assert outcome.cursor.leases == {}


def test_a_task_may_be_dropped_and_the_flow_says_why() -> None:
    assert run(read_flow(TRIAGE), GOOD[0], says(answer="a", confidence=0.3)) == Dropped(
        "unsure", Cursor("answer", visits={"draft": 1, "answer": 1}, steps=2, begun_ms=NOW_MS)
    )
    dropped = run(read_flow(TRIAGE), *TALKED, says(count=0))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "step 'run' lets it go"


def test_an_agent_gets_what_the_step_reads_and_where_the_task_is() -> None:
    flow = read_flow(TRIAGE)
    at_answer = going(run(flow, GOOD[0]))
    assert work_of(flow, at_answer.cursor, {**at_answer.state, "verdict": "bad"}) == {
        "step": "answer", "visit": 1, "try": 0, "state": {"question": "q?"},
    }  # fmt: skip
    talking = going(run(flow, *TALKED[:4]))
    work = work_of(flow, talking.cursor, talking.state)
    assert (work["turn"], work["turns"], work["state"]["lines"]) == (1, 4, ["x"])


# Visits, tries, turns.


def test_a_step_that_has_had_its_visits_is_passed_over() -> None:
    again = (says(answer="b"), says(verdict="bad"))
    outcome = run(read_flow(TRIAGE), GOOD[0], *again, *again, says(answer="c"))
    assert isinstance(outcome, Dropped)
    assert outcome.reason == "step 'critique' has had its 2 visits"
    steps = {**TRIAGE["steps"], "critique": {**TRIAGE["steps"]["critique"], "otherwise": "talk"}}
    talks = going(run(read_flow({**TRIAGE, "steps": steps}), GOOD[0], *again, *again, says(answer="c")))
    assert talks.cursor.step == "talk"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({"error": "the model is down"}, "the model is down"),
        ({"error": ""}, "it says no reason"),
        ({"error": ["a"]}, "it says no reason"),
        ({"error": "half \ud800"}, "half ?"),
        ("text", "its answer is no mapping"),
        (None, "its answer is no mapping"),
        ({"answer": "a"}, "its answer has an unknown key 'answer'; known: lease, state, usage"),
        ({"state": []}, "its state is no mapping"),
        ({"state": {"verdict": "good"}}, "it writes 'verdict', and may write answer, confidence"),
        ({"state": {"answer": 1}}, "answer is no string"),
        ({"state": {"answer": "x" * 2001}}, "answer has 2001 characters"),
        ({"state": {"answer": "\ud800"}}, "answer holds half a character"),
        ({"state": {"confidence": 1.1}}, "confidence is out of range"),
        ({"state": {"confidence": float("nan")}}, "confidence is over 2^53 - 1"),
        ({"state": {"confidence": True}}, "confidence is no number"),
        ({"usage": {"tokens": -1}}, "its usage is no mapping of tokens and cost"),
        ({"usage": {"tokens": 1.5}}, "its usage is no mapping of tokens and cost"),
        ({"usage": {"cost": float("inf")}}, "its usage is no mapping of tokens and cost"),
        ({"usage": {"dollars": 1}}, "its usage is no mapping of tokens and cost"),
        ({"usage": 3}, "its usage is no mapping of tokens and cost"),
        ({"lease": "x" * 129}, "its lease is no ASCII text of at most 128 characters without quotes"),
        ({"lease": 'a"b'}, "its lease is no ASCII text of at most 128 characters without quotes"),
        ({"lost": True}, "its answer has an unknown key 'lost'; known: lease, state, usage"),
    ],
)
def test_an_answer_that_is_none_is_a_try_that_failed(output: object, reason: str) -> None:
    flow = read_flow(TRIAGE)
    before = going(run(flow, GOOD[0]))
    outcome = going(advance(flow, before.cursor, before.state, output, NOW_MS))
    assert outcome.reason == reason
    assert outcome.state == before.state
    assert (outcome.cursor.step, outcome.cursor.tries, outcome.cursor.steps) == ("answer", 1, 2)


def test_a_step_is_tried_again_so_often_and_then_the_task_fails_or_goes_elsewhere() -> None:
    bad = {"error": "no"}
    outcome = run(read_flow(TRIAGE), bad, bad, bad)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "step 'draft' failed 3 times: no"
    assert not outcome.expired
    elsewhere = flow_of(
        [{"name": "a", **step(), "retries": 1, "otherwise": "b", "next": "end"}, {"name": "b", **step()}]
    )
    assert going(run(elsewhere, bad, bad)).cursor.step == "b"
    never = flow_of({"a": {**step(), "retries": 0, "otherwise": "drop"}})
    assert isinstance(run(never, bad), Dropped)


def test_an_agent_that_did_not_answer_has_failed_too() -> None:
    flow = read_flow(TRIAGE)
    first = going(failed(flow, begin(flow, NOW_MS), {}, "the worker was lost", NOW_MS))
    assert (first.reason, first.cursor.tries) == ("the worker was lost", 1)
    second = going(failed(flow, first.cursor, {}, "x" * 5000, NOW_MS))
    assert len(second.reason) == 200
    third = failed(flow, second.cursor, {}, "x" * 5000, NOW_MS)
    assert isinstance(third, Failed)
    assert len(third.reason) == 200


def test_tries_are_counted_anew_after_each_step_and_turn() -> None:
    flow = read_flow(TRIAGE)
    outcome = going(run(flow, {"error": "no"}, GOOD[0]))
    assert (outcome.cursor.step, outcome.cursor.tries) == ("answer", 0)
    turn = going(run(flow, *GOOD, {"error": "no"}, says(lines=["x"])))
    assert (turn.cursor.step, turn.cursor.turn, turn.cursor.tries) == ("talk", 1, 0)


def test_a_dialogue_goes_in_turns_until_it_is_done_or_its_turns_are_over() -> None:
    flow = read_flow(TRIAGE)
    outcome = run(flow, *GOOD)
    skills = []
    for _ in range(4):
        at = going(outcome)
        skills.append(current(flow, at.cursor).skill)
        outcome = advance(flow, at.cursor, at.state, says(lines=["x"]), NOW_MS)
    assert skills == ["ask", "reply", "ask", "reply"]
    assert going(outcome).cursor.step == "run"
    assert going(run(flow, *GOOD, says(done=True))).cursor.step == "run"


def test_what_is_appended_stays_behind_what_is_there() -> None:
    talk = {"dialogue": [{"skill": "a"}, {"skill": "b"}], "turns": 40, "appends": ["lines"], "writes": ["done"]}
    flow = flow_of({"talk": {**talk, "until": {"done": True}}})
    assert going(run(flow, says(lines=["a", "b"]), says(), says(lines=["c"]))).state == {"lines": ["a", "b", "c"]}
    assert going(run(flow, says(lines="a"))).reason == "lines is no array"
    assert going(run(flow, says(lines=["a"] * 40), says(lines=["b"]))).reason == "lines has 41 items"
    assert going(run(flow, says(answer="a"))).reason == "it writes 'answer', and may write done, lines"


# Leases.


def test_a_lease_keeps_a_task_where_it_was_acquired_until_it_is_released() -> None:
    flow = read_flow(TRIAGE)
    before = going(run(flow, *TALKED))
    assert current(flow, before.cursor).at == Place(Where.OTHERS)
    assert work_of(flow, before.cursor, {})["lease"] == {"name": "sandbox", "release": False}
    held = going(advance(flow, before.cursor, before.state, {"state": {"count": 1}, "lease": "box-1"}, NOW_MS, by=THEM))
    assert held.cursor.leases == {"sandbox": Lease(THEM, "run", "box-1")}
    assert current(flow, held.cursor).at == Place(Where.NAMED, (THEM,))
    assert work_of(flow, held.cursor, {})["lease"] == {"name": "sandbox", "release": True, "handle": "box-1"}
    assert isinstance(advance(flow, held.cursor, held.state, {}, NOW_MS), Done)


def test_a_lease_that_nobody_released_is_still_there_at_the_end() -> None:
    flow = flow_of({"run": {**step(), "lease": "box"}})
    outcome = run(flow, {"lease": "b-1"})
    assert isinstance(outcome, Done)
    assert outcome.cursor.leases == {"box": Lease(THEM, "run", "b-1")}
    once = flow_of({"run": {**step(), "lease": "box", "release": "box"}})
    assert run(once, {"lease": "b-1"}).cursor.leases == {}


@pytest.mark.invariant("R3")
def test_a_lease_that_was_lost_is_acquired_anew_so_often_and_no_more() -> None:
    flow = read_flow(TRIAGE)
    cursor = going(run(flow, *TALKED, {"state": {"count": 1}, "lease": "box-1"})).cursor
    first = going(lost(flow, cursor, {}, "sandbox", NOW_MS))
    assert (first.cursor.step, first.cursor.leases, first.reason) == ("run", {}, "the lease 'sandbox' was lost")
    assert current(flow, first.cursor).at == Place(Where.OTHERS)
    held = going(advance(flow, first.cursor, {}, {"state": {"count": 1}, "lease": "box-2"}, NOW_MS, by=THEM))
    again = advance(flow, held.cursor, held.state, {"lost": True}, NOW_MS)
    assert isinstance(again, Failed)
    assert again.reason == "the lease 'sandbox' was lost 2 times"
    with pytest.raises(FlowMismatch, match="does not hold"):
        lost(flow, first.cursor, {}, "sandbox", NOW_MS)


def test_what_was_lost_too_often_goes_elsewhere_if_the_flow_says_so() -> None:
    run_ = {**step(), "lease": "box", "retries": 0, "otherwise": "by-hand", "next": "use"}
    use = {**step(), "lease": "box", "next": "end"}
    flow = flow_of({"run": run_, "use": use, "by-hand": step()}, start="run")
    outcome = going(run(flow, {"lease": "b-1"}, {"lost": True}))
    assert outcome.cursor.step == "by-hand"


# Limits.


def test_a_task_has_so_many_steps() -> None:
    flow = flow_of({"a": {**step(), "retries": 16}}, limits={"steps": 3})
    outcome = run(flow, *[{"error": "no"}] * 3)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "its 3 steps are used up (no)"
    assert isinstance(run(flow, {"error": "no"}, {"error": "no"}, {}), Done)


def test_a_task_has_so_many_seconds_from_its_beginning() -> None:
    flow = read_flow(TRIAGE)
    assert isinstance(run(flow, GOOD[0], now_ms=NOW_MS + 60_000), Goes)
    for late in (
        run(flow, GOOD[0], now_ms=NOW_MS + 60_001),
        failed(flow, begin(flow, NOW_MS), {}, "x", NOW_MS + 60_001),
    ):
        assert isinstance(late, Failed)
        assert late.expired
        assert late.reason == "its 60 seconds are over"


def test_a_task_that_was_not_told_when_it_began_begins_when_it_first_goes_on() -> None:
    flow = read_flow(TRIAGE)
    first = going(advance(flow, begin(flow), {}, GOOD[0], NOW_MS))
    assert first.cursor.begun_ms == NOW_MS
    assert isinstance(advance(flow, first.cursor, first.state, GOOD[1], NOW_MS + 60_001), Failed)


@pytest.mark.parametrize(
    ("usage", "reason"),
    [({"tokens": 501}, "its 1000 tokens are used up"), ({"cost": 2.500001}, "its cost of 5 are used up")],
)
def test_a_task_that_would_go_on_without_tokens_or_money_fails(usage: Mapping[str, Any], reason: str) -> None:
    flow = read_flow(TRIAGE)
    outcome = run(flow, {**GOOD[0], "usage": usage}, {**GOOD[1], "usage": usage})
    assert isinstance(outcome, Failed)
    assert outcome.reason == reason
    enough = {"tokens": 500, "cost": 2.5}
    assert isinstance(run(flow, {**GOOD[0], "usage": enough}, {**GOOD[1], "usage": enough}), Goes)


def test_what_a_failed_try_used_up_counts() -> None:
    outcome = going(run(read_flow(TRIAGE), {"error": "no", "usage": {"tokens": 7, "cost": 0.000001}}))
    assert (outcome.cursor.tokens, outcome.cursor.cost) == (7, 1)


def test_what_ends_is_done_whatever_its_last_step_used_up() -> None:
    flow = flow_of({"a": step()}, limits={"tokens": 1})
    assert isinstance(run(flow, {"usage": {"tokens": 5}}), Done)


def test_an_answer_over_the_price_of_the_step_is_not_taken() -> None:
    flow = flow_of({"a": {**step(), "price": 0.5}})
    assert going(run(flow, {"usage": {"cost": 0.51}})).reason == "it cost 0.51, and its price is 0.5"
    assert isinstance(run(flow, {"usage": {"cost": 0.5}}), Done)


def test_a_task_without_what_its_record_needs_is_not_done() -> None:
    outcome = run(flow_of({"a": step()}, record=["answer"]), says(question="q"))
    assert isinstance(outcome, Failed)
    assert outcome.reason == "it is at its end without 'answer'"


@pytest.mark.invariant("S7")
def test_a_state_has_so_many_bytes() -> None:
    text = {"type": "string"}
    again = [{"when": {"b": "z"}, "go": "end"}, {"go": "a"}]
    steps = {"a": {"skill": "work", "writes": ["a", "b"], "most": 3, "next": again}}
    flow = read_flow({"state": {"type": "object", "properties": {"a": text, "b": text}}, "steps": steps})
    room = MAX_STATE - len('{"a":"","b":"x"}')
    full = going(run(flow, says(a="\u00e4" * (room // 2), b="x")))
    assert full.cursor.visits == {"a": 2}
    over = going(advance(flow, full.cursor, full.state, says(b="xyz"), NOW_MS))
    assert over.reason == f"the state has {MAX_STATE + 2} bytes; at most {MAX_STATE}"
    assert over.state == full.state


# Rows.


def test_several_tasks_go_to_one_call_of_an_agent_and_each_has_its_own_answer() -> None:
    flow = flow_of({"a": {**step(), "rows": 4}})
    row = flow.steps["a"]
    works = [work_of(flow, begin(flow), {"count": number}) for number in range(3)]
    assert batch_of(row, works) == {"rows": works}
    assert batch_of(row, works[:1]) == {"rows": works[:1]}
    assert answers_of(row, {"rows": [1, 2, 3]}, 3) == [1, 2, 3]
    assert answers_of(row, {"error": "the model is down"}, 3) == [{"error": "the model is down"}] * 3
    for bad in ({"rows": [1, 2]}, {"rows": 1}, [1, 2, 3], None, {"error": "no"}):
        assert [list(each) for each in answers_of(row, bad, 3) if isinstance(each, dict)] == [["error"]] * 3
    one = flow_of({"a": step()}).steps["a"]
    assert batch_of(one, works[:1]) == works[0]
    assert answers_of(one, "x", 1) == ["x"]


# Conditions.


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ({"count": 2}, {"count": 2.0}, {"count": 3}),
        ({"count": {"above": 2}}, {"count": 3}, {"count": 2}),
        ({"count": {"at_least": 2}}, {"count": 2}, {"count": 1}),
        ({"count": {"below": 2}}, {"count": 1}, {"count": 2}),
        ({"count": {"at_most": 2, "above": 0}}, {"count": 2}, {"count": 0}),
        ({"verdict": ["good"]}, {"verdict": "good"}, {"verdict": "bad"}),
        ({"verdict": {"in": ["good"]}}, {"verdict": "good"}, {"verdict": "bad"}),
        ({"score.total": {"above": 1}}, {"score": {"total": 2}}, {"score": {"total": 1}}),
        ({"score.why": {"has": True}}, {"score": {"total": 1, "why": "x"}}, {"score": {"total": 1}}),
        ({"lines": {"has": False}}, {}, {"lines": []}),
        ({"done": True, "count": 1}, {"done": True, "count": 1}, {"done": True, "count": 2}),
        ({"any": [{"done": True}, {"count": 1}]}, {"count": 1}, {"count": 2}),
        ({"not": {"done": True}}, {"done": False}, {"done": True}),
        ({"not": {"done": True}}, {}, {"done": True}),
        ({"count": {"below": 2}}, {"count": 1}, {}),
        ({"done": False}, {"done": False}, {}),
    ],
)
def test_a_condition_holds_of_what_it_says(when: dict[str, Any], yes: dict[str, Any], no: dict[str, Any]) -> None:
    flow = read_flow(
        {"state": STATE, "steps": {"a": {**step(), "next": [{"when": when, "go": "end"}, {"go": "drop"}]}}}
    )
    assert isinstance(run(flow, {"state": yes}), Done)
    assert isinstance(run(flow, {"state": no}), Dropped)


def test_the_first_branch_that_holds_is_taken() -> None:
    some = {"when": {"count": {"above": 0}}, "go": "drop", "reason": "one"}
    branches = [some, {"when": {"count": {"above": 1}}, "go": "end"}]
    flow = flow_of({"a": {**step(), "next": [*branches, {"go": "end"}]}})
    assert isinstance(run(flow, says(count=2)), Dropped)
    assert isinstance(run(flow, says(count=0)), Done)
    assert record_of(flow, {"count": 0}) == {"count": 0}


def test_the_home_does_what_is_for_the_home() -> None:
    assert Place(Where.HOME).allows(US, US)
    assert not Place(Where.HOME).allows(THEM, US)
    assert Place(Where.OTHERS).allows(THEM, US)
    assert not Place(Where.OTHERS).allows(US, US)
    assert Place(Where.ANY).allows(US, US)
    assert Place(Where.NAMED, (THEM,)).allows(THEM, US)
    assert not Place(Where.NAMED, (THEM,)).allows(US, US)
