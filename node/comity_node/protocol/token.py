"""A task under way, as it travels from organization to organization: the token.

The control state of a task is in the message, not with an orchestrator (Matrix, arXiv 2511.21686). Who has a token in
custody knows what is to be done next (`cursor`), with what (`state`), and until when.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from comity.digest import canonical_json
from comity.errors import InvalidName, UnexpectedMessage
from comity.ids import organization_name

#: The role of the recipient when a token goes home.
HOME = "home"
TASK_ID_BYTES = 16
AGREEMENT_BYTES = 32

#: Cursor and state of a token as values (`protocol.flow.Cursor`, which is above this module).
Opened: TypeAlias = tuple[Any, Mapping[str, Any]]

#: Of a visit: home, task, attempt, sequence. A token that comes twice has one effect.
Key: TypeAlias = tuple[str, bytes, int, int]


class Outcome(StrEnum):
    """How the way of a token ended; the empty one is still under way."""

    UNDER_WAY = ""
    DONE = "done"
    DROPPED = "dropped"
    FAILED = "failed"
    #: Nobody here can do the step (`reason` says why): the home finds somebody else.
    GIVEN_BACK = "given_back"

    @property
    def over(self) -> bool:
        """Whether the task is at its end."""
        return self in (Outcome.DONE, Outcome.DROPPED, Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What of a peer's token is read at all.

    Attributes:
        attempt: the highest attempt.
        sequence: the most hops of a task.
        cursor_bytes: the longest cursor.
        state_bytes: the longest state.
        hops: how many signed hops it carries.
        hop_bytes: the longest signed hop.
        reason_chars: the longest reason.
        peer_chars: the longest id of the home's node.
    """

    attempt: int = 1_000
    sequence: int = 1_024
    cursor_bytes: int = 8_192
    state_bytes: int = 262_144
    hops: int = 1_024
    hop_bytes: int = 4_096
    reason_chars: int = 500
    peer_chars: int = 128


@dataclass(frozen=True, slots=True)
class Token:
    """A task under way.

    Attributes:
        task_id: 16 bytes; the home made it.
        agreement: digest of the agreement that it runs under.
        home: the organization that it belongs to and ends at.
        home_peer: id of the home's node.
        attempt: fencing: grows by one each time that the home sends the task out anew.
        sequence: hops so far, with those before the checkpoint that this attempt began at: it grows along every way.
        cursor: where in the flow it is (`protocol.flow.encode_cursor`).
        state: the row, an object in RFC 8785 form.
        hops: who let it pass, signed, oldest first.
        deadline_ms: when everybody drops it, milliseconds since the Unix epoch.
        outcome: how its way ended, on its last hop home.
        reason: of an outcome that is not `done`.
        opened: cursor and state instead of their bytes, of a token that never leaves its process; never on a wire.
    """

    task_id: bytes
    agreement: bytes
    home: str
    home_peer: str
    attempt: int
    sequence: int
    cursor: bytes
    state: bytes
    hops: tuple[bytes, ...]
    deadline_ms: int
    outcome: Outcome = Outcome.UNDER_WAY
    reason: str = ""
    opened: Opened | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> Key:
        """The visit that this token makes where it is."""
        return (self.home, self.task_id, self.attempt, self.sequence)


_DEFAULT = TokenLimits()


def check_token(token: Token, limits: TokenLimits = _DEFAULT) -> None:
    """Check a peer's token for form and size, before anything of it is used.

    Raises:
        UnexpectedMessage: it is not a token, or beyond `limits`.
    """
    if len(token.task_id) != TASK_ID_BYTES or len(token.agreement) != AGREEMENT_BYTES:
        raise UnexpectedMessage("a token has a task id of 16 bytes and an agreement's digest of 32")
    try:
        organization_name(token.home)
    except InvalidName as error:
        raise UnexpectedMessage(f"a token's home is no organization: {error}") from None
    if not 0 < len(token.home_peer) <= limits.peer_chars:
        raise UnexpectedMessage("a token names its home's node")
    if not 1 <= token.attempt <= limits.attempt:
        raise UnexpectedMessage(f"a token's attempt is 1 to {limits.attempt}")
    if not 0 <= token.sequence <= limits.sequence:
        raise UnexpectedMessage(f"a token has at most {limits.sequence} hops behind it")
    if len(token.cursor) > limits.cursor_bytes or len(token.state) > limits.state_bytes:
        raise UnexpectedMessage(
            f"a token's cursor has at most {limits.cursor_bytes} bytes and its state {limits.state_bytes}"
        )
    if len(token.hops) > limits.hops or any(len(hop) > limits.hop_bytes for hop in token.hops):
        raise UnexpectedMessage(f"a token has at most {limits.hops} signed hops of {limits.hop_bytes} bytes")
    if len(token.reason) > limits.reason_chars or token.deadline_ms <= 0:
        raise UnexpectedMessage("a token has a deadline, and a reason only of a few words")


_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_DECODE = json.JSONDecoder().decode
_SAFE_INT = (1 << 53) - 1


def encode_state(state: Mapping[str, Any]) -> bytes:
    """Return a state in RFC 8785 form.

    What json writes the same way goes the quick way; the rest (floats of unusual size, keys beyond ASCII) the long one.

    Raises:
        ValueError: a number is not finite or over 2^53, or a value is no JSON.
    """
    return _ENCODE(state).encode() if _plain(state) else canonical_json(state)


def _plain(value: object) -> bool:
    """Whether json writes `value` as RFC 8785 does: ECMAScript and Python agree on floats of usual size only."""
    kind = type(value)
    if kind is str:
        try:
            value.encode()  # type: ignore[attr-defined]
        except UnicodeEncodeError:
            return False
        return True
    if kind is bool or value is None:
        return True
    if kind is int:
        return -_SAFE_INT <= value <= _SAFE_INT  # type: ignore[operator]
    if kind is float:
        return 1e-4 <= abs(value) < 1e15 and not value.is_integer()  # type: ignore[arg-type,attr-defined]
    if kind is dict:
        return all(type(key) is str and key.isascii() and _plain(each) for key, each in value.items())  # type: ignore[attr-defined]
    return kind is list and all(map(_plain, value))  # type: ignore[call-overload]


def decode_state(data: bytes) -> dict[str, Any]:
    """Read a state, which has to be in RFC 8785 form: no key twice, nothing that other readers would round.

    Raises:
        UnexpectedMessage: it is not an object in that form.
    """
    try:
        value = _DECODE(data.decode())
        if type(value) is dict and encode_state(value) == data:
            return value
    except (ValueError, RecursionError):
        pass
    raise UnexpectedMessage("a token's state is not an object in RFC 8785 form")
