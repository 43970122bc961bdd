"""Streams over one secured connection: Yamux (`transport.yamux`) with trio's tasks around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from comity.errors import ComityError, DeadlineExceeded, LinkClosed
from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.muxed_stream import MuxedStream
from comity_node.transport.muxed_writer import SecureChannel, Writer
from comity_node.transport.yamux import (
    DataReceived,
    Event,
    MuxLimits,
    MuxMetrics,
    PeerLeaves,
    PingAnswered,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowGrew,
    Yamux,
)

__all__ = ["KeepAlive", "MuxMetrics", "MuxedConnection", "MuxedStream", "SecureChannel"]

_CLOSE_TIMEOUT_S = 1.0
_PEER_CLOSED = "the peer closed the connection"


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """When to ask whether a silent peer is still there.

    Attributes:
        idle_s: after so many seconds without a byte it is asked.
        answer_s: when nothing comes for so long after that, the connection is given up.
    """

    idle_s: float
    answer_s: float


class MuxedConnection:
    """A secured connection that carries streams. `run` is its life."""

    def __init__(
        self,
        channel: SecureChannel,
        remote_peer: str,
        *,
        initiator: bool,
        limits: MuxLimits,
        budget: Budget | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        """Make a connection.

        Args:
            channel: the connection; it is closed when `run` ends.
            remote_peer: the PeerId that the channel has proved.
            initiator: whether we dialled.
            limits: what the peer may have open and unread.
            budget: what is granted to the peer is charged to it; without one windows do not grow.
            keep_alive: when to look for a peer that is silent; without it only `ping` does.
        """
        self.remote_peer = remote_peer
        #: Set when `run` has ended.
        self.closed = trio.Event()
        #: The protocol's state; for the streams of this connection.
        self.mux = Yamux(initiator=initiator, limits=limits, clock=trio.current_time, budget=budget)
        #: Bytes of one stream that may wait before its sender waits, too (`may_send_on`).
        self.send_buffer = limits.send_buffer
        self._channel = channel
        self._writer = Writer(channel, self.mux, self._on_drained)
        self._keep_alive = keep_alive
        self._on_stream: Callable[[MuxedStream], None] = MuxedStream.reset
        self._streams: dict[int, MuxedStream] = {}
        self._fewer = trio.lowlevel.ParkingLot()
        self._answer = trio.lowlevel.ParkingLot()
        self._answers = 0
        self._last_rtt_s = 0.0
        self._heard_at = float("-inf")
        self._scope = trio.CancelScope()
        self._closing = self._draining = self._peer_leaves = False
        self._reason = ""

    @property
    def is_usable(self) -> bool:
        """Whether new streams can be opened."""
        return not (self._closing or self._draining or self._peer_leaves or self._reason)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def rtt(self) -> float:
        """The round trip in seconds, smoothed; 0 when it has not been measured."""
        return self.mux.rtt_s

    def metrics(self) -> MuxMetrics:
        """What the connection has carried and holds now."""
        return replace(self.mux.metrics(), streams=len(self._streams))

    async def run(self, on_stream: Callable[[MuxedStream], None]) -> None:
        """Carry streams until either side closes or the connection breaks.

        Args:
            on_stream: called, without waiting, with each stream that the peer opens.
        """
        self._on_stream = on_stream
        self._heard_at = trio.current_time()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guarded, self._read_loop)
                    nursery.start_soon(self._guarded, self._writer.run)
                    if self._keep_alive is not None:
                        nursery.start_soon(self._guarded, self._keep_alive_loop)
        finally:
            self._reason = self._reason or "the connection was closed"
            self.mux.shut()
            for stream in list(self._streams.values()):
                stream.on_break(self._reason)
            self._streams.clear()
            self._fewer.unpark_all()
            self._answer.unpark_all()
            with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_TIMEOUT_S):
                await self._channel.close()
            self.closed.set()

    def open(self, priority: Priority = Priority.WORK) -> MuxedStream:
        """Open a stream.

        Raises:
            Busy: as many as the limits allow are open.
            LinkClosed: the connection is closed, or takes no more streams.
        """
        if not self.is_usable:
            raise LinkClosed(self._reason or "the connection is closing")
        stream_id = self.mux.open(priority)
        self.wake()
        return self._add(stream_id)

    def set_limits(self, limits: MuxLimits, budget: Budget | None = None) -> None:
        """Give the peer more streams and wider windows.

        Args:
            limits: in force from now on.
            budget: what is granted to the peer is charged to it from now on; with one, windows grow.
        """
        self.send_buffer = limits.send_buffer
        self.mux.set_limits(limits, budget)
        for stream in self._streams.values():
            stream.on_room()  # what waits may fit now
        self.wake()

    async def ping(self, timeout_s: float = 10.0) -> float:
        """Ask the peer for a sign of life and return the round trip in seconds.

        Pings of several callers are one, so a caller may get the answer to a question that was asked before it came.

        Raises:
            DeadlineExceeded: there was no answer in time; the connection stays.
            LinkClosed: the connection is closed.
        """
        answers = self._answers
        self.mux.ping()
        self.wake()
        with trio.move_on_after(timeout_s):
            while self._answers == answers and not self.closed.is_set() and not self._scope.cancel_called:
                await self._answer.park()
        if self._answers != answers:
            return self._last_rtt_s
        if self._scope.cancel_called or self.closed.is_set():
            raise LinkClosed(self._reason or "the connection was closed")
        raise DeadlineExceeded(f"{self.remote_peer} has not answered a ping in {timeout_s:g} s")

    async def drain(self, timeout_s: float = 30.0) -> None:
        """Take and open no more streams, let those that are open finish, then close.

        Args:
            timeout_s: streams that are still open then are cut.
        """
        if not (self._draining or self._closing):
            self._draining = True
            self.mux.go_away()
            self.wake()
        with trio.move_on_after(timeout_s):
            while self._streams:
                await self._fewer.park()
        self.close("the connection was drained")
        await self.closed.wait()

    def close(self, reason: str) -> None:
        """Send what waits, for a second at most, and close."""
        if not self._closing:
            self._closing = True
            self._reason = self._reason or reason
            self._writer.close()
            self._scope.deadline = trio.current_time() + _CLOSE_TIMEOUT_S

    # From the streams.

    def may_send_on(self, stream_id: int) -> bool:
        """Whether a stream's sender need not wait: little waits of its stream, or of all less than goes at once."""
        mux = self.mux
        return mux.unsent(stream_id) <= self.send_buffer or mux.pending_bytes <= self._writer.batch.bytes

    def wake(self) -> None:
        """There may be something to send."""
        self._writer.wake()

    def flush(self) -> None:
        """There is something to send, and nothing more comes soon."""
        try:
            self._writer.flush()
        except LinkClosed as error:
            self._break(error)

    def let_go(self, stream_id: int) -> None:
        """Nobody uses a stream any more."""
        if self._streams.pop(stream_id, None) is not None:
            self._on_fewer()
        self.wake()

    # The tasks.

    async def _guarded(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except ComityError as error:
            self._break(error)
        self._scope.cancel()

    def _break(self, error: ComityError) -> None:
        self._reason = self._reason or str(error)
        self._scope.cancel()

    async def _read_loop(self) -> None:
        while True:
            # No name is bound to the bytes here: an idle connection would keep the last that came.
            self._on_bytes(await self._channel.read())

    def _on_bytes(self, data: bytes) -> None:
        if not data:
            raise LinkClosed(_PEER_CLOSED)
        self._heard_at = trio.current_time()
        streams = self._streams
        for event in self.mux.receive(data):
            if type(event) is DataReceived:
                if stream := streams.get(event.stream_id):
                    stream.on_data(event.data)
            else:
                self._on_event(event)
        self.wake()

    def _on_drained(self, stream_ids: list[int]) -> None:
        for stream_id in stream_ids:
            if stream := self._streams.get(stream_id):
                stream.on_room()

    async def _keep_alive_loop(self) -> None:
        assert self._keep_alive is not None
        idle_s, answer_s = self._keep_alive.idle_s, self._keep_alive.answer_s
        while True:
            heard_at = self._heard_at
            await trio.sleep_until(heard_at + idle_s)
            if self._heard_at != heard_at:
                continue
            self.mux.ping()
            self.wake()
            await trio.sleep(answer_s)
            if self._heard_at == heard_at:
                raise LinkClosed(f"nothing has been heard of the peer for {idle_s + answer_s:g} s")

    def _on_event(self, event: Event) -> None:
        match event:
            case StreamOpened(stream_id):
                self._on_stream(self._add(stream_id))
            case StreamEnded(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_end()
            case StreamReset(stream_id):
                if stream := self._streams.pop(stream_id, None):
                    stream.on_break("the peer reset the stream")
                    self._on_fewer()
            case PingAnswered(rtt_s):
                self._answers += 1
                self._last_rtt_s = rtt_s
                self._answer.unpark_all()
            case PeerLeaves(code):
                if code or not self._streams:
                    raise LinkClosed(f"{_PEER_CLOSED} (code {code})" if code else _PEER_CLOSED)
                self._peer_leaves = True
            case WindowGrew() | DataReceived():
                pass  # the writer is woken after the batch

    def _add(self, stream_id: int) -> MuxedStream:
        stream = MuxedStream(self, stream_id)
        self._streams[stream_id] = stream
        return stream

    def _on_fewer(self) -> None:
        self._fewer.unpark_all()
        if self._peer_leaves and not self._streams:
            self.close(_PEER_CLOSED)
