"""A received message's way through the router: the cheap steps first, then the signature, then the validator.

The first step that fails ends it:

1. the sender has a turn;
2. the topic is ours, and the message is not our own come back;
3. it has not been seen, and its number is not one of a message that was forgotten (a replay);
4. its author has a turn (looked at, not taken), and there is room among the messages that wait for the validator;
5. the signature holds: only now the author's turn is taken and the ID remembered, so nobody can use up or block what is
   another's;
6. the validator's word: it is forwarded and delivered only when accepted; who sent what is rejected pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from comity.errors import SignatureInvalid
from comity_node.protocol.gossip_message import GossipMessage
from comity_node.protocol.gossip_state import Deliver, GossipPeer, RouterState, Validate
from comity_node.protocol.gossip_tables import Bucket

#: Senders of one message, while it waits for the validator, that are remembered.
_MAX_SENDERS = 16
#: What one message over its own author's rate counts, when the author itself brings it.
_FLOOD_PENALTY = 0.1
_FULL = Bucket()


class Verdict(Enum):
    """A validator's word on a message (gossipsub-v1.1.md, "Extended Validators")."""

    ACCEPT = auto()
    #: Neither delivered nor forwarded, and nobody's fault.
    IGNORE = auto()
    #: Neither delivered nor forwarded, and held against those who sent it.
    REJECT = auto()


@dataclass(slots=True)
class _Waiting:
    message: GossipMessage
    since_ms: int
    senders: dict[bytes, None] = field(default_factory=dict)


class Intake:
    """Takes messages in."""

    def __init__(self, state: RouterState, verify: Callable[[GossipMessage], None]) -> None:
        self._state, self._verify = state, verify
        self._waiting: dict[bytes, _Waiting] = {}

    def __len__(self) -> int:
        """How many messages wait for the validator."""
        return len(self._waiting)

    def on_message(self, message: GossipMessage, sender: GossipPeer, now_ms: int) -> None:
        """Take a message from a peer, as far as the validator (steps 1 to 5)."""
        state, limits = self._state, self._state.params.limits
        state.counts["received"] += 1
        if not sender.bucket.take(now_ms, limits.peer_per_s, limits.peer_burst):
            state.counts["peer_over_rate"] += 1
            return
        state.promises.keep(message.id)
        if message.author == state.own or message.topic not in state.mesh:
            return
        if message.id in state.seen:
            self._on_duplicate(message, sender)
            return
        if state.params.strict_seqno and state.seen.is_replay(message.id):
            state.counts["replayed"] += 1
            return
        known = state.authors.find(message.author)
        if not (known.bucket if known else _FULL).has_turn(now_ms, limits.author_per_s, limits.author_burst):
            state.counts["author_over_rate"] += 1
            if message.author == sender.key:
                sender.behaviour += _FLOOD_PENALTY
            return
        if len(self._waiting) >= limits.validating or sender.validating >= limits.peer_validating:
            state.counts["validators_busy"] += 1
            return
        self._admit(message, sender, now_ms)

    def judge(self, message_id: bytes, verdict: Verdict) -> None:
        """Take the validator's word; one that comes too late is not asked for any more."""
        waiting = self._waiting.get(message_id)
        if waiting is None:
            return
        self._forget(message_id)
        state, message = self._state, waiting.message
        state.counts[verdict.name.lower()] += 1
        if verdict is Verdict.REJECT:
            state.seen.reject(message_id)
            for peer in waiting.senders:
                if peer in state.peers:
                    state.peers[peer].invalid += 1
        elif verdict is Verdict.ACCEPT:
            source = next(iter(waiting.senders))
            if source in state.peers:
                first, cap = state.peers[source].first_deliveries, state.params.score.first_deliveries_cap
                state.peers[source].first_deliveries = min(first + 1, cap)
            state.cache.put(message)
            state.out.act(Deliver(message, source))
            others = [
                peer
                for peer in state.mesh.get(message.topic, ())
                if peer not in waiting.senders and peer != message.author
            ]
            state.counts["sent"] += state.out.send(others, message)

    def expire(self, now_ms: int) -> None:
        """Ignore messages whose validator does not answer."""
        for message_id, waiting in list(self._waiting.items()):
            if now_ms - waiting.since_ms > self._state.params.validate_ms:
                self._state.counts["validator_late"] += 1
                self._forget(message_id)

    def _admit(self, message: GossipMessage, sender: GossipPeer, now_ms: int) -> None:
        state, limits = self._state, self._state.params.limits
        try:
            self._verify(message)
        except SignatureInvalid:
            state.counts["forged"] += 1
            sender.invalid += 1
            return
        state.authors.touch(message.author).bucket.take(now_ms, limits.author_per_s, limits.author_burst)
        state.seen.add(message.id, now_ms)
        self._waiting[message.id] = _Waiting(message, now_ms, {sender.key: None})
        sender.validating += 1
        state.out.act(Validate(message, sender.key))

    def _on_duplicate(self, message: GossipMessage, sender: GossipPeer) -> None:
        self._state.counts["duplicates"] += 1
        waiting = self._waiting.get(message.id)
        if waiting is not None and len(waiting.senders) < _MAX_SENDERS:
            waiting.senders[sender.key] = None
        elif self._state.seen.was_rejected(message.id):
            sender.invalid += 1

    def _forget(self, message_id: bytes) -> None:
        waiting = self._waiting.pop(message_id)
        first = self._state.peers.get(next(iter(waiting.senders)))
        if first is not None:
            first.validating = max(first.validating - 1, 0)
