"""Peers that do their worst to the multiplexer, and the figure each of them is held to."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from collections.abc import Callable

import pytest
import trio

from comity.errors import Busy, LinkClosed, ProtocolError
from comity_node.transport import yamux
from comity_node.transport.budget import Budget
from comity_node.transport.muxed import MuxedConnection, MuxedStream
from comity_node.transport.yamux import INITIAL_WINDOW, MAX_WINDOW, MuxLimits, Yamux
from kit.line import LineEnd, make_line, make_pipe
from kit.muxes import run_virtual

DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
LIMITS = MuxLimits(max_streams=8)
STRANGER = MuxLimits(max_streams=4)


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + body


def held_while(act: Callable[[], object]) -> tuple[int, int]:
    """Bytes that are held after an act, and at most during it."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = act()
        now, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return now, peak


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("stream_id", [1, 77])
@pytest.mark.parametrize("flags", [0, SYN, FIN, SYN | FIN | RST | ACK])
def test_a_gigabyte_length_prefix_is_refused_before_anything_is_allocated(stream_id: int, flags: int) -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    if not flags & SYN:
        mux.receive(frame(UPDATE, SYN, 1, 0))

    def act() -> None:
        with pytest.raises(ProtocolError, match=r"over its window|more than any window"):
            mux.receive(frame(DATA, flags, stream_id, 1 << 30))

    assert held_while(act)[1] < 100_000


@pytest.mark.invariant("S7")
def test_data_on_streams_that_nobody_knows_is_dropped_as_it_comes() -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    piece = frame(DATA, 0, 99, 64 * 1024 - 12, bytes(64 * 1024 - 12))

    def act() -> None:
        assert mux.receive(frame(DATA, 0, 99, MAX_WINDOW)) == []  # its body: the next 16 MiB
        for _ in range(1024):
            assert mux.receive(piece) == []

    assert held_while(act)[1] < 300_000
    assert (mux.pending_bytes, mux.metrics().streams) == (0, 0)


@pytest.mark.invariant("S7")
def test_data_that_began_before_its_stream_was_opened_is_not_that_streams() -> None:
    """A peer knows which number we use next; what it sends there outside every window must not be held."""
    mux = Yamux(initiator=True, limits=LIMITS)
    mux.receive(frame(DATA, FIN, 1, 2 * INITIAL_WINDOW))
    assert mux.open() == 1
    assert mux.receive(bytes(2 * INITIAL_WINDOW)) == []
    assert mux.metrics().unread_bytes == 0
    [event] = mux.receive(frame(DATA, 0, 1, 5, b"hello"))
    assert event == yamux.DataReceived(1, b"hello")


@pytest.mark.invariant("S7")
def test_a_window_of_single_bytes_holds_little_more_than_its_bytes() -> None:
    """Two bytes a frame, each an object of its own, would be 28 times their size."""

    async def main() -> None:
        ends = make_pipe()
        connection = MuxedConnection(ends[0], "peer", initiator=False, limits=STRANGER)
        streams: list[MuxedStream] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run, streams.append)
            await ends[1].write(frame(UPDATE, SYN, 1, 0))
            singles = b"".join(frame(DATA, 0, 1, 2, b"ab") for _ in range(2048))
            await trio.sleep(1)
            sent = 64 * 1024
            tracemalloc.start()
            try:
                for _ in range(sent // 4096):
                    await ends[1].write(singles)
                await trio.sleep(1)
                gc.collect()
                held = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            assert connection.metrics().unread_bytes == sent
            assert held < 2 * sent
            connection.close("enough")

    run_virtual(main)


def flood(mux: Yamux, what: Callable[[int], bytes]) -> int:
    """Send until we are cut; return how many bytes that took."""
    sent = 0
    while sent < 1 << 30:
        attack = b"".join(what(2 * n + 1001) for n in range(sent, sent + 100))
        sent += len(attack)
        try:
            events = mux.receive(attack)
        except ProtocolError as error:
            assert "does not read" in str(error)  # noqa: PT017  (how many bytes it took is what matters)
            return sent
        for event in events:
            if isinstance(event, yamux.StreamReset):
                mux.reset(event.stream_id)
    pytest.fail("it was never cut")


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    ("what", "full"),
    [
        pytest.param(lambda n: frame(PING, SYN, 0, n), False, id="pings"),
        pytest.param(lambda n: frame(UPDATE, SYN, n, 0), True, id="streams over the limit"),
        pytest.param(lambda n: frame(UPDATE, SYN, n, 0) + frame(UPDATE, RST, n, 0), False, id="opened and reset"),
    ],
)
def test_answers_to_a_peer_that_does_not_read_are_256_kib_at_most(what: Callable[[int], bytes], full: bool) -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    for number in range(LIMITS.max_streams if full else 0):
        mux.receive(frame(UPDATE, SYN, 2 * number + 1, 0))

    assert LIMITS.max_pending == 256 * 1024
    assert flood(mux, what) <= 2 * LIMITS.max_pending + 2400
    assert mux.pending_bytes <= LIMITS.max_pending + 1200


@pytest.mark.invariant("S7")
def test_a_flood_of_resets_gets_no_answer() -> None:
    mux = Yamux(initiator=False, limits=LIMITS)

    def act() -> None:
        for number in range(50):
            assert mux.receive(b"".join(frame(UPDATE, RST, 1000 * number + n, 0) for n in range(500))) == []

    assert held_while(act)[0] < 20_000
    assert mux.pending_bytes == 0


@pytest.mark.invariant("S7")
def test_streams_opened_and_reset_in_a_loop_make_no_more_handlers_than_the_limit() -> None:
    """HTTP/2's rapid reset (CVE-2023-44487), on Yamux: a slot is free again when its handler is done, not before."""

    async def main() -> None:
        ends = make_line(1e9, kernel_bytes=1 << 20)
        connection = MuxedConnection(ends[0], "peer", initiator=False, limits=LIMITS)
        running = most = handled = 0

        async def handle(stream: MuxedStream) -> None:
            nonlocal running, most, handled
            running += 1
            handled += 1
            most = max(most, running)
            try:
                await trio.sleep(0.01)  # something that takes a while
                with pytest.raises(LinkClosed):
                    await stream.receive()
            finally:
                running -= 1
                stream.reset()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run, lambda stream: nursery.start_soon(handle, stream))
            for first in range(1, 20_001, 2000):
                flood = b"".join(
                    frame(UPDATE, SYN, n, 0) + frame(UPDATE, RST, n, 0) for n in range(first, first + 2000, 2)
                )
                await ends[1].write(flood)
                await trio.sleep(0.02)
            assert 1 <= most <= LIMITS.max_streams
            assert handled <= 10 * LIMITS.max_streams
            assert connection.streams == 0
            connection.close("enough")

    run_virtual(main)


@pytest.mark.invariant("S7")
def test_window_updates_that_overflow_end_the_connection() -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    mux.receive(frame(UPDATE, SYN, 1, 2**32 - 1 - INITIAL_WINDOW))
    assert mux.send_window(1) == 2**32 - 1
    with pytest.raises(ProtocolError, match="more than 32 bits"):
        mux.receive(frame(UPDATE, 0, 1, 1))


async def breaks(attack: bytes, match: str) -> None:
    """A connection on which a peer sends this ends with this reason, for its streams, too."""
    ends = make_line(1e9)
    connection = MuxedConnection(ends[0], "peer", initiator=False, limits=LIMITS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run, lambda stream: None)
        ours = connection.open()
        await ends[1].write(attack)
        with trio.fail_after(60), pytest.raises(LinkClosed, match=match):
            await ours.receive()
        await connection.closed.wait()
        assert not connection.is_usable
        with pytest.raises(LinkClosed, match=match):
            connection.open()


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (frame(DATA, SYN, 1, 1 << 30), "over its window"),
        (frame(UPDATE, SYN, 1, 0) + frame(DATA, 0, 1, INITIAL_WINDOW + 1), "1 bytes over its window"),
        (frame(UPDATE, SYN, 2, 0), "cannot open"),  # a stream of ours
        (frame(UPDATE, SYN, 4, 0), "cannot open"),  # one that we shall open
        (frame(7, 0, 0, 0), "type 7"),
        (frame(GO_AWAY, 0, 0, 1), r"closed the connection \(code 1\)"),
        (b"\xff" * 12, "version 255"),
    ],
)
def test_a_violation_ends_the_connection_and_nothing_else(attack: bytes, match: str) -> None:
    run_virtual(lambda: breaks(attack, match))


class Greedy:
    """A peer that fills every window of a connection it is given, on as many streams as it may open."""

    def __init__(self, end: LineEnd) -> None:
        self._end = end
        self._mux = Yamux(initiator=True, limits=MuxLimits(max_streams=10_000, max_bytes=1 << 40))

    async def run(self, streams: int) -> None:
        ids = [self._mux.open() for _ in range(streams)]
        for stream_id in ids:
            self._mux.send(stream_id, bytes(2 * MAX_WINDOW))
        while True:
            while self._mux.has_data_to_send:
                await self._end.write(self._mux.data_to_send(1 << 18))
            self._mux.receive(await self._end.read())


@pytest.mark.invariant("S7")
def test_all_peers_together_make_us_hold_no_more_than_the_budget_and_what_is_free() -> None:
    """12 connections of 3 peers, each filling 40 streams that nobody reads: 126 MB of windows, were there no budget."""

    async def main() -> None:
        total = Budget(12 << 20)
        peers = [Budget(8 << 20, total) for _ in range(3)]
        limits = MuxLimits(max_streams=40)
        unread: list[MuxedStream] = []
        connections = []
        async with trio.open_nursery() as nursery:
            for number in range(12):
                ends = make_line(1e9)
                connection = MuxedConnection(
                    ends[0], "peer", initiator=False, limits=limits, budget=peers[number % len(peers)]
                )
                connections.append(connection)
                nursery.start_soon(connection.run, unread.append)
                nursery.start_soon(Greedy(ends[1]).run, 39)
            await trio.sleep(10)
            held = sum(connection.metrics().unread_bytes for connection in connections)
            assert held <= 12 * limits.free_bytes + total.limit
            assert held >= 0.9 * (12 * limits.free_bytes + total.limit)  # and it is there to be used
            assert total.used <= total.limit
            assert all(peer.used <= peer.limit for peer in peers)
            # Connections that are gone hold what has come until it is let go; then all of it is back.
            for connection in connections:
                connection.close("enough")
                await connection.closed.wait()
            assert total.used <= total.limit
            for stream in unread:
                stream.reset()
            assert (total.used, [peer.used for peer in peers]) == (0, [0, 0, 0])
            nursery.cancel_scope.cancel()

    run_virtual(main)


@pytest.mark.invariant("S7")
def test_when_the_budget_is_used_up_streams_are_refused_until_something_is_read() -> None:
    total = Budget(0)
    limits = MuxLimits(free_bytes=2 * INITIAL_WINDOW)
    mux = Yamux(initiator=False, limits=limits, budget=total)
    mux.receive(b"".join(frame(UPDATE, SYN, n, 0) for n in (1, 3)))
    mux.data_to_send()
    mux.receive(frame(UPDATE, SYN, 5, 0))
    assert mux.data_to_send() == frame(UPDATE, RST, 5, 0)
    with pytest.raises(Busy, match="memory for receive windows"):
        mux.open()
    mux.receive(frame(DATA, FIN, 1, 100, bytes(100)))  # nothing more comes: only these are held
    assert mux.metrics().granted_bytes == INITIAL_WINDOW + 100
    with pytest.raises(Busy):
        mux.open()
    mux.consumed(1, 100)
    assert mux.metrics().granted_bytes == INITIAL_WINDOW
    mux.open()
    assert total.used == 0


@pytest.mark.invariant("S7")
def test_a_strangers_windows_never_grow_whatever_it_says_about_the_line() -> None:
    now = 0.0
    mux = Yamux(initiator=False, limits=STRANGER, clock=lambda: now)
    mux.receive(frame(UPDATE, SYN, 1, 0))
    for _ in range(100):
        now += 0.001
        assert mux.receive(frame(DATA, 0, 1, INITIAL_WINDOW, bytes(INITIAL_WINDOW)))
        mux.consumed(1, INITIAL_WINDOW)
        mux.receive(frame(PING, ACK, 0, 1))
    assert mux.metrics().window_bytes == INITIAL_WINDOW
    assert b"\x00\x02\x00\x01" not in mux.data_to_send()  # and it is not pinged


@pytest.mark.invariant("S7")
def test_streams_that_only_the_peer_has_not_ended_are_few() -> None:
    """We have answered and closed; a peer that never ends its side keeps 16 places and no more."""
    mux = Yamux(initiator=False, limits=MuxLimits(max_streams=64))
    for number in range(40):
        mux.receive(frame(UPDATE, SYN, 2 * number + 1, 0))
        mux.close(2 * number + 1)
    said = mux.data_to_send()
    resets = [number for number in range(40) if frame(UPDATE, RST, 2 * number + 1, 0) in said]
    assert resets == list(range(24)), "the oldest go first"
    assert mux.metrics().streams == 16


@pytest.mark.invariant("S7")
def test_a_peer_that_goes_on_sending_to_nobody_is_told_to_stop() -> None:
    mux = Yamux(initiator=False, limits=LIMITS)
    mux.receive(frame(UPDATE, SYN, 1, 0))
    mux.close(1)
    mux.data_to_send()
    half = bytes(INITIAL_WINDOW // 2)
    assert mux.receive(frame(DATA, 0, 1, len(half), half)) == []
    assert mux.metrics().streams == 1, "what was on its way may come"
    assert mux.receive(frame(DATA, 0, 1, 1, b"x")) == []
    assert frame(UPDATE, RST, 1, 0) in mux.data_to_send()
    assert mux.metrics().streams == 0
