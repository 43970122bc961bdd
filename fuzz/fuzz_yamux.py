"""Fuzz target: Yamux against whatever a peer can send, while we use the streams that it opens.

The input is a program: a byte that chooses the sides, then steps of four bytes, each something that we do, a frame that
comes, or raw bytes that do. Frames can be cut anywhere, so every split of the parser is reached.

Run: python -m fuzz.run yamux
"""

from __future__ import annotations

import struct

from comity.errors import Busy, ProtocolError
from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.yamux import INITIAL_WINDOW, DataReceived, MuxLimits, StreamOpened, Yamux

_BUDGET = 3 * INITIAL_WINDOW
LIMITS = MuxLimits(max_streams=6, window=INITIAL_WINDOW, max_bytes=16 * INITIAL_WINDOW, free_bytes=2 * INITIAL_WINDOW)
_KINDS, _FLAGS = 5, 16


class _Run:
    """One connection whose peer is the input, and the invariants that it cannot break."""

    def __init__(self, *, initiator: bool) -> None:
        self.now = 0.0
        self.budget = Budget(_BUDGET)
        self.mux = Yamux(initiator=initiator, limits=LIMITS, clock=lambda: self.now, budget=self.budget)
        self.unread: dict[int, int] = {}

    def receive(self, data: bytes) -> None:
        """Bytes from the wire. Raises ProtocolError, which ends the connection."""
        came = 0
        for event in self.mux.receive(data):
            if isinstance(event, StreamOpened):
                assert event.stream_id not in self.unread, "a stream was opened twice"
                self.unread[event.stream_id] = 0
            elif isinstance(event, DataReceived):
                assert event.data, "an empty piece looks like the end"
                came += len(event.data)
                self.unread[event.stream_id] = self.unread.get(event.stream_id, 0) + len(event.data)
        assert came <= len(data), "more came out than went in"

    def use(self, act: int, stream_id: int, amount: int) -> None:
        """What the program above the multiplexer does with a stream."""
        mux = self.mux
        if act == 0:
            count = min(self.unread.get(stream_id, 0), amount * 2048)
            if count:
                self.unread[stream_id] -= count
                mux.consumed(stream_id, count)
        elif act == 1:
            mux.end(stream_id)
        elif act == 2:
            mux.close(stream_id)
            self.unread.pop(stream_id, None)
        elif act == 3:
            mux.reset(stream_id)
            self.unread.pop(stream_id, None)
        elif act == 4:
            try:
                self.unread[mux.open(Priority(amount % 3))] = 0
            except Busy:
                return
        elif act == 5:
            stream = mux._streams.by_id.get(stream_id)
            if stream is not None and not (stream.ended_here or stream.cut):
                mux.send(stream_id, bytes(amount * 4096))
        elif act == 6:
            self.now += amount / 100
            mux.data_to_send(1 + amount * 2048)
        elif act == 7:
            mux.ping()
        elif act == 8:
            mux.set_priority(stream_id, Priority(amount % 3))
        elif act == 9:
            mux.cut(stream_id)
        elif act == 10:
            mux.set_limits(
                MuxLimits(max_streams=6, window=2 * INITIAL_WINDOW, free_bytes=2 * INITIAL_WINDOW), self.budget
            )

    def check(self) -> None:
        """What holds after every step."""
        metrics = self.mux.metrics()
        assert metrics.streams <= 2 * LIMITS.max_streams, "too many streams"
        assert metrics.unread_bytes <= metrics.granted_bytes <= LIMITS.free_bytes + _BUDGET, "too much memory"
        assert self.budget.used <= self.budget.limit, "the budget is overdrawn"
        assert all(stream.window.unread >= 0 <= stream.window.left for stream in self.mux._streams)
        assert all(stream.send_window >= 0 <= stream.unsent for stream in self.mux._streams)


def one(data: bytes) -> None:
    """Run one input; an exception other than the peer's own violations is a bug."""
    if not data:
        return
    run = _Run(initiator=bool(data[0] & 1))
    position = 1
    try:
        while position + 4 <= len(data):
            code, a, b, c = data[position : position + 4]
            position += 4
            if code < 128:
                run.use(code % 11, a % 16, b)
            elif code < 224:  # a frame that is nearly well-formed
                length = b * 2048 + c
                header = struct.pack(">BBHII", 0, code % _KINDS, a % _FLAGS, a // _FLAGS, length)
                body = bytes(length) if code % _KINDS == 0 else b""
                cut = c % 13
                run.receive((header + body)[:cut])
                run.receive((header + body)[cut:])
            else:  # anything
                run.receive(data[position : position + b])
                position += b
            run.check()
    except ProtocolError:
        pass
    run.mux.shut()
    run.mux.data_to_send()
    for stream in run.mux._streams:
        run.mux.close(stream.id)
    assert run.budget.used == 0, "memory was not given back"
    assert run.mux.pending_bytes == 0, "something waits to be sent on a connection that is gone"


def _seeds() -> tuple[bytes, ...]:
    opened = bytes([0, 128 + 1, 16 * 1 + 1, 0, 0])  # window update with SYN on stream 1
    data = bytes([130, 16 * 1, 1, 5])  # data on it
    ours = bytes([4, 0, 0, 0, 5, 2, 9, 0, 6, 0, 9, 0])
    return (
        b"",
        b"\x00",
        opened,
        opened + data * 8 + bytes([0, 1, 255, 0, 6, 0, 1, 0]),
        opened + data * 200,
        opened + bytes([129 + 5, 16 + 4, 0, 0, 1, 1, 0, 0]),
        opened + bytes([131, 16 + 8, 0, 0, 3, 1, 0, 0]),
        b"\x00" + ours * 3 + bytes([129 + 2, 2 * 16, 200, 3]) * 4 + bytes([6, 0, 255, 0]) * 9,
        b"\x01" + ours + bytes([2, 1, 0, 0, 6, 0, 255, 0]),
        b"\x00" + bytes([132, 1, 0, 7]) * 50 + bytes([133, 0, 0, 1]),
        b"\x00" + bytes([129, 16 * 3 + 1, 0, 0, 131, 16 * 3 + 8, 0, 0, 3, 3, 0, 0]) * 20,
        b"\x01"
        + bytes([255, 0, 12, 0])
        + b"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x04\x00\x00"
        + ours[:4]
        + bytes([255, 0, 9, 0])
        + bytes(9)
        + bytes([0, 1, 255, 0]),
        b"\x01" + bytes([255, 0, 24, 0]) + b"\x00\x01\x00\x01\x00\x00\x00\x02\xff\xff\xff\xff" * 2,
        b"\x01" + bytes([255, 0, 12, 0]) + b"\x00\x00\x00\x00\x00\x00\x00\x02\x40\x00\x00\x00",
    )


#: Inputs that reach the main paths: streams of both sides, bulk, resets, floods, garbage.
SEEDS = _seeds()
