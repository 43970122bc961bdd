"""What was read of a token's bytes is read once, and says nothing of other bytes and other flows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from comity.errors import FlowMismatch, UnexpectedMessage
from comity_node.protocol import token_read
from comity_node.protocol.flow import Cursor, Flow, Lease, encode_cursor, read_flow
from comity_node.protocol.token import Token, encode_state
from comity_node.protocol.token_read import fitting, note_state, state_of


def flow(field: str, steps: int = 3) -> Flow:
    step = {"skill": "write", "at": "home", "reads": [field], "writes": [field], "next": "end"}
    return read_flow(
        {
            "state": {"type": "object", "properties": {field: {"type": "string"}}},
            "start": "write",
            "steps": {"write": {**step, "most": 3, "next": [{"when": {field: "more"}, "go": "write"}, {"go": "end"}]}},
            "limits": {"steps": steps, "seconds": 60},
            "finish": "none",
        }
    )


def token(state: bytes, cursor: Cursor | None = None) -> Token:
    cursor = cursor or Cursor("write", visits={"write": 1}, begun_ms=1)
    return Token(b"t" * 16, bytes(32), "ada.example", "peer", 1, 0, encode_cursor(cursor), state, (), 9_000)


def test_what_fits_one_flow_is_not_believed_of_another() -> None:
    one, other, came = flow("text"), flow("note"), token(b'{"text":"a"}')
    for _ in range(2):
        cursor, state = fitting(one, came, over=False)
        assert (cursor.step, state) == ("write", {"text": "a"})
        with pytest.raises(FlowMismatch, match="text"):
            fitting(other, came, over=False)


def test_a_cursor_that_fits_at_the_end_alone_is_not_believed_before() -> None:
    used_up = Cursor("write", visits={"write": 3}, steps=3, begun_ms=1)
    known, came = flow("text"), token(b"{}", used_up)
    fitting(known, came, over=True)
    with pytest.raises(FlowMismatch, match="used up"):
        fitting(known, came, over=False)


def test_a_lease_that_one_home_can_have_is_not_believed_of_another() -> None:
    """`at: others` are others than the task's home."""
    step = {"skill": "rent", "at": "others", "lease": "seat", "most": 2}
    known = read_flow(
        {
            "state": {"type": "object", "properties": {}},
            "start": "rent",
            "steps": {
                "rent": {**step, "next": "use"},
                "use": {"skill": "use", "at": "others", "release": "seat", "next": "end"},
            },
            "limits": {"seconds": 60},
            "finish": "none",
        }
    )
    lease = Lease("bea.example", "rent", "7")
    came = token(b"{}", Cursor("use", visits={"rent": 1, "use": 1}, steps=1, leases={"seat": lease}, begun_ms=1))
    for _ in range(2):
        fitting(known, came, over=False)
        with pytest.raises(FlowMismatch, match="lease"):
            fitting(known, replace(came, home="bea.example"), over=False)


def test_what_does_not_fit_is_refused_each_time() -> None:
    known = flow("text")
    wrong: list[tuple[Token, type[Exception]]] = [
        (token(b'{"text":1}'), FlowMismatch),
        (token(b'{"text": "a"}'), UnexpectedMessage),
        (replace(token(b"{}"), cursor=encode_cursor(Cursor("else", begun_ms=1))), FlowMismatch),
    ]
    for came, error in wrong * 2:
        with pytest.raises(error):
            fitting(known, came, over=False)


def test_the_same_bytes_are_read_once_and_others_by_themselves() -> None:
    data = b'{"text":"a long enough text"}'
    equal = bytes(bytearray(data))
    assert state_of(data) is state_of(data)
    assert state_of(equal) == state_of(data)
    assert state_of(equal) is not state_of(data)


@pytest.mark.parametrize("value", [["a"], {"a": 1}, "a"])
def test_what_was_written_is_known_as_it_was_written(value: Any) -> None:
    mine: dict[str, Any] = {"text": value}
    data = encode_state(mine)
    note_state(data, mine)
    if isinstance(value, list):
        value.append("b")
    mine["more"] = 1
    assert encode_state(dict(state_of(data))) == data


def test_what_is_kept_is_bounded() -> None:
    kept = [b'{"text":"%d"}' % number for number in range(token_read._KEPT + 2)]
    for data in kept:
        state_of(data)
    assert len(token_read._states) <= token_read._KEPT
    long = b'{"text":"%s"}' % (b"a" * token_read._KEPT_BYTES)
    assert state_of(long) is not state_of(long), "one that is long takes no room"
