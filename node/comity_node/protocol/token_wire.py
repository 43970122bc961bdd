"""The bytes of tokens: `comity.v1.Token`, as they travel and as they are journaled."""

from __future__ import annotations

from struct import Struct
from typing import Final

from google.protobuf.message import DecodeError

from comity.digest import sha256
from comity.errors import CertificateInvalid, UnexpectedMessage
from comity.signed import read_payload
from comity.v1 import flow_pb2
from comity_node.protocol.token import Outcome, Token

#: What a signed hop is, to whoever verifies it.
HOP_KIND: Final = "flow-hop"
_LENGTHS: Final = Struct(">4I")


def to_wire(token: Token) -> flow_pb2.Token:
    """Return the message of a token; its agreement stands beside it."""
    return flow_pb2.Token(
        task_id=token.task_id,
        home=token.home,
        home_peer=token.home_peer,
        attempt=token.attempt,
        sequence=token.sequence,
        cursor=token.cursor,
        state=token.state,
        hops=token.hops,
        deadline_ms=token.deadline_ms,
        outcome=token.outcome.value,
        reason=token.reason,
    )


def of_wire(message: flow_pb2.Token, agreement: bytes) -> Token:
    """Return the token of a message; nothing of it is checked but that its outcome is one.

    Raises:
        UnexpectedMessage: it says an outcome that there is not.
    """
    try:
        outcome = Outcome(message.outcome)
    except ValueError:
        raise UnexpectedMessage("a token says an outcome that there is not") from None
    return Token(
        task_id=message.task_id,
        agreement=agreement,
        home=message.home,
        home_peer=message.home_peer,
        attempt=message.attempt,
        sequence=message.sequence,
        cursor=message.cursor,
        state=message.state,
        hops=tuple(message.hops),
        deadline_ms=message.deadline_ms,
        outcome=outcome,
        reason=message.reason,
    )


def to_bytes(token: Token) -> bytes:
    """Return the bytes of a token's message."""
    return to_wire(token).SerializeToString()


def of_bytes(data: bytes, agreement: bytes) -> Token:
    """Return the token whose message these bytes are.

    Raises:
        UnexpectedMessage: they are none.
    """
    try:
        return of_wire(flow_pb2.Token.FromString(data), agreement)
    except DecodeError as error:
        raise UnexpectedMessage("a token does not parse") from error


def read_hop(envelope: bytes) -> flow_pb2.FlowHop:
    """Return what a hop says; its signature is not verified here.

    Raises:
        CertificateInvalid: it does not parse.
        EnvelopeError: it is no hop.
    """
    return parse_hop(read_payload(envelope, HOP_KIND))


def parse_hop(payload: bytes) -> flow_pb2.FlowHop:
    """Return the hop whose message these bytes are.

    Raises:
        CertificateInvalid: they are none.
    """
    try:
        return flow_pb2.FlowHop.FromString(payload)
    except DecodeError as error:
        raise CertificateInvalid("a hop does not parse") from error


def content_digest(token: Token) -> bytes:
    """Return what a hop commits to: SHA-256 over the lengths of cursor, state, outcome and reason, and these."""
    cursor, state, outcome, reason = token.cursor, token.state, token.outcome.encode(), token.reason.encode()
    lengths = _LENGTHS.pack(len(cursor), len(state), len(outcome), len(reason))
    return sha256(b"".join((lengths, cursor, state, outcome, reason)))
