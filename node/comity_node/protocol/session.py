"""One stream between two nodes as a state machine: bytes in, frozen events out, with no I/O.

A stream has an opener and an acceptor. Both present themselves and judge the other before anything else:

1. the opener sends HELLO;
2. the acceptor verifies it, and answers with its own HELLO (which says: accepted) or with a refusal;
3. the opener verifies that, and answers ACCEPT or a refusal.

Then, on a *messages* stream, the opener sends REQUESTs and the acceptor answers each with a RESPONSE or an
ERROR, in any order; PING and PONG are signs of life; GOAWAY ends a stream in good order. On a *tunnel*
stream the opener names a tunnel and, once accepted, the stream is raw bytes both ways.

What may come and go in which state is one table, `session_states.TRANSITIONS`. Whatever is not in it is a
`ProtocolError`, after which the session is closed and the peer has been told why.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf.message import DecodeError

from comity.errors import Busy, FrameTooLarge, LinkClosed, ProtocolError, UnexpectedMessage
from comity.v1 import link_pb2
from comity_node.protocol.framing import PREFIX_BYTES, FrameDecoder, encode_frame
from comity_node.protocol.session_events import (
    ErrorReceived,
    Established,
    Event,
    GoingAway,
    HelloReceived,
    PingReceived,
    PongReceived,
    Refused,
    RequestReceived,
    ResponseReceived,
    TunnelAsked,
    TunnelOpened,
)
from comity_node.protocol.session_states import HANDSHAKE, TRANSITIONS, Frame, Role, Service, State, Step

_ID = struct.Struct(">Q")
_ERROR = struct.Struct(">QIB")
_MAX_CODE = 64
_MAX_TEXT = 512
_MAX_TUNNEL_NAME = 128


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session takes from a peer, and sends.

    Attributes:
        max_hello: bytes of a frame before both sides have accepted each other.
        max_payload: bytes of a request or a response.
        max_outstanding: requests without an answer, in the one direction that a stream has.
    """

    max_hello: int = 64 * 1024
    max_payload: int = 4 * 1024 * 1024
    max_outstanding: int = 256

    @property
    def max_frame(self) -> int:
        """The largest frame of an open session: type, the longest header, and a payload."""
        return 1 + max(self.max_payload + _ID.size, _ERROR.size + _MAX_CODE + 4 * _MAX_TEXT)


class Session:
    """One end of one stream. Feed it what comes, send what `data_to_send` returns."""

    __slots__ = (
        "_decoder",
        "_last_id",
        "_out",
        "_outstanding",
        "_ping",
        "_role",
        "_service",
        "_state",
        "_table",
        "limits",
        "pending_bytes",
    )

    def __init__(self, role: Role, service: Service, limits: SessionLimits | None = None) -> None:
        """Start a session in which nothing has been said."""
        self.limits = limits or SessionLimits()
        #: Bytes that wait in `data_to_send`.
        self.pending_bytes = 0
        self._role, self._service = role, service
        self._table = TRANSITIONS[role, service]
        self._state = State.START
        self._decoder = FrameDecoder(self.limits.max_hello)
        self._out: deque[bytes] = deque()
        self._outstanding: set[int] = set()
        self._last_id = 0
        self._ping: int | None = None

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._state

    @property
    def outstanding(self) -> int:
        """Requests that have no answer yet, also if nobody waits any more: the peer still works on them."""
        return len(self._outstanding)

    # What we say.

    def greet(self, hello: bytes) -> None:
        """Present ourselves; as the acceptor this also says that we accept the opener.

        Args:
            hello: an encoded `comity.v1.Hello`.

        Raises:
            FrameTooLarge: the Hello is over `max_hello`.
        """
        if 1 + len(hello) > self.limits.max_hello:
            raise FrameTooLarge(f"our Hello of {len(hello)} bytes is over the limit of {self.limits.max_hello}")
        self._send(Step.SEND_HELLO, Frame.HELLO, hello)

    def accept(self) -> None:
        """As the opener: accept the acceptor's Hello. The session is open from here on."""
        self._send(Step.SEND_ACCEPT, Frame.HELLO_ANSWER, b"")
        self._opened()

    def refuse(self, code: str, reason: str) -> None:
        """Refuse the peer's Hello and close."""
        self._send(Step.SEND_REFUSE, Frame.HELLO_ANSWER, _verdict(code, reason))

    def request(self, payload: bytes) -> int:
        """Send a request.

        Returns:
            Its id, which the answer carries.

        Raises:
            FrameTooLarge: the payload is over `max_payload`.
            Busy: `max_outstanding` requests have no answer yet.
            LinkClosed: the session is closed or draining.
        """
        self._check_payload(payload)
        if len(self._outstanding) >= self.limits.max_outstanding:
            raise Busy(f"{len(self._outstanding)} requests wait for this peer already", retry_after_ms=100)
        request_id = self._last_id + 1
        self._send(Step.SEND_REQUEST, Frame.REQUEST, _ID.pack(request_id), payload)
        self._last_id = request_id
        self._outstanding.add(request_id)
        return request_id

    def respond(self, request_id: int, payload: bytes) -> None:
        """Answer a request.

        Raises:
            FrameTooLarge: the payload is over `max_payload`; answer with an error instead.
            UnexpectedMessage: there is no such request without an answer.
        """
        self._check_payload(payload)
        self._settle(request_id)
        self._send(Step.SEND_ANSWER, Frame.RESPONSE, _ID.pack(request_id), payload)

    def respond_error(self, request_id: int, code: str, text: str, *, retry_after_ms: int = 0) -> None:
        """Answer a request with an error.

        Raises:
            UnexpectedMessage: there is no such request without an answer.
        """
        self._settle(request_id)
        code_bytes = code.encode("ascii", "replace")[:_MAX_CODE]
        head = _ERROR.pack(request_id, min(max(retry_after_ms, 0), 0xFFFFFFFF), len(code_bytes))
        self._send(Step.SEND_ANSWER, Frame.ERROR, head, code_bytes, text[:_MAX_TEXT].encode("utf-8", "replace"))

    def ping(self, nonce: int) -> None:
        """Ask for a sign of life; one at a time."""
        if self._ping is not None:
            raise UnexpectedMessage("a ping is under way already")
        self._send(Step.SEND_PING, Frame.PING, _ID.pack(nonce))
        self._ping = nonce

    def go_away(self, code: str, reason: str) -> None:
        """Say that no more requests are made or taken here."""
        self._send(Step.SEND_GOAWAY, Frame.GOAWAY, _verdict(code, reason))

    def open_tunnel(self, name: str) -> None:
        """As the opener: ask for the tunnel of this name."""
        self._send(Step.SEND_TUNNEL_OPEN, Frame.TUNNEL_OPEN, link_pb2.TunnelOpen(name=name).SerializeToString())

    def accept_tunnel(self) -> bytes:
        """As the acceptor: accept the tunnel. Returns raw bytes that have already come."""
        self._send(Step.SEND_TUNNEL_ACCEPT, Frame.TUNNEL_ANSWER, b"")
        return self._decoder.take_rest()

    def refuse_tunnel(self, code: str, reason: str) -> None:
        """As the acceptor: refuse the tunnel and close."""
        self._send(Step.SEND_TUNNEL_REFUSE, Frame.TUNNEL_ANSWER, _verdict(code, reason))

    def data_to_send(self, at_least: int = 256 * 1024) -> bytes:
        """Return and forget what is to be sent: whole frames, until they are `at_least` bytes or all."""
        taken: list[bytes] = []
        size = 0
        while self._out and size < at_least:
            frame = self._out.popleft()
            taken.append(frame)
            size += len(frame)
        self.pending_bytes -= size
        return taken[0] if len(taken) == 1 else b"".join(taken)

    # What we hear.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the stream and return what they mean.

        Raises:
            ProtocolError: the peer broke the protocol. The session is closed, and what `data_to_send`
                returns tells the peer why.
        """
        if self._state is State.CLOSED:
            return []
        events: list[Event] = []
        try:
            self._decoder.feed(data)
            while self._reads_frames() and (frame := self._decoder.next_frame()) is not None:
                events.extend(self._on_frame(*frame))
            if self._decoder.buffered > self.limits.max_frame + PREFIX_BYTES:
                raise FrameTooLarge("too many bytes for a tunnel that is not open yet")
        except ProtocolError as error:
            self._fail(error)
            raise
        return events

    def receive_eof(self) -> None:
        """The peer ends the stream.

        Raises:
            ProtocolError: in the middle of a frame.
        """
        if self._state is State.RAW:
            return
        self._state = State.CLOSED
        if self._decoder.buffered:
            raise ProtocolError("the stream ended in the middle of a frame")

    def _reads_frames(self) -> bool:
        # What comes while a tunnel is being decided on, or after it is open, is not frames any more.
        undecided = self._state is State.ASKING and self._role is Role.ACCEPTOR
        return not undecided and self._state not in (State.RAW, State.CLOSED)

    def _on_frame(self, frame_type: int, payload: bytes) -> list[Event]:
        handler = self._HANDLERS.get(frame_type)
        if handler is None:
            raise ProtocolError(f"a frame of unknown type {frame_type}")
        return handler(self, payload)

    def _on_hello(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_HELLO)
        return [HelloReceived(payload)]

    def _on_hello_answer(self, payload: bytes) -> list[Event]:
        code, reason = _read_verdict(payload)
        if code:
            self._step(Step.RECV_REFUSE)
            return [Refused(code, reason)]
        self._step(Step.RECV_ACCEPT)
        self._opened()
        return [Established()]

    def _on_request(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_REQUEST)
        request_id = _read_id(payload)
        if request_id <= self._last_id:
            raise UnexpectedMessage(f"request {request_id} comes after request {self._last_id}")
        if len(self._outstanding) >= self.limits.max_outstanding:
            raise UnexpectedMessage(f"more than {self.limits.max_outstanding} requests without an answer")
        if len(payload) - _ID.size > self.limits.max_payload:
            raise FrameTooLarge(f"a request of {len(payload) - _ID.size} bytes")
        self._last_id = request_id
        self._outstanding.add(request_id)
        return [RequestReceived(request_id, payload[_ID.size :])]

    def _on_response(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_ANSWER)
        request_id = _read_id(payload)
        self._answered(request_id)
        return [ResponseReceived(request_id, payload[_ID.size :])]

    def _on_error(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_ANSWER)
        if len(payload) < _ERROR.size:
            raise ProtocolError("a truncated error")
        request_id, retry_after_ms, code_length = _ERROR.unpack_from(payload)
        code_end = _ERROR.size + code_length
        if code_length > _MAX_CODE or len(payload) < code_end:
            raise ProtocolError("an error whose code does not fit")
        self._answered(request_id)
        code = _printable(payload[_ERROR.size : code_end].decode("ascii", "replace"), _MAX_CODE)
        text = _printable(payload[code_end : code_end + 4 * _MAX_TEXT].decode("utf-8", "replace"), _MAX_TEXT)
        return [ErrorReceived(request_id, code or "error", text, retry_after_ms)]

    def _on_ping(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_PING)
        self._send(Step.SEND_PONG, Frame.PONG, _ID.pack(_read_id(payload, exact=True)))
        return [PingReceived()]

    def _on_pong(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_PONG)
        nonce = _read_id(payload, exact=True)
        if nonce != self._ping:
            raise UnexpectedMessage("a pong that answers no ping")
        self._ping = None
        return [PongReceived(nonce)]

    def _on_goaway(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_GOAWAY)
        return [GoingAway(*_read_verdict(payload))]

    def _on_tunnel_open(self, payload: bytes) -> list[Event]:
        self._step(Step.RECV_TUNNEL_OPEN)
        try:
            name = link_pb2.TunnelOpen.FromString(payload).name
        except DecodeError as error:
            raise ProtocolError("a malformed TunnelOpen") from error
        if not name or len(name) > _MAX_TUNNEL_NAME or not name.isprintable():
            raise ProtocolError(f"a tunnel's name has 1 to {_MAX_TUNNEL_NAME} printable characters")
        return [TunnelAsked(name)]

    def _on_tunnel_answer(self, payload: bytes) -> list[Event]:
        code, reason = _read_verdict(payload)
        if code:
            self._step(Step.RECV_TUNNEL_REFUSE)
            return [Refused(code, reason)]
        self._step(Step.RECV_TUNNEL_ACCEPT)
        return [TunnelOpened(self._decoder.take_rest())]

    _HANDLERS: ClassVar[dict[int, Callable[[Session, bytes], list[Event]]]] = {
        Frame.HELLO: _on_hello,
        Frame.HELLO_ANSWER: _on_hello_answer,
        Frame.REQUEST: _on_request,
        Frame.RESPONSE: _on_response,
        Frame.ERROR: _on_error,
        Frame.PING: _on_ping,
        Frame.PONG: _on_pong,
        Frame.GOAWAY: _on_goaway,
        Frame.TUNNEL_OPEN: _on_tunnel_open,
        Frame.TUNNEL_ANSWER: _on_tunnel_answer,
    }

    def _opened(self) -> None:
        self._decoder.limit = self.limits.max_frame

    def _step(self, step: Step) -> None:
        state = self._table.get((self._state, step))
        if state is None:
            raise UnexpectedMessage(f"{step.name.lower()} makes no sense when {self._state.name.lower()}")
        self._state = state

    def _send(self, step: Step, frame: Frame, *parts: bytes) -> None:
        if self._state in (State.CLOSED, State.DRAINING) and (self._state, step) not in self._table:
            raise LinkClosed("the link is going away" if self._state is State.DRAINING else "the link is closed")
        self._step(step)
        self._queue(frame, *parts)

    def _queue(self, frame: Frame, *parts: bytes) -> None:
        data = encode_frame(frame, *parts)
        self._out.append(data)
        self.pending_bytes += len(data)

    def _fail(self, error: ProtocolError) -> None:
        frame = Frame.HELLO_ANSWER if self._state in HANDSHAKE else Frame.GOAWAY
        self._queue(frame, _verdict(error.code, str(error)))
        self._state = State.CLOSED

    def _answered(self, request_id: int) -> None:
        if request_id not in self._outstanding:
            raise UnexpectedMessage(f"an answer to request {request_id}, which waits for none")
        self._outstanding.remove(request_id)

    def _settle(self, request_id: int) -> None:
        if self._state is State.CLOSED:
            raise LinkClosed("the link is closed")
        if request_id not in self._outstanding:
            raise UnexpectedMessage(f"request {request_id} waits for no answer")
        self._outstanding.remove(request_id)

    def _check_payload(self, payload: bytes) -> None:
        if len(payload) > self.limits.max_payload:
            raise FrameTooLarge(f"a payload of {len(payload)} bytes is over the limit of {self.limits.max_payload}")


def _printable(text: str, limit: int) -> str:
    """Text of a peer for a person's terminal or log: one line, no control characters."""
    return "".join(character if character.isprintable() else " " for character in text[:limit])


def _verdict(code: str, reason: str) -> bytes:
    # HelloAnswer and TunnelAnswer have the same two fields.
    text = reason[:_MAX_TEXT].encode("utf-8", "replace").decode()  # lone surrogates are no protobuf string
    return link_pb2.HelloAnswer(code=code or "refused", reason=text).SerializeToString()


def _read_verdict(payload: bytes) -> tuple[str, str]:
    try:
        answer = link_pb2.HelloAnswer.FromString(payload)
    except DecodeError as error:
        raise ProtocolError("a malformed answer") from error
    return _printable(answer.code, _MAX_CODE), _printable(answer.reason, _MAX_TEXT)


def _read_id(payload: bytes, *, exact: bool = False) -> int:
    if len(payload) < _ID.size or (exact and len(payload) != _ID.size):
        raise ProtocolError("a truncated frame")
    return int(_ID.unpack_from(payload)[0])
