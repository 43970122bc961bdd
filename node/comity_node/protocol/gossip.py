"""A GossipSub v1.1 router with no I/O: what happens goes in, what is to be done comes out.

https://github.com/libp2p/specs/tree/master/pubsub/gossipsub. Each call returns a list of actions: RPCs to send
(`Send`), messages to ask the validator about (`Validate`) and messages to hand out (`Deliver`). Time is passed in, in
milliseconds of any monotonic clock; `heartbeat` is called every `GossipParams.heartbeat_ms`. How a message is judged is
told in `gossip_intake`; whoever is below the graylist threshold is not heard at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from comity.errors import Busy, FrameTooLarge, ProtocolError
from comity_node.protocol.gossip_intake import Intake, Verdict
from comity_node.protocol.gossip_lazy import LazyPush
from comity_node.protocol.gossip_mesh import Mesh
from comity_node.protocol.gossip_message import GossipMessage, verify_message
from comity_node.protocol.gossip_params import GossipParams
from comity_node.protocol.gossip_rpc import Rpc
from comity_node.protocol.gossip_state import Action, Chance, Deliver, GossipPeer, RouterState, Send, Validate

__all__ = ["Action", "Deliver", "GossipRouter", "Send", "Validate", "Verdict"]


@dataclass(slots=True)
class _Retained:
    invalid: float
    behaviour: float
    until_ms: int


class GossipRouter:
    """Decides what goes where."""

    def __init__(
        self,
        own: bytes,
        chance: Chance,
        params: GossipParams | None = None,
        *,
        verify: Callable[[GossipMessage], None] = verify_message,
    ) -> None:
        """Make a router.

        Args:
            own: our own PeerId as a multihash; peers are named alike.
            chance: a source of randomness, such as `random.Random`.
            params: the mesh's shape, times and bounds.
            verify: checks a message's signature, and raises SignatureInvalid.
        """
        self._params = params or GossipParams()
        self._state = RouterState(own, self._params, chance)
        self._mesh, self._lazy = Mesh(self._state), LazyPush(self._state)
        self._intake = Intake(self._state, verify)
        self._retained: dict[bytes, _Retained] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened so far, by name."""
        return self._state.counts

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that we subscribe to."""
        return tuple(self._state.mesh)

    def mesh(self, topic: str) -> frozenset[bytes]:
        """Our mesh of a topic."""
        return frozenset(self._state.mesh.get(topic, ()))

    def score(self, peer: bytes, now_ms: int) -> float:
        """A peer's score; 0 for one that is not there."""
        return self._state.score(peer, now_ms)

    def sizes(self) -> dict[str, int]:
        """How full the tables are: for metrics, and for the tests of their bounds."""
        state = self._state
        return {
            "peers": len(state.peers),
            "topics": len(state.mesh),
            "memberships": sum(len(members) for members in state.members.values()),
            "seen": len(state.seen),
            "authors": len(state.authors),
            "cache_messages": len(state.cache),
            "cache_bytes": state.cache.bytes,
            "validating": len(self._intake),
            "promises": len(state.promises),
            "backoffs": len(state.backoffs),
            "retained": len(self._retained),
        }

    def add_peer(self, peer: bytes, now_ms: int, *, outbound: bool) -> list[Action]:
        """A peer is there, and can be sent RPCs; it is told what we subscribe to.

        Args:
            peer: its PeerId as a multihash.
            now_ms: the time.
            outbound: whether we made the connection.

        Raises:
            Busy: there are too many peers.
        """
        state = self._state
        if peer not in state.peers:
            if len(state.peers) >= self._params.limits.peers:
                raise Busy(f"there are {len(state.peers)} peers that gossip already")
            known = state.peers[peer] = GossipPeer(peer, outbound)
            retained = self._retained.pop(peer, None)
            if retained is not None and retained.until_ms > now_ms:
                known.invalid, known.behaviour = retained.invalid, retained.behaviour
        state.out.to(peer).subscriptions += [(topic, True) for topic in state.mesh]
        return state.out.drain()

    def remove_peer(self, peer: bytes, now_ms: int) -> None:
        """A peer is gone; what it has done wrong is remembered for a while."""
        state = self._state
        known = state.peers.get(peer)
        if known is None:
            return
        for topic in known.topics:
            self._forget_member(topic, peer)
        self._mesh.forget(peer)
        del state.peers[peer]
        if known.invalid or known.behaviour:
            until_ms = now_ms + self._params.score.retain_ms
            self._retained[peer] = _Retained(known.invalid, known.behaviour, until_ms)
            if len(self._retained) > self._params.limits.retained:
                del self._retained[next(iter(self._retained))]

    def note_lost(self, peer: bytes, dropped: Sequence[Rpc] = ()) -> None:
        """Gossip for a peer was dropped: it is told of all that there is at the next heartbeat, and may ask again."""
        if peer not in self._state.peers:
            return
        self._state.peers[peer].owed = True
        self._state.counts["dropped"] += len(dropped)
        for rpc in dropped:
            for message in rpc.messages:
                if (entry := self._state.cache.get(message.id)) is not None:
                    entry.uncount(peer)

    def penalize(self, peer: bytes, weight: float = 1.0) -> None:
        """A peer has broken the protocol in a way that only whoever reads its stream can see."""
        if peer in self._state.peers:
            self._state.peers[peer].behaviour += weight

    def set_application_score(self, peer: bytes, score: float) -> None:
        """What the application thinks of a peer (P5)."""
        if peer in self._state.peers:
            self._state.peers[peer].application = score

    def subscribe(self, topic: str, now_ms: int) -> list[Action]:
        """Take messages of a topic from now on.

        Raises:
            Busy: there are too many topics.
            ProtocolError: the topic's name is empty or too long.
        """
        state, limits = self._state, self._params.limits
        _check_topic(topic, limits.topic_bytes)
        if topic not in state.mesh:
            if len(state.mesh) >= limits.topics:
                raise Busy(f"this node has subscribed to {limits.topics} topics already")
            for peer in state.peers:
                state.out.to(peer).subscriptions.append((topic, True))
            self._mesh.join(topic, now_ms)
        return state.out.drain()

    def unsubscribe(self, topic: str, now_ms: int) -> list[Action]:
        """Take no more messages of a topic."""
        state = self._state
        if topic in state.mesh:
            self._mesh.leave(topic, now_ms)
            for peer in state.peers:
                state.out.to(peer).subscriptions.append((topic, False))
        return state.out.drain()

    def publish(self, message: GossipMessage, now_ms: int) -> list[Action]:
        """Publish a message of our own, which is signed.

        Raises:
            FrameTooLarge: the payload is over the limit.
            ProtocolError: the topic's name is empty or too long, or there is no payload.
        """
        state, params = self._state, self._params
        _check_topic(message.topic, params.limits.topic_bytes)
        if len(message.data) > params.limits.message_bytes:
            raise FrameTooLarge(f"a message of {len(message.data)} bytes is over {params.limits.message_bytes}")
        if not message.data:
            raise ProtocolError("a message without a payload says nothing")
        state.seen.add(message.id, now_ms)
        state.cache.put(message)
        if params.flood_publish:
            peers = [
                peer
                for peer in state.members.get(message.topic, ())
                if state.score(peer, now_ms) >= params.score.publish_threshold
            ]
        elif message.topic in state.mesh:
            peers = list(state.mesh[message.topic])
        else:
            peers = list(self._mesh.fanout(message.topic, now_ms))
        state.counts["published"] += 1
        state.counts["sent"] += state.out.send(peers, message)
        return state.out.drain()

    def receive(self, peer: bytes, rpc: Rpc, now_ms: int) -> list[Action]:
        """Take an RPC of a peer; one of a peer that is not there says nothing."""
        state = self._state
        sender = state.peers.get(peer)
        if sender is None:
            return []
        if self._is_graylisted(sender, now_ms):
            state.counts["graylisted"] += 1
            return []
        if rpc.malformed:
            state.counts["malformed"] += rpc.malformed
            sender.invalid += rpc.malformed
        self._on_subscriptions(rpc.subscriptions, sender)
        for message in rpc.messages:
            if sender.invalid and self._is_graylisted(sender, now_ms):
                break  # the rest of a flood of forged messages is not verified
            self._intake.on_message(message, sender, now_ms)
        if rpc.graft:
            self._mesh.on_graft(rpc.graft, peer, now_ms)
        if rpc.prune:
            self._mesh.on_prune(rpc.prune, peer, now_ms)
        self._lazy.on_ihave(rpc.ihave, sender, now_ms)
        self._lazy.on_iwant(rpc.iwant, sender, now_ms)
        return state.out.drain()

    def judge(self, message_id: bytes, verdict: Verdict) -> list[Action]:
        """Take the validator's word; one that comes too late is not asked for any more."""
        self._intake.judge(message_id, verdict)
        return self._state.out.drain()

    def heartbeat(self, now_ms: int) -> list[Action]:
        """Repair meshes, gossip, and forget what is old."""
        state, params = self._state, self._params
        for peer in state.peers.values():
            peer.beat(params.score)
        state.seen.expire(now_ms)
        state.backoffs.expire(now_ms - 2 * params.heartbeat_ms)
        self._intake.expire(now_ms)
        for gone, retained in list(self._retained.items()):
            if retained.until_ms <= now_ms:
                del self._retained[gone]
        self._lazy.heartbeat(now_ms)
        self._mesh.heartbeat(now_ms)
        state.cache.shift()
        return state.out.drain()

    def _is_graylisted(self, peer: GossipPeer, now_ms: int) -> bool:
        return peer.score(self._params.score, now_ms) < self._params.score.graylist_threshold

    def _on_subscriptions(self, subscriptions: Sequence[tuple[str, bool]], sender: GossipPeer) -> None:
        limits, members = self._params.limits, self._state.members
        for topic, subscribe in subscriptions:
            if not subscribe:
                if topic in sender.topics:
                    del sender.topics[topic]
                    self._forget_member(topic, sender.key)
                    self._mesh.forget_member(topic, sender.key)
            elif topic not in sender.topics:
                if len(sender.topics) >= limits.peer_topics or not 0 < len(topic.encode()) <= limits.topic_bytes:
                    self._state.counts["topics_refused"] += 1
                    sender.behaviour += 1
                    continue
                sender.topics[topic] = None
                sender.owed = True
                members.setdefault(topic, {})[sender.key] = None

    def _forget_member(self, topic: str, peer: bytes) -> None:
        members = self._state.members[topic]
        del members[peer]
        if not members:
            del self._state.members[topic]


def _check_topic(topic: str, most: int) -> None:
    if not 0 < len(topic.encode("utf-8")) <= most:
        raise ProtocolError(f"a topic's name has from 1 to {most} bytes")
