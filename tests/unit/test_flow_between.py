"""What a home believes of a task that came back: what the steps in between may write, by those who may do them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio

from comity.errors import FlowMismatch
from comity_node.protocol.flow import Cursor, Goes, advance, begin, decode_cursor, encode_cursor, read_flow
from comity_node.protocol.flow_between import believed
from comity_node.protocol.token import Outcome, decode_state, encode_state
from comity_node.runtime.passing.codec import Bytes
from comity_node.runtime.passing.world import MemoryWorld
from kit.flows import STATE
from kit.passing import ALONE, A, B, Colleagues, play, rows

pytestmark = pytest.mark.invariant("S1")

FLOW = read_flow(
    {
        "state": STATE,
        "start": "draft",
        "steps": {
            "draft": {"skill": "draft", "at": "home", "writes": ["question"], "next": "answer"},
            "answer": {"skill": "answer", "at": "others", "writes": ["answer"], "appends": ["lines"], "next": "check"},
            "check": {"skill": "check", "at": "home", "writes": ["verdict"], "next": "note"},
            "note": {"skill": "note", "at": [B], "writes": ["count"], "next": "end"},
        },
        "finish": "none",
    }
)
MINE = {"question": "why", "lines": ["one"]}


def gone(flow: Any, cursor: Cursor, *answers: Any) -> Cursor:
    for answer in answers:
        outcome = advance(flow, cursor, MINE, answer, 2)
        assert isinstance(outcome, Goes)
        cursor = outcome.cursor
    return cursor


AT_ANSWER = gone(FLOW, begin(FLOW, 1), {"state": {"question": "why"}})
AT_CHECK = gone(FLOW, AT_ANSWER, {})
AT_NOTE = gone(FLOW, AT_CHECK, {})


def believe(before: Cursor, after: Cursor, came: Any, *, holder: str = "x.example", done: bool = False) -> Any:
    return believed(FLOW, before, after, MINE, came, home=A, holder=holder, done=done)


def test_only_what_the_steps_in_between_may_write_is_believed() -> None:
    came = {"question": "forged", "answer": "because", "verdict": "good", "lines": ["one", "two"]}
    assert believe(AT_ANSWER, AT_CHECK, came) == {"question": "why", "answer": "because", "lines": ["one", "two"]}
    assert believe(AT_ANSWER, AT_ANSWER, came) == MINE, "nothing was done: it was given back"


def test_what_had_another_form_abroad_is_at_home_as_it_was() -> None:
    assert believe(AT_ANSWER, AT_CHECK, {"answer": "because"}) == {**MINE, "answer": "because"}
    assert believe(AT_ANSWER, AT_CHECK, {"lines": ["forged", "two"]})["lines"] == ["one", "two"]
    assert believe(AT_ANSWER, AT_CHECK, {"lines": []})["lines"] == ["one"]


def test_a_step_of_the_home_is_not_done_by_a_holder() -> None:
    """That would skip the critique: its step has had its visit, and nobody at home has looked."""
    with pytest.raises(FlowMismatch, match="'check'"):
        believe(AT_ANSWER, AT_NOTE, {"verdict": "good"})
    with pytest.raises(FlowMismatch, match="'check'"):
        believe(AT_ANSWER, AT_CHECK, {"verdict": "good"}, done=True)


def test_a_step_of_somebody_else_is_not_done_by_this_holder() -> None:
    assert believe(AT_NOTE, AT_NOTE, {"count": 3}, holder=B, done=True) == {**MINE, "count": 3}
    with pytest.raises(FlowMismatch, match="'note'"):
        believe(AT_NOTE, AT_NOTE, {"count": 3}, done=True)
    assert believe(AT_NOTE, AT_NOTE, {"count": 3}, holder="", done=True)["count"] == 3, "it may have been with both"


def test_turns_of_the_home_are_not_taken_by_a_holder() -> None:
    roles = [{"skill": "ask", "at": "home"}, {"skill": "reply", "at": "others"}]
    talk = {"dialogue": roles, "turns": 6, "until": {"done": True}, "writes": ["answer"], "next": "end"}
    flow = read_flow({"state": STATE, "start": "talk", "steps": {"talk": talk}, "finish": "none"})
    at = gone(flow, begin(flow, 1), {})
    once, thrice = gone(flow, at, {}), gone(flow, at, {}, {}, {})
    mine: dict[str, Any] = {}
    came = {"answer": "so"}
    assert believed(flow, at, once, mine, came, home=A, holder=B, done=False) == came
    with pytest.raises(FlowMismatch, match="turn"):
        believed(flow, at, thrice, mine, came, home=A, holder=B, done=False)


def test_what_does_not_fit_any_more_is_refused() -> None:
    with pytest.raises(FlowMismatch, match="lines"):
        believed(
            FLOW, AT_ANSWER, AT_CHECK, {"lines": ["x"] * 40}, {"lines": ["y"]}, home=A, holder=B, done=False
        )  # fmt: skip


@pytest.mark.parametrize("skips", [True, False])
def test_a_home_does_not_take_what_its_holder_was_not_to_do(skips: bool) -> None:
    """The whole engine: a holder that changes the question, and one that says that the home's critique was done."""
    flow = read_flow(
        {
            "state": {"type": "object", "properties": {"task": {"type": "integer"}, "said": {"type": "integer"},
                                                       "ok": {"type": "boolean"}}},
            "start": "s0",
            "steps": {
                "s0": {"skill": "s0", "at": "others", "writes": ["said"], "next": "s1"},
                "s1": {"skill": "s1", "at": "home", "writes": ["ok"], "next": "end"},
            },
            "finish": "none",
        }
    )  # fmt: skip
    holder = Colleagues("s0")
    holder.hold = trio.Event()
    world = MemoryWorld({A: Colleagues("s1"), B: holder}, flow, limits=ALONE, codec=Bytes())

    async def scene(world: MemoryWorld) -> None:
        await world.open(A, rows(1))
        await trio.sleep(0.1)
        (held,) = world.stores[B].held.values()
        cursor = decode_cursor(held.token.cursor)
        after = advance(flow, cursor, {}, {"state": {"said": 1}}, 2)
        assert isinstance(after, Goes)
        state = encode_state({**decode_state(held.token.state), "task": 77, "said": 1, "ok": True})
        back = replace(
            held.token, sequence=held.token.sequence + 1, cursor=encode_cursor(after.cursor), state=state,
            outcome=Outcome.DONE if skips else Outcome.UNDER_WAY,
        )  # fmt: skip
        (verdict,) = await world.engine(A).take(B, [back])
        assert verdict.answer.value == ("refused" if skips else "taken")
        if skips:
            assert not world.sinks[A].ends
        else:
            await world.sinks[A].wait(1)
            (ending,) = world.sinks[A].ends.values()
            assert decode_state(ending.state)["task"] == 0

    play(world, scene)
