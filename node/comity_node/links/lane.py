"""One stream of a link on which our calls go: opened, greeted, pinged, drained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from comity.errors import ComityError, LinkClosed, PeerNotAttested, ProtocolError
from comity_node.links.calls import Calls
from comity_node.links.channel import Channel
from comity_node.links.greeting import Admit, Greeter, Greeting, greet_as_opener
from comity_node.links.limits import LinkLimits
from comity_node.links.state import Counters, Peer
from comity_node.protocol.session import Session
from comity_node.protocol.session_events import (
    EndReceived,
    ErrorReceived,
    Event,
    GoingAway,
    ItemReceived,
    PongReceived,
    ResponseReceived,
    RoomReceived,
)
from comity_node.protocol.session_states import Role, Service
from comity_node.transport.base import Priority, Transport

MESSAGES = "/comity/messages/2"


class Lane:
    """An attested stream of one class to a peer, and our calls on it."""

    def __init__(self, peer: Peer, channel: Channel, greeting: Greeting, limits: LinkLimits) -> None:
        self.greeting = greeting
        self.channel = channel
        self.calls = Calls(peer, channel, max_waiting=limits.max_waiting)
        #: When the last pong came; when the lane opened, before the first.
        self.ponged_at = trio.current_time()
        self._peer = peer
        self._session = channel.session
        self._nonce = 0
        self._pinged_at = 0.0
        self._going_away = ""

    @property
    def is_leaving(self) -> bool:
        """Whether one side has said that it goes away."""
        return bool(self._going_away)

    async def run(self, on_end: Callable[[Lane, ComityError], None]) -> None:
        """Carry calls until the stream ends.

        Args:
            on_end: told why it ended, before those hear of it who wait for an answer.
        """
        try:
            await self.channel.run(self._on_events, self.calls.deadlines.run, holds_back=False)
        except ComityError as error:
            on_end(self, error)
        finally:
            self.calls.fail(lambda: LinkClosed(f"the link to {self._peer.peer_id} went down before the answer came"))
            await self.channel.say_goodbye()

    def ping(self) -> None:
        """Ask for a sign of life, unless the last one is awaited still."""
        if not self._session.awaits_pong:
            self._nonce += 1
            self._pinged_at = trio.current_time()
            self._session.ping(self._nonce)
            self.channel.wake()

    def go_away(self, code: str, reason: str) -> None:
        """Make no more calls; the lane ends when the last one is answered."""
        if not self._going_away:
            with suppress(LinkClosed):  # then nobody is left to tell
                self._session.go_away(code, reason)
            self.channel.wake()
            self._leave(reason)
            if self.calls.is_idle:
                self.channel.close(reason)

    def _on_events(self, events: list[Event]) -> None:
        self._peer.heard_at = trio.current_time()
        calls = self.calls
        for event in events:
            if isinstance(event, (ResponseReceived, ErrorReceived)):
                calls.on_answer(event)
            elif isinstance(event, (ItemReceived, EndReceived)):
                calls.on_stream(event)
            elif isinstance(event, PongReceived):
                self._on_pong()
            elif isinstance(event, GoingAway):
                self._leave(f"the peer goes away ({event.code}): {event.reason}")
            elif not isinstance(event, RoomReceived):
                raise ProtocolError(f"{type(event).__name__} on an open link")
        calls.on_batch()
        if self._going_away and calls.is_idle:
            raise LinkClosed(self._going_away)

    def _on_pong(self) -> None:
        self.ponged_at = trio.current_time()
        if self.greeting.priority is Priority.CONTROL:  # nothing stands in its way there
            self._peer.round_trip_ms = (self.ponged_at - self._pinged_at) * 1000

    def _leave(self, reason: str) -> None:
        self._going_away = self._going_away or reason or "the link is going away"
        self.calls.fail_waiting(lambda: LinkClosed(reason))


class LaneOpener:
    """Opens lanes to one peer."""

    def __init__(self, peer: Peer, transport: Transport, greeter: Greeter, limits: LinkLimits, admit: Admit) -> None:
        self._peer, self._transport, self._greeter, self._limits = peer, transport, greeter, limits
        self._admit = admit

    async def open(self, priority: Priority) -> Lane:
        """Open a stream and attest each other.

        Raises:
            PeerUnreachable: the peer cannot be reached.
            PeerNotAttested: one side refused the other, or it was not done in time.
            Busy: one side has no room for the other.
            LinkClosed: the stream broke.
        """
        peer, limits = self._peer, self._limits
        stream = await self._transport.open_stream(peer.peer_id, peer.addresses, MESSAGES, priority=priority)
        session = Session(Role.OPENER, Service.MESSAGES, limits.session)
        channel = Channel(stream, session, Counters(), send_buffer=limits.send_buffer)
        try:
            with trio.fail_after(limits.attest_s):
                greeting = await greet_as_opener(channel, self._greeter, priority, calls=True, admit=self._admit)
        except BaseException as error:  # the peer is told, whatever it was; raised again
            await channel.say_goodbye()
            if isinstance(error, trio.TooSlowError):
                raise PeerNotAttested(f"the peer has not attested itself in {limits.attest_s:g} s") from error
            if isinstance(error, ProtocolError):
                raise PeerNotAttested(f"the peer does not attest itself: {error}") from error
            raise
        channel.count_with(peer.counters)
        return Lane(peer, channel, greeting, limits)


async def open_all(opener: LaneOpener, priorities: tuple[Priority, ...]) -> list[Lane]:
    """Open a lane of each class, all at once; if one cannot be opened, none is.

    Raises:
        ComityError: what kept the first of them from opening; see `LaneOpener.open`.
    """
    lanes: dict[Priority, Lane] = {}
    failure: ComityError | None = None

    async def open_one(priority: Priority) -> None:
        nonlocal failure
        try:
            lanes[priority] = await opener.open(priority)
        except ComityError as error:
            failure = failure or error
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for priority in priorities:
                nursery.start_soon(open_one, priority)
    finally:
        if len(lanes) < len(priorities):
            for lane in lanes.values():
                await lane.channel.say_goodbye()
    if failure is not None:
        raise failure
    return [lanes[priority] for priority in priorities]
