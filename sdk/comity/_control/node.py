"""The node itself: who it is, its links and agents, and what it is told to do with itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comity._control.connection import Call
from comity._control.defined import call
from comity._control.values import read_value, read_values
from comity.v1 import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class SkillLoad:
    """What there is to do for the workers of one skill; one that offers several counts for each.

    Attributes:
        skill: which one.
        workers: that offer it and are not about to leave.
        running: calls that a worker has.
        free: calls that the workers would take at once.
        waiting: calls that wait for a worker.
        waiting_ms: how long the oldest of them has waited.
    """

    skill: str
    workers: int
    running: int
    free: int
    waiting: int
    waiting_ms: int


@dataclass(frozen=True, slots=True)
class RouterPeer:
    """What the node has seen of an organization that it asks for a skill.

    Attributes:
        skill: which.
        organization: who.
        expected_ms: in which it is expected to answer.
        outstanding: what is under way there.
        window: what may be.
        circuit: "closed", "open" (it is not asked) or "half-open" (one probe is).
        answers: good ones since the node's start.
        failures: what was not answered in time.
        busy: how often it said that it was.
        share: its award of the market, 0 to 1; 0 without one.
        price: that was last named for it.
        reliability: as a reviewer, 0 to 1.
    """

    skill: str
    organization: str
    expected_ms: float
    outstanding: int
    window: int
    circuit: str
    answers: int
    failures: int
    busy: int
    share: float
    price: float
    reliability: float = 0.5


@dataclass(frozen=True, slots=True)
class Status:
    """Who a node is, what it has counted since its start, and what somebody should see to (`warnings`).

    `fair_organizations` and `fair_workflows` are Jain's index over what each got lately: 1 if all have the same, 1/n if
    one has all.
    """

    organization: str
    node: str
    peer_id: str
    consortium: str
    bundle_epoch: int
    version: str
    started_ms: int
    addresses: tuple[str, ...]
    policy_digest: str
    counters: Mapping[str, int]
    skills: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    loads: tuple[SkillLoad, ...] = ()
    router: tuple[RouterPeer, ...] = ()
    fair_organizations: float = 1.0
    fair_workflows: float = 1.0
    audit_entries: int = 0
    database_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """The link to another organization's node.

    Attributes:
        organization: whose it is; empty until it has attested itself.
        node: its SPIFFE ID.
        peer_id: its PeerId.
        addresses: where it is dialled, best first.
        state: "connected", "connecting" or "down".
        reason: why it is not connected.
        bytes_sent: on message streams.
        bytes_received: likewise.
        messages_sent: requests, answers and items of streams.
        messages_received: likewise.
        reconnects: how often a link that was up came up again.
        round_trip_ms: of the last sign of life; 0 before the first.
        frames_sent: on message streams.
        frames_received: likewise.
        in_flight: our calls without an answer.
        waiting: our calls that wait until the peer takes more.
        serving: the peer's calls that are worked on here.
        queued_bytes: that wait to be written.
        window_bytes: what the peer may send on one stream before it waits.
        path: "direct", "relayed via ORGANIZATION", or empty while there is no connection.
    """

    organization: str
    node: str
    peer_id: str
    addresses: tuple[str, ...]
    state: str
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


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent, own or a peer's, and how reliable it has been (`reliability` is from 0 to 1)."""

    organization: str
    name: str
    skills: tuple[str, ...]
    peer_id: str
    agreed: float
    disagreed: float
    reliability: float


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """A node's certificate (SHA-256, hex) that its organization has revoked, from `from_ms` on."""

    organization: str
    fingerprint: str
    from_ms: int


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of a node's look at its files.

    Attributes:
        changed: a line for each file that was taken in.
        refused: a line for each that was refused: the node goes on with what it had.
    """

    changed: tuple[str, ...]
    refused: tuple[str, ...]


class NodeCalls:
    """Calls about the node itself."""

    @call
    def status(self) -> Call[Status]:
        """Who the node is, and what it has counted."""
        return Call("GetStatus", pb.GetStatusRequest(), _status)

    @call
    def peers(self) -> Call[tuple[Peer, ...]]:
        """The links to other organizations."""
        return Call("ListPeers", pb.ListPeersRequest(), lambda it: read_values(Peer, it.peers))

    @call
    def agents(self) -> Call[tuple[AgentInfo, ...]]:
        """Own and peers' agents."""
        return Call("ListAgents", pb.ListAgentsRequest(), lambda it: read_values(AgentInfo, it.agents))

    @call
    def revoke_certificate(self, revocation: bytes) -> Call[RevokedCertificate]:
        """Give the node a signed revocation: it refuses the certificate from then on, and tells the other members."""
        request = pb.RevokeCertificateRequest(revocation=revocation)
        return Call("RevokeCertificate", request, lambda it: read_value(RevokedCertificate, it))

    @call
    def reload(self) -> Call[Reloaded]:
        """Have the node look at its policy, trust bundle and certificate now, and take in what has changed."""
        return Call("Reload", pb.ReloadRequest(), lambda it: read_value(Reloaded, it))

    @call
    def shutdown(self) -> Call[None]:
        """Have the node drain and stop."""
        return Call("Shutdown", pb.ShutdownRequest(), lambda _: None)


def _status(message: pb.GetStatusResponse) -> Status:
    return read_value(
        Status,
        message,
        loads=read_values(SkillLoad, message.loads),
        router=read_values(RouterPeer, message.router),
    )
