"""Cursor and state of a token: bytes that are checked, or values where sender and receiver are one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from comity_node.protocol.flow import Cursor, Flow, decode_cursor, encode_cursor
from comity_node.protocol.token import Opened, Token, encode_state
from comity_node.protocol.token_read import fitting, note_state, state_of


class Codec(Protocol):
    """How the engine puts cursors and states into tokens and reads them."""

    def close(self, cursor: Cursor, state: Mapping[str, Any]) -> tuple[bytes, bytes, Opened | None]:
        """Return a token's `cursor`, `state` and `opened`."""

    def cursor(self, token: Token) -> Cursor:
        """Return the cursor of an own token, or of one that `check` has seen."""

    def state(self, token: Token) -> Mapping[str, Any]:
        """Return its state."""

    def check(self, flow: Flow, token: Token, *, under_way: bool) -> tuple[Cursor, Mapping[str, Any]]:
        """Return cursor and state of a token of somebody else; of one that is `under_way`, the flow leads there.

        Raises:
            FlowMismatch: they do not fit the flow.
            UnexpectedMessage: they are not in their form.
        """


class Bytes:
    """Canonical bytes, which are checked: what travels between organizations."""

    def close(self, cursor: Cursor, state: Mapping[str, Any]) -> tuple[bytes, bytes, Opened | None]:
        """Encode."""
        data = encode_state(state)
        note_state(data, state)
        return encode_cursor(cursor), data, None

    def cursor(self, token: Token) -> Cursor:
        """Decode the cursor."""
        return decode_cursor(token.cursor)

    def state(self, token: Token) -> Mapping[str, Any]:
        """Decode the state."""
        return state_of(token.state)

    def check(self, flow: Flow, token: Token, *, under_way: bool) -> tuple[Cursor, Mapping[str, Any]]:
        """Decode and check both."""
        return fitting(flow, token, over=not under_way)


class Values:
    """The values themselves: for organizations that are simulated in one process, where nobody can lie."""

    def close(self, cursor: Cursor, state: Mapping[str, Any]) -> tuple[bytes, bytes, Opened | None]:
        """Pass the values on, and no bytes."""
        return b"", b"", (cursor, state)

    def cursor(self, token: Token) -> Cursor:
        """Return the cursor."""
        return _opened(token)[0]

    def state(self, token: Token) -> Mapping[str, Any]:
        """Return the state."""
        return _opened(token)[1]

    def check(self, flow: Flow, token: Token, *, under_way: bool) -> tuple[Cursor, Mapping[str, Any]]:
        """Return both."""
        return _opened(token)


def _opened(token: Token) -> tuple[Cursor, Mapping[str, Any]]:
    assert token.opened is not None, "tokens of values never leave their process"
    return token.opened
