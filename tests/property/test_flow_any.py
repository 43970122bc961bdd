"""Any flow, any answers: every task ends in its limits, the same way everywhere; what a peer makes up is seen."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import ConfigError, FlowMismatch
from comity_node.protocol.flow import (
    MAX_CURSOR,
    Cursor,
    Done,
    Failed,
    Flow,
    Goes,
    Outcome,
    advance,
    begin,
    check_cursor,
    check_done,
    check_follows,
    check_state,
    current,
    decode_cursor,
    decode_state,
    encode_cursor,
    encode_state,
    failed,
    lost,
    parse_flow,
    read_flow,
    record_of,
    work_of,
)
from comity_node.protocol.flow_spot import Spot
from comity_node.protocol.flow_state import Shape, read_shape, weight
from kit.flows import ANY_JSON, TRIAGE, answers, fitting, flow_values, objects, shapes

NOW_MS = 1_800_000_000_000
HOME, OTHER = "mercy.example", "hope.example"


def go_on(flow: Flow, cursor: Cursor, state: Mapping[str, Any], event: Any, now_ms: int) -> Outcome:
    """An event: what an agent answered, or ("failed",), or ("lost",), as far as that can be."""
    if event == "failed":
        return failed(flow, cursor, state, "it was lost", now_ms)
    if event == "lost" and cursor.leases:
        return lost(flow, cursor, state, min(cursor.leases), now_ms)
    return advance(flow, cursor, state, event, now_ms, by=OTHER)


EVENTS = st.one_of(answers(), answers(), answers(), st.sampled_from(["failed", "lost"]))


@given(flow_values(), st.lists(EVENTS, min_size=1, max_size=6), st.integers(0, 3000))
@settings(max_examples=150)
@pytest.mark.invariant("S7")
def test_every_task_ends_within_its_limits_and_each_cursor_on_its_way_fits(
    value: Any, events: list[Any], pace_ms: int
) -> None:
    flow = read_flow(value)
    cursor, state, now_ms = begin(flow, NOW_MS), dict[str, Any](), NOW_MS
    for number in range(flow.limits.steps + 1):
        check_cursor(flow, cursor, HOME)
        check_state(flow, state)
        assert len(encode_cursor(cursor)) <= MAX_CURSOR
        assert decode_cursor(encode_cursor(cursor)) == cursor
        assert decode_state(encode_state(state)) == state
        assert weight(state) >= len(encode_state(state))
        step = current(flow, cursor)
        assert step.skill
        assert work_of(flow, cursor, state)["state"].keys() <= set(step.reads)
        now_ms += pace_ms
        event = events[number % len(events)]
        outcome = go_on(flow, cursor, state, event, now_ms)
        assert outcome == go_on(flow, cursor, dict(state), json.loads(json.dumps(event)), now_ms)
        check_follows(cursor, outcome.cursor)
        check_cursor(flow, outcome.cursor, HOME, over=not isinstance(outcome, Goes))
        if isinstance(outcome, Done):
            check_done(flow, outcome.cursor, outcome.state)
        assert outcome.cursor.steps == number + 1
        if not isinstance(outcome, Goes):
            break
        cursor, state = outcome.cursor, dict(outcome.state)
    else:
        pytest.fail("it goes on for ever")
    assert now_ms - NOW_MS <= flow.limits.seconds * 1000 or (isinstance(outcome, Failed) and outcome.expired)
    assert record_of(flow, state).keys() <= set(flow.record)


@given(flow_values())
def test_a_flow_and_its_document_are_one_thing(value: Any) -> None:
    flow = read_flow(value)
    again = parse_flow(flow.document)
    assert again == flow
    for each in dataclasses.fields(Flow):
        if each.name != "state":
            assert getattr(again, each.name) == getattr(flow, each.name)
    assert read_flow(json.loads(flow.document)).document == flow.document
    with pytest.raises(ConfigError):
        parse_flow(flow.document + b" ")


@given(ANY_JSON | st.fixed_dictionaries({"state": ANY_JSON, "steps": ANY_JSON}))
def test_anything_at_all_is_a_flow_or_refused_with_a_reason(value: Any) -> None:
    with contextlib.suppress(ConfigError):  # and nothing else
        read_flow(value)


@given(st.data())
@settings(max_examples=200)
def test_a_good_flow_with_one_value_replaced_is_a_flow_or_refused_at_a_place(data: st.DataObject) -> None:
    value = json.loads(json.dumps(TRIAGE))
    here, key = value, data.draw(st.sampled_from(sorted(value)))
    for _ in range(data.draw(st.integers(0, 5))):
        inner = here[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        here, key = inner, data.draw(st.sampled_from(keys))
    here[key] = data.draw(ANY_JSON | st.sampled_from(["end", "drop", "answer", 1, []]))
    wrong = None
    try:
        flow = read_flow(value)
    except ConfigError as error:
        wrong = error
    assert parse_flow(flow.document) == flow if wrong is None else wrong.path[0] == "flow"


@given(flow_values(), st.data())
@pytest.mark.invariant("S7")
def test_a_cursor_that_a_peer_made_up_fits_or_is_refused_and_then_ends_all_the_same(
    value: Any, data: st.DataObject
) -> None:
    flow = read_flow(value)
    counts = st.integers(0, 12)
    names = st.sampled_from([*flow.steps, "other"])
    cursor = Cursor(
        data.draw(names),
        turn=data.draw(counts),
        tries=data.draw(st.integers(0, 4)),
        visits=data.draw(st.dictionaries(names, counts, max_size=5)),
        losses=data.draw(st.dictionaries(st.sampled_from(["box", "seat", "x"]), counts, max_size=1)),
        steps=data.draw(st.integers(0, 50)),
        tokens=data.draw(st.integers(0, 400)),
        begun_ms=NOW_MS,
    )
    try:
        check_cursor(flow, decode_cursor(encode_cursor(cursor)))
    except FlowMismatch:
        return
    for _ in range(flow.limits.steps + 1):
        outcome = advance(flow, cursor, {}, {}, NOW_MS)
        if not isinstance(outcome, Goes):
            return
        cursor = outcome.cursor
        check_cursor(flow, cursor)
    pytest.fail("it goes on for ever")


@given(st.data())
@settings(max_examples=400)
def test_our_part_of_json_schema_means_what_json_schema_means(data: st.DataObject) -> None:
    source = data.draw(objects())
    shape = read_shape(Spot(source))
    value = data.draw(fitting(source))
    agreed = jsonschema.Draft202012Validator(dict(shape.source)).is_valid(value)
    ours = not shape.misfit(value, "it")
    assert ours == (agreed and not _beyond(value))


@given(shapes(1), st.data())
def test_values_that_a_shape_has_are_values_of_its_normal_form(source: dict[str, Any], data: st.DataObject) -> None:
    outer = {"type": "object", "properties": {"x": source}}
    shape = read_shape(Spot(outer))
    again: Shape = read_shape(Spot(json.loads(json.dumps(shape.source))))
    value = data.draw(fitting(source))
    assert again.misfit({"x": value}, "it") == shape.misfit({"x": value}, "it")


def _beyond(value: Any) -> bool:
    """Whether a value has a number or a text that not every JSON reader keeps."""
    if isinstance(value, dict):
        return any(_beyond(each) for each in value.values())
    if isinstance(value, list):
        return any(_beyond(each) for each in value)
    if isinstance(value, str):
        return any("\ud800" <= each <= "\udfff" for each in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > 2**53 - 1


@given(st.data())
@settings(max_examples=300)
def test_loops_are_refused_if_and_only_if_a_task_could_go_round_for_ever(data: st.DataObject) -> None:
    names = ["one", "two", "three"]
    ends = ["end", "drop"]
    ways = st.lists(st.sampled_from([*names, *ends]), min_size=1, max_size=3)
    steps, most, otherwise = dict[str, Any](), dict[str, int](), dict[str, str]()
    for number, name in enumerate(names):
        forward = names[number + 1] if number < 2 else "end"
        targets = [*data.draw(ways), forward]
        branches = [{"when": {"count": place}, "go": there} for place, there in enumerate(targets[:-1])]
        steps[name] = {"skill": "work", "next": [*branches, {"go": forward}], "retries": 0}
        if data.draw(st.booleans()):
            most[name] = steps[name]["most"] = data.draw(st.integers(1, 2))
        if data.draw(st.booleans()):
            otherwise[name] = steps[name]["otherwise"] = data.draw(st.sampled_from([*names, *ends]))
    refused = ""
    try:
        read_flow({"state": TRIAGE["state"], "start": "one", "steps": steps})
    except ConfigError as error:
        refused = str(error)
        assert "loop" in refused or "leads back to it" in refused
    targets_of = {
        name: [branch["go"] for branch in steps[name]["next"]] + [otherwise[name] for _ in range(name in otherwise)]
        for name in names
    }
    assert bool(refused) == goes_round("one", {"one": 1}, targets_of, most, otherwise, [])


def goes_round(
    here: str, visits: dict[str, int], ways: Mapping[str, list[str]], most: Mapping[str, int],
    otherwise: Mapping[str, str], trail: list[tuple[str, Any]],
) -> bool:  # fmt: skip
    """Whether some way comes twice to the same step with the same visits left."""
    place = (here, sorted((name, visits.get(name, 0)) for name in most))
    if place in trail:
        return True
    for there in ways[here]:
        passed = list[str]()
        while there in most and visits.get(there, 0) >= most[there]:
            if there in passed:
                return True
            passed.append(there)
            there = otherwise.get(there, "drop")
        if there in ways:
            counts = {**visits, there: visits.get(there, 0) + 1}
            if goes_round(there, counts, ways, most, otherwise, [*trail, place]):
                return True
    return False
