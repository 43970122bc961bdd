"""What the sync and the async client share: values, calls, channels and errors of the control API."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from grpc.aio import AioRpcError

from comity.errors import ControlError
from comity.v1 import control_pb2 as pb

T = TypeVar("T")

ENVIRONMENT = "COMITY_CONTROL"
#: Options of every channel. A worker's results have at most 4 MiB, a page of records at most 8.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    ("grpc.max_send_message_length", 8 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),  # the node is ours: no proxy stands between
    ("grpc.use_local_subchannel_pool", 1),  # else a new client waits out the back-off of an old one
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # an idle worker finds out, too, that its node is gone
)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files (PEM) for mutual TLS to a node's TCP address: own key, own certificate chain, the CA of the node's."""

    key: Path
    certificate: Path
    ca: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            ControlError: one of them cannot be read.
        """
        try:
            return grpc.ssl_channel_credentials(
                self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
            )
        except OSError as error:
            raise ControlError(f"cannot read {error.filename}: {error.strerror}", code="key_file_invalid") from error


@dataclass(frozen=True, slots=True)
class Status:
    """Who a node is, and what it has counted since its start."""

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
class RevokedCertificate:
    """A node's certificate (SHA-256, hex) that its organization has revoked, from `from_ms` on."""

    organization: str
    fingerprint: str
    from_ms: int


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
class NegotiationStep:
    """`step` is "proposed", "accepted", "countered", "rejected" or "concluded"."""

    at_ms: int
    organization: str
    step: str
    detail: str


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow of this node. `state` is "negotiating", "running", "done" or "failed".

    `tasks` counts tasks by state, `refused_by` and `rejected_by` count by rule or axis; `terms` is the agreement as
    it was signed.
    """

    workflow_id: str
    state: str
    reason: str
    agreement_digest: str
    terms: bytes
    steps: tuple[NegotiationStep, ...]
    tasks: Mapping[str, int]
    refused_by: Mapping[str, int]
    rejected_by: Mapping[str, int]
    repaired: int


@dataclass(frozen=True, slots=True)
class Record:
    """A certified record. `score` is from 0 to 10000; `raw` is the bytes that `record_digest` is over."""

    task_id: str
    author: str
    dataset: str
    raw: bytes
    record_digest: str
    score: int
    agreement_digest: str
    stored_ms: int

    @property
    def fields(self) -> dict[str, Any]:
        """The record's fields by name, decoded anew each time.

        Raises:
            ControlError: the node sent what is no JSON object.
        """
        return _json_object(self.raw, f"record {self.task_id}")


@dataclass(frozen=True, slots=True)
class CertifiedRecord:
    """A record with its provenance (a DSSE envelope, JSON), which proves it to whoever has the trust bundle."""

    record: Record
    provenance: bytes


@dataclass(frozen=True, slots=True)
class ReleasedUpdate:
    """A signed manifest that lets a model update leave, and the certificate chain (DER) of its signer."""

    manifest: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a peer's update may be aggregated; if not, why."""

    code: str
    reason: str
    organization: str
    private_examples: int
    certified_examples: int

    @property
    def admitted(self) -> bool:
        """Whether it may."""
        return not self.code


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far a bulk transfer is.

    `state` is "preparing", "waiting", "sending", "checking" or "done". `bytes_done` of `bytes_total` (0 while it is not
    known) were prepared, sent or checked by the receiver. `note` says why it waits. `transfer_id` is empty while the
    table is being prepared.
    """

    transfer_id: str
    state: str
    rows: int
    bytes_total: int
    bytes_done: int
    note: str


@dataclass(frozen=True, slots=True)
class BulkTransfer:
    """A bulk transfer of this node.

    `direction` is "in" or "out", `organization` the other side, `state` "running", "open" (it can be resumed), "done",
    "failed" or "deleted". `retain_until_ms` is 0 if no obligation says when the table goes.
    """

    transfer_id: str
    direction: str
    organization: str
    dataset: str
    kind: str
    purpose: str
    agreement_digest: str
    rows: int
    bytes: int
    state: str
    stored_chunks: int
    reason: str
    created_ms: int
    updated_ms: int
    retain_until_ms: int


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One unary call: the method, its request, and what to make of the response."""

    method: str
    request: Message
    parse: Callable[[Any], T]


def status() -> Call[Status]:
    """GetStatus."""

    def parse(it: pb.GetStatusResponse) -> Status:
        return Status(
            it.organization, it.node, it.peer_id, it.consortium, it.bundle_epoch, it.version, it.started_ms,
            tuple(it.addresses), it.policy_digest, dict(it.counters), tuple(it.skills),
        )  # fmt: skip

    return Call("GetStatus", pb.GetStatusRequest(), parse)


def peers() -> Call[tuple[Peer, ...]]:
    """ListPeers."""

    def one(it: pb.Peer) -> Peer:
        return Peer(
            it.organization, it.node, it.peer_id, tuple(it.addresses), it.state, it.reason, it.bytes_sent,
            it.bytes_received, it.messages_sent, it.messages_received, it.reconnects, it.round_trip_ms,
            it.frames_sent, it.frames_received, it.in_flight, it.waiting, it.serving, it.queued_bytes,
            it.window_bytes, it.path,
        )  # fmt: skip

    return Call("ListPeers", pb.ListPeersRequest(), lambda response: tuple(map(one, response.peers)))


def agents() -> Call[tuple[AgentInfo, ...]]:
    """ListAgents."""

    def one(it: pb.Agent) -> AgentInfo:
        skills = tuple(it.skills)
        return AgentInfo(it.organization, it.name, skills, it.peer_id, it.agreed, it.disagreed, it.reliability)

    return Call("ListAgents", pb.ListAgentsRequest(), lambda response: tuple(map(one, response.agents)))


def submit_workflow(document: Mapping[str, Any]) -> Call[str]:
    """SubmitWorkflow."""
    request = pb.SubmitWorkflowRequest(workflow=to_json(document, "the workflow"))
    return Call("SubmitWorkflow", request, lambda response: str(response.workflow_id))


def workflows(workflow_id: str) -> Call[tuple[Workflow, ...]]:
    """GetWorkflow."""

    def one(it: pb.Workflow) -> Workflow:
        steps = tuple(NegotiationStep(step.at_ms, step.organization, step.step, step.detail) for step in it.steps)
        return Workflow(
            it.workflow_id, it.state, it.reason, it.agreement_digest, it.terms, steps, dict(it.tasks),
            dict(it.refused_by), dict(it.rejected_by), it.repaired,
        )  # fmt: skip

    request = pb.GetWorkflowRequest(workflow_id=workflow_id)
    return Call("GetWorkflow", request, lambda response: tuple(map(one, response.workflows)))


def one_workflow(workflow_id: str) -> Call[Workflow]:
    """GetWorkflow, for one."""
    many = workflows(workflow_id)

    def parse(response: pb.GetWorkflowResponse) -> Workflow:
        found = many.parse(response)
        if len(found) != 1:
            raise ControlError(f"the node knows no workflow {workflow_id!r}", code="not_found")
        return found[0]

    return Call(many.method, many.request, parse)


def to_record(it: pb.Record) -> Record:
    """Return the value of a record message."""
    return Record(
        it.task_id, it.author, it.dataset, it.record, it.record_digest, it.score, it.agreement_digest, it.stored_ms
    )


def record(task_id: str) -> Call[CertifiedRecord]:
    """GetRecord."""
    return Call(
        "GetRecord",
        pb.GetRecordRequest(task_id=task_id),
        lambda response: CertifiedRecord(to_record(response.record), response.provenance),
    )


def explain_policy(request: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """ExplainPolicy."""
    return Call(
        "ExplainPolicy",
        pb.ExplainPolicyRequest(request=to_json(request, "the policy request")),
        lambda response: _json_object(response.explanation, "the explanation"),
    )


def release_update(request: pb.ReleaseUpdateRequest) -> Call[ReleasedUpdate]:
    """ReleaseUpdate."""
    return Call("ReleaseUpdate", request, lambda response: ReleasedUpdate(response.manifest, tuple(response.chain)))


def admit_update(request: pb.AdmitUpdateRequest) -> Call[Admission]:
    """AdmitUpdate."""

    def parse(it: pb.AdmitUpdateResponse) -> Admission:
        return Admission(it.code, it.reason, it.organization, it.private_examples, it.certified_examples)

    return Call("AdmitUpdate", request, parse)


def serve_tunnel(name: str, target: str, filter_name: str) -> Call[None]:
    """ServeTunnel."""
    request = pb.ServeTunnelRequest(name=name, target=target, filter=filter_name)
    return Call("ServeTunnel", request, lambda _: None)


def open_tunnel(name: str, organization: str, port: int, app_digests: Iterable[str]) -> Call[int]:
    """OpenTunnel."""
    request = pb.OpenTunnelRequest(name=name, organization=organization, port=port, app_digests=app_digests)
    return Call("OpenTunnel", request, lambda response: int(response.port))


def bulk_request(
    path: str | Path | None, to_organization: str, dataset: str, purpose: str, kind: str, agreement: str
) -> pb.SendBulkRequest:
    """Return the request to send a table; the path is made absolute here, where it means what its author meant."""
    return pb.SendBulkRequest(
        path="" if path is None else os.path.abspath(path),
        dataset=dataset,
        to_organization=to_organization,
        purpose=purpose,
        kind=kind,
        agreement_digest=agreement,
    )


def to_bulk_progress(it: pb.SendBulkResponse) -> BulkProgress:
    """Return the value of a progress message."""
    return BulkProgress(it.transfer_id, it.state, it.rows, it.bytes_total, it.bytes_done, it.note)


def bulk_transfers() -> Call[tuple[BulkTransfer, ...]]:
    """ListBulk."""

    def one(it: pb.BulkTransfer) -> BulkTransfer:
        return BulkTransfer(
            it.transfer_id, it.direction, it.organization, it.dataset, it.kind, it.purpose, it.agreement_digest,
            it.rows, it.bytes, it.state, it.stored_chunks, it.reason, it.created_ms, it.updated_ms, it.retain_until_ms,
        )  # fmt: skip

    return Call("ListBulk", pb.ListBulkRequest(), lambda response: tuple(map(one, response.transfers)))


def remove_bulk(transfer_id: str) -> Call[str]:
    """RemoveBulk."""
    request = pb.RemoveBulkRequest(transfer_id=transfer_id)
    return Call("RemoveBulk", request, lambda response: str(response.transfer_id))


def revoke_certificate(revocation: bytes) -> Call[RevokedCertificate]:
    """RevokeCertificate."""

    def parse(response: pb.RevokeCertificateResponse) -> RevokedCertificate:
        return RevokedCertificate(response.organization, response.fingerprint, response.from_ms)

    return Call("RevokeCertificate", pb.RevokeCertificateRequest(revocation=revocation), parse)


def shutdown() -> Call[None]:
    """Shutdown."""
    return Call("Shutdown", pb.ShutdownRequest(), lambda _: None)


def control_address(address: str | None) -> str:
    """Return `address`, or what COMITY_CONTROL says.

    Raises:
        ControlError: neither says where the node is.
    """
    found = address or os.environ.get(ENVIRONMENT, "")
    if not found:
        raise ControlError(
            "no control address is given",
            advice=f"pass one (unix:/path/to/socket or host:port), or set {ENVIRONMENT}",
        )
    return found


def to_json(value: Any, what: str) -> bytes:  # noqa: ANN401  (any JSON value)
    """Return `value` as JSON.

    Raises:
        ControlError: it is no JSON value.
    """
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ControlError(f"{what} is not JSON: {error}") from error


def to_control_error(error: object, address: str, method: str) -> ControlError:
    """Return what a failed call (a `grpc.RpcError`) means: the node's own error if it sent one, else what gRPC says."""
    if not isinstance(error, (grpc.Call, AioRpcError)):
        return ControlError(f"{method} on {address}: {error}")
    metadata = _metadata(error.trailing_metadata() or ())
    details = error.details() or ""
    if "comity-code" in metadata:
        rules = _text(metadata.get("comity-rules-bin"))
        return ControlError(
            details,
            code=_text(metadata["comity-code"]),
            advice=_text(metadata.get("comity-advice-bin")),
            rules=tuple(rules.split("\n")) if rules else (),
        )
    status_code = error.code()
    if status_code is grpc.StatusCode.UNAVAILABLE:
        why = "" if address.startswith("unix:") else f" ({details})"
        return ControlError(
            f"no node answers at {address}{why}", code="node_unreachable", advice="start it with: comity node run"
        )
    if status_code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return too_slow(method)
    return ControlError(f"{method}: {details or status_code.name}", code=status_code.name.lower())


def _metadata(pairs: Iterable[Any]) -> dict[str, str | bytes]:
    # Two kinds of tuples, by the kind of the channel; both are pairs.
    return {key: value for key, value in pairs}


def too_slow(method: str) -> ControlError:
    """Return the error for an answer that did not come."""
    return ControlError(f"the node did not answer {method} in time", code="deadline_exceeded")


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ControlError(f"{what} is no JSON object")
    return value
