"""HTTP that has only one reading passes; all else is refused, and nothing of it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import PolicyDenied, ProtocolError
from comity_node.protocol.http_filter import (
    AnswerData,
    AnswerEnded,
    AnswerReader,
    AnswerStarted,
    ConnectionEnded,
    HttpLimits,
    RequestFilter,
    RequestReceived,
    RequestRefused,
)

BODY = b"\x0a\x02\x08\x01"
PATH = "/v1/fleet/pull-messages"


def request(
    path: str = PATH, *, method: str = "POST", version: str = "HTTP/1.1", body: bytes = BODY, **headers: str
) -> bytes:
    fields = {
        "Host": "127.0.0.1",
        "Content-Type": "application/protobuf",
        "Content-Length": str(len(body)),
        "Accept": "application/protobuf",
        "User-Agent": "python-httpx/0.28",
        "flwr-public-key": "S0VZ",
    }
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refused(data: bytes, limits: HttpLimits | None = None) -> RequestRefused:
    event = RequestFilter(limits).receive_data(data)
    assert isinstance(event, RequestRefused)
    assert event.reply.startswith(f"HTTP/1.1 {event.status} ".encode())
    assert b"connection: close" in event.reply
    return event


def test_a_call_of_a_supernode_passes_with_the_headers_that_mean_something() -> None:
    event = RequestFilter().receive_data(request())
    assert event == RequestReceived(
        PATH,
        {"content-type": "application/protobuf", "accept": "application/protobuf", "flwr-public-key": "S0VZ"},
        BODY,
    )


@pytest.mark.parametrize("cut", [1, 3, 17, 60, 200])
def test_it_does_not_matter_how_the_bytes_are_cut(cut: int) -> None:
    http, data = RequestFilter(), request()
    events = [http.receive_data(data[at : at + cut]) for at in range(0, len(data), cut)]
    assert [event for event in events if event] == [RequestFilter().receive_data(data)]


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/push-messages",
        "/health",
        "/",
        "*",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet//pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages#x",
        "/v1/fleet/Pull-Messages",
        "/v1/fleet/pull%2dmessages",
        "//127.0.0.1/v1/fleet/pull-messages",
        "http://127.0.0.1:9/v1/fleet/pull-messages",
        "127.0.0.1:80",
        "/v1/fleet/pull-messages\\..\\x",
    ],
)
def test_other_paths_are_forbidden(path: str) -> None:
    event = refused(request(path))
    assert (event.status, event.code) == (403, "policy_denied")


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "CONNECT", "HEAD", "PATCH"])
def test_other_methods_are_forbidden(method: str) -> None:
    assert refused(request(method=method)).status == 403


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(Transfer_Encoding="chunked"), 400),
        (request(Content_Length="", Transfer_Encoding="chunked", body=b"4\r\nabcd\r\n0\r\n\r\n"), 400),
        (request(Content_Encoding="gzip"), 400),
        (request(Expect="100-continue"), 400),
        (request(Upgrade="h2c"), 400),
        (request(Connection="upgrade"), 400),
        (request(Connection="close, content-length"), 400),
        (request(Host=""), 400),
        (request(Content_Type="application/json"), 415),
        (request(Content_Length=""), 411),
        (request(Content_Length="-1"), 411),
        (request(Content_Length="+4"), 411),
        (request(Content_Length="4, 4"), 411),
        (request(Content_Length="0x4"), 411),
        (request(Content_Length="99999999999"), 411),
        (request(Content_Length="999999999"), 413),
        (request(version="HTTP/1.0"), 400),
        (request(version="HTTP/2"), 400),
        (request().replace(b"Host:", b"Content-Length: 4\r\nHost:"), 400),
        (request().replace(b"Host:", b"content-length: 5\r\nHost:"), 400),
        (request().replace(b"Host:", b"flwr-public-key: WA==\r\nHost:"), 400),
        (request().replace(b"Host:", b"Host : x\r\nHost:"), 400),
        (request().replace(b"\r\nHost:", b"\nHost:"), 400),
        (request().replace(b"\r\nHost:", b"\r\n Host:"), 400),
        (request().replace(b"Host: ", b"Host: \x00"), 400),
        (request().replace(b"Host: ", b"Host: x\ry"), 400),
        (request().replace(b"POST ", b"POST  "), 400),
        (request().replace(b"POST ", b"\r\nPOST "), 400),
        (request() + request(), 400),
        (request() + b"x", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20) + b"\r\n\r\n", 400),
    ],
)
def test_what_readers_disagree_about_is_refused(data: bytes, status: int) -> None:
    assert refused(data).status == status


@pytest.mark.invariant("S7")
def test_heads_and_bodies_are_bounded() -> None:
    small = HttpLimits(head=512, body=10)
    assert refused(b"POST " + b"x" * 600, small).status == 431
    assert refused(request(flwr_signature="x" * 600), small).status == 431
    assert refused(request(body=bytes(11)), small).status == 413
    http = RequestFilter(small)
    for _ in range(511):
        assert http.receive_data(b"x") is None
    assert isinstance(http.receive_data(b"x"), RequestRefused)


def test_after_a_refusal_nothing_is_read() -> None:
    http = RequestFilter()
    assert isinstance(http.receive_data(b"\r\n\r\n"), RequestRefused)
    assert http.is_over
    assert http.receive_data(request()) is None


def test_a_request_while_another_is_answered_is_refused() -> None:
    http = RequestFilter()
    http.receive_data(request())
    assert isinstance(http.receive_data(request()), RequestRefused)


def test_requests_follow_each_other_on_one_connection() -> None:
    http = RequestFilter()
    for _ in range(3):
        assert isinstance(http.receive_data(request()), RequestReceived)
        answer = http.start_answer(200, {"content-type": "application/protobuf"}, 2) + http.answer_data(b"ok")
        assert (answer + http.end_answer()).endswith(b"\r\n\r\nok")
    assert http.receive_data(b"") == ConnectionEnded()


def test_a_connection_that_is_to_close_is_over_after_its_answer() -> None:
    http = RequestFilter()
    http.receive_data(request(Connection="close"))
    http.start_answer(200, {}, 0)
    http.end_answer()
    assert http.is_over


def test_an_end_within_a_request_is_refused() -> None:
    http = RequestFilter()
    http.receive_data(request()[:-1])
    assert isinstance(http.receive_data(b""), RequestRefused)


def test_what_lies_beyond_http_can_refuse_too() -> None:
    http = RequestFilter()
    http.receive_data(request())
    assert http.refuse(403, PolicyDenied("not you")).reply.endswith(b"policy_denied: not you\n")


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_garbage_ends_in_one_refusal(pieces: list[bytes]) -> None:
    http = RequestFilter()
    events = [http.receive_data(piece) for piece in pieces]
    assert not any(isinstance(event, RequestReceived) for event in events)
    assert sum(event is not None for event in events) <= 1


@given(st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_a_damaged_request_is_read_in_one_way_or_refused(at: int, damage: bytes) -> None:
    data = request()
    event = RequestFilter().receive_data(data[:at] + damage + data[at:])
    if isinstance(event, RequestReceived):
        assert event.path.startswith("/v1/fleet/")
        assert len(event.body) == len(BODY)


def reader(limits: HttpLimits | None = None) -> AnswerReader:
    one = AnswerReader(RequestReceived(PATH, {"flwr-public-key": "S0VZ"}, BODY), "127.0.0.1", limits)
    sent = one.send(keep_alive=True)
    again = RequestFilter().receive_data(
        sent.replace(b"content-length", b"content-type: application/protobuf\r\ncontent-length")
    )
    assert again == RequestReceived(PATH, {"flwr-public-key": "S0VZ", "content-type": "application/protobuf"}, BODY)
    return one


def test_an_answer_passes_with_the_headers_that_mean_something() -> None:
    data = b"HTTP/1.1 200 OK\r\ncontent-type: a\r\nset-cookie: x\r\nlocation: /\r\ncontent-length: 2\r\n\r\nok"
    assert reader().receive_data(data) == [
        AnswerStarted(200, {"content-type": "a"}, 2),
        AnswerData(b"ok"),
        AnswerEnded(keep_alive=True),
    ]


def test_an_answer_in_chunks_passes() -> None:
    data = b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    events = reader().receive_data(data)
    assert events[0] == AnswerStarted(503, {}, None)
    assert events[-1] == AnswerEnded(keep_alive=False)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 307 Elsewhere\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:22/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_not_passed_on(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        reader().receive_data(data)


@pytest.mark.invariant("S7")
def test_an_answer_without_an_end_is_cut() -> None:
    one = reader(HttpLimits(answer=1000))
    one.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(62):
        one.receive_data(b"10\r\n" + bytes(16) + b"\r\n")
    with pytest.raises(ProtocolError):
        one.receive_data(b"10\r\n" + bytes(16) + b"\r\n")
