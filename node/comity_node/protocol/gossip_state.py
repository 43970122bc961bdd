"""What the parts of the router share: peers with their scores, who is in which topic, and what is to be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from comity_node.protocol.gossip_message import GossipMessage
from comity_node.protocol.gossip_params import GossipParams, ScoreParams
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc
from comity_node.protocol.gossip_tables import Authors, Backoffs, Bucket, MessageCache, Promises, Seen

T = TypeVar("T")


class Chance(Protocol):
    """A source of randomness: `random.Random` is one."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """Return `k` different members of a sequence."""
        ...


@dataclass(frozen=True, slots=True)
class Send:
    """Send an RPC to a peer."""

    peer: bytes
    rpc: Rpc


@dataclass(frozen=True, slots=True)
class Validate:
    """Ask the validator about a message whose signature holds, and give its word to `GossipRouter.judge`."""

    message: GossipMessage
    source: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand an accepted message to whoever has subscribed."""

    message: GossipMessage
    source: bytes


Action = Send | Validate | Deliver


@dataclass(slots=True, eq=False)
class GossipPeer:
    """One peer. P2, P4, P5 and P7 are those of the specification's score, over all topics."""

    key: bytes
    outbound: bool
    topics: dict[str, None] = field(default_factory=dict)
    #: Since when it is in our mesh of a topic, in milliseconds.
    mesh_since: dict[str, int] = field(default_factory=dict)
    first_deliveries: float = 0.0
    invalid: float = 0.0
    application: float = 0.0
    behaviour: float = 0.0
    bucket: Bucket = field(default_factory=Bucket)
    validating: int = 0
    #: Something for it got lost, or it is new: it is told of everything that there is.
    owed: bool = False
    ihave_messages: int = 0
    ihave_ids: int = 0
    iwant_ids: int = 0
    iwant_bytes: int = 0

    def score(self, params: ScoreParams, now_ms: int) -> float:
        """The peer's score (gossipsub-v1.1.md, "The Score Function")."""
        score = self.first_deliveries * params.first_deliveries_weight + self.application * params.application_weight
        if self.mesh_since:
            seconds = sum(now_ms - since for since in self.mesh_since.values()) / 1000
            score += min(seconds, params.time_in_mesh_cap) * params.time_in_mesh_weight
        if self.invalid:
            score += self.invalid * self.invalid * params.invalid_weight
        if self.behaviour:
            score += self.behaviour * self.behaviour * params.behaviour_weight
        return score

    def beat(self, params: ScoreParams) -> None:
        """A heartbeat: counters decay, and what is counted between heartbeats begins anew."""
        self.ihave_messages = self.ihave_ids = self.iwant_ids = self.iwant_bytes = 0
        zero = params.decay_to_zero
        if self.first_deliveries:
            decayed = self.first_deliveries * params.first_deliveries_decay
            self.first_deliveries = decayed if decayed > zero else 0.0
        if self.invalid:
            decayed = self.invalid * params.invalid_decay
            self.invalid = decayed if decayed > zero else 0.0
        if self.behaviour:
            decayed = self.behaviour * params.behaviour_decay
            self.behaviour = decayed if decayed > zero else 0.0


@dataclass(slots=True)
class _Parts:
    """What one call has to tell one peer."""

    subscriptions: list[tuple[str, bool]] = field(default_factory=list)
    graft: list[str] = field(default_factory=list)
    prune: list[Prune] = field(default_factory=list)
    ihave: list[IHave] = field(default_factory=list)
    iwant: list[bytes] = field(default_factory=list)


class Outbox:
    """Gathers what a call of the router leads to: control of one peer goes into one RPC, gossip into another."""

    def __init__(self) -> None:
        self._parts: dict[bytes, _Parts] = {}
        self._actions: list[Action] = []

    def to(self, peer: bytes) -> _Parts:
        """What the peer is told."""
        parts = self._parts.get(peer)
        if parts is None:
            parts = self._parts[peer] = _Parts()
        return parts

    def act(self, action: Action) -> None:
        """Add an action."""
        self._actions.append(action)

    def send(self, peers: Iterable[bytes], message: GossipMessage) -> int:
        """Send a message to peers, and return to how many."""
        rpc, before = Rpc(messages=(message,)), len(self._actions)
        self._actions.extend([Send(peer, rpc) for peer in peers])
        return len(self._actions) - before

    def drain(self) -> list[Action]:
        """Return everything, control first, and forget it."""
        actions: list[Action] = []
        for peer, parts in self._parts.items():
            if parts.subscriptions or parts.graft or parts.prune:
                control = (tuple(parts.subscriptions), tuple(parts.graft), tuple(parts.prune))
                actions.append(Send(peer, Rpc(subscriptions=control[0], graft=control[1], prune=control[2])))
        for peer, parts in self._parts.items():
            if parts.ihave or parts.iwant:
                actions.append(Send(peer, Rpc(ihave=tuple(parts.ihave), iwant=tuple(parts.iwant))))
        actions += self._actions
        self._parts, self._actions = {}, []
        return actions


class RouterState:
    """What the router knows."""

    def __init__(self, own: bytes, params: GossipParams, chance: Chance) -> None:
        limits = params.limits
        self.own, self.params, self.chance = own, params, chance
        self.peers: dict[bytes, GossipPeer] = {}
        #: Topics that we subscribe to, each with our mesh.
        self.mesh: dict[str, dict[bytes, None]] = {}
        #: Who subscribes to a topic.
        self.members: dict[str, dict[bytes, None]] = {}
        self.authors = Authors(limits.authors)
        self.seen = Seen(self.authors, most=limits.seen, ttl_ms=params.seen_ttl_ms)
        self.cache = MessageCache(
            most=limits.cache_messages, most_bytes=limits.cache_bytes, length=params.history_length
        )
        self.backoffs = Backoffs(limits.backoffs)
        self.promises = Promises(limits.promises)
        self.out = Outbox()
        #: What happened, by name: for metrics and tests.
        self.counts: Counter[str] = Counter()

    def score(self, peer: bytes, now_ms: int) -> float:
        """A peer's score; 0 for one that is not there."""
        known = self.peers.get(peer)
        return known.score(self.params.score, now_ms) if known is not None else 0.0

    def choose(self, peers: Sequence[bytes], count: int) -> list[bytes]:
        """Choose so many at random, or all if there are fewer."""
        return list(peers) if len(peers) <= count else self.chance.sample(peers, max(count, 0))
