"""What is in a token, read once: the gate and the engine both need it, and the same bytes always say the same.

What was read of bytes is kept beside these very bytes (not beside others that are equal), for as long as it is likely
that they are read again. What `fitting` has checked against a flow it does not check against that flow once more. Who
gets a state here changes nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from comity_node.protocol.flow import Cursor, Flow, check_cursor, check_state, decode_cursor
from comity_node.protocol.token import Token, decode_state

#: States, and cursors with a flow that they fit, of which it is remembered; and bytes of the longest such state.
_KEPT: Final = 16_384
_KEPT_BYTES: Final = 1024


class _Read:
    """A state, whose bytes it keeps, and the last flow that it was found to fit."""

    __slots__ = ("data", "flow", "state")

    def __init__(self, data: bytes, state: Mapping[str, Any]) -> None:
        self.data = data
        self.state = state
        self.flow: Flow | None = None


#: By the identity of what they keep, which therefore is nobody else's.
_states: dict[int, _Read] = {}
_cursors: dict[tuple[int, int, str, bool], tuple[Flow, Cursor]] = {}


def state_of(data: bytes) -> Mapping[str, Any]:
    """Return the state that a token's bytes are.

    Raises:
        UnexpectedMessage: they are none in RFC 8785 form.
    """
    return _read(data).state


def note_state(data: bytes, state: Mapping[str, Any]) -> None:
    """Know what bytes say that were just written: they are read when the token leaves, and when it comes back.

    Not of a state that has lists or objects, which whoever made them may still change.
    """
    if len(data) <= _KEPT_BYTES and not any(isinstance(value, dict | list) for value in state.values()):
        _make_room(_states)
        _states[id(data)] = _Read(data, dict(state))


def fitting(flow: Flow, token: Token, *, over: bool) -> tuple[Cursor, Mapping[str, Any]]:
    """Return cursor and state of a token, which fit a flow.

    Args:
        flow: as it was agreed on.
        token: from anybody.
        over: the task is at its end (`check_cursor`).

    Raises:
        FlowMismatch: they do not fit; says what.
        UnexpectedMessage: the state is not in its form.
    """
    cursor, read = decode_cursor(token.cursor), _read(token.state)
    key = (id(flow), id(cursor), token.home, over)
    if key not in _cursors:
        check_cursor(flow, cursor, token.home, over=over)
        _make_room(_cursors)
        _cursors[key] = flow, cursor
    if read.flow is not flow:
        check_state(flow, read.state)
        read.flow = flow
    return cursor, read.state


def _read(data: bytes) -> _Read:
    read = _states.get(id(data))
    if read is None:
        read = _Read(data, decode_state(data))
        if len(data) <= _KEPT_BYTES:
            _make_room(_states)
            _states[id(data)] = read
    return read


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= _KEPT:
        kept.clear()
