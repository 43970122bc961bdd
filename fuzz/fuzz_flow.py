"""Fuzzes flows, cursors and states: as participants sign them, and as peers send them with a task.

Run: python -m fuzz.run flow
"""

from __future__ import annotations

from typing import Final

from comity.errors import ConfigError, FlowMismatch
from comity_node.protocol.flow import (
    MAX_CURSOR,
    MAX_STATE,
    Cursor,
    Flow,
    Goes,
    advance,
    begin,
    check_cursor,
    check_follows,
    check_state,
    decode_cursor,
    decode_state,
    encode_cursor,
    encode_state,
    parse_flow,
    read_flow,
    work_of,
)

_NOW_MS: Final = 1_800_000_000_000
_STATE: Final = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 20},
        "sure": {"type": "number", "minimum": 0, "maximum": 1},
        "lines": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        "done": {"type": "boolean"},
    },
}
_FLOW: Final = read_flow(
    {
        "state": _STATE,
        "start": "write",
        "steps": {
            "write": {"skill": "write", "most": 3, "writes": ["text", "sure"], "lease": "seat", "next": "talk"},
            "talk": {
                "dialogue": [{"skill": "ask", "at": "home"}, {"skill": "reply", "at": "others"}],
                "turns": 4,
                "until": {"done": True},
                "appends": ["lines"],
                "writes": ["done"],
                "next": [{"when": {"any": [{"sure": {"below": 0.5}}, {"done": False}]}, "go": "write"}, {"go": "end"}],
            },
        },
        "limits": {"steps": 20, "cost": 0.5},
    }
)


def _under_way() -> Cursor:
    outcome = advance(_FLOW, begin(_FLOW, _NOW_MS), {}, {"lease": "x"}, _NOW_MS, by="hope.example")
    assert isinstance(outcome, Goes)
    return outcome.cursor


#: Where a fuzzer begins.
SEEDS = (
    _FLOW.document,
    read_flow(
        {"state": _STATE, "steps": [{"name": "a", "skill": "a", "rows": 4}, {"name": "b", "skill": "b"}]}
    ).document,
    encode_cursor(begin(_FLOW, _NOW_MS)),
    encode_cursor(_under_way()),
    encode_state({"text": "a", "sure": 0.5, "lines": ["x"], "done": False}),
)


def one(data: bytes) -> None:
    """Read the bytes as a flow, as a cursor and as a state; follow what fits to its end."""
    try:
        flow = parse_flow(data)
    except ConfigError:
        pass
    else:
        assert flow.document == data, "one flow in two ways"
        _follow(flow, begin(flow, _NOW_MS))
    try:
        cursor = decode_cursor(data)
        assert encode_cursor(cursor) == data, "one cursor in two ways"
        check_cursor(_FLOW, cursor, "mercy.example")
    except FlowMismatch:
        pass
    else:
        assert len(data) <= MAX_CURSOR
        _follow(_FLOW, cursor)
    try:
        state = decode_state(data)
        check_state(_FLOW, state)
    except FlowMismatch:
        pass
    else:
        assert len(data) <= MAX_STATE
        assert encode_state(state) == data, "one state in two ways"
        assert state.keys() <= _FLOW.state.properties.keys()


def _follow(flow: Flow, cursor: Cursor) -> None:
    for _ in range(flow.limits.steps + 1):
        work_of(flow, cursor, {})
        outcome = advance(flow, cursor, {}, {}, _NOW_MS)
        check_follows(cursor, outcome.cursor)
        if not isinstance(outcome, Goes):
            return
        cursor = outcome.cursor
        check_cursor(flow, cursor)
    raise AssertionError("it goes on for ever")
