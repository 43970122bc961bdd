"""The streams of a Yamux connection: how many there are, in which state, and what memory they may take."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.windows import ReceiveWindow, WindowBudget
from comity_node.transport.yamux_frames import INITIAL_WINDOW, MAX_UNACKNOWLEDGED, MAX_WINDOW, MuxLimits

#: Streams that we have ended and the peer has not; over that the oldest is reset.
_MAX_LINGERING: Final = 16


@dataclass(slots=True, eq=False)
class Stream:
    """One stream.

    Attributes:
        id: odd for those that the dialling side opened.
        inbound: whether the peer opened it.
        window: what the peer may send.
        charged: bytes of the budget that the window takes.
        send_window: bytes that the peer takes.
        priority: whose bytes go first.
        out: what waits to be sent.
        unsent: how many bytes that is.
        waiting: whether it waits for its turn to send.
        acknowledged: whether the peer has answered our opening it.
        ended_here: nothing more will be sent than what waits.
        end_sent: the peer has been told so.
        ended_there: the peer sends no more.
        cut: a part of what was to be sent was dropped.
        let_go: nobody reads any more; what comes is dropped.
    """

    id: int
    inbound: bool
    window: ReceiveWindow
    charged: int
    send_window: int = INITIAL_WINDOW
    priority: Priority = Priority.WORK
    out: deque[bytes | memoryview] = field(default_factory=deque)
    unsent: int = 0
    waiting: bool = False
    acknowledged: bool = False
    ended_here: bool = False
    end_sent: bool = False
    ended_there: bool = False
    cut: bool = False
    let_go: bool = False

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do; a stream that the peer opened keeps its slot until it is let go."""
        read = self.let_go or not (self.inbound or self.window.unread)
        return read and self.end_sent and self.ended_there


class Streams:
    """All streams of a connection, by id."""

    def __init__(self, limits: MuxLimits) -> None:
        """Begin with none."""
        self.limits = limits
        #: What the windows add up to.
        self.budget = WindowBudget(limits.max_bytes, limits.free_bytes)
        self.by_id: dict[int, Stream] = {}
        self._inbound = 0
        self._unacknowledged = 0
        self._lingering: deque[int] = deque()

    def __len__(self) -> int:
        return len(self.by_id)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self.by_id.values()))

    def may_open(self, *, inbound: bool) -> bool:
        """Whether the limits take one more."""
        if inbound:
            return self._inbound < self.limits.max_streams
        ours = len(self.by_id) - self._inbound
        return ours < self.limits.max_streams and self._unacknowledged < MAX_UNACKNOWLEDGED

    def add(self, stream_id: int, now: float, *, inbound: bool) -> Stream | None:
        """Make a stream with as wide a window as the budget has; None if it has none."""
        for window in (self.limits.window, INITIAL_WINDOW):
            if self.budget.take(window):
                stream = Stream(stream_id, inbound, ReceiveWindow(window, window, now), window)
                self.by_id[stream_id] = stream
                if inbound:
                    self._inbound += 1
                else:
                    self._unacknowledged += 1
                return stream
        return None

    def remove(self, stream: Stream) -> None:
        """Forget a stream."""
        self.give_back(stream, stream.charged)
        del self.by_id[stream.id]
        if stream.inbound:
            self._inbound -= 1
        else:
            self.acknowledge(stream)
        if stream.let_go and stream.id in self._lingering:
            self._lingering.remove(stream.id)

    def acknowledge(self, stream: Stream) -> None:
        """The peer has answered our opening a stream."""
        if not (stream.inbound or stream.acknowledged):
            stream.acknowledged = True
            self._unacknowledged -= 1

    def linger(self, stream: Stream) -> int:
        """Wait for the peer to end a stream that we have ended; return one that has waited too long, or 0."""
        self._lingering.append(stream.id)
        return self._lingering[0] if len(self._lingering) > _MAX_LINGERING else 0

    def give_back(self, stream: Stream, count: int) -> None:
        """So many bytes of the stream's window cannot be held any more."""
        if stream.charged:
            stream.charged -= count
            self.budget.give(count)

    def widen(self, limits: MuxLimits, budget: Budget | None, now: float) -> list[tuple[int, int]]:
        """Put other limits into force; return how much more the peer may send, and of which streams."""
        self.limits = limits
        self.budget.limit = limits.max_bytes
        if budget is not None:
            self.budget.share(budget)
        grants = []
        for stream in self.by_id.values():
            extra = limits.window - stream.window.size
            if extra > 0 and not (stream.ended_there or stream.let_go) and self.budget.take(extra):
                stream.charged += extra
                grants.append((stream.id, stream.window.grant(now, extra)))
        return grants

    def grant(self, stream: Stream, now: float, rtt_s: float) -> int:
        """Say how much more the peer may send: what was read, more if the window is what slows it down."""
        window, budget = stream.window, self.budget
        change = 0
        if window.size > self.limits.window and budget.is_tight:
            change = -min(window.read, window.size - self.limits.window)
            budget.give(-change)
        elif budget.may_grow:
            change = budget.take_to_grow(window.growth(now, rtt_s, min(self.limits.max_window, MAX_WINDOW)))
        stream.charged += change
        return window.grant(now, change)
