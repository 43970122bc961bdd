from __future__ import annotations

import pytest

from comity.errors import UnexpectedMessage
from comity_node.protocol.task import FINAL, Input, State, advance


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


def test_every_state_is_reached_and_every_task_can_end() -> None:
    assert reachable(State.QUEUED) == set(State)
    for state in State:
        assert reachable(state) & FINAL


@pytest.mark.parametrize("state", sorted(FINAL))
def test_nothing_happens_to_a_task_that_has_ended(state: State) -> None:
    for happened in Input:
        with pytest.raises(UnexpectedMessage):
            advance(state, happened)


def test_the_way_of_a_repaired_record() -> None:
    state = State.QUEUED
    way = [Input.OFFERED, Input.REPAIRABLE, Input.REPAIRED, Input.OFFERED, Input.ACCEPTED]
    for happened in way:
        state = advance(state, happened)
    assert state is State.CERTIFIED
