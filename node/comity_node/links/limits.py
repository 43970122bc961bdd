"""What links give a peer, and how long they wait for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from comity_node.protocol.session import SessionLimits


@dataclass(frozen=True, slots=True)
class Window:
    """What the acceptor of a stream takes at once; it says so in its Hello.

    Attributes:
        calls: without an answer.
        size: bytes of their payloads together: once they are that many, no further call.
    """

    calls: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds and times of every link.

    Attributes:
        session: sizes of frames of one stream, and what a peer may have outstanding on a WORK stream.
        control: what a peer may have outstanding on a CONTROL stream.
        max_peers: peers that are known at once.
        max_nodes_per_organization: of them, nodes of one organization: its CA can make any number.
        forget_after_s: a peer that has been gone for so long may be forgotten when its place is needed.
        max_addresses: addresses kept for one peer.
        max_handlers: WORK calls of one peer that are worked on at once; others wait for their turn.
        max_control_handlers: the same of CONTROL.
        max_handler_bytes: payloads of the calls of one peer and class that wait or are worked on, over all its
            streams; then it is told to come back.
        max_organization_bytes: the same of all nodes of one organization, and both classes.
        max_all_bytes: the same of all peers.
        retry_after_ms: when to come back.
        max_waiting: our calls to one peer, of one class, that wait until it takes more; one more is told `Busy`.
        stream_items: items of a stream that may be on their way or unread.
        stream_bytes: bytes of them; one item may go over it.
        max_tunnels: tunnel streams of one peer, in each direction.
        send_buffer: bytes that wait to be sent on one stream before whoever sends waits too.
        attest_s: from the start of a stream until both sides have accepted each other.
        ping_every_s: between two signs of life that are asked for.
        dead_after_s: a peer that gives none for so long is gone; so is one that answers no ping for three times
            as long, whatever else comes from it.
        idle_s: an inbound stream on which nothing comes for so long is closed (the opener pings).
        backoff_first_s: before the first attempt to reconnect; doubles with each failure, with jitter.
        backoff_max_s: the longest time between attempts.
    """

    session: SessionLimits = field(default_factory=SessionLimits)
    control: Window = field(default_factory=lambda: Window(64, 4 * 1024 * 1024))
    max_peers: int = 256
    max_nodes_per_organization: int = 8
    forget_after_s: float = 600.0
    max_addresses: int = 32
    max_handlers: int = 128
    max_control_handlers: int = 32
    max_handler_bytes: int = 32 * 1024 * 1024
    max_organization_bytes: int = 128 * 1024 * 1024
    max_all_bytes: int = 512 * 1024 * 1024
    retry_after_ms: int = 250
    max_waiting: int = 1024
    stream_items: int = 64
    stream_bytes: int = 1024 * 1024
    max_tunnels: int = 64
    send_buffer: int = 1024 * 1024
    attest_s: float = 10.0
    ping_every_s: float = 3.0
    dead_after_s: float = 10.0
    idle_s: float = 30.0
    backoff_first_s: float = 0.25
    backoff_max_s: float = 30.0

    @property
    def work(self) -> Window:
        """What a peer may have outstanding on a WORK stream."""
        return Window(self.session.max_outstanding, self.session.max_outstanding_bytes)
