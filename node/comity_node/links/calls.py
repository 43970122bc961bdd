"""Our calls on one stream: in line until the peer takes more, then under way until their answer comes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import chain

import trio
from outcome import Error, Outcome, Value

from comity.errors import Busy, ComityError, DeadlineExceeded, FrameTooLarge, LinkClosed, PeerRefused
from comity_node.links.channel import Channel
from comity_node.links.deadlines import Deadlines
from comity_node.links.items import Items
from comity_node.links.state import Peer
from comity_node.protocol.session import MAX_DEADLINE_MS, Session
from comity_node.protocol.session_events import EndReceived, ErrorReceived, ItemReceived, ResponseReceived
from comity_node.protocol.session_states import State


class Call:
    """One request, and the task that waits for its answer."""

    __slots__ = ("_calls", "deadline", "payload", "request_id", "task")

    def __init__(self, calls: Calls, payload: bytes, deadline: float) -> None:
        self._calls = calls
        self.payload, self.deadline = payload, deadline
        self.request_id = 0
        self.task = trio.lowlevel.current_task()

    def send(self, session: Session, deadline_ms: int) -> bool:
        """Put it on the stream. Returns whether its task goes on waiting."""
        self.request_id = session.request(self.payload, deadline_ms)
        return True

    def abort(self, _: object) -> trio.lowlevel.Abort:
        """Its task is cancelled."""
        self._calls.abandon(self)
        return trio.lowlevel.Abort.SUCCEEDED

    def finish(self, outcome: Outcome[bytes]) -> None:
        """Let its task go on."""
        trio.lowlevel.reschedule(self.task, outcome)


class Notice(Call):
    """Something to which no answer comes: its task waits until it is on the stream."""

    __slots__ = ()

    def send(self, session: Session, deadline_ms: int) -> bool:
        """See `Call.send`."""
        session.notify(self.payload, deadline_ms)
        return False


class StreamCall(Call):
    """A request for a stream: its task waits until it is on the stream, then for its items."""

    __slots__ = ("items",)

    def __init__(self, calls: Calls, payload: bytes, deadline: float, items: Items) -> None:
        super().__init__(calls, payload, deadline)
        self.items = items

    def send(self, session: Session, deadline_ms: int) -> bool:
        """See `Call.send`."""
        items = self.items
        self.request_id = session.stream(self.payload, items.window_items, items.window_bytes, deadline_ms)
        return False


class Calls:
    """The calls of one stream, in order."""

    def __init__(self, peer: Peer, channel: Channel, *, max_waiting: int) -> None:
        self.deadlines = Deadlines(self._expire)
        self._peer, self._channel, self._session = peer, channel, channel.session
        self._max_waiting = max_waiting
        self._line: OrderedDict[Call, None] = OrderedDict()
        self._under_way: dict[int, Call] = {}
        self._streams: dict[int, StreamCall] = {}
        self._is_over = False
        #: Several answers came at once, so several calls will go at once.
        self._is_busy = False
        self._answers = 0
        channel.on_room = self._pump

    @property
    def waiting(self) -> int:
        """Calls in line."""
        return len(self._line)

    @property
    def under_way(self) -> int:
        """Calls that are on the stream and not answered."""
        return len(self._under_way) + len(self._streams)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not (self._under_way or self._streams or self._line)

    async def request(self, payload: bytes, deadline_s: float) -> bytes:
        """Send a request and return the answer; `Links.request` says what it raises."""
        now = trio.current_time()
        call = Call(self, payload, now + deadline_s)
        self._enter(call, now)
        answer: bytes = await trio.lowlevel.wait_task_rescheduled(call.abort)
        return answer

    async def notify(self, payload: bytes, deadline_s: float) -> None:
        """Send a notification; returns when it is on its way."""
        now = trio.current_time()
        call = Notice(self, payload, now + deadline_s)
        if self._enter(call, now):
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_task_rescheduled(call.abort)

    async def stream(self, payload: bytes, deadline_s: float, *, items: int, size: int) -> StreamCall:
        """Ask for a stream; whoever gets it ends it with `end_stream`."""
        now = trio.current_time()
        call = StreamCall(self, payload, now + deadline_s, Items(items, size))
        call.items.on_used = lambda count, used: self._grant(call, count, used)
        if not self._enter(call, now):
            await trio.lowlevel.wait_task_rescheduled(call.abort)
        return call

    def end_stream(self, call: StreamCall) -> None:
        """The stream is over, or not wanted any more."""
        if self._streams.pop(call.request_id, None) is not None:
            self._cancel(call.request_id)
            self._peer.activity.end()

    def abandon(self, call: Call) -> None:
        """Nobody waits for this call any more."""
        if call.request_id:
            del self._under_way[call.request_id]
            self._cancel(call.request_id)
        else:
            del self._line[call]
        self._peer.activity.end()

    def on_answer(self, event: ResponseReceived | ErrorReceived) -> None:
        """An answer came, to a call for which somebody waits."""
        self._peer.counters.messages_received += 1
        self._answers += 1
        call = self._under_way.pop(event.request_id, None)
        if call is not None:
            if isinstance(event, ResponseReceived):
                call.finish(Value(event.payload))
            else:
                call.finish(Error(_error_of(event)))
        elif isinstance(event, ErrorReceived):
            self._streams.pop(event.request_id).items.end(_error_of(event))
        self._peer.activity.end()

    def on_stream(self, event: ItemReceived | EndReceived) -> None:
        """A stream goes on or ends."""
        self._peer.counters.messages_received += 1
        if isinstance(event, ItemReceived):
            self._streams[event.request_id].items.put(event.payload)
        else:
            self._streams.pop(event.request_id).items.end(None)
            self._peer.activity.end()

    def on_batch(self) -> None:
        """All that came at once has been told: there may be room for those in line."""
        self._is_busy, self._answers = self._answers > 1, 0
        if self._line:
            self._pump()

    def fail_waiting(self, error: Callable[[], ComityError]) -> None:
        """Let no call go any more; those under way are still answered."""
        while self._line:
            call, _ = self._line.popitem(last=False)
            self._peer.activity.end()
            call.finish(Error(error()))

    def fail(self, error: Callable[[], ComityError]) -> None:
        """The stream is gone."""
        self._is_over = True
        self.fail_waiting(error)
        under_way, self._under_way = self._under_way, {}
        streams, self._streams = self._streams, {}
        for call in under_way.values():
            self._peer.activity.end()
            call.finish(Error(error()))
        for stream in streams.values():
            self._peer.activity.end()
            stream.items.end(error())

    def _enter(self, call: Call, now: float) -> bool:
        """Let a call go, or let it stand in line. Returns whether it went."""
        session = self._session
        if len(call.payload) > session.limits.max_payload:
            raise FrameTooLarge(f"{len(call.payload)} bytes are over the limit of {session.limits.max_payload}")
        if self._is_over or session.state is not State.OPEN:
            raise LinkClosed("the link is going away")
        if not self._line and session.has_room and self._channel.has_room:
            self._start(call, now)
            sent = True
        elif len(self._line) >= self._max_waiting:
            raise Busy(f"{len(self._line)} calls wait for {self._peer.peer_id} already", retry_after_ms=100)
        else:
            self._line[call] = None
            sent = False
        if not sent or call.request_id:
            self._peer.activity.count += 1
            self.deadlines.watch(call.deadline)
        return sent

    def _start(self, call: Call, now: float) -> bool:
        """Put a call on the stream. Returns whether its task goes on waiting."""
        left_ms = (call.deadline - now) * 1000
        if left_ms < 1:
            raise DeadlineExceeded(f"there is no time left to ask {self._peer.peer_id}")
        waits = call.send(self._session, int(left_ms) if left_ms < MAX_DEADLINE_MS else MAX_DEADLINE_MS)
        call.payload = b""
        if waits:
            self._under_way[call.request_id] = call
        elif isinstance(call, StreamCall):
            self._streams[call.request_id] = call
        self._peer.counters.messages_sent += 1
        if self._is_busy or len(self._under_way) > 1:
            self._channel.wake()  # others are about, too: what they say goes in the same piece
        else:
            self._channel.send_now()
        return waits

    def _pump(self) -> None:
        while self._line and self._session.has_room and self._channel.has_room:
            call, _ = self._line.popitem(last=False)
            try:
                if not self._start(call, trio.current_time()):
                    if not call.request_id:
                        self._peer.activity.end()
                    call.finish(Value(b""))
            except ComityError as error:
                self._peer.activity.end()
                call.finish(Error(error))

    def _grant(self, call: StreamCall, items: int, size: int) -> None:
        if call.request_id in self._streams and self._session.state is not State.CLOSED:
            self._session.grant(call.request_id, items, size)
            self._channel.wake()

    def _cancel(self, request_id: int) -> None:
        with suppress(LinkClosed):  # then nobody is left to tell
            self._session.cancel(request_id)
            self._channel.wake()

    def _expire(self, now: float) -> float:
        """End the calls whose time is up; returns when the next one's is."""
        following = float("inf")
        for call in list(chain(self._line, self._under_way.values(), self._streams.values())):
            if call.deadline > now:
                following = min(following, call.deadline)
                continue
            error = DeadlineExceeded(f"{self._peer.peer_id} has not answered in time")
            if isinstance(call, StreamCall) and call.request_id:
                call.items.end(error)
                self.end_stream(call)
            else:
                self.abandon(call)
                call.finish(Error(error))
        return following


def _error_of(event: ErrorReceived) -> ComityError:
    if event.code == Busy.code:
        return Busy(event.text or "the peer is busy", retry_after_ms=event.retry_after_ms)
    if event.code == FrameTooLarge.code:
        return FrameTooLarge(f"the peer refuses: {event.text}")
    if event.code == DeadlineExceeded.code:
        return DeadlineExceeded(f"the peer has not done it in time: {event.text}")
    return PeerRefused(f"the peer answered {event.code}: {event.text}", remote_code=event.code)
