"""GossipSub over the node's transport: publish, subscribe, and one stream each way for each peer that is linked.

The router (`protocol.gossip`) decides; here it gets its streams, its clock and its validators. Only attested peers are
served (`strangers=False`). A *session* with a peer is our outbound stream, its stream to us, and a bounded queue; when
either stream ends, both do, and the session begins anew: then the peers tell each other again what they subscribe to,
and of everything that can still be asked for, so nothing is lost that both would take the other to know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

import trio

from comity.errors import Busy, ComityError, LinkClosed, ProtocolError, UnexpectedMessage
from comity.signing import PrivateKey, from_libp2p_public_key, peer_id, peer_id_bytes, peer_id_to_bytes
from comity_node.discovery.pubsub_session import (
    Handler,
    LinkView,
    PubSubSettings,
    Randomness,
    Received,
    Session,
    Validator,
)
from comity_node.protocol.gossip import Action, Deliver, GossipRouter, Send, Validate, Verdict
from comity_node.protocol.gossip_message import GossipMessage, sign_message
from comity_node.protocol.gossip_rpc import MESHSUB, RpcReader
from comity_node.transport.base import ByteStream, Priority, Transport
from comity_node.transport.pace import Pace

if TYPE_CHECKING:
    from trio_typing import TaskStatus

__all__ = ["Handler", "PubSub", "PubSubSettings", "Randomness", "Received", "Validator", "Verdict"]

_log = logging.getLogger("comity.pubsub")
_READ_BYTES = 64 * 1024
_WRITE_BYTES = 64 * 1024
#: What an RPC counts beside its bytes where a peer's rate is limited: an empty one has one byte, and is work.
_RPC_BYTES = 512
_NANOSECONDS = 1_000_000
#: Of the rate that others grant an author, so that we stay below it.
_OWN_SHARE = 0.8


class PubSub:
    """Publishes and subscribes."""

    def __init__(
        self,
        transport: Transport,
        links: LinkView,
        key: PrivateKey,
        *,
        now_ms: Callable[[], int],
        random: Randomness,
        settings: PubSubSettings | None = None,
    ) -> None:
        """Make the service, before the transport runs; `run` starts it.

        Args:
            transport: where the peers are.
            links: who of them is linked; sessions follow its changes.
            key: the node's own key.
            now_ms: milliseconds since the Unix epoch; numbers of messages begin there, so that they grow over restarts.
            random: a source of randomness.
            settings: bounds and times.
        """
        self._transport, self._links, self._key = transport, links, key
        self._now_ms, self._random = now_ms, random
        self._settings = settings or PubSubSettings()
        limits = self._settings.gossip.limits
        self._own = peer_id_bytes(key.public_key)
        self._router = GossipRouter(self._own, random, self._settings.gossip)
        self._number = 0
        self._pace = Pace(
            limits.author_per_s * _OWN_SHARE, burst=limits.author_burst * _OWN_SHARE, longest_wait_s=inf
        )  # fmt: skip
        self._sessions: dict[bytes, Session] = {}
        self._calls: dict[str, trio.CancelScope] = {}
        self._topics: dict[str, tuple[Validator, Handler]] = {}
        # As many as can wait for a validator: the router never has more of them under way.
        self._to_validate, self._validating = trio.open_memory_channel[Validate](limits.validating)
        transport.serve(MESHSUB, self._serve, strangers=False)
        transport.on_better_path(self._renew)

    @property
    def router(self) -> GossipRouter:
        """The router: for metrics and tests."""
        return self._router

    def counters(self) -> dict[str, int]:
        """What happened, and how full the tables are, by dotted name."""
        happened = {f"gossip.{name}": count for name, count in self._router.counts.items()}
        return happened | {f"gossip.size.{name}": size for name, size in self._router.sizes().items()}

    def subscribe(self, topic: str, validator: Validator, handler: Handler) -> None:
        """Take messages of a topic from now on.

        Args:
            topic: its name.
            validator: says of each message whether it is forwarded and handed out. One that raises a ComityError, or
                takes too long, has the message ignored.
            handler: told each accepted message once. What it raises as ComityError is logged.

        Raises:
            Busy: there are too many topics.
            ProtocolError: the topic's name is empty or too long.
            UnexpectedMessage: the topic is subscribed to already.
        """
        if topic in self._topics:
            raise UnexpectedMessage(f"{topic} is subscribed to already")
        self._do(self._router.subscribe(topic, _clock_ms()))
        self._topics[topic] = validator, handler

    def unsubscribe(self, topic: str) -> None:
        """Take no more messages of a topic."""
        self._do(self._router.unsubscribe(topic, _clock_ms()))
        self._topics.pop(topic, None)

    async def publish(self, topic: str, data: bytes) -> int:
        """Sign a message and send it; waits where others would take it for a flood.

        Returns:
            To how many peers it goes at once. Those that come within two minutes can still ask for it.

        Raises:
            FrameTooLarge: the payload is over the limit.
            ProtocolError: the topic's name is empty or too long, or there is no payload.
        """
        await self._pace.turn()
        self._number = max(self._number + 1, self._now_ms() * _NANOSECONDS)
        actions = self._router.publish(sign_message(self._key, self._own, topic, data, self._number), _clock_ms())
        self._do(actions)
        return len(actions)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gossip with whoever is linked, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._settings.validators):
                    nursery.start_soon(self._validate)
                nursery.start_soon(self._beat)
                task_status.started()
                await self._follow_links(nursery)
        finally:
            for session in list(self._sessions.values()):
                self._end(session)

    async def _follow_links(self, nursery: trio.Nursery) -> None:
        while True:
            version = self._links.changes.version
            up = {
                state.peer_id: state
                for state in self._links.peers()
                if state.state == "connected" and state.organization
            }  # fmt: skip
            for peer in [peer for peer in self._calls if peer not in up]:
                self._calls.pop(peer).cancel()
            for peer in up:
                if peer not in self._calls:
                    scope = self._calls[peer] = trio.CancelScope()
                    nursery.start_soon(self._call, peer, scope)
            await self._links.changes.wait(version)

    async def _call(self, peer: str, scope: trio.CancelScope) -> None:
        """Keep a stream to a linked peer open."""
        settings, failures = self._settings, 0
        with scope:
            while True:
                began = trio.current_time()
                try:
                    await self._speak(peer)
                except (ComityError, trio.TooSlowError) as error:
                    _log.debug("gossip with %s ended: %s", peer, _why(error))
                failures = 0 if trio.current_time() - began > settings.backoff_max_s else failures + 1
                longest_s = min(settings.backoff_first_s * 2.0 ** min(failures, 16), settings.backoff_max_s)
                await trio.sleep(longest_s * (0.5 + self._random.random() / 2))

    async def _speak(self, peer: str) -> None:
        """Open a stream to a peer, and write what the router has for it until the session ends."""
        addresses = next((state.addresses for state in self._links.peers() if state.peer_id == peer), ())
        with trio.fail_after(self._settings.open_s):
            stream = await self._transport.open_stream(peer, addresses, MESHSUB, priority=Priority.CONTROL)
        try:
            session = self._session(peer)
        except Busy:
            stream.reset()
            raise
        if session.outbound is not None:  # of a call that is on its way down
            self._end(session)
            session = self._session(peer)
        session.outbound = stream
        try:
            while not session.closed:
                await stream.send(session.queue.take(_WRITE_BYTES))
                await session.wait()
            raise LinkClosed("the session has ended")
        finally:
            self._end(session)

    async def _serve(self, stream: ByteStream) -> None:
        """Read what a peer says, on a stream that it has opened."""
        session = self._session(stream.remote_peer)
        if session.inbound is not None:  # the peer has begun anew before we have seen it end
            self._end(session)
            session = self._session(stream.remote_peer)
        session.inbound = stream
        reader = RpcReader(self._settings.gossip.limits)
        pace = Pace(
            self._settings.receive_per_s, burst=self._settings.receive_burst, longest_wait_s=inf
        )  # fmt: skip
        try:
            while data := await stream.receive(_READ_BYTES):
                reader.feed(data)
                await pace.turn(len(data))
                while not session.closed and (rpc := reader.next_rpc()) is not None:
                    self._do(self._router.receive(session.key, rpc, _clock_ms()))
                    await pace.turn(_RPC_BYTES)
        except ProtocolError:
            self._router.penalize(session.key)
            raise
        finally:
            self._end(session)

    def _session(self, peer: str) -> Session:
        key = peer_id_to_bytes(peer)
        session = self._sessions.get(key)
        if session is None:
            session = Session(peer, key, self._settings)
            info = self._transport.connection_info(peer)
            outbound = info is not None and not info.inbound
            actions = self._router.add_peer(key, _clock_ms(), outbound=outbound)
            self._sessions[key] = session
            self._do(actions)
        return session

    def _end(self, session: Session) -> None:
        session.closed = True
        session.wake()
        for stream in (session.inbound, session.outbound):
            if stream is not None:
                stream.reset()
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
            self._router.remove_peer(session.key, _clock_ms())

    def _renew(self, peer: str) -> None:
        """There is a better connection: the session begins anew on it."""
        if (session := self._sessions.get(peer_id_to_bytes(peer))) is not None:
            self._end(session)

    async def _beat(self) -> None:
        interval_s = self._settings.gossip.heartbeat_ms / 1000
        due = trio.current_time()
        while True:
            due = max(due + interval_s, trio.current_time())
            await trio.sleep_until(due)
            self._do(self._router.heartbeat(_clock_ms()))

    def _do(self, actions: Sequence[Action]) -> list[Received]:
        """Carry out what the router says; returns what is to be handed out."""
        delivered: list[Received] = []
        for action in actions:
            match action:
                case Send():
                    self._enqueue(action)
                case Validate():
                    try:
                        self._to_validate.send_nowait(action)
                    except trio.WouldBlock:  # the validators are so late that the router has given some up
                        self._router.judge(action.message.id, Verdict.IGNORE)
                case Deliver(message, source):
                    delivered.append(_received(message, source))
        return delivered

    def _enqueue(self, send: Send) -> None:
        session = self._sessions.get(send.peer)
        if session is None:
            return
        try:
            if dropped := session.queue.put(send.rpc):
                self._router.note_lost(send.peer, dropped)
        except Busy as error:
            _log.info("gossip with %s begins anew: %s", session.peer, error)
            self._end(session)
        session.wake()

    async def _validate(self) -> None:
        async for action in self._validating:
            message = action.message
            received = _received(message, action.source)
            verdict = await self._ask(received)
            for accepted in self._do(self._router.judge(message.id, verdict)):
                await self._hand_out(accepted)

    async def _ask(self, received: Received) -> Verdict:
        validator, _ = self._topics.get(received.topic, (None, None))
        if validator is None:
            return Verdict.IGNORE
        try:
            with trio.fail_after(self._settings.validate_s):
                return await validator(received)
        except (ComityError, trio.TooSlowError) as error:
            _log.warning("a message on %s could not be validated: %s", received.topic, _why(error))
            return Verdict.IGNORE

    async def _hand_out(self, received: Received) -> None:
        _, handler = self._topics.get(received.topic, (None, None))
        if handler is None:
            return
        try:
            with trio.fail_after(self._settings.validate_s):
                await handler(received)
        except (ComityError, trio.TooSlowError) as error:
            _log.warning("a message on %s could not be taken: %s", received.topic, _why(error))


def _received(message: GossipMessage, source: bytes) -> Received:
    return Received(message.topic, message.data, _text(message.author), _text(source))


def _text(multihash: bytes) -> str:
    """The PeerId of a multihash that holds an Ed25519 key; the router takes no other from anybody."""
    return peer_id(from_libp2p_public_key(multihash[2:]))


def _why(error: Exception) -> str:
    return str(error) or "it took too long"


def _clock_ms() -> int:
    return int(trio.current_time() * 1000)
