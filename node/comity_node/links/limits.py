"""What links give a peer, and how long they wait for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from comity_node.protocol.session import SessionLimits


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds and times of every link.

    Attributes:
        session: sizes of frames, and requests without an answer, of one stream.
        max_peers: peers that are known at once.
        max_nodes_per_organization: of them, nodes of one organization: its CA can make any number.
        forget_after_s: a peer that has been gone for so long may be forgotten when its place is needed.
        max_addresses: addresses kept for one peer.
        max_handlers: requests of one peer that are worked on at once; then it is told to come back.
        max_handler_bytes: bytes of their payloads together.
        retry_after_ms: when to come back.
        max_tunnels: tunnel streams of one peer, in each direction.
        send_buffer: bytes that wait to be sent on one stream before whoever sends waits too.
        attest_s: from the start of a stream until both sides have accepted each other.
        ping_every_s: between two signs of life that are asked for.
        dead_after_s: a peer that gives none for so long is gone.
        idle_s: an inbound stream on which nothing comes for so long is closed (the opener pings).
        backoff_first_s: before the first attempt to reconnect; doubles with each failure, with jitter.
        backoff_max_s: the longest time between attempts.
    """

    session: SessionLimits = field(default_factory=SessionLimits)
    max_peers: int = 256
    max_nodes_per_organization: int = 8
    forget_after_s: float = 600.0
    max_addresses: int = 32
    max_handlers: int = 128
    max_handler_bytes: int = 32 * 1024 * 1024
    retry_after_ms: int = 250
    max_tunnels: int = 16
    send_buffer: int = 1024 * 1024
    attest_s: float = 10.0
    ping_every_s: float = 3.0
    dead_after_s: float = 10.0
    idle_s: float = 30.0
    backoff_first_s: float = 0.25
    backoff_max_s: float = 30.0
