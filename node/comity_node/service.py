"""What the control API's calls do: the node's answers to its own organization."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from comity.errors import AgreementError, ComityError, ControlError, StorageError
from comity.revocation import Revocation
from comity.trust import NodeIdentity, TrustStore
from comity.v1 import control_pb2 as pb
from comity_node import strictyaml
from comity_node.admission import Gate
from comity_node.policy.cases import read_request
from comity_node.policy.explain import explain
from comity_node.protocol.task import State
from comity_node.runtime.core import Runtime
from comity_node.runtime.score import mean
from comity_node.storage import journal, records
from comity_node.storage.database import Database

_PAGE = 100


#: Takes a signed revocation; raises RevocationInvalid.
Revoke = Callable[[bytes], Awaitable[Revocation]]


class Tunnels(Protocol):
    """What the control API asks of the tunnels."""

    async def serve(self, name: str, target: str, kind: str) -> None:
        """Serve a local service to the other organizations."""

    async def open(self, name: str, organization: str, port: int, app_digests: tuple[str, ...]) -> int:
        """Listen on loopback for a tunnel to another organization; returns the port."""


class Bulk(Protocol):
    """What the control API asks of the bulk transfers; the calls are those of `ControlHandlers`."""

    async def send_bulk(
        self, request: pb.SendBulkRequest, send: Callable[[pb.SendBulkResponse], Awaitable[None]]
    ) -> None:
        """Send a table and report progress."""

    async def list_bulk(self, request: pb.ListBulkRequest) -> pb.ListBulkResponse:
        """Return the transfers."""

    def read_bulk(self, request: pb.ReadBulkRequest) -> AsyncIterator[pb.ReadBulkResponse]:
        """Return a received table."""

    async def remove_bulk(self, request: pb.RemoveBulkRequest) -> pb.RemoveBulkResponse:
        """Delete a transfer's table."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node is, for `GetStatus` and `ListPeers`."""

    version: str
    started_ms: int
    addresses: Callable[[], Sequence[str]]
    peers: Callable[[], Sequence[pb.Peer]]
    skills: Callable[[], Sequence[str]]
    counters: Callable[[], Mapping[str, int]]


class Service:
    """One node's control API (`ControlHandlers`)."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, runtime: Runtime, database: Database,
        tunnels: Tunnels, bulk: Bulk, facts: Facts, revoke: Revoke, stop: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """Answer for `identity`'s node; `stop` begins its shutdown."""
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._runtime = runtime
        self._database = database
        self._tunnels = tunnels
        self._bulk = bulk
        self._facts = facts
        self._revoke = revoke
        self._stop = stop

    async def get_status(self, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        """Who this node is, and what it has counted."""
        tasks = await self._database.read(journal.count_tasks_by_state)
        kept = await self._database.read(records.count_records)
        waiting = await self._database.read(journal.count_open)
        liars = await self._database.read(journal.list_equivocations)
        counters = {f"tasks.{state}": count for state, count in tasks.items()}
        counters |= {
            "records": sum(kept.values()),
            "outbox": sum(waiting.values()),
            "equivocations": len(liars),
            **self._facts.counters(),
        }
        bundle = self._trust.bundle
        return pb.GetStatusResponse(
            organization=self._identity.organization,
            node=str(self._identity.node),
            peer_id=self._identity.peer_id,
            consortium=bundle.consortium,
            bundle_epoch=bundle.epoch,
            version=self._facts.version,
            started_ms=self._facts.started_ms,
            addresses=list(self._facts.addresses()),
            policy_digest=self._gate.policy.digest.hex(),
            counters=counters,
            skills=list(self._facts.skills()),
        )

    async def list_peers(self, request: pb.ListPeersRequest) -> pb.ListPeersResponse:
        """Return the links."""
        return pb.ListPeersResponse(peers=list(self._facts.peers()))

    async def list_agents(self, request: pb.ListAgentsRequest) -> pb.ListAgentsResponse:
        """Return all known agents with what was learned about their organizations."""
        known = await self._database.read(journal.list_reliability)
        counts = {(row.organization, row.role): row for row in known}
        agents = []
        for card in self._runtime.directory.cards():
            role = "reviewer" if any(skill.role == "validator" for skill in card.skills) else "generator"
            row = counts.get((card.organization, role))
            agreed, disagreed = (row.agreed, row.disagreed) if row else (0.0, 0.0)
            agents.append(
                pb.Agent(
                    organization=card.organization,
                    name=card.name,
                    skills=[skill.id for skill in card.skills],
                    peer_id=card.peer_id,
                    agreed=agreed,
                    disagreed=disagreed,
                    reliability=mean(agreed, disagreed),
                )
            )
        return pb.ListAgentsResponse(agents=agents)

    async def submit_workflow(self, request: pb.SubmitWorkflowRequest) -> pb.SubmitWorkflowResponse:
        """Check a workflow and begin to negotiate it."""
        return pb.SubmitWorkflowResponse(workflow_id=await self._runtime.workflows.submit(request.workflow))

    async def get_workflow(self, request: pb.GetWorkflowRequest) -> pb.GetWorkflowResponse:
        """Return one workflow, or all."""
        if request.workflow_id:
            row = await self._database.read(lambda c: journal.get_workflow(c, request.workflow_id))
            if row is None:
                raise ControlError(f"no workflow {request.workflow_id} here; `comity workflow show` lists them")
            rows = [row]
        else:
            rows = await self._database.read(journal.list_workflows)
        return pb.GetWorkflowResponse(workflows=[await self._workflow(row) for row in rows])

    async def _workflow(self, row: journal.WorkflowRow) -> pb.Workflow:
        digest = row.agreement_digest
        steps = await self._database.read(lambda c: journal.workflow_steps(c, row.workflow_id))
        shown = pb.Workflow(
            workflow_id=row.workflow_id,
            state=row.state,
            reason=row.reason,
            steps=[
                pb.NegotiationStep(at_ms=one.at_ms, organization=one.organization, step=one.step, detail=one.detail)
                for one in steps
            ],
        )
        if digest is None:
            return shown
        shown.agreement_digest = digest.hex()
        if (agreed := self._runtime.agreements.find(digest)) is not None:
            shown.terms = agreed.terms.SerializeToString()
        shown.tasks.update(await self._database.read(lambda c: journal.count_tasks_by_state(c, digest)))
        for state, counts in ((State.REFUSED, shown.refused_by), (State.REJECTED, shown.rejected_by)):
            counts.update(
                await self._database.read(lambda c: journal.count_tasks_by_reason(c, state.value, digest))  # noqa: B023
            )
        shown.repaired = await self._database.read(lambda c: journal.count_repaired(c, digest))
        return shown

    async def list_records(self, request: pb.ListRecordsRequest) -> AsyncIterator[pb.ListRecordsResponse]:
        """Return certified records, a page at a time."""
        left, cursor = request.limit or None, 0
        agreement = _digest(request.agreement_digest)
        while True:
            size = _PAGE if left is None else min(_PAGE, left)
            page = await self._database.read(
                lambda c: records.list_records(
                    c,
                    dataset=request.dataset or None,
                    author=request.author or None,
                    agreement_digest=agreement,
                    cursor=cursor,  # noqa: B023
                    limit=size,  # noqa: B023
                )
            )
            if page.records:
                yield pb.ListRecordsResponse(records=[_record(row) for row in page.records])
            left = None if left is None else left - len(page.records)
            if page.cursor is None or left == 0:
                return
            cursor = page.cursor

    async def get_record(self, request: pb.GetRecordRequest) -> pb.GetRecordResponse:
        """Return one certified record with its provenance."""
        task_id = _digest(request.task_id) or b""
        row = await self._database.read(lambda c: records.get_record(c, task_id))
        if row is None:
            raise ControlError(f"no certified record of task {request.task_id} here; `comity records list` lists them")
        return pb.GetRecordResponse(record=_record(row), provenance=row.provenance)

    async def explain_policy(self, request: pb.ExplainPolicyRequest) -> pb.ExplainPolicyResponse:
        """Explain what the active policy would decide."""
        question = read_request(strictyaml.loads(request.request, "request"))
        explanation = explain(self._gate.policy, question)
        return pb.ExplainPolicyResponse(explanation=json.dumps(explanation.to_json()).encode())

    async def release_update(self, request: pb.ReleaseUpdateRequest) -> pb.ReleaseUpdateResponse:
        """Decide whether a model update may leave, and sign its manifest."""
        manifest = await self._runtime.updates.release(request)
        return pb.ReleaseUpdateResponse(manifest=manifest, chain=self._identity.chain)

    async def admit_update(self, request: pb.AdmitUpdateRequest) -> pb.AdmitUpdateResponse:
        """Check a model update that came in; a refusal is an answer, with its code and reason."""
        try:
            manifest = await self._runtime.updates.admit(request)
        except StorageError:
            raise
        except ComityError as error:
            return pb.AdmitUpdateResponse(code=error.code, reason=str(error))
        return pb.AdmitUpdateResponse(
            organization=manifest.organization,
            private_examples=manifest.private_examples,
            certified_examples=manifest.certified_examples,
        )

    async def serve_tunnel(self, request: pb.ServeTunnelRequest) -> pb.ServeTunnelResponse:
        """Serve a local HTTP server to the other organizations."""
        await self._tunnels.serve(request.name, request.target, request.filter)
        return pb.ServeTunnelResponse()

    async def open_tunnel(self, request: pb.OpenTunnelRequest) -> pb.OpenTunnelResponse:
        """Listen on loopback for a tunnel to another organization."""
        apps = tuple(request.app_digests)
        port = await self._tunnels.open(request.name, request.organization, request.port, apps)
        return pb.OpenTunnelResponse(port=port)

    async def send_bulk(
        self, request: pb.SendBulkRequest, send: Callable[[pb.SendBulkResponse], Awaitable[None]]
    ) -> None:
        """Send a table to another organization, or go on with an open transfer."""
        await self._bulk.send_bulk(request, send)

    async def list_bulk(self, request: pb.ListBulkRequest) -> pb.ListBulkResponse:
        """Return the bulk transfers."""
        return await self._bulk.list_bulk(request)

    def read_bulk(self, request: pb.ReadBulkRequest) -> AsyncIterator[pb.ReadBulkResponse]:
        """Return a received table's Arrow IPC stream, in pieces."""
        return self._bulk.read_bulk(request)

    async def remove_bulk(self, request: pb.RemoveBulkRequest) -> pb.RemoveBulkResponse:
        """Delete a transfer's table, or give an open transfer up."""
        return await self._bulk.remove_bulk(request)

    async def revoke_certificate(self, request: pb.RevokeCertificateRequest) -> pb.RevokeCertificateResponse:
        """Refuse a node's certificate from now on, and tell the other members."""
        revocation = await self._revoke(request.revocation)
        return pb.RevokeCertificateResponse(
            organization=revocation.organization,
            fingerprint=revocation.fingerprint.hex(),
            from_ms=revocation.issued_ms,
        )

    async def shutdown(self, request: pb.ShutdownRequest) -> pb.ShutdownResponse:
        """Begin the shutdown: drain, then stop."""
        await self._stop()
        return pb.ShutdownResponse()


def _digest(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) or None
    except ValueError as error:
        raise AgreementError(f"{text!r} is not hex") from error


def _record(row: records.StoredRecord) -> pb.Record:
    return pb.Record(
        task_id=row.task_id.hex(),
        author=row.author,
        dataset=row.dataset,
        record=row.record,
        record_digest=row.record_digest.hex(),
        score=row.score,
        agreement_digest=row.agreement_digest.hex(),
        stored_ms=row.stored_ms,
    )
