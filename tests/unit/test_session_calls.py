"""Calls of a session: requests, notifications and streams, their room, credit and cancellation; hostile peers."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from comity.errors import Busy, FrameTooLarge, LinkClosed, ProtocolError, UnexpectedMessage
from comity_node.protocol import session_events as ev
from comity_node.protocol.framing import encode_frame
from comity_node.protocol.session import MAX_DEADLINE_MS, Session, SessionLimits
from comity_node.protocol.session_states import Frame, Role, Service, State

LIMITS = SessionLimits(max_payload=1000, max_outstanding=4, max_outstanding_bytes=1500, max_credit=5000)


def opened(limits: SessionLimits = LIMITS) -> tuple[Session, Session]:
    opener, acceptor = Session(Role.OPENER, Service.MESSAGES, limits), Session(Role.ACCEPTOR, Service.MESSAGES, limits)
    opener.greet(b"opener")
    move(opener, acceptor)
    acceptor.greet(b"acceptor")
    move(acceptor, opener)
    opener.accept()
    move(opener, acceptor)
    return opener, acceptor


def move(source: Session, target: Session) -> list[ev.Event]:
    return target.receive(source.data_to_send())


def wire(kind: int, *numbers: int, form: str = ">Q", rest: bytes = b"") -> bytes:
    return encode_frame(kind, struct.pack(form, *numbers), rest)


def test_deadlines_travel_and_are_kept_within_a_day() -> None:
    opener, acceptor = opened()
    opener.request(b"", 1234)
    opener.request(b"", -5)
    opener.request(b"", 10**12)
    assert [event[1] for event in move(opener, acceptor) if isinstance(event, ev.RequestReceived)] == [
        1234,
        1,
        MAX_DEADLINE_MS,
    ]


@pytest.mark.invariant("S7")
def test_the_acceptor_says_how_much_it_takes_and_neither_side_goes_over_it() -> None:
    opener, acceptor = opened()
    for session in (opener, acceptor):
        session.set_window(2, 10**9)
    opener.request(b"")
    opener.notify(b"")
    assert not opener.has_room
    for forbidden in (lambda: opener.request(b""), lambda: opener.notify(b""), lambda: opener.stream(b"", 1, 1)):
        with pytest.raises(Busy):
            forbidden()
    move(opener, acceptor)
    with pytest.raises(UnexpectedMessage, match="more than 2 calls"):
        acceptor.receive(wire(Frame.REQUEST, 3, 1000, form=">QI"))
    # What an acceptor says beyond the opener's own limit is not believed.
    opener, _ = opened()
    opener.set_window(10**9, 10**9)
    for _ in range(LIMITS.max_outstanding):
        opener.request(b"")
    assert not opener.has_room


@pytest.mark.invariant("S7")
def test_bytes_outstanding_go_over_their_limit_by_one_payload_at_most() -> None:
    opener, acceptor = opened()
    first = opener.request(bytes(1000))
    second = opener.request(bytes(1000))
    with pytest.raises(Busy):
        opener.request(b"")
    move(opener, acceptor)
    with pytest.raises(UnexpectedMessage, match="1500 bytes"):
        acceptor.receive(wire(Frame.NOTIFY, 3, 1000, form=">QI"))
    opener, acceptor = opened()
    first, second = opener.request(bytes(1000)), opener.request(bytes(1000))
    move(opener, acceptor)
    acceptor.respond(second, b"")
    move(acceptor, opener)
    assert opener.has_room
    assert first == 1


def test_notifications_are_settled_in_batches_and_give_their_room_back() -> None:
    opener, acceptor = opened()
    for _ in range(4):
        opener.notify(b"x" * 10, 500)
    assert move(opener, acceptor) == [ev.NoticeReceived(number, 500, b"x" * 10) for number in (1, 2, 3, 4)]
    assert not opener.has_room
    for _ in range(3):
        acceptor.settle(10)
    assert acceptor.pending_bytes == 13
    data = acceptor.data_to_send()
    assert len(data) == 13, "one frame for all three"
    assert acceptor.pending_bytes == 0
    assert opener.receive(data) == [ev.RoomReceived()]
    assert opener.outstanding == acceptor.outstanding == 1
    with pytest.raises(UnexpectedMessage):
        acceptor.settle(11)


@pytest.mark.parametrize("said", [(0, 0), (3, 0), (1, 11), (2, 19), (2, 21), (2**32 - 1, 2**32 - 1)])
def test_settling_what_is_not_outstanding_is_refused(said: tuple[int, int]) -> None:
    opener, acceptor = opened()
    opener.notify(b"x" * 10)
    opener.notify(b"x" * 10)
    move(opener, acceptor)
    if said == (1, 11):  # one is left, with fewer bytes than it had: that shows at the last
        opener.receive(wire(Frame.SETTLED, *said, form=">II"))
        said = (1, 11)
    with pytest.raises(ProtocolError, match="not outstanding"):
        opener.receive(wire(Frame.SETTLED, *said, form=">II"))
    assert opener.state is State.CLOSED


def test_a_stream_brings_items_as_far_as_the_credit_goes_and_ends() -> None:
    opener, acceptor = opened()
    stream = opener.stream(b"list", 2, 100, 700)
    assert move(opener, acceptor) == [ev.StreamAsked(stream, 700, b"list")]
    assert acceptor.streams == 1
    acceptor.send_item(stream, b"x" * 99)
    assert acceptor.may_send_item(stream), "one byte of credit is left"
    acceptor.send_item(stream, b"y" * 500)
    assert not acceptor.may_send_item(stream)
    with pytest.raises(UnexpectedMessage, match="beyond the credit"):
        acceptor.send_item(stream, b"")
    assert move(acceptor, opener) == [ev.ItemReceived(stream, b"x" * 99), ev.ItemReceived(stream, b"y" * 500)]
    opener.grant(stream, 1, 599)
    assert move(opener, acceptor) == [ev.CreditReceived(stream)]
    acceptor.send_item(stream, b"")
    acceptor.end_stream(stream)
    assert move(acceptor, opener) == [ev.ItemReceived(stream, b""), ev.EndReceived(stream)]
    assert opener.outstanding == acceptor.outstanding == 0
    assert opener.streams == 0
    # Credit that crosses the end is nothing to complain about, on either side.
    opener.grant(stream, 1, 1)
    assert opener.pending_bytes == 0
    assert acceptor.receive(wire(Frame.CREDIT, stream, 1, 1, form=">QII")) == []


def test_a_stream_may_end_with_an_error_and_nothing_else_fits() -> None:
    opener, acceptor = opened()
    stream, request = opener.stream(b"", 1, 1), opener.request(b"")
    move(opener, acceptor)
    with pytest.raises(UnexpectedMessage):
        acceptor.respond(stream, b"")
    with pytest.raises(UnexpectedMessage):
        acceptor.end_stream(request)
    with pytest.raises(UnexpectedMessage):
        acceptor.send_item(request, b"")
    acceptor.respond_error(stream, "policy_denied", "no")
    [event] = move(acceptor, opener)
    assert event == ev.ErrorReceived(stream, "policy_denied", "no", 0)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "frame",
    [
        wire(Frame.ITEM, 1) + wire(Frame.ITEM, 1),
        wire(Frame.ITEM, 1, rest=bytes(1001)),
        wire(Frame.ITEM, 2),
        wire(Frame.RESPONSE, 1),
        wire(Frame.END, 2),
        wire(Frame.END, 1) + wire(Frame.END, 1),
        wire(Frame.END, 1) + wire(Frame.ITEM, 1),
        wire(Frame.RESPONSE, 2, rest=bytes(1001)),
        wire(Frame.RESPONSE, 2) + wire(Frame.RESPONSE, 2),
        wire(Frame.RESPONSE, 3),
        wire(Frame.RESPONSE, 2**64 - 1),
    ],
    ids=[
        "item beyond the credit",
        "item too large",
        "item of a request",
        "response to a stream",
        "end of a request",
        "end twice",
        "item after the end",
        "response too large",
        "response twice",
        "response to a call not made",
        "response to the last id",
    ],
)
def test_a_hostile_acceptor_is_refused(frame: bytes) -> None:
    opener, acceptor = opened()
    opener.stream(b"", 1, 100)
    opener.request(b"")
    move(opener, acceptor)
    with pytest.raises(ProtocolError):
        opener.receive(frame)
    assert opener.state is State.CLOSED
    assert opener.receive(wire(Frame.RESPONSE, 2)) == []


def test_a_cancelled_call_is_still_ended_once_and_its_answer_dropped() -> None:
    opener, acceptor = opened()
    request, stream = opener.request(b""), opener.stream(b"", 3, 100)
    move(opener, acceptor)
    acceptor.send_item(stream, b"on its way")
    opener.cancel(request)
    opener.cancel(request)
    opener.cancel(stream)
    assert move(opener, acceptor) == [ev.CancelReceived(request), ev.CancelReceived(stream)]
    assert move(acceptor, opener) == []
    assert opener.outstanding == 2, "the room comes back with the end, not with the cancellation"
    acceptor.respond(request, b"done already")
    acceptor.respond_error(stream, "error", "cancelled")
    assert move(acceptor, opener) == []
    assert opener.outstanding == acceptor.outstanding == 0
    # Crossing: the answer is on its way when the cancellation goes.
    late = opener.request(b"")
    move(opener, acceptor)
    acceptor.respond(late, b"")
    opener.cancel(late)
    assert move(opener, acceptor) == []
    assert move(acceptor, opener) == []
    opener.cancel(late)
    assert opener.pending_bytes == 0


@pytest.mark.invariant("S7")
def test_a_flood_of_cancellations_is_refused_and_costs_nothing() -> None:
    opener, acceptor = opened()
    request = opener.request(b"")
    move(opener, acceptor)
    with pytest.raises(UnexpectedMessage, match="cannot be cancelled"):
        acceptor.receive(wire(Frame.CANCEL, request) * 2)
    # More cancellations than calls, each of a call that has ended.
    opener, acceptor = opened()
    for _ in range(10):
        request = opener.request(b"")
        move(opener, acceptor)
        acceptor.respond(request, b"")
        move(acceptor, opener)
    assert acceptor.receive(wire(Frame.CANCEL, 1) * 10) == []
    with pytest.raises(UnexpectedMessage):
        acceptor.receive(wire(Frame.CANCEL, 1))


@pytest.mark.invariant("S7")
def test_calls_that_are_cancelled_at_once_keep_their_room_until_they_are_ended() -> None:
    """What is known of HTTP/2 as rapid reset: asking and cancelling gives no more room than asking."""
    opener, acceptor = opened()
    for _ in range(LIMITS.max_outstanding):
        opener.cancel(opener.request(b"x"))
    move(opener, acceptor)
    assert not opener.has_room
    with pytest.raises(UnexpectedMessage, match="more than 4 calls"):
        acceptor.receive(wire(Frame.REQUEST, 5, 1000, form=">QI"))


@pytest.mark.invariant("S7")
def test_credit_is_bounded_however_it_comes() -> None:
    opener, acceptor = opened()
    with pytest.raises(UnexpectedMessage):
        opener.stream(b"", 5001, 1)
    stream = opener.stream(b"", 1, 1)
    with pytest.raises(UnexpectedMessage):
        opener.grant(stream, 0, 0)
    request = opener.request(b"")
    move(opener, acceptor)
    for items, size in ((0, 0), (5000, 1), (1, 5000), (2**32 - 1, 2**32 - 1)):
        other_opener, other = opened()
        other_opener.stream(b"", 1, 1)
        move(other_opener, other)
        with pytest.raises(UnexpectedMessage, match="credit"):
            other.receive(wire(Frame.CREDIT, stream, items, size, form=">QII"))
    with pytest.raises(UnexpectedMessage, match="no stream"):
        acceptor.receive(wire(Frame.CREDIT, request, 1, 1, form=">QII"))


@pytest.mark.invariant("S7")
def test_calls_leave_nothing_behind() -> None:
    limits = SessionLimits()
    opener, acceptor = opened(limits)

    def round_of_calls() -> None:
        for _ in range(100):
            opener.request(b"ask")
            opener.notify(b"tell")
            opener.cancel(opener.stream(b"list", 1, 1))
        for event in move(opener, acceptor):
            if isinstance(event, ev.NoticeReceived):
                acceptor.settle(4)
            elif isinstance(event, ev.RequestReceived):
                acceptor.respond(event.request_id, b"answer")
            elif isinstance(event, ev.CancelReceived):
                acceptor.respond_error(event.request_id, "error", "cancelled")
        move(acceptor, opener)
        assert opener.outstanding == acceptor.outstanding == 0

    tracemalloc.start()
    try:
        for _ in range(10):
            round_of_calls()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            round_of_calls()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000, "6,000 calls: a leak of four bytes each would show"


def test_sizes_are_checked_on_both_sides_for_every_kind() -> None:
    opener, acceptor = opened()
    big = bytes(1001)
    for forbidden in (lambda: opener.request(big), lambda: opener.notify(big), lambda: opener.stream(big, 1, 1)):
        with pytest.raises(FrameTooLarge):
            forbidden()
    stream = opener.stream(b"", 9, 5000)
    move(opener, acceptor)
    with pytest.raises(FrameTooLarge):
        acceptor.send_item(stream, big)
    with pytest.raises(FrameTooLarge):
        acceptor.receive(wire(Frame.REQUEST, 2, 1000, form=">QI", rest=big))


def test_nothing_is_said_on_a_closed_session() -> None:
    opener, acceptor = opened()
    stream, request = opener.stream(b"", 9, 5000), opener.request(b"")
    opener.notify(b"")
    move(opener, acceptor)
    for session in (opener, acceptor):
        session.receive_eof()
    for forbidden in (
        lambda: opener.request(b""),
        lambda: opener.grant(stream, 1, 1),
        lambda: opener.cancel(request),
        lambda: acceptor.respond(request, b""),
        lambda: acceptor.settle(0),
        lambda: acceptor.send_item(stream, b""),
        lambda: acceptor.end_stream(stream),
    ):
        with pytest.raises(LinkClosed):
            forbidden()


def test_frames_are_counted() -> None:
    opener, acceptor = opened()
    for _ in range(3):
        opener.request(b"")
    move(opener, acceptor)
    acceptor.respond(1, b"")
    move(acceptor, opener)
    assert (opener.frames_sent, opener.frames_received) == (5, 2)
    assert (acceptor.frames_sent, acceptor.frames_received) == (2, 5)
