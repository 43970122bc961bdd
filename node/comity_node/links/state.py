"""What is known of a peer and its link, as values that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from comity.trust import Attested
from comity_node.links.activity import Activity, Changes
from comity_node.links.pool import HandlerPool
from comity_node.transport.base import Priority

if TYPE_CHECKING:
    from comity_node.links.greeting import Greeting

Phase = Literal["connected", "connecting", "down"]


@dataclass(frozen=True, slots=True)
class LinkState:
    """One peer as it is now.

    Attributes:
        peer_id: who it is.
        organization: whose it is; "" until it has attested itself.
        node: its SPIFFE ID; "" until then.
        addresses: where it is dialled, best first.
        state: of the streams on which our calls go.
        reason: why it is not connected.
        bytes_sent: on message streams, both directions' streams together.
        bytes_received: likewise.
        messages_sent: calls, answers and items of streams.
        messages_received: likewise.
        reconnects: how often a link that was up has come up again.
        round_trip_ms: of the last ping; 0 before the first.
        frames_sent: on message streams, everything counted.
        frames_received: likewise.
        in_flight: our calls that have no answer yet.
        waiting: our calls that wait until the peer takes more.
        serving: calls of the peer that wait or are worked on here.
        queued_bytes: that wait to be written to its message streams and its connection.
        window_bytes: what it may send on one stream of its connection before it waits; 0 if that is not known.
        path: "direct", "relayed via <organization>", or "" while there is no connection.
    """

    peer_id: str
    organization: str
    node: str
    addresses: tuple[str, ...]
    state: Phase
    reason: str
    bytes_sent: int
    bytes_received: int
    messages_sent: int
    messages_received: int
    reconnects: int
    round_trip_ms: float
    frames_sent: int = 0
    frames_received: int = 0
    in_flight: int = 0
    waiting: int = 0
    serving: int = 0
    queued_bytes: int = 0
    window_bytes: int = 0
    path: str = ""


@dataclass(slots=True)
class Counters:
    """What went over a peer's message streams."""

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    frames_sent: int = 0
    frames_received: int = 0

    def add(self, other: Counters) -> None:
        """Count what another has counted, too."""
        self.bytes_sent += other.bytes_sent
        self.bytes_received += other.bytes_received
        self.messages_sent += other.messages_sent
        self.messages_received += other.messages_received
        self.frames_sent += other.frames_sent
        self.frames_received += other.frames_received


class Peer:
    """The mutable record of one peer."""

    def __init__(self, peer_id: str, changes: Changes, activity: Activity, *, max_addresses: int) -> None:
        self.peer_id = peer_id
        #: Calls under way on all links, in both directions.
        self.activity = activity
        self.counters = Counters()
        self.attested: Attested | None = None
        #: How it did so last; None once that does not hold any more.
        self.greeting: Greeting | None = None
        self.round_trip_ms = 0.0
        self.phase: Phase = "connecting"
        self.reason = ""
        #: What works on its calls, one for each class of streams.
        self.pools: dict[Priority, HandlerPool] = {}
        self.tunnels_in = 0
        self.tunnels_out = 0
        #: Streams on which the peer's calls come.
        self.streams_in = 0
        #: When anything last came from it on its message streams and our tunnels, by trio's clock.
        self.heard_at = trio.current_time()
        #: The operator named it: it is never forgotten.
        self.keep = False
        #: The organization whose place in the table it takes, once it has proved to be its.
        self.place_of = ""
        #: When it last gave a sign of life (or was made known), while nothing is up between us; by trio's clock.
        self.gone_since = trio.current_time()
        self.addresses: tuple[str, ...] = ()
        self._max_addresses = max_addresses
        self._changes = changes
        self._connections = 0

    def add_addresses(self, addresses: Sequence[str], *, first: bool) -> None:
        """Learn addresses; those of the peer's own Hello go first."""
        ordered = (*addresses, *self.addresses) if first else (*self.addresses, *addresses)
        self.addresses = tuple(dict.fromkeys(ordered))[: self._max_addresses]

    def attest(self, greeting: Greeting) -> None:
        """The peer has attested itself, and says where it can be dialled."""
        self.greeting = greeting
        self.add_addresses(greeting.addresses, first=True)
        if greeting.attested != self.attested:
            self.attested = greeting.attested
            self._changes.note()

    def heard(self) -> None:
        """Something came from it."""
        self.heard_at = trio.current_time()

    def set_phase(self, phase: Phase, reason: str = "") -> None:
        """Move on, and tell whoever waits."""
        self._connections += phase == "connected"
        if self.phase == "connected":
            self.gone_since = trio.current_time()
        if (phase, reason) != (self.phase, self.reason):
            self.phase, self.reason = phase, reason
            self._changes.note()

    @property
    def serving(self) -> int:
        """Calls of the peer that wait or are worked on."""
        return sum(pool.serving for pool in self.pools.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is up or under way between us."""
        busy = self.streams_in or self.serving or self.tunnels_in or self.tunnels_out
        return self.phase != "connected" and not busy

    def snapshot(self) -> LinkState:
        """The record as a value."""
        return LinkState(
            peer_id=self.peer_id,
            organization=self.attested.organization if self.attested else "",
            node=str(self.attested.node) if self.attested else "",
            addresses=self.addresses,
            state=self.phase,
            reason=self.reason,
            bytes_sent=self.counters.bytes_sent,
            bytes_received=self.counters.bytes_received,
            messages_sent=self.counters.messages_sent,
            messages_received=self.counters.messages_received,
            reconnects=max(self._connections - 1, 0),
            round_trip_ms=self.round_trip_ms,
            frames_sent=self.counters.frames_sent,
            frames_received=self.counters.frames_received,
            serving=self.serving,
        )
