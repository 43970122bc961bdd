"""The streams on which a peer's calls come, and the answers to them."""

from __future__ import annotations

import logging
from contextlib import suppress

import trio

from comity.errors import Busy, ComityError, DeadlineExceeded, FrameTooLarge, LinkClosed, ProtocolError
from comity_node.links.channel import Channel
from comity_node.links.deadlines import Deadlines
from comity_node.links.greeting import Greeter, Greeting
from comity_node.links.handlers import Handlers, RequestHandler
from comity_node.links.limits import LinkLimits
from comity_node.links.pool import HandlerPool, Job
from comity_node.links.state import Peer
from comity_node.protocol.session_events import (
    CancelReceived,
    CreditReceived,
    Event,
    GoingAway,
    NoticeReceived,
    PingReceived,
    RequestReceived,
    StreamAsked,
)
from comity_node.transport.base import Priority

__all__ = ["InboundLink", "RequestHandler"]

_log = logging.getLogger("comity.links")

CallReceived = RequestReceived | NoticeReceived | StreamAsked


class Served(Job):
    """One call of the peer, from its arrival to its end."""

    __slots__ = ("_link", "event")

    def __init__(self, link: InboundLink, event: CallReceived, now: float) -> None:
        super().__init__(len(event.payload), now + event.deadline_ms / 1000)
        self._link, self.event = link, event

    async def work(self) -> None:
        """See `Job.work`."""
        await self._link.work(self)


class ItemSink:
    """Where a handler puts the items of a stream."""

    def __init__(self, link: InboundLink, request_id: int) -> None:
        self._link, self._id = link, request_id
        #: Wakes the handler when the peer takes more.
        self.credit = trio.lowlevel.ParkingLot()

    async def send(self, item: bytes) -> None:
        """See `Sink.send`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        channel = self._link.channel
        while not (channel.has_room and channel.session.may_send_item(self._id)):
            if channel.has_room:
                await self.credit.park()
            else:
                await channel.wait_room()
        channel.session.send_item(self._id, item)
        self._link.peer.counters.messages_sent += 1
        channel.wake()


class InboundLink:
    """One stream of calls from an attested peer."""

    def __init__(
        self,
        peer: Peer,
        channel: Channel,
        greeting: Greeting,
        greeter: Greeter,
        limits: LinkLimits,
        handlers: Handlers,
        pool: HandlerPool,
    ) -> None:
        """Make a link.

        Args:
            peer: whose it is.
            channel: the stream, greeted.
            greeting: what the peer presented.
            greeter: verifies the chain again as time goes by.
            limits: bounds and times.
            handlers: answer calls, or raise ComityError.
            pool: works on the peer's calls of this stream's class.
        """
        self.peer = peer
        self.channel = channel
        #: Calls that have no answer yet, by id.
        self.calls: dict[int, Served] = {}
        self._sinks: dict[int, ItemSink] = {}
        self._greeting, self._greeter = greeting, greeter
        self._limits, self._handlers, self._pool = limits, handlers, pool
        self._session = channel.session
        self._deadlines = Deadlines(self._expire)
        self._draining = False
        self._heard_at = trio.current_time()

    @property
    def priority(self) -> Priority:
        """What the stream is for."""
        return self._greeting.priority

    async def run(self) -> None:
        """Serve until the stream ends; always raises why (a ComityError)."""
        self._pool.begin()
        try:
            await self.channel.run(self._on_events, self._watch, self._deadlines.run)
        finally:
            self._abandon()
            self._pool.end()
            await self.channel.say_goodbye()

    def close(self, reason: str) -> None:
        """End the link."""
        self.channel.close(reason)

    def go_away(self) -> None:
        """Take no more calls; those that were taken are still answered."""
        if not self._draining:
            self._draining = True
            with suppress(LinkClosed):  # then nobody is left to tell
                self._session.go_away("shutting_down", "the node is shutting down")
            self.channel.wake()

    async def flushed(self) -> None:
        """Wait until every answer is handed to the stream, or the stream is gone."""
        await self.channel.wait_sent()

    async def work(self, call: Served) -> None:
        """Answer a call, unless it was dropped meanwhile."""
        event, attested = call.event, self._greeting.attested
        answer: bytes | ComityError = b""
        try:
            if isinstance(event, RequestReceived):
                answer = await self._handlers.request(attested, event.payload)
            elif isinstance(event, NoticeReceived):
                await self._handlers.notice(attested, event.payload)
            else:
                sink = self._sinks[event.request_id] = ItemSink(self, event.request_id)
                await self._handlers.stream(attested, event.payload, sink)
        except ComityError as error:
            answer = error
        except Exception:  # noqa: BLE001
            # A bug that a peer's bytes can reach must not stop the node for everybody else: reported here.
            _log.exception("the handler failed on a call of %s", self.peer.peer_id)
            answer = ComityError("internal error")
        if not self.channel.has_room:
            with suppress(LinkClosed):  # then there is no call any more, either
                await self.channel.wait_room()
        if event.request_id in self.calls:
            self._end(call, answer)
            if self._pool.waiting:
                self.channel.wake()
            else:
                self.channel.send_now()

    async def _watch(self) -> None:
        """Ends the link when nothing comes any more, or the peer's certificate expires."""
        limits = self._limits
        while trio.current_time() < self._heard_at + limits.idle_s:
            await trio.sleep(min(limits.ping_every_s, limits.idle_s))
            self._greeter.judge_again(self._greeting)
            self._pool.trim()
        raise LinkClosed(f"nothing came for {limits.idle_s:g} s")

    def _on_events(self, events: list[Event]) -> None:
        self.peer.heard_at = self._heard_at = now = trio.current_time()
        for event in events:
            if isinstance(event, (RequestReceived, NoticeReceived, StreamAsked)):
                self._take(event, now)
            elif isinstance(event, CancelReceived):
                self._drop(event.request_id, ComityError("the call was cancelled"))
            elif isinstance(event, CreditReceived):
                if sink := self._sinks.get(event.request_id):
                    sink.credit.unpark_all()
            elif isinstance(event, GoingAway):
                _log.debug("%s goes away (%s): %s", self.peer.peer_id, event.code, event.reason)
            elif not isinstance(event, PingReceived):
                raise ProtocolError(f"{type(event).__name__} on an open link")
        self._pool.start()

    def _take(self, event: CallReceived, now: float) -> None:
        self.peer.counters.messages_received += 1
        call = self.calls[event.request_id] = Served(self, event, now)
        if refusal := self._no_room_for(event):
            self._end(call, Busy(refusal, retry_after_ms=self._limits.retry_after_ms))
        else:
            self._deadlines.watch(call.deadline)
            self._pool.take(call)

    def _no_room_for(self, event: CallReceived) -> str:
        """Why a call is not taken; "" if it is, and then it is charged."""
        if self._draining:
            return "the node is shutting down"
        if self._pool.bytes and self._pool.bytes + len(event.payload) > self._limits.max_handler_bytes:
            return f"calls of yours of {self._pool.bytes} bytes are being worked on"
        if isinstance(event, StreamAsked) and self._session.streams > self._limits.session.max_streams:
            return f"{self._session.streams - 1} streams of yours are open"
        if not self._pool.budget.take(len(event.payload)):
            return "calls of nodes of your organization, or of all, are being worked on"
        return ""

    def _end(self, call: Served, answer: bytes | ComityError) -> None:
        """Answer a call."""
        del self.calls[call.event.request_id]
        if self._sinks:
            self._sinks.pop(call.event.request_id, None)
        self.peer.counters.messages_sent += 1
        with suppress(LinkClosed):  # then nobody waits for it
            self._say(call.event, answer)

    def _say(self, event: CallReceived, answer: bytes | ComityError) -> None:
        session = self._session
        if isinstance(answer, bytes) and len(answer) > session.limits.max_payload:
            answer = FrameTooLarge(f"the answer of {len(answer)} bytes is over the limit")
        if isinstance(event, NoticeReceived):
            session.settle(len(event.payload))
        elif not isinstance(answer, bytes):
            retry = answer.retry_after_ms if isinstance(answer, Busy) else 0
            session.respond_error(event.request_id, answer.code, str(answer), retry_after_ms=retry)
        elif isinstance(event, RequestReceived):
            session.respond(event.request_id, answer)
        else:
            session.end_stream(event.request_id)

    def _drop(self, request_id: int, error: ComityError) -> None:
        """End a call on which nobody has to work any more."""
        if call := self.calls.get(request_id):
            self._end(call, error)
            self._pool.drop(call)
            self.channel.wake()

    def _expire(self, now: float) -> float:
        """Drop the calls whose time is up; returns when the next one's is."""
        following = float("inf")
        for request_id, call in list(self.calls.items()):
            if call.deadline > now:
                following = min(following, call.deadline)
            else:
                self._drop(request_id, DeadlineExceeded("its time was up"))
        return following

    def _abandon(self) -> None:
        """The stream is gone: nobody waits for an answer. What was begun is finished, but for streams."""
        calls, self.calls = self.calls, {}
        for call in calls.values():
            if isinstance(call.event, StreamAsked):
                self._pool.drop(call)
            else:
                self._pool.forget(call)
