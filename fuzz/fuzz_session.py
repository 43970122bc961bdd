"""Fuzzes the session: whatever a peer says, and in whatever pieces, means the same and stays within its bounds.

Run: python -m fuzz.run session
"""

from __future__ import annotations

import struct

from comity.errors import ProtocolError
from comity_node.protocol.framing import encode_frame
from comity_node.protocol.session import Session, SessionLimits
from comity_node.protocol.session_events import Event, TunnelAsked, TunnelOpened
from comity_node.protocol.session_states import Frame, Role, Service, State

LIMITS = SessionLimits(max_hello=200, max_payload=300, max_outstanding=4, max_outstanding_bytes=500, max_credit=1000)
_TUNNEL_EVENTS = (TunnelAsked, TunnelOpened)
_ACCEPTED = encode_frame(Frame.HELLO_ANSWER)
_HELLO = encode_frame(Frame.HELLO, b"hello")


def _call(kind: Frame, request_id: int, rest: bytes = b"") -> bytes:
    return encode_frame(kind, struct.pack(">QI", request_id, 1000), rest)


def _id(kind: Frame, request_id: int, rest: bytes = b"") -> bytes:
    return encode_frame(kind, struct.pack(">Q", request_id), rest)


#: Bits of the first byte: the opener's end; a tunnel; nothing has been said yet. The rest: how long pieces are.
_OPENER, _TUNNEL, _FRESH = 1, 2, 4
#: Where a fuzzer begins.
SEEDS = (
    b"\x00" + _call(Frame.REQUEST, 1, b"ask") + _call(Frame.NOTIFY, 2, b"tell"),
    b"\x00" + _call(Frame.STREAM, 1, struct.pack(">II", 2, 50)) + _id(Frame.CANCEL, 1) + _id(Frame.CANCEL, 1),
    b"\x08" + _id(Frame.PING, 7) + encode_frame(Frame.GOAWAY, b"\x0a\x03bye") + _call(Frame.REQUEST, 1) + _HELLO,
    b"\x10" + b"".join(_call(Frame.NOTIFY, number, bytes(200)) for number in range(1, 9)),
    b"\x18" + b"".join(_call(Frame.STREAM, number, struct.pack(">II", 1, 1)) for number in range(1, 9)),
    b"\x00" + _call(Frame.STREAM, 1, bytes(7) + b"\x01") + _id(Frame.CREDIT, 1, struct.pack(">II", 2**32 - 1, 1)),
    b"\x00" + _call(Frame.REQUEST, 2**64 - 1),
    b"\x01" + _id(Frame.RESPONSE, 1, b"answer") + _id(Frame.ITEM, 2, b"item") + _id(Frame.END, 2),
    b"\x09" + encode_frame(Frame.ERROR, struct.pack(">QIB", 1, 5, 4) + b"codetext") + _id(Frame.RESPONSE, 1),
    b"\x11" + encode_frame(Frame.SETTLED, struct.pack(">II", 1, 4)) + _id(Frame.PONG, 7) + _id(Frame.PONG, 7),
    b"\x01" + _id(Frame.ITEM, 2, bytes(60)) + _id(Frame.ITEM, 2) + _id(Frame.ITEM, 2),
    b"\x02" + encode_frame(Frame.TUNNEL_OPEN, b"\x0a\x01x") + b"raw bytes",
    b"\x03" + encode_frame(Frame.TUNNEL_ANSWER) + b"raw bytes",
    b"\x0b" + encode_frame(Frame.TUNNEL_ANSWER, b"\x0a\x02no") + b"raw bytes",
    b"\x04" + _HELLO + _ACCEPTED,
    b"\x05" + _HELLO + _HELLO,
    b"\x06" + _HELLO,
    b"\x00\xff\xff\xff\xff",
    b"\x00\x00\x00\x00\x00",
)


def one(data: bytes) -> None:
    """Feed what follows the first byte to one end of a stream, at once and in pieces."""
    how, said = (data[0], data[1:]) if data else (0, b"")
    size = 1 + (how >> 3) % 11
    whole = _hear(_session(how), [said])
    pieces = _hear(_session(how), [said[at : at + size] for at in range(0, len(said), size)])
    assert whole[0] == pieces[0], (whole, pieces)
    if not whole[0]:  # else what came in one piece with the fault is not told
        assert whole == pieces, (whole, pieces)


def _session(how: int) -> Session:
    """One end of a stream; if it is open, something is outstanding on it."""
    service = Service.TUNNEL if how & _TUNNEL else Service.MESSAGES
    opener, acceptor = Session(Role.OPENER, service, LIMITS), Session(Role.ACCEPTOR, service, LIMITS)
    if not how & _FRESH:
        opener.greet(b"hello")
        acceptor.receive(opener.data_to_send())
        acceptor.greet(b"hello")
        opener.receive(acceptor.data_to_send())
        opener.accept()
        acceptor.receive(opener.data_to_send())
        if service is Service.TUNNEL:
            opener.open_tunnel("x")
        else:
            opener.request(b"ask")
            opener.stream(b"list", 2, 50)
            opener.notify(b"tell")
            opener.ping(7)
    elif how & _OPENER:
        opener.greet(b"hello")
    session = opener if how & _OPENER else acceptor
    session.data_to_send()
    return session


def _hear(session: Session, pieces: list[bytes]) -> tuple[str, list[Event], bytes, State]:
    """How it failed, what was understood, what became raw bytes, and where it ended."""
    events: list[Event] = []
    raw = b""
    for number, piece in enumerate(pieces):
        try:
            events += session.receive(piece)
        except ProtocolError as error:
            assert session.state is State.CLOSED
            assert session.receive(_HELLO) == []
            return type(error).__name__, [], b"", session.state
        _check(session)
        if session.state in (State.ASKING, State.RAW) and events and isinstance(events[-1], _TUNNEL_EVENTS):
            last = events.pop()
            raw = last.rest if isinstance(last, TunnelOpened) else session.accept_tunnel()
            raw += b"".join(pieces[number + 1 :])
            break
    return "", events, raw, session.state


def _check(session: Session) -> None:
    assert session.outstanding <= LIMITS.max_outstanding
    assert session.streams <= session.outstanding
    assert session.pending_bytes == len(session.data_to_send())
    assert session.pending_bytes == 0
