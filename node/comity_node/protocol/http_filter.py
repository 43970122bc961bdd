"""HTTP/1.1 of a SuperNode, terminated: bytes in, events out (RFC 9112, by h11, on the narrow part that Flower uses).

The two ends of a tunnel do not copy bytes: each reads a whole request, and writes a new one of its own making. What
HTTP implementations have disagreed about in the past is refused rather than understood: two lengths or none, chunked
requests, absolute or encoded targets, folded or repeated headers, bare line feeds, requests sent before the last one
is answered. A refusal is final: the connection ends with it.

Sans-IO: no socket, no clock, no random.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import h11

from comity.errors import ComityError, PolicyDenied, ProtocolError
from comity_node.protocol.fleet import PASSED_HEADERS, PREFIX

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,2048}) HTTP/1\.1")
_TARGET = re.compile(rf"{re.escape(PREFIX)}[a-z-]{{1,64}}".encode())
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}):[ ]?([ -~]*)")
_LENGTH = re.compile(rb"[0-9]{1,10}")
#: Headers by which two readers of one message can come to different ends of it.
_REFUSED_HEADERS = frozenset({b"transfer-encoding", b"content-encoding", b"upgrade", b"expect", b"trailer", b"te"})
_PASSED_REPLY_HEADERS = frozenset({b"content-type", b"flwr-version-incompatibility-message"})
_PROTOBUF = b"application/protobuf"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bytes that one request or answer may have. Flower cuts arrays into objects of 5 MiB."""

    head: int = 16 * 1024
    body: int = 8 * 1024 * 1024
    answer: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A complete request whose form is right: path, the headers that may pass (lower case), body."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """Nothing of the request passes; `reply` is the answer, after which the connection is closed."""

    status: int
    code: str
    reason: str
    reply: bytes


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """The other side has closed between two requests."""


FilterEvent = RequestReceived | RequestRefused | ConnectionEnded


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    OVER = auto()


class _Refusal(Exception):
    def __init__(self, status: int, error: ComityError) -> None:
        self.status, self.error = status, error
        super().__init__(str(error))


class RequestFilter:
    """The server's side of one connection.

    Feed it with `receive_data` until an event comes. After `RequestReceived`, answer with `start_answer`,
    `answer_data` and `end_answer`, and send what they return; then feed it again.
    """

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self._limits = limits or HttpLimits()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head + 1)
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._body = bytearray()
        self._request: h11.Request | None = None

    def receive_data(self, data: bytes) -> FilterEvent | None:
        """Take bytes of the peer, b"" for the end of its stream; return an event if there is one."""
        if self._state is _State.OVER:
            return None
        try:
            if not data:
                return self._end()
            if self._state is _State.ANSWERING:
                raise _bad("the next request came before the last one was answered")
            return self._advance(data)
        except _Refusal as refusal:
            return self._refused(refusal)
        except h11.RemoteProtocolError as error:
            return self._refused(_Refusal(400, ProtocolError(str(error))))

    def start_answer(self, status: int, headers: Mapping[str, str], length: int | None) -> bytes:
        """Return the head of an answer; without a length the body is sent in chunks."""
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        if length is not None:
            fields.append((b"content-length", str(length).encode()))
        return self._send(h11.Response(status_code=status, headers=fields))

    def answer_data(self, data: bytes) -> bytes:
        """Return a piece of the answer's body, framed."""
        return self._send(h11.Data(data=data))

    def end_answer(self) -> bytes:
        """Return the end of an answer; the next request may come then."""
        data = self._send(h11.EndOfMessage())
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._state = _State.HEAD
        else:
            self._state = _State.OVER
        return data

    @property
    def is_over(self) -> bool:
        """Whether no further request can come on this connection."""
        return self._state is _State.OVER

    def refuse(self, status: int, error: ComityError) -> RequestRefused:
        """Refuse the request that was received, for a reason that lies beyond HTTP."""
        return self._refused(_Refusal(status, error))

    def _send(self, event: h11.Event) -> bytes:
        try:
            return self._http.send(event) or b""
        except h11.LocalProtocolError as error:
            raise ProtocolError(f"the answer contradicts itself: {error}") from error

    def _advance(self, data: bytes) -> FilterEvent | None:
        if self._state is _State.HEAD:
            self._buffer += data
            end = self._buffer.find(_END, 0, self._limits.head)
            if end < 0:
                if len(self._buffer) >= self._limits.head:
                    raise _Refusal(431, ProtocolError(f"the request's head is over {self._limits.head} bytes"))
                return None
            head, data = bytes(self._buffer[: end + len(_END)]), bytes(self._buffer[end + len(_END) :])
            self._buffer.clear()
            _check_head(head, self._limits)
            self._http.receive_data(head)
            event = self._http.next_event()
            assert isinstance(event, h11.Request)
            self._request, self._state = event, _State.BODY
            self._body.clear()
        if data:
            self._http.receive_data(data)
        return self._read_body()

    def _read_body(self) -> FilterEvent | None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Data):
                self._body += event.data
                continue
            assert isinstance(event, h11.EndOfMessage)
            if self._http.trailing_data[0]:
                raise _bad("a second request came behind the first before it was answered")
            assert self._request is not None
            self._state = _State.ANSWERING
            passed = {name.decode(): value.decode() for name, value in self._request.headers}
            headers = {name: value for name, value in passed.items() if name in PASSED_HEADERS}
            return RequestReceived(self._request.target.decode(), headers, bytes(self._body))

    def _end(self) -> FilterEvent:
        whole = self._state is _State.HEAD and not self._buffer
        if not whole:
            raise _bad("the connection ended within a request")
        self._state = _State.OVER
        return ConnectionEnded()

    def _refused(self, refusal: _Refusal) -> RequestRefused:
        self._state = _State.OVER
        error = refusal.error
        return RequestRefused(refusal.status, error.code, str(error), _reply(refusal.status, error))


class AnswerReader:
    """The client's side: writes one request, reads its answer."""

    def __init__(self, request: RequestReceived, host: str, limits: HttpLimits | None = None) -> None:
        self._limits = limits or HttpLimits()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.head)
        self._request = request
        self._host = host
        self._received = 0

    def send(self, *, keep_alive: bool) -> bytes:
        """Return the request's bytes: its own headers are made here."""
        headers = [
            (b"host", self._host.encode()),
            *((name.encode(), value.encode()) for name, value in self._request.headers.items()),
            (b"content-length", str(len(self._request.body)).encode()),
            (b"accept-encoding", b"identity"),
            (b"connection", b"keep-alive" if keep_alive else b"close"),
        ]
        head = self._http.send(h11.Request(method="POST", target=self._request.path, headers=headers)) or b""
        body = self._http.send(h11.Data(data=self._request.body)) or b""
        return head + body + (self._http.send(h11.EndOfMessage()) or b"")

    def receive_data(self, data: bytes) -> list[AnswerEvent]:
        """Take bytes of the server, b"" for the end of its stream.

        Raises:
            ProtocolError: it is no answer to a Fleet call, or too large. A redirect is none: the SuperNode would
                follow it to wherever it points.
        """
        events: list[AnswerEvent] = []
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    return events
                events.append(self._translate(event))
        except h11.RemoteProtocolError as error:
            raise ProtocolError(f"not an HTTP answer: {error}") from error

    def _translate(self, event: object) -> AnswerEvent:
        if isinstance(event, h11.Response):
            status = event.status_code
            if not (status == 200 or 400 <= status < 600):
                raise ProtocolError(f"status {status} is no answer to a Fleet call")
            headers = {n.decode(): v.decode("latin-1") for n, v in event.headers if n in _PASSED_REPLY_HEADERS}
            lengths = [int(value) for name, value in event.headers if name == b"content-length"]
            length = lengths[0] if lengths else None
            if length is not None and length > self._limits.answer:
                raise ProtocolError(f"an answer of {length} bytes is over the limit")
            return AnswerStarted(status, headers, length)
        if isinstance(event, h11.Data):
            self._received += len(event.data)
            if self._received > self._limits.answer:
                raise ProtocolError("the answer is over the limit")
            return AnswerData(bytes(event.data))
        if isinstance(event, h11.EndOfMessage):
            if self._http.trailing_data[0]:
                raise ProtocolError("more came behind the answer")
            return AnswerEnded(keep_alive=self._http.their_state is h11.DONE and self._http.our_state is h11.DONE)
        raise ProtocolError("an interim answer is no answer to a Fleet call")


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """Status, the headers that may pass, and the body's length if it is known."""

    status: int
    headers: Mapping[str, str]
    length: int | None


@dataclass(frozen=True, slots=True)
class AnswerData:
    """A piece of the body."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """The answer is complete; with `keep_alive` the connection takes another request."""

    keep_alive: bool


AnswerEvent = AnswerStarted | AnswerData | AnswerEnded


def _check_head(head: bytes, limits: HttpLimits) -> None:
    """Check the head line by line, before and apart from h11: only one reading of it is possible."""
    lines = head[: -len(_END)].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise _bad("the request line is malformed")
    if match[1] != b"POST" or not _TARGET.fullmatch(match[2]):
        raise _Refusal(403, PolicyDenied("only Flower's Fleet API passes this tunnel"))
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise _bad("a header line is malformed")
        name = field[1].lower()
        if name in headers:
            raise _bad(f"the header {name.decode()} comes twice")
        headers[name] = field[2].strip()
    _check_headers(headers, limits)


def _check_headers(headers: Mapping[bytes, bytes], limits: HttpLimits) -> None:
    refused = _REFUSED_HEADERS & headers.keys()
    if refused:
        raise _bad(f"the header {min(refused).decode()} is not used by Flower")
    if headers.get(b"connection", b"keep-alive").lower() not in (b"keep-alive", b"close"):
        raise _bad("the header connection names other headers")
    if b"host" not in headers:
        raise _bad("the request has no host")
    if headers.get(b"content-type") != _PROTOBUF:
        raise _Refusal(415, ProtocolError("a Fleet call is application/protobuf"))
    length = headers.get(b"content-length", b"")
    if not _LENGTH.fullmatch(length):
        raise _Refusal(411, ProtocolError("a Fleet call says how long its body is"))
    if int(length) > limits.body:
        raise _Refusal(413, ProtocolError(f"a body of {int(length)} bytes is over the limit of {limits.body}"))


def _bad(reason: str) -> _Refusal:
    return _Refusal(400, ProtocolError(reason))


def _reply(status: int, error: ComityError) -> bytes:
    body = f"{error.code}: {error}\n".encode("ascii", "replace")
    head = (
        f"HTTP/1.1 {status} Refused\r\ncontent-type: text/plain\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
