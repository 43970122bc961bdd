"""The stream on which our requests to one peer go: opened, kept alive, opened again."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from comity.errors import (
    Busy,
    ComityError,
    DeadlineExceeded,
    FrameTooLarge,
    LinkClosed,
    PeerNotAttested,
    PeerRefused,
    PeerUnreachable,
    ProtocolError,
)
from comity_node.links.channel import Channel
from comity_node.links.greeting import Admit, Greeter, Greeting, greet_as_opener
from comity_node.links.limits import LinkLimits
from comity_node.links.state import Counters, Peer
from comity_node.protocol.session import Session
from comity_node.protocol.session_events import ErrorReceived, Event, GoingAway, PongReceived, ResponseReceived
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import Transport

MESSAGES = "/comity/messages/1"
_log = logging.getLogger("comity.links")


class _Waiter:
    """One request of ours, until its answer comes."""

    __slots__ = ("_error", "_payload", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self._payload = b""
        self._error: ComityError | None = None

    def answer(self, payload: bytes) -> None:
        self._payload = payload
        self.done.set()

    def fail(self, error: ComityError) -> None:
        self._error = error
        self.done.set()

    def result(self) -> bytes:
        if self._error is not None:
            raise self._error
        return self._payload


class _NoSignOfLife(LinkClosed):
    """The peer does not answer pings: its connections are dead too."""


class OutboundLink:
    """Keeps one stream to a peer open, and sends requests on it."""

    def __init__(
        self,
        peer: Peer,
        transport: Transport,
        greeter: Greeter,
        limits: LinkLimits,
        random_bytes: Callable[[int], bytes],
        admit: Admit,
    ) -> None:
        self.peer = peer
        self._transport, self._greeter, self._limits = transport, greeter, limits
        self._admit = admit
        self._random_bytes = random_bytes
        self._channel: Channel | None = None
        self._waiting: dict[int, _Waiter] = {}
        self._kicked = trio.Event()
        self._pong = trio.Event()
        self._going_away = ""
        self._stopping = False
        #: Cancelled when the peer is forgotten.
        self.scope = trio.CancelScope()

    def kick(self) -> None:
        """The peer is known to be there: do not wait for the next attempt."""
        self._kicked.set()

    async def request(self, payload: bytes, deadline_s: float) -> bytes:
        """Send a request and return the answer.

        Raises:
            PeerUnreachable: there is no link to the peer at this moment.
            Busy: too many requests wait for this peer, or the peer has no room.
            DeadlineExceeded: no answer in `deadline_s` seconds.
            LinkClosed: the link went down before the answer came; the peer may have acted on the request.
            PeerRefused: the peer answered with an error.
            FrameTooLarge: the payload is over the limit.
        """
        channel = self._channel
        if channel is None:
            raise PeerUnreachable(f"no link to {self.peer.peer_id}: {self.peer.reason or self.peer.phase}")
        try:
            with trio.fail_after(deadline_s):
                return await self._request(channel, payload)
        except trio.TooSlowError as error:
            raise DeadlineExceeded(f"{self.peer.peer_id} has not answered in {deadline_s:g} s") from error

    async def _request(self, channel: Channel, payload: bytes) -> bytes:
        await channel.wait_room()
        request_id = channel.session.request(payload)
        waiter = self._waiting[request_id] = _Waiter()
        channel.wake()
        self.peer.counters.messages_sent += 1
        self.peer.activity.begin()
        try:
            await waiter.done.wait()
        finally:
            self.peer.activity.end()
            if self._waiting.get(request_id) is waiter:
                del self._waiting[request_id]  # a late answer is dropped
        return waiter.result()

    def go_away(self) -> None:
        """Make no more requests; the link ends when the last one is answered."""
        self._stopping = True
        self._going_away = "the node is shutting down"
        if self._channel is not None:
            self._channel.session.go_away("shutting_down", self._going_away)
            self._channel.wake()
            if not self._waiting:
                self._channel.close(self._going_away)
        self.kick()

    async def run(self) -> None:
        """Connect, and connect again whenever the link ends, until cancelled or `go_away`."""
        failures = 0
        while not self._stopping:
            self._kicked = trio.Event()
            began = trio.current_time()
            not_wanted = False
            self.peer.set_phase("connecting", self.peer.reason)
            try:
                await self._live()
            except ComityError as error:
                _log.debug("the link to %s ended: %s", self.peer.peer_id, error)
                not_wanted = isinstance(error, PeerNotAttested)
                self.peer.set_phase("down", str(error))
            failures = 0 if trio.current_time() - began > self._limits.idle_s else failures + 1
            if not self._stopping:
                with trio.move_on_after(self._backoff_s(failures, not_wanted=not_wanted)):
                    await self._kicked.wait()

    def _backoff_s(self, failures: int, *, not_wanted: bool) -> float:
        """Exponential, between half and all of it, so that many peers do not come back at once."""
        doubled: float = self._limits.backoff_first_s * 2 ** min(failures, 16)
        longest = self._limits.backoff_max_s if not_wanted else min(doubled, self._limits.backoff_max_s)
        return longest * (0.5 + int.from_bytes(self._random_bytes(2), "big") / 131072)

    async def _live(self) -> None:
        """One life of the link; always raises why it ended."""
        stream = await self._transport.open_stream(self.peer.peer_id, self.peer.addresses, MESSAGES)
        session = Session(Role.OPENER, Service.MESSAGES, self._limits.session)
        channel = Channel(stream, session, Counters(), send_buffer=self._limits.send_buffer)
        try:
            greeting = await self._greet(channel)
            channel.count_with(self.peer.counters)
            self._channel = channel
            self._going_away = ""
            self.peer.set_phase("connected")
            await channel.run(self._on_event, lambda: self._keep_alive(channel, greeting))
        except ComityError as error:
            self.peer.set_phase("down", str(error))  # before those who wait for an answer hear of it
            if isinstance(error, (PeerNotAttested, _NoSignOfLife)):
                await self._transport.disconnect(self.peer.peer_id)
            raise
        finally:
            self._channel = None
            self._fail_waiting(LinkClosed(f"the link to {self.peer.peer_id} went down before the answer came"))
            await channel.say_goodbye()

    async def _greet(self, channel: Channel) -> Greeting:
        try:
            with trio.fail_after(self._limits.attest_s):
                greeting = await greet_as_opener(channel, self._greeter, self._admit)
        except trio.TooSlowError as error:
            raise PeerNotAttested(f"the peer has not attested itself in {self._limits.attest_s:g} s") from error
        except ProtocolError as error:
            raise PeerNotAttested(f"the peer does not attest itself: {error}") from error
        self._transport.confirm(self.peer.peer_id)
        self.peer.attest(greeting.attested, greeting.addresses)
        return greeting

    async def _keep_alive(self, channel: Channel, greeting: Greeting) -> None:
        nonce = 0
        while True:
            nonce += 1
            self._pong = trio.Event()
            asked = trio.current_time()
            channel.session.ping(nonce)
            channel.wake()
            with trio.move_on_after(self._limits.dead_after_s) as scope:
                await self._pong.wait()
            if scope.cancelled_caught:
                raise _NoSignOfLife(f"no sign of life for {self._limits.dead_after_s:g} s")
            self.peer.round_trip_ms = (trio.current_time() - asked) * 1000
            await trio.sleep(self._limits.ping_every_s)
            self._greeter.judge_again(greeting)

    def _on_event(self, event: Event) -> None:
        match event:
            case ResponseReceived(request_id, payload):
                self.peer.counters.messages_received += 1
                if waiter := self._waiting.pop(request_id, None):
                    waiter.answer(payload)
            case ErrorReceived(request_id):
                self.peer.counters.messages_received += 1
                if waiter := self._waiting.pop(request_id, None):
                    waiter.fail(_error_of(event))
            case PongReceived():
                self._pong.set()
            case GoingAway(code, reason):
                self._going_away = f"the peer goes away ({code}): {reason}"
            case _:
                raise ProtocolError(f"{type(event).__name__} on an open link")
        if self._going_away and not self._waiting:
            raise LinkClosed(self._going_away)

    def _fail_waiting(self, error: ComityError) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter.fail(error)


def _error_of(event: ErrorReceived) -> ComityError:
    if event.code == Busy.code:
        return Busy(event.text or "the peer is busy", retry_after_ms=event.retry_after_ms)
    if event.code == FrameTooLarge.code:
        return FrameTooLarge(f"the peer refuses: {event.text}")
    return PeerRefused(f"the peer answered {event.code}: {event.text}", remote_code=event.code)
