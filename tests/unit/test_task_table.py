from __future__ import annotations

import itertools

import pytest

from comity.errors import UnexpectedMessage
from comity_node.protocol.task import _TRANSITIONS, FINAL, UNDER_WAY, Input, State, advance

OPEN = frozenset(State) - FINAL


def reachable(state: State) -> set[State]:
    seen, todo = {state}, [state]
    while todo:
        here = todo.pop()
        for happened in Input:
            try:
                there = advance(here, happened)
            except UnexpectedMessage:
                continue
            if there not in seen:
                seen.add(there)
                todo.append(there)
    return seen


def way(*happened: Input, start: State = State.QUEUED) -> State:
    state = start
    for each in happened:
        state = advance(state, each)
    return state


def test_every_state_is_reached_and_every_task_can_end() -> None:
    assert reachable(State.QUEUED) == set(State)
    for state in State:
        assert reachable(state) & FINAL


@pytest.mark.parametrize(("state", "happened"), sorted(itertools.product(State, Input)))
def test_every_pair_is_a_row_or_refused_by_name(state: State, happened: Input) -> None:
    if (state, happened) in _TRANSITIONS:
        assert advance(state, happened) is _TRANSITIONS[state, happened]
    else:
        with pytest.raises(UnexpectedMessage, match=f"{state} cannot become {happened}"):
            advance(state, happened)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_nothing_happens_to_a_task_that_has_ended(state: State) -> None:
    for happened in Input:
        with pytest.raises(UnexpectedMessage):
            advance(state, happened)


@pytest.mark.parametrize("state", sorted(OPEN))
def test_time_and_people_end_every_task_that_is_open(state: State) -> None:
    assert advance(state, Input.EXPIRED) is State.EXPIRED
    assert advance(state, Input.CANCELLED) is State.CANCELLED


def test_every_input_happens_somewhere_and_every_final_state_has_a_way_in() -> None:
    assert {happened for _, happened in _TRANSITIONS} == set(Input)
    assert set(_TRANSITIONS.values()) >= FINAL


def test_the_way_of_a_repaired_record() -> None:
    repaired = way(Input.OFFERED, Input.REPAIRABLE, Input.REPAIRED, Input.OFFERED, Input.ACCEPTED)
    assert repaired is State.CERTIFIED


def test_the_way_of_a_task_with_a_flow() -> None:
    passed_on = way(Input.SENT, Input.TAKEN, Input.BEGUN, Input.TAKEN, Input.BEGUN)
    assert passed_on is State.WORKING
    assert way(Input.RETURNED, Input.OFFERED, Input.ACCEPTED, start=passed_on) is State.CERTIFIED


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("state", sorted(UNDER_WAY))
def test_a_lease_that_is_over_makes_the_task_somebody_elses(state: State) -> None:
    assert way(Input.LEASE_OVER, Input.SENT, start=state) is State.OFFERED
    with pytest.raises(UnexpectedMessage):
        advance(State.QUEUED, Input.LEASE_OVER)


@pytest.mark.parametrize("state", sorted({State.QUEUED, *UNDER_WAY}))
def test_what_comes_back_counts_wherever_the_task_is_thought_to_be(state: State) -> None:
    assert advance(state, Input.RETURNED) is State.QUEUED
    assert advance(state, Input.COMPLETED) is State.COMPLETED
    assert advance(state, Input.DROPPED) is State.DROPPED
    assert advance(state, Input.FAILED) is State.FAILED


@pytest.mark.parametrize("state", [State.IN_REVIEW, State.IN_REPAIR])
@pytest.mark.parametrize("happened", [Input.RETURNED, Input.COMPLETED, Input.SENT, Input.LEASE_OVER])
@pytest.mark.invariant("R2")
def test_a_straggler_changes_nothing_once_the_review_has_begun(state: State, happened: Input) -> None:
    with pytest.raises(UnexpectedMessage):
        advance(state, happened)
