"""Two Yamux ends carry every stream whole, in order and within its window, however the bytes are chunked."""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import Busy, ProtocolError, UnexpectedMessage
from comity_node.transport import yamux
from comity_node.transport.yamux import INITIAL_WINDOW, MuxLimits, Yamux

LIMITS = MuxLimits(max_streams=4, window=INITIAL_WINDOW)
DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + body


def accepted(limits: MuxLimits = LIMITS) -> Yamux:
    """An acceptor on which the peer has opened stream 1."""
    mux = Yamux(initiator=False, limits=limits)
    assert mux.receive(frame(UPDATE, SYN, 1, 0)) == [yamux.StreamOpened(1)]
    mux.data_to_send()
    return mux


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=2000)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_streams_arrive_whole_however_they_are_chunked(writes: list[tuple[int, bytes]], random: Random) -> None:
    opener, acceptor = Yamux(initiator=True, limits=LIMITS), Yamux(initiator=False, limits=LIMITS)
    ids = [opener.open() for _ in range(3)]
    for index, data in writes:
        opener.send(ids[index], data)
    for stream_id in ids:
        opener.end(stream_id)
    wire = opener.data_to_send()
    got: dict[int, bytes] = {}
    ended: list[int] = []
    position = 0
    while position < len(wire):
        step = random.randint(1, 700)
        for event in acceptor.receive(wire[position : position + step]):
            match event:
                case yamux.StreamOpened(stream_id):
                    got[stream_id] = b""
                case yamux.DataReceived(stream_id, data):
                    got[stream_id] += data
                case yamux.StreamEnded(stream_id):
                    ended.append(stream_id)
        position += step
    assert got == {ids[n]: b"".join(data for index, data in writes if index == n) for n in range(3)}
    assert ended == ids
    assert opener.receive(acceptor.data_to_send()) == []


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=100), max_size=10))
def test_any_bytes_are_events_or_a_protocol_error(chunks: list[bytes]) -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    try:
        for chunk in chunks:
            mux.receive(chunk)
    except ProtocolError:
        return


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 15), st.integers(0, 12), st.integers(0, 300_000)), max_size=30)
)
def test_any_headers_keep_the_number_of_streams_bounded(headers: list[tuple[int, int, int, int]]) -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    opened = 0
    try:
        for kind, flags, stream_id, length in headers:
            body = bytes(length) if kind == DATA else b""
            events = mux.receive(frame(kind, flags, stream_id, length, body))
            opened += sum(isinstance(event, yamux.StreamOpened) for event in events)
            assert len(mux._streams) <= LIMITS.max_streams
    except ProtocolError:
        pass
    assert opened <= len(headers)


@pytest.mark.invariant("S7")
def test_no_byte_beyond_the_window_is_taken() -> None:
    mux = accepted()
    mux.receive(frame(DATA, 0, 1, INITIAL_WINDOW, bytes(INITIAL_WINDOW)))
    with pytest.raises(ProtocolError, match="over its window"):
        mux.receive(frame(DATA, 0, 1, 1, b"x"))
    # What was read is granted again, half a window at a time.
    mux = accepted()
    mux.receive(frame(DATA, 0, 1, INITIAL_WINDOW, bytes(INITIAL_WINDOW)))
    mux.consumed(1, INITIAL_WINDOW // 2 - 1)
    assert mux.data_to_send() == b""
    mux.consumed(1, 1)
    assert mux.data_to_send() == frame(UPDATE, 0, 1, INITIAL_WINDOW // 2)
    mux.receive(frame(DATA, 0, 1, INITIAL_WINDOW // 2, bytes(INITIAL_WINDOW // 2)))
    with pytest.raises(ProtocolError, match="over its window"):
        mux.receive(frame(DATA, 0, 1, 1, b"x"))


@pytest.mark.invariant("S7")
def test_streams_beyond_the_limit_are_reset_and_ours_are_refused() -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    for number in range(LIMITS.max_streams):
        mux.receive(frame(UPDATE, SYN, 2 * number + 1, 0))
        mux.open()
    mux.data_to_send()
    assert mux.receive(frame(DATA, SYN, 99, 3, b"abc")) == []
    assert mux.data_to_send() == frame(UPDATE, RST, 99, 0)
    with pytest.raises(Busy):
        mux.open()


@pytest.mark.invariant("S7")
def test_a_peer_that_pings_and_does_not_read_is_cut() -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    pings = frame(PING, SYN, 0, 7) * 1000
    for _ in range((LIMITS.max_pending + INITIAL_WINDOW) // len(pings)):
        mux.receive(pings)
    with pytest.raises(ProtocolError, match="does not read"):
        mux.receive(pings)


@pytest.mark.invariant("S7")
def test_streams_that_the_peer_never_ends_do_not_pile_up() -> None:
    limits = MuxLimits(max_streams=100)
    mux = Yamux(initiator=False, limits=limits)
    for number in range(50):
        mux.receive(frame(UPDATE, SYN, 2 * number + 1, 0))
        mux.close(2 * number + 1)
    assert len(mux._streams) == 16
    # Data that still comes for them is dropped, and is no error.
    assert mux.receive(frame(DATA, 0, 99, 5, b"later")) == []
    assert mux.receive(frame(DATA, 0, 1, 5, b"later")) == []
    assert mux.receive(frame(DATA, FIN, 99, 0)) == [yamux.StreamEnded(99)]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b"\x01" + frame(PING, SYN, 0, 0)[1:], "version 1"),
        (frame(9, 0, 1, 0), "type 9"),
        (frame(UPDATE, SYN, 1, 0), "cannot open"),
        (frame(UPDATE, SYN, 4, 0), "cannot open"),
        (frame(UPDATE, SYN, 0, 0), "cannot open"),
    ],
)
def test_what_yamux_does_not_allow_is_refused(bad: bytes, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        accepted().receive(bad)


def test_data_after_the_end_is_refused() -> None:
    mux = accepted()
    assert mux.receive(frame(UPDATE, FIN, 1, 0)) == [yamux.StreamEnded(1)]
    with pytest.raises(ProtocolError, match="after the end"):
        mux.receive(frame(DATA, 0, 1, 1, b"x"))


def test_pings_resets_and_going_away() -> None:
    mux = accepted()
    mux.receive(frame(PING, SYN, 0, 42))
    assert mux.data_to_send() == frame(PING, ACK, 0, 42)
    assert mux.receive(frame(UPDATE, RST, 1, 0)) == [yamux.StreamReset(1)]
    assert mux.receive(frame(GO_AWAY, 0, 0, 2)) == [yamux.PeerLeaves(2)]
    mux.go_away()
    assert mux.data_to_send() == frame(GO_AWAY, 0, 0, 0)


def test_the_sender_keeps_to_the_window_of_the_peer() -> None:
    mux = accepted(MuxLimits(window=2 * INITIAL_WINDOW))
    mux.send(1, bytes(INITIAL_WINDOW))
    assert mux.send_window(1) == 0
    with pytest.raises(UnexpectedMessage):
        mux.send(1, b"x")
    assert mux.receive(frame(UPDATE, 0, 1, 10)) == [yamux.WindowGrew(1)]
    mux.send(1, b"0123456789")
    mux.end(1)
    with pytest.raises(UnexpectedMessage):
        mux.send(1, b"")
