"""Two Yamux ends carry every stream whole, in order and within its window, however the bytes are chunked."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import Busy, ProtocolError, UnexpectedMessage
from comity_node.transport import yamux
from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.yamux import INITIAL_WINDOW, MAX_WINDOW, MuxLimits, Yamux

LIMITS = MuxLimits(max_streams=4, window=INITIAL_WINDOW)
DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + body


def frames(data: bytes) -> list[tuple[int, int, int, int, int]]:
    """The headers in what is to be sent: version, type, flags, stream, length."""
    found = []
    while data:
        header = struct.unpack_from(">BBHII", data)
        found.append(header)
        data = data[12 + (header[4] if header[1] == DATA else 0) :]
    return found


def accepted(limits: MuxLimits = LIMITS) -> Yamux:
    """An acceptor on which the peer has opened stream 1."""
    mux = Yamux(initiator=False, limits=limits)
    assert mux.receive(frame(UPDATE, SYN, 1, 0)) == [yamux.StreamOpened(1)]
    mux.data_to_send()
    return mux


# The specification's "Framing" and "Message Flow": https://github.com/hashicorp/yamux/blob/master/spec.md

Act = Callable[[Yamux], object]
FULL = frame(DATA, SYN, 2, INITIAL_WINDOW, bytes(INITIAL_WINDOW))


def opened(mux: Yamux) -> None:
    assert mux.open() == 1
    mux.data_to_send()


ON_THE_WIRE: dict[str, tuple[list[Act], str]] = {
    "a stream is opened with SYN, by the dialling side with an odd id": (
        [lambda mux: mux.open()],
        "00 01 0001 00000001 00000000",
    ),
    "a second one has the next odd id": ([opened, lambda mux: mux.open()], "00 01 0001 00000003 00000000"),
    "data says its length, big-endian": (
        [opened, lambda mux: mux.send(1, b"hello")],
        "00 00 0000 00000001 00000005 68656c6c6f",
    ),
    "data follows SYN without waiting for the answer": (
        [lambda mux: mux.send(mux.open(), b"hi")],
        "00 01 0001 00000001 00000000 00 00 0000 00000001 00000002 6869",
    ),
    "FIN closes half; it follows the last data in a frame of its own, or js-libp2p loses them": (
        [opened, lambda mux: mux.send(1, b"x"), lambda mux: mux.end(1)],
        "00 00 0000 00000001 00000001 78 00 01 0004 00000001 00000000",
    ),
    "FIN without data is a window update of nothing": (
        [opened, lambda mux: mux.end(1)],
        "00 01 0004 00000001 00000000",
    ),
    "RST tears down, and what waited is not sent": (
        [opened, lambda mux: mux.send(1, b"x"), lambda mux: mux.reset(1)],
        "00 01 0008 00000001 00000000",
    ),
    "a ping is of stream 0, with SYN and a value": ([lambda mux: mux.ping()], "00 02 0001 00000000 00000001"),
    "it is answered with ACK and the same value": (
        [lambda mux: mux.receive(frame(PING, SYN, 0, 0x12345678))],
        "00 02 0002 00000000 12345678",
    ),
    "going away is of stream 0, with a code": ([lambda mux: mux.go_away(1)], "00 03 0000 00000000 00000001"),
    "a stream of the peer's is answered with ACK": (
        [lambda mux: mux.receive(frame(UPDATE, SYN, 2, 0))],
        "00 01 0002 00000002 00000000",
    ),
    "also when it begins with data": (
        [lambda mux: mux.receive(frame(DATA, SYN, 2, 1, b"x"))],
        "00 01 0002 00000002 00000000",
    ),
    "a window update says by how much the window grew": (
        [lambda mux: mux.receive(FULL), lambda mux: mux.data_to_send(), lambda mux: mux.consumed(2, INITIAL_WINDOW)],
        "00 01 0000 00000002 00040000",
    ),
    "a wider window is granted when a stream is opened": (
        [lambda mux: mux.set_limits(MuxLimits(window=INITIAL_WINDOW + 5)), lambda mux: mux.open()],
        "00 01 0001 00000001 00000005",
    ),
}


@pytest.mark.parametrize("what", ON_THE_WIRE)
def test_the_wire_format_is_that_of_the_specification(what: str) -> None:
    acts, expected = ON_THE_WIRE[what]
    mux = Yamux(initiator=True, limits=LIMITS)
    for act in acts:
        act(mux)
    assert mux.data_to_send().hex() == expected.replace(" ", "")


def test_the_accepting_side_has_even_ids() -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    assert [mux.open(), mux.open()] == [2, 4]


@pytest.mark.parametrize(
    ("received", "events"),
    [
        (frame(UPDATE, ACK, 2, 0), []),
        (frame(UPDATE, ACK, 2, 7), [yamux.WindowGrew(2)]),
        (frame(DATA, ACK, 2, 2, b"ab"), [yamux.DataReceived(2, b"ab")]),
        (frame(DATA, FIN, 2, 2, b"ab"), [yamux.DataReceived(2, b"ab"), yamux.StreamEnded(2)]),
        (frame(DATA, FIN, 2, 0), [yamux.StreamEnded(2)]),
        (frame(DATA, 0, 2, 0), []),
        (frame(UPDATE, FIN, 2, 5), [yamux.WindowGrew(2), yamux.StreamEnded(2)]),
        (frame(DATA, RST, 2, 2, b"ab"), [yamux.DataReceived(2, b"ab"), yamux.StreamReset(2)]),
        (frame(UPDATE, FIN | RST, 2, 0), [yamux.StreamReset(2)]),
        (
            frame(DATA, SYN | FIN, 3, 1, b"x"),
            [yamux.StreamOpened(3), yamux.DataReceived(3, b"x"), yamux.StreamEnded(3)],
        ),
        (frame(UPDATE, SYN, 3, 9), [yamux.StreamOpened(3), yamux.WindowGrew(3)]),
        (frame(DATA, 0, 77, 3, b"abc"), []),
        (frame(UPDATE, RST, 77, 0), []),
        (frame(PING, ACK, 0, 99), []),
        (frame(GO_AWAY, 0, 0, 2), [yamux.PeerLeaves(2)]),
    ],
)
def test_what_frames_mean(received: bytes, events: list[yamux.Event]) -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    assert mux.open() == 2
    for whole in (True, False):
        if not whole:  # byte by byte it means the same
            mux = Yamux(initiator=False, limits=LIMITS)
            mux.open()
        got: list[yamux.Event] = []
        for piece in [received] if whole else [received[n : n + 1] for n in range(len(received))]:
            got += mux.receive(piece)
        assert joined(got) == events


def joined(events: list[yamux.Event]) -> list[yamux.Event]:
    """Adjoining data of one stream as one."""
    found: list[yamux.Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, yamux.DataReceived) and isinstance(last, yamux.DataReceived):
            found[-1] = yamux.DataReceived(event.stream_id, last.data + event.data)
        else:
            found.append(event)
    return found


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=2000)), max_size=40),
    st.lists(st.sampled_from(Priority), min_size=3, max_size=3),
    st.integers(1, 5000),
    st.randoms(use_true_random=False),
)
def test_streams_arrive_whole_however_they_are_chunked(
    writes: list[tuple[int, bytes]], priorities: list[Priority], batch: int, random: Random
) -> None:
    opener, acceptor = Yamux(initiator=True, limits=LIMITS), Yamux(initiator=False, limits=LIMITS)
    ids = [opener.open(priority) for priority in priorities]
    for index, data in writes:
        opener.send(ids[index], data)
    for stream_id in ids:
        opener.end(stream_id)
    wire = b""
    while opener.has_data_to_send:
        wire += opener.data_to_send(batch)
    assert opener.pending_bytes == 0
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
    assert sorted(ended) == ids
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
            assert mux.metrics().streams <= LIMITS.max_streams
            assert mux.metrics().unread_bytes <= LIMITS.max_streams * LIMITS.window
    except ProtocolError:
        pass
    assert opened <= LIMITS.max_streams  # nobody has let one go


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
    for _ in range(LIMITS.max_pending // len(pings)):
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
    assert mux.metrics().streams == 16
    # Data that still comes for them is dropped, and is no error.
    assert mux.receive(frame(DATA, 0, 99, 5, b"later")) == []
    assert mux.receive(frame(DATA, 0, 1, 5, b"later")) == []
    assert mux.receive(frame(DATA, FIN, 99, 0)) == [yamux.StreamEnded(99)]


def test_what_was_sent_before_a_close_leaves_and_a_close_with_much_to_send_is_not_hurried() -> None:
    mux = Yamux(initiator=False, limits=MuxLimits(max_streams=100))
    for number in range(50):
        mux.receive(frame(UPDATE, SYN, 2 * number + 1, 0))
        mux.send(2 * number + 1, b"answer")
        mux.close(2 * number + 1)
    sent = frames(mux.data_to_send())
    assert [header[3] for header in sent if header[1:3] == (UPDATE, FIN)] == [2 * number + 1 for number in range(50)]
    assert mux.metrics().streams == 16  # the others were reset, but only after they had sent everything


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b"\x01" + frame(PING, SYN, 0, 0)[1:], "version 1"),
        (b"\x01" + frame(DATA, 0, 1, 1, b"x")[1:], "version 1"),
        (frame(9, 0, 1, 0), "type 9"),
        (frame(UPDATE, SYN, 1, 0), "cannot open"),
        (frame(UPDATE, SYN, 4, 0), "cannot open"),
        (frame(UPDATE, SYN, 0, 0), "cannot open"),
        (frame(DATA, SYN, 3, INITIAL_WINDOW + 1), "1 bytes over its window"),
        (frame(DATA, 0, 1, 2**32 - 1), "over its window"),
        (frame(DATA, 0, 77, MAX_WINDOW + 1), "more than any window"),
        (frame(UPDATE, 0, 1, 2**32 - 1), "more than 32 bits"),
        (frame(UPDATE, RST, 1, 0) + frame(DATA, 0, 1, 1, b"x"), "after the end"),
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
    mux.go_away()
    assert mux.data_to_send() == frame(GO_AWAY, 0, 0, 0)
    # Whoever has said so takes no more streams.
    assert mux.receive(frame(UPDATE, SYN, 3, 0)) == []
    assert mux.data_to_send() == frame(UPDATE, RST, 3, 0)


def test_the_round_trip_is_measured_smoothed_and_not_believed_when_it_makes_no_sense() -> None:
    now = 0.0
    mux = Yamux(initiator=True, limits=LIMITS, clock=lambda: now)
    assert mux.receive(frame(PING, ACK, 0, 1)) == []  # nobody asked

    def round_trip(seconds: float) -> float:
        nonlocal now
        mux.ping()
        mux.ping()  # one at a time
        now += 5  # it waits for the writer, which is not the line's affair
        [(_, _, _, _, value)] = frames(mux.data_to_send())
        now += seconds
        assert mux.receive(frame(PING, ACK, 0, value + 1)) == []
        [event] = mux.receive(frame(PING, ACK, 0, value))
        assert isinstance(event, yamux.PingAnswered)
        assert event.rtt_s == pytest.approx(seconds)
        return mux.rtt_s

    assert round_trip(0.1) == pytest.approx(0.1)
    assert round_trip(0.2) == pytest.approx(0.1125)
    assert round_trip(60) <= 0.16  # the peer was frozen
    mux.ping()
    assert mux.receive(frame(PING, ACK, 0, 4)) == [yamux.PingAnswered(0.0)]  # before it was sent


def test_the_sender_keeps_to_the_window_of_the_peer() -> None:
    mux = accepted(MuxLimits(window=2 * INITIAL_WINDOW))
    assert mux.send(1, bytes(INITIAL_WINDOW + 12)) == INITIAL_WINDOW + 12
    assert sum(header[4] for header in frames(mux.data_to_send())) == INITIAL_WINDOW
    assert (mux.send_window(1), mux.unsent(1), mux.pending_bytes) == (0, 12, 12)
    assert not mux.has_data_to_send
    assert mux.data_to_send() == b""
    assert mux.receive(frame(UPDATE, 0, 1, 10)) == [yamux.WindowGrew(1)]
    mux.end(1)
    assert frames(mux.data_to_send()) == [(0, DATA, 0, 1, 10)]
    mux.receive(frame(UPDATE, 0, 1, 10))
    assert frames(mux.data_to_send()) == [(0, DATA, 0, 1, 2), (0, UPDATE, FIN, 1, 0)]
    with pytest.raises(UnexpectedMessage):
        mux.send(1, b"")


def test_a_peer_that_sends_on_to_a_stream_that_nobody_reads_is_told_to_stop() -> None:
    mux = accepted()
    mux.close(1)
    mux.data_to_send()
    half = frame(DATA, 0, 1, INITIAL_WINDOW // 2, bytes(INITIAL_WINDOW // 2))
    assert mux.receive(half) == []
    assert mux.data_to_send() == b""
    assert mux.receive(frame(DATA, 0, 1, 1, b"x")) == []
    assert mux.data_to_send() == frame(UPDATE, RST, 1, 0)
    assert mux.receive(half) == []  # on its way already
    assert mux.metrics().streams == 0


def test_a_stream_that_was_cut_is_never_ended_as_if_it_were_whole() -> None:
    for finish in (Yamux.end, Yamux.close):
        mux = accepted()
        mux.send(1, bytes(INITIAL_WINDOW + 1))
        mux.data_to_send()
        mux.cut(1)
        with pytest.raises(UnexpectedMessage):
            mux.send(1, b"more")
        finish(mux, 1)
        assert mux.data_to_send() == frame(UPDATE, RST, 1, 0)
        assert (mux.pending_bytes, mux.metrics().streams) == (0, 0)


def test_letting_go_of_a_stream_that_both_sides_have_ended_says_nothing() -> None:
    for finish in (Yamux.reset, Yamux.close):
        mux = accepted()
        mux.receive(frame(UPDATE, FIN, 1, 0))
        mux.end(1)
        assert mux.data_to_send() == frame(UPDATE, FIN, 1, 0)
        finish(mux, 1)
        assert (mux.data_to_send(), mux.metrics().streams) == (b"", 0)


def test_the_round_trip_is_asked_for_as_soon_as_windows_may_grow() -> None:
    mux = accepted()
    mux.set_limits(LIMITS)
    assert mux.data_to_send() == b""
    mux.set_limits(LIMITS, Budget(1 << 20))
    assert mux.data_to_send() == frame(PING, SYN, 0, 1)


def test_small_sends_of_one_stream_leave_as_one_frame() -> None:
    mux = accepted()
    for number in range(100):
        mux.send(1, bytes([number]) * 10)
    assert frames(mux.data_to_send()) == [(0, DATA, 0, 1, 1000)]


def test_no_more_than_256_streams_wait_for_the_peer_to_acknowledge_them() -> None:
    mux = Yamux(initiator=True, limits=MuxLimits(max_streams=1000, max_bytes=1 << 30))
    ids = [mux.open() for _ in range(256)]
    with pytest.raises(Busy):
        mux.open()
    mux.receive(frame(UPDATE, ACK, ids[0], 0) * 2)
    mux.reset(ids[1])
    ids += [mux.open(), mux.open()]
    with pytest.raises(Busy):
        mux.open()
    for stream_id in ids:
        mux.receive(frame(UPDATE, ACK, stream_id, 0))
    assert len({mux.open() for _ in range(256)}) == 256
