"""Fuzzes the HTTP of a tunnel: what a filter lets pass, and what it reads of answers.

The first byte says into how long pieces a network cuts the rest.

Run: python -m fuzz.run http
"""

from __future__ import annotations

from comity.errors import ComityError
from comity_node.protocol.fleet import read_call
from comity_node.protocol.http_filter import (
    AnswerReader,
    ConnectionEnded,
    HttpLimits,
    RequestFilter,
    RequestReceived,
    RequestRefused,
)

_LIMITS = HttpLimits(head=1024, body=2048, answer=2048)
_HEAD = (
    b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: a\r\nContent-Type: application/protobuf\r\n"
    b"flwr-public-key: AAAA\r\nContent-Length: "
)
_ASKED = RequestReceived("/v1/fleet/pull-messages", {"content-type": "application/protobuf"}, b"\x0a\x02\x08\x01")

#: Where a fuzzer begins.
SEEDS = (
    b"\xff" + _HEAD + b"4\r\n\r\n\x0a\x02\x08\x01",
    b"\x05" + _HEAD + b"0\r\n\r\n",
    b"\xff" + _HEAD.replace(b"POST", b"GET") + b"0\r\n\r\n",
    b"\xff" + _HEAD + b"4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"\x10HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"\xffHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
)


def one(data: bytes) -> None:
    """Read the bytes as requests and as an answer; raises only if something is wrong."""
    if not data:
        return
    cut, stream = data[0] + 1, data[1:]
    pieces = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    passed = _requests(pieces)
    assert _requests([stream] if stream else []) == passed or not _is_one_request(passed), "cuts change what passes"
    _answer(pieces)


def _requests(pieces: list[bytes]) -> list[RequestReceived]:
    """What a filter lets pass; each is answered before the next piece comes."""
    side, passed = RequestFilter(_LIMITS), list[RequestReceived]()
    for piece in [*pieces, b""]:
        event = side.receive_data(piece)
        if isinstance(event, RequestReceived):
            assert event.path.startswith("/v1/fleet/")
            assert len(event.body) <= _LIMITS.body
            _written_again(event)
            passed.append(event)
            side.start_answer(200, {"content-type": "application/protobuf"}, 0)
            side.end_answer()
        elif isinstance(event, RequestRefused):
            assert 400 <= event.status < 500
            assert event.reply.startswith(b"HTTP/1.1 %d " % event.status)
        if side.is_over:
            assert isinstance(event, RequestRefused | ConnectionEnded | RequestReceived)
            break
    return passed


def _is_one_request(passed: list[RequestReceived]) -> bool:
    """A second request behind the first is refused in one piece, and taken in several."""
    return len(passed) <= 1


def _written_again(request: RequestReceived) -> None:
    """What passes is written anew, and means the same to another filter."""
    sent = AnswerReader(request, "127.0.0.1", _LIMITS).send(keep_alive=True)
    again = RequestFilter(HttpLimits(head=4096, body=_LIMITS.body)).receive_data(sent)
    assert again == request
    try:
        read_call(request.path, request.headers, request.body)
    except ComityError:
        pass


def _answer(pieces: list[bytes]) -> None:
    reader = AnswerReader(_ASKED, "127.0.0.1", _LIMITS)
    reader.send(keep_alive=True)
    try:
        for piece in [*pieces, b""]:
            reader.receive_data(piece)
    except ComityError:
        pass
