"""The node itself: who it is, its links and agents, and what it is told to do with itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comity._control.connection import Call
from comity._control.defined import call
from comity._control.values import read_value, read_values
from comity.v1 import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class Status:
    """Who a node is, what it has counted since its start, and what somebody should see to (`warnings`)."""

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
        return Call("GetStatus", pb.GetStatusRequest(), lambda it: read_value(Status, it))

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
