"""The numbers of the GossipSub router: the mesh's shape, the scores' weights, and the bounds of every table.

Names and values are those of the specification's tables (gossipsub-v1.0.md, "Parameters"; gossipsub-v1.1.md,
"Overview of New Parameters") unless a docstring says why not.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GossipLimits:
    """Bounds. What is over them is refused or forgotten, never kept.

    Attributes:
        message_bytes: the largest payload.
        rpc_bytes: the largest RPC, on its way in and out.
        rpc_messages: messages that are taken from one RPC.
        rpc_entries: subscriptions, IHAVEs, IWANTs, GRAFTs and PRUNEs, of each, that are taken from one RPC.
        rpc_ids: message IDs that are taken from one list of them, and sent in one.
        peers: peers at once.
        topics: topics that we subscribe to.
        peer_topics: topics of one peer that are remembered.
        topic_bytes: the longest name of a topic.
        seen: message IDs that are remembered for `GossipParams.seen_ttl_ms`.
        authors: authors whose rate and last number are remembered.
        cache_bytes: payloads that are kept for those who ask.
        cache_messages: how many of them.
        validating: messages that wait for the validator's word.
        peer_validating: of them, those that came from one peer.
        ihave_messages: IHAVEs that are read of one peer between two heartbeats.
        ihave_ids: messages that are asked for at one peer between two heartbeats. (The specification's value is 5000.)
        iwant_ids: messages that are sent to one peer on its demand between two heartbeats.
        iwant_bytes: their bytes; less than the queue of one peer holds.
        promises: messages that peers said to have and that are waited for.
        retained: peers that are gone and whose bad score is remembered.
        backoffs: peers and topics that must not be grafted yet.
        peer_per_s: messages a second that are looked at, from one peer.
        peer_burst: of them, at once after a quiet time.
        author_per_s: messages a second that are taken of one author, whoever brings them.
        author_burst: of them, at once after a quiet time.
    """

    message_bytes: int = 64 * 1024
    rpc_bytes: int = 256 * 1024
    rpc_messages: int = 256
    rpc_entries: int = 64
    rpc_ids: int = 512
    peers: int = 512
    topics: int = 16
    peer_topics: int = 16
    topic_bytes: int = 128
    seen: int = 65_536
    authors: int = 4096
    cache_bytes: int = 4 * 1024 * 1024
    cache_messages: int = 4096
    validating: int = 256
    peer_validating: int = 32
    ihave_messages: int = 10
    ihave_ids: int = 512
    iwant_ids: int = 512
    iwant_bytes: int = 512 * 1024
    promises: int = 4096
    retained: int = 1024
    backoffs: int = 4096
    peer_per_s: float = 100.0
    peer_burst: float = 500.0
    author_per_s: float = 5.0
    author_burst: float = 50.0


@dataclass(frozen=True, slots=True)
class ScoreParams:
    """Weights and thresholds of a peer's score (gossipsub-v1.1.md, "Peer Scoring").

    P3 and P3b (delivery deficits) are left out: news is rare, and a quiet mesh is no fault. P6 (many peers at one IP
    address) is left out: peers are attested, and their organizations, not their addresses, are what is limited.
    A peer has one set of counters for all topics.

    Attributes:
        time_in_mesh_weight: of P1, seconds in meshes.
        time_in_mesh_cap: the most that P1 is.
        first_deliveries_weight: of P2, accepted messages that the peer was the first to bring.
        first_deliveries_cap: the most that P2 is.
        first_deliveries_decay: of P2, at each heartbeat.
        invalid_weight: of P4, the square of the invalid messages.
        invalid_decay: of P4, at each heartbeat: by 0.995 a second half is forgotten after 138 s.
        behaviour_weight: of P7, the square of the counted misbehaviour.
        behaviour_decay: of P7, at each heartbeat.
        application_weight: of P5, what the application says of the peer.
        decay_to_zero: what is smaller is 0.
        gossip_threshold: below it nothing is gossiped to a peer, and its IHAVEs and IWANTs are ignored.
        publish_threshold: below it our own messages are not sent to it.
        graylist_threshold: below it everything that it sends is ignored.
        retain_ms: how long the bad score of a peer that is gone is remembered.
    """

    time_in_mesh_weight: float = 0.01
    time_in_mesh_cap: float = 300.0
    first_deliveries_weight: float = 0.5
    first_deliveries_cap: float = 20.0
    first_deliveries_decay: float = 0.99
    invalid_weight: float = -10.0
    invalid_decay: float = 0.995
    behaviour_weight: float = -5.0
    behaviour_decay: float = 0.98
    application_weight: float = 1.0
    decay_to_zero: float = 0.05
    gossip_threshold: float = -40.0
    publish_threshold: float = -80.0
    graylist_threshold: float = -160.0
    retain_ms: int = 3_600_000


@dataclass(frozen=True, slots=True)
class GossipParams:
    """The shape of the mesh, and times.

    Attributes:
        d: the degree that a mesh is brought to.
        d_lo: below it peers are grafted.
        d_hi: above it peers are pruned.
        d_score: of those that stay, as many are chosen by their score.
        d_out: connections that we made ourselves, of which a mesh keeps as many.
        d_lazy: peers outside the mesh that are told what there is, at least.
        gossip_factor: or this share of them.
        heartbeat_ms: between two heartbeats; whoever drives the router keeps to it.
        history_length: heartbeats for which a message can be asked for. (The specification's value is 5. News is small
            and rare, and whoever was cut off for two minutes gets what it has missed.)
        history_gossip: heartbeats for which it is gossiped to peers at random.
        seen_ttl_ms: how long an ID is remembered; longer than a message can be asked for anywhere.
        fanout_ttl_ms: how long peers are kept for a topic that we publish to without being subscribed.
        flood_publish: whether our own messages go to every subscribed peer, not to the mesh only.
        prune_backoff_ms: how long a pruned peer must not graft.
        unsubscribe_backoff_ms: the same, when we leave the topic.
        max_backoff_ms: the longest time that a peer can tell us not to graft.
        graft_flood_ms: a GRAFT so soon after a PRUNE counts twice.
        iwant_followup_ms: a message that was promised comes within it.
        retransmissions: how often a message is sent to one peer on demand.
        validate_ms: a message whose validator does not answer for so long is ignored.
        strict_seqno: whether a number that is not above those that an author's forgotten messages had is a replay. Off
            only for authors that number at random, as js-libp2p's do.
    """

    d: int = 6
    d_lo: int = 5
    d_hi: int = 12
    d_score: int = 4
    d_out: int = 2
    d_lazy: int = 6
    gossip_factor: float = 0.25
    heartbeat_ms: int = 1000
    history_length: int = 120
    history_gossip: int = 3
    seen_ttl_ms: int = 300_000
    fanout_ttl_ms: int = 60_000
    flood_publish: bool = True
    prune_backoff_ms: int = 60_000
    unsubscribe_backoff_ms: int = 10_000
    max_backoff_ms: int = 3_600_000
    graft_flood_ms: int = 10_000
    iwant_followup_ms: int = 3_000
    retransmissions: int = 3
    validate_ms: int = 10_000
    strict_seqno: bool = True
    limits: GossipLimits = field(default_factory=GossipLimits)
    score: ScoreParams = field(default_factory=ScoreParams)
