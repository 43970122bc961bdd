"""What is known of a peer and its link, as values that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from comity.trust import Attested

Phase = Literal["connected", "connecting", "down"]


@dataclass(frozen=True, slots=True)
class LinkState:
    """One peer as it is now.

    Attributes:
        peer_id: who it is.
        organization: whose it is; "" until it has attested itself.
        node: its SPIFFE ID; "" until then.
        addresses: where it is dialled, best first.
        state: of the stream on which our requests go.
        reason: why it is not connected.
        bytes_sent: on message streams, both directions' streams together.
        bytes_received: likewise.
        messages_sent: requests and answers.
        messages_received: likewise.
        reconnects: how often a link that was up has come up again.
        round_trip_ms: of the last ping; 0 before the first.
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


@dataclass(slots=True)
class Counters:
    """What went over a peer's message streams."""

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0


class Changes:
    """A counter of changes that tasks can wait on."""

    def __init__(self) -> None:
        self.version = 0
        self._lot = trio.lowlevel.ParkingLot()

    def note(self) -> None:
        """Something changed."""
        self.version += 1
        self._lot.unpark_all()

    async def wait(self, since: int) -> int:
        """Wait until the version is past `since`, and return it."""
        await trio.lowlevel.checkpoint()
        while self.version <= since:
            await self._lot.park()
        return self.version


class Activity:
    """Counts work under way, and lets a drain wait for its end."""

    def __init__(self) -> None:
        self._count = 0
        self._lot = trio.lowlevel.ParkingLot()

    def begin(self) -> None:
        """One more."""
        self._count += 1

    def end(self) -> None:
        """One less."""
        self._count -= 1
        if not self._count:
            self._lot.unpark_all()

    async def wait_idle(self) -> None:
        """Wait until nothing is under way."""
        await trio.lowlevel.checkpoint()
        while self._count:
            await self._lot.park()


class Peer:
    """The mutable record of one peer."""

    def __init__(self, peer_id: str, changes: Changes, activity: Activity, *, max_addresses: int) -> None:
        self.peer_id = peer_id
        #: Requests under way on all links, in both directions.
        self.activity = activity
        self.counters = Counters()
        self.attested: Attested | None = None
        self.round_trip_ms = 0.0
        self.phase: Phase = "connecting"
        self.reason = ""
        #: Requests of the peer that are being worked on, and their bytes.
        self.handlers = 0
        self.handler_bytes = 0
        self.tunnels_in = 0
        self.tunnels_out = 0
        #: Streams on which the peer's requests come.
        self.streams_in = 0
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

    def attest(self, attested: Attested, addresses: Sequence[str]) -> None:
        """The peer has attested itself, and says where it can be dialled."""
        self.add_addresses(addresses, first=True)
        if attested != self.attested:
            self.attested = attested
            self._changes.note()

    def set_phase(self, phase: Phase, reason: str = "") -> None:
        """Move on, and tell whoever waits."""
        self._connections += phase == "connected"
        if self.phase == "connected":
            self.gone_since = trio.current_time()
        if (phase, reason) != (self.phase, self.reason):
            self.phase, self.reason = phase, reason
            self._changes.note()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is up or under way between us."""
        busy = self.streams_in or self.handlers or self.tunnels_in or self.tunnels_out
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
        )
