"""The session: scenarios of two ends, and every step that the table does not allow."""

from __future__ import annotations

import pytest

from comity.errors import Busy, FrameTooLarge, LinkClosed, ProtocolError, UnexpectedMessage
from comity_node.protocol import session_events as ev
from comity_node.protocol.framing import PREFIX_BYTES, encode_frame
from comity_node.protocol.session import MAX_DEADLINE_MS, Session, SessionLimits
from comity_node.protocol.session_states import TRANSITIONS, Frame, Role, Service, State, Step, staying

LIMITS = SessionLimits(max_hello=1000, max_payload=5000, max_outstanding=3)


def pair(service: Service = Service.MESSAGES, limits: SessionLimits = LIMITS) -> tuple[Session, Session]:
    return Session(Role.OPENER, service, limits), Session(Role.ACCEPTOR, service, limits)


def move(source: Session, target: Session) -> list[ev.Event]:
    return target.receive(source.data_to_send())


def opened(service: Service = Service.MESSAGES, limits: SessionLimits = LIMITS) -> tuple[Session, Session]:
    opener, acceptor = pair(service, limits)
    opener.greet(b"opener")
    assert move(opener, acceptor) == [ev.HelloReceived(b"opener")]
    acceptor.greet(b"acceptor")
    assert move(acceptor, opener) == [ev.HelloReceived(b"acceptor")]
    opener.accept()
    assert move(opener, acceptor) == [ev.Established()]
    assert opener.state is acceptor.state is State.OPEN
    return opener, acceptor


def wire(kind: int, payload: bytes = b"") -> bytes:
    return encode_frame(kind, payload)


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def call(value: int, deadline_ms: int = 1000) -> bytes:
    return number(value) + deadline_ms.to_bytes(4, "big")


def test_requests_are_answered_in_any_order() -> None:
    opener, acceptor = opened()
    first, second = opener.request(b"one", 700), opener.request(b"two", 800)
    assert move(opener, acceptor) == [ev.RequestReceived(first, 700, b"one"), ev.RequestReceived(second, 800, b"two")]
    acceptor.respond(second, b"answer two")
    acceptor.respond_error(first, "policy_denied", "no", retry_after_ms=7)
    assert move(acceptor, opener) == [
        ev.ResponseReceived(second, b"answer two"),
        ev.ErrorReceived(first, "policy_denied", "no", 7),
    ]
    assert opener.outstanding == acceptor.outstanding == 0


def test_either_side_refuses_with_the_reason() -> None:
    opener, acceptor = pair()
    opener.greet(b"x")
    move(opener, acceptor)
    acceptor.refuse("wrong_epoch", "epoch 1; ours is 2")
    assert move(acceptor, opener) == [ev.Refused("wrong_epoch", "epoch 1; ours is 2")]
    assert opener.state is acceptor.state is State.CLOSED
    opener, acceptor = pair()
    opener.greet(b"x")
    move(opener, acceptor)
    acceptor.greet(b"y")
    move(acceptor, opener)
    opener.refuse("chain_invalid", "unknown root")
    assert move(opener, acceptor) == [ev.Refused("chain_invalid", "unknown root")]


@pytest.mark.invariant("S7")
def test_outstanding_requests_are_bounded_on_both_sides() -> None:
    opener, acceptor = opened()
    for _ in range(3):
        opener.request(b"")
    with pytest.raises(Busy):
        opener.request(b"")
    move(opener, acceptor)
    with pytest.raises(UnexpectedMessage, match="more than 3"):
        acceptor.receive(wire(Frame.REQUEST, call(4)))
    # One answer makes room for one request.
    opener, acceptor = opened()
    ids = [opener.request(b"") for _ in range(3)]
    move(opener, acceptor)
    acceptor.respond(ids[1], b"")
    move(acceptor, opener)
    opener.request(b"")
    assert len(move(opener, acceptor)) == 1


def test_a_drained_session_answers_what_is_outstanding_and_takes_no_more() -> None:
    opener, acceptor = opened()
    first = opener.request(b"before")
    move(opener, acceptor)
    crossing = opener.request(b"crossing")
    acceptor.go_away("shutting_down", "bye")
    assert move(acceptor, opener) == [ev.GoingAway("shutting_down", "bye")]
    with pytest.raises(LinkClosed, match="going away"):
        opener.request(b"after")
    assert move(opener, acceptor) == [ev.RequestReceived(crossing, MAX_DEADLINE_MS, b"crossing")]
    acceptor.respond(first, b"1")
    acceptor.respond(crossing, b"2")
    assert len(move(acceptor, opener)) == 2


def test_ping_and_pong() -> None:
    opener, acceptor = opened()
    opener.ping(77)
    with pytest.raises(UnexpectedMessage):
        opener.ping(78)
    assert move(opener, acceptor) == [ev.PingReceived()]
    assert move(acceptor, opener) == [ev.PongReceived(77)]
    opener.ping(78)
    with pytest.raises(UnexpectedMessage, match="answers no ping"):
        opener.receive(wire(Frame.PONG, number(77)))


@pytest.mark.invariant("S7")
def test_bytes_for_a_tunnel_that_is_not_open_yet_are_bounded() -> None:
    opener, acceptor = opened(Service.TUNNEL)
    opener.open_tunnel("flower")
    move(opener, acceptor)
    most = LIMITS.max_frame + PREFIX_BYTES
    assert acceptor.receive(bytes(most)) == []
    with pytest.raises(FrameTooLarge, match="not open yet"):
        acceptor.receive(b"x")


def test_a_tunnel_becomes_raw_and_early_bytes_are_kept() -> None:
    opener, acceptor = opened(Service.TUNNEL)
    opener.open_tunnel("flower")
    assert acceptor.receive(opener.data_to_send() + b"early") == [ev.TunnelAsked("flower")]
    assert acceptor.receive(b" bytes") == []
    assert acceptor.accept_tunnel() == b"early bytes"
    assert opener.receive(acceptor.data_to_send() + b"\xff\xff\xff\xff raw") == [
        ev.TunnelOpened(b"\xff\xff\xff\xff raw")
    ]
    assert opener.state is acceptor.state is State.RAW
    opener.receive_eof()
    opener, acceptor = opened(Service.TUNNEL)
    opener.open_tunnel("ssh")
    move(opener, acceptor)
    acceptor.refuse_tunnel("policy_denied", "no rule allows it")
    assert move(acceptor, opener) == [ev.Refused("policy_denied", "no rule allows it")]


@pytest.mark.parametrize("name", ["", "x" * 129, "line\nbreak"])
def test_a_tunnels_name_is_short_and_printable(name: str) -> None:
    opener, acceptor = opened(Service.TUNNEL)
    opener.open_tunnel(name)
    with pytest.raises(ProtocolError, match="name"):
        move(opener, acceptor)


@pytest.mark.invariant("S7")
def test_before_the_hello_frames_are_small_and_after_it_payloads_are_bounded() -> None:
    opener, acceptor = pair()
    with pytest.raises(FrameTooLarge):
        opener.greet(bytes(1000))
    with pytest.raises(FrameTooLarge):
        acceptor.receive(wire(Frame.HELLO, bytes(1000)))
    assert acceptor.state is State.CLOSED
    opener, acceptor = opened()
    with pytest.raises(FrameTooLarge):
        opener.request(bytes(5001))
    request_id = opener.request(bytes(5000))
    assert move(opener, acceptor) == [ev.RequestReceived(request_id, MAX_DEADLINE_MS, bytes(5000))]
    with pytest.raises(FrameTooLarge):
        acceptor.respond(request_id, bytes(5001))
    acceptor.respond_error(request_id, "frame_too_large", "x" * 10_000)
    [event] = move(acceptor, opener)
    assert isinstance(event, ev.ErrorReceived)
    assert len(event.text) == 512


def test_a_broken_protocol_closes_the_session_and_tells_the_peer() -> None:
    opener, acceptor = opened()
    with pytest.raises(ProtocolError, match="unknown type 200"):
        acceptor.receive(wire(200))
    assert acceptor.state is State.CLOSED
    [event] = move(acceptor, opener)
    assert isinstance(event, ev.GoingAway)
    assert event.code == "protocol_error"
    assert acceptor.receive(wire(Frame.PING, number(1))) == []
    with pytest.raises(LinkClosed):
        acceptor.respond(1, b"")
    opener, acceptor = pair()
    opener.greet(b"x")
    opener.data_to_send()
    with pytest.raises(ProtocolError):
        acceptor.receive(wire(Frame.REQUEST, call(1)))
    assert move(acceptor, opener)[0] == ev.Refused("unexpected_message", "recv_call makes no sense when start")


SCRIPTS: dict[str, tuple[Role, bytes]] = {
    "response to nothing": (Role.OPENER, wire(Frame.RESPONSE, number(1))),
    "response without id": (Role.OPENER, wire(Frame.RESPONSE, b"abc")),
    "error for nothing": (Role.OPENER, wire(Frame.ERROR, number(1) + bytes(5))),
    "item of nothing": (Role.OPENER, wire(Frame.ITEM, number(1))),
    "item without id": (Role.OPENER, wire(Frame.ITEM, b"abc")),
    "end of nothing": (Role.OPENER, wire(Frame.END, number(1))),
    "end too long": (Role.OPENER, wire(Frame.END, number(1) + b"x")),
    "nothing settled": (Role.OPENER, wire(Frame.SETTLED, bytes(8))),
    "settled what was not told": (Role.OPENER, wire(Frame.SETTLED, bytes(3) + b"\x01" + bytes(4))),
    "request to an opener": (Role.OPENER, wire(Frame.REQUEST, call(1))),
    "stream to an opener": (Role.OPENER, wire(Frame.STREAM, call(1) + b"\x01" * 8)),
    "credit to an opener": (Role.OPENER, wire(Frame.CREDIT, number(1) + b"\x01" * 8)),
    "cancel to an opener": (Role.OPENER, wire(Frame.CANCEL, number(1))),
    "ping to an opener": (Role.OPENER, wire(Frame.PING, number(1))),
    "response to an acceptor": (Role.ACCEPTOR, wire(Frame.RESPONSE, number(1))),
    "item to an acceptor": (Role.ACCEPTOR, wire(Frame.ITEM, number(1))),
    "settled to an acceptor": (Role.ACCEPTOR, wire(Frame.SETTLED, bytes(8))),
    "second hello": (Role.ACCEPTOR, wire(Frame.HELLO, b"again")),
    "second hello to an opener": (Role.OPENER, wire(Frame.HELLO, b"again")),
    "second accept": (Role.ACCEPTOR, wire(Frame.HELLO_ANSWER)),
    "request id zero": (Role.ACCEPTOR, wire(Frame.REQUEST, call(0))),
    "request id two": (Role.ACCEPTOR, wire(Frame.REQUEST, call(2))),
    "request id 2^64 - 1": (Role.ACCEPTOR, wire(Frame.REQUEST, call(2**64 - 1))),
    "request without id": (Role.ACCEPTOR, wire(Frame.REQUEST, b"abc")),
    "request without deadline": (Role.ACCEPTOR, wire(Frame.REQUEST, number(1))),
    "deadline zero": (Role.ACCEPTOR, wire(Frame.REQUEST, call(1, 0))),
    "deadline of a day and a bit": (Role.ACCEPTOR, wire(Frame.REQUEST, call(1, MAX_DEADLINE_MS + 1))),
    "deadline of 49 days": (Role.ACCEPTOR, wire(Frame.NOTIFY, call(1, 2**32 - 1))),
    "stream without credit fields": (Role.ACCEPTOR, wire(Frame.STREAM, call(1))),
    "stream with no credit": (Role.ACCEPTOR, wire(Frame.STREAM, call(1) + bytes(8))),
    "stream with too much credit": (Role.ACCEPTOR, wire(Frame.STREAM, call(1) + b"\xff" * 8)),
    "credit for nothing": (Role.ACCEPTOR, wire(Frame.CREDIT, number(1) + b"\x00\x00\x00\x01" * 2)),
    "credit too short": (Role.ACCEPTOR, wire(Frame.CREDIT, number(1))),
    "cancel of nothing": (Role.ACCEPTOR, wire(Frame.CANCEL, number(1))),
    "cancel of nothing yet": (Role.ACCEPTOR, wire(Frame.CANCEL, number(2**64 - 1))),
    "cancel of zero": (Role.ACCEPTOR, wire(Frame.CANCEL, number(0))),
    "ping too long": (Role.ACCEPTOR, wire(Frame.PING, number(1) + b"x")),
    "tunnel on a message stream": (Role.ACCEPTOR, wire(Frame.TUNNEL_OPEN, b"\x0a\x01x")),
    "malformed goaway": (Role.ACCEPTOR, wire(Frame.GOAWAY, b"\xff\xff")),
    "truncated error": (Role.OPENER, wire(Frame.ERROR, b"abc")),
    "error code does not fit": (Role.OPENER, wire(Frame.ERROR, number(1) + bytes(4) + b"\x40" + b"x")),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    role, data = SCRIPTS[name]
    session = opened()[0 if role is Role.OPENER else 1]
    with pytest.raises(ProtocolError):
        session.receive(data)
    assert session.state is State.CLOSED


def test_calls_are_numbered_one_by_one() -> None:
    _, acceptor = opened()
    acceptor.receive(wire(Frame.REQUEST, call(1)) + wire(Frame.NOTIFY, call(2)))
    with pytest.raises(UnexpectedMessage, match="call 2 comes after call 2"):
        acceptor.receive(wire(Frame.REQUEST, call(2)))


def test_an_answer_is_given_once() -> None:
    opener, acceptor = opened()
    request_id = opener.request(b"")
    move(opener, acceptor)
    acceptor.respond(request_id, b"")
    with pytest.raises(UnexpectedMessage):
        acceptor.respond(request_id, b"")


def test_the_stream_ends_between_frames_or_it_is_an_error() -> None:
    opener, acceptor = opened()
    acceptor.receive_eof()
    assert acceptor.state is State.CLOSED
    opener.receive(wire(Frame.PONG)[:3])
    with pytest.raises(ProtocolError, match="middle of a frame"):
        opener.receive_eof()


def test_texts_of_a_peer_are_one_printable_line() -> None:
    opener, acceptor = opened()
    request_id = opener.request(b"")
    move(opener, acceptor)
    acceptor.respond_error(request_id, "x\x1b[31m", "two\nlines\x1b[0m \udcff")
    [event] = move(acceptor, opener)
    assert isinstance(event, ev.ErrorReceived)
    assert event.code.isprintable()
    assert event.text.isprintable()


@pytest.mark.parametrize(("role", "service"), TRANSITIONS)
def test_the_table_leads_from_the_start_to_every_state_in_it(role: Role, service: Service) -> None:
    table = TRANSITIONS[role, service]
    reached = {State.START}
    while more := {to for (state, _), to in table.items() if state in reached} - reached:
        reached |= more
    assert reached == {State.START, *(state for state, _ in table), *table.values()}
    assert not any(state in (State.CLOSED, State.RAW) for state, _ in table)


@pytest.mark.parametrize(("role", "service"), TRANSITIONS)
def test_steps_that_change_nothing_are_those_of_the_table(role: Role, service: Service) -> None:
    table = TRANSITIONS[role, service]
    for state in State:
        bits = staying(table, state)
        assert {step for step in Step if bits >> step & 1} == {
            step for step in Step if table.get((state, step)) is state
        }
