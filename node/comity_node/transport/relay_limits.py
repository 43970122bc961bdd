"""What a relay carries, and for whom: its quotas, with the counters that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from comity_node.transport.pace import BytePace, Pace

_SECONDS_PER_PERIOD = 3600.0


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives to members. An organization pays for the circuits that its nodes ask for.

    Whoever is reached pays for nothing but its reservations: else one member could use up what another has, so that
    nobody else could reach it.

    Attributes:
        max_reservations: nodes that may be reached through this one.
        reservations_per_organization: of them, nodes of one organization.
        reservation_s: how long a reservation is good; it can be renewed any time.
        max_circuits: connections that are carried at a time.
        circuits_per_organization: of them, those from nodes of one organization.
        circuit_s: how long one may last.
        circuit_bytes: what one may carry in each direction.
        organization_bytes: what is carried for one organization in an hour, in both directions of its circuits.
        bytes_per_s: what is carried for one organization in a second, once a tenth of it has gone at once.
        connect_s: from the request for a circuit until its far end has agreed.
        request_s: from the start of a stream until the peer has said what it wants.
        idle_s: a circuit on which nothing comes for so long is closed.
        questions_per_s: reservations and circuits that nodes of one organization may ask for, in the long run. Each
            costs a decision, which is written to the audit log.
        questions_at_once: of them, without waiting; one more is refused.
        check_s: between two looks whether both ends of a circuit still are members; who is not at two of them is cut.
        ask_again_s: after so long the policy is asked for a circuit again.
        buffer_bytes: what is read at once of one end of a circuit, and held until the other end has taken it.
    """

    max_reservations: int = 256
    reservations_per_organization: int = 4
    reservation_s: int = 3600
    max_circuits: int = 512
    circuits_per_organization: int = 32
    circuit_s: int = 24 * 3600
    circuit_bytes: int = 64 * 1024**3
    organization_bytes: int = 4 * 1024**3
    bytes_per_s: float = 64.0 * 1024**2
    connect_s: float = 10.0
    request_s: float = 10.0
    idle_s: float = 120.0
    questions_per_s: float = 2.0
    questions_at_once: int = 64
    check_s: float = 15.0
    ask_again_s: float = 600.0
    buffer_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class RelayCounters:
    """What was carried for one organization since the start.

    Attributes:
        reservations: of its nodes, now.
        circuits: from and to its nodes, now.
        circuits_total: that were made.
        bytes_carried: in both directions.
        refused: reservations and circuits that it did not get.
    """

    reservations: int
    circuits: int
    circuits_total: int
    bytes_carried: int
    refused: int


class Account:
    """What one organization has used."""

    def __init__(self, limits: RelayLimits) -> None:
        """Open an account with nothing used."""
        self.reservations = 0
        self.circuits = 0
        #: Of them, those that its own nodes have asked for.
        self.asked_circuits = 0
        self.circuits_total = 0
        self.bytes_carried = 0
        self.refused = 0
        self.pace = BytePace(limits.bytes_per_s)
        #: Who would have to wait is refused.
        self.questions = Pace(limits.questions_per_s, burst=limits.questions_at_once, longest_wait_s=0)
        self._limit = limits.organization_bytes
        self._period = -1
        self._carried_in_period = 0

    @property
    def has_bytes_left(self) -> bool:
        """Whether anything may be carried for it in this hour."""
        self._begin_period()
        return self._carried_in_period < self._limit

    def carry(self, count: int) -> None:
        """Bytes are carried."""
        self._begin_period()
        self._carried_in_period += count
        self.bytes_carried += count

    def counters(self) -> RelayCounters:
        """What was used, as a value."""
        return RelayCounters(self.reservations, self.circuits, self.circuits_total, self.bytes_carried, self.refused)

    def _begin_period(self) -> None:
        period = int(trio.current_time() // _SECONDS_PER_PERIOD)
        if period != self._period:
            self._period, self._carried_in_period = period, 0
