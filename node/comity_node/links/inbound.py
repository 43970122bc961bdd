"""The streams on which a peer's requests come, and the bounded work on them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from comity.errors import Busy, ComityError, FrameTooLarge, LinkClosed, ProtocolError
from comity.trust import Attested
from comity_node.links.channel import Channel
from comity_node.links.greeting import Greeter, Greeting
from comity_node.links.limits import LinkLimits
from comity_node.links.state import Peer
from comity_node.protocol.session_events import Event, GoingAway, PingReceived, RequestReceived

_log = logging.getLogger("comity.links")

RequestHandler = Callable[[Attested, bytes], Awaitable[bytes]]


class InboundLink:
    """One stream of requests from an attested peer."""

    def __init__(
        self,
        peer: Peer,
        channel: Channel,
        greeting: Greeting,
        greeter: Greeter,
        limits: LinkLimits,
        on_request: RequestHandler,
        nursery: trio.Nursery,
    ) -> None:
        """Make a link.

        Args:
            peer: whose it is; the work in progress is counted there, over all its streams.
            channel: the stream, greeted.
            greeting: what the peer presented.
            greeter: verifies the chain again as time goes by.
            limits: bounds and times.
            on_request: answers a request, or raises ComityError.
            nursery: where the work lives: work that was begun is finished even if the stream goes away.
        """
        self.peer = peer
        self._channel, self._greeting, self._greeter = channel, greeting, greeter
        self._limits, self._on_request, self._nursery = limits, on_request, nursery
        self._draining = False
        self._heard = True

    async def run(self) -> None:
        """Serve until the stream ends; always raises why (a ComityError)."""
        try:
            await self._channel.run(self._on_event, self._watch)
        finally:
            await self._channel.say_goodbye()

    def close(self, reason: str) -> None:
        """End the link."""
        self._channel.close(reason)

    def go_away(self) -> None:
        """Take no more requests; those that were taken are still answered."""
        if not self._draining:
            self._draining = True
            self._channel.session.go_away("shutting_down", "the node is shutting down")
            self._channel.wake()

    async def flushed(self) -> None:
        """Wait until every answer is handed to the stream, or the stream is gone."""
        await self._channel.wait_sent()

    async def _watch(self) -> None:
        """Ends the link when nothing comes any more, or the peer's certificate expires."""
        while self._heard:
            self._heard = False
            with trio.move_on_after(self._limits.idle_s):
                while True:
                    await trio.sleep(self._limits.ping_every_s)
                    self._greeter.judge_again(self._greeting)
        raise LinkClosed(f"nothing came for {self._limits.idle_s:g} s")

    def _on_event(self, event: Event) -> None:
        self._heard = True
        match event:
            case RequestReceived(request_id, payload):
                self.peer.counters.messages_received += 1
                self._take(request_id, payload)
            case PingReceived():
                pass
            case GoingAway(code, reason):
                _log.debug("%s goes away (%s): %s", self.peer.peer_id, code, reason)
            case _:
                raise ProtocolError(f"{type(event).__name__} on an open link")

    def _take(self, request_id: int, payload: bytes) -> None:
        refusal = self._no_room_for(payload)
        if refusal:
            self._channel.session.respond_error(
                request_id, Busy.code, refusal, retry_after_ms=self._limits.retry_after_ms
            )
            self.peer.counters.messages_sent += 1
            return
        self.peer.activity.begin()
        self.peer.handlers += 1
        self.peer.handler_bytes += len(payload)
        self._nursery.start_soon(self._work, request_id, payload)

    def _no_room_for(self, payload: bytes) -> str:
        if self._draining:
            return "the node is shutting down"
        if self.peer.handlers >= self._limits.max_handlers:
            return f"{self.peer.handlers} requests of yours are being worked on"
        if self.peer.handlers and self.peer.handler_bytes + len(payload) > self._limits.max_handler_bytes:
            return f"requests of yours of {self.peer.handler_bytes} bytes are being worked on"
        return ""

    async def _work(self, request_id: int, payload: bytes) -> None:
        try:
            await self._answer(request_id, payload)
        except LinkClosed:
            _log.debug("%s did not wait for the answer to request %d", self.peer.peer_id, request_id)
        finally:
            self.peer.activity.end()
            self.peer.handlers -= 1
            self.peer.handler_bytes -= len(payload)

    async def _answer(self, request_id: int, payload: bytes) -> None:
        session = self._channel.session
        answer: bytes | ComityError
        try:
            answer = await self._on_request(self._greeting.attested, payload)
        except ComityError as error:
            answer = error
        except Exception:  # noqa: BLE001
            # A bug that a peer's bytes can reach must not stop the node for everybody else: reported here.
            _log.exception("the handler failed on a request of %s", self.peer.peer_id)
            answer = ComityError("internal error")
        await self._channel.wait_room()
        if isinstance(answer, bytes) and len(answer) > self._limits.session.max_payload:
            answer = FrameTooLarge(f"the answer of {len(answer)} bytes is over the limit")
        if isinstance(answer, bytes):
            session.respond(request_id, answer)
        else:
            retry = answer.retry_after_ms if isinstance(answer, Busy) else 0
            session.respond_error(request_id, answer.code, str(answer), retry_after_ms=retry)
        self.peer.counters.messages_sent += 1
        self._channel.wake()
