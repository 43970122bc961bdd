"""What the node does for its clients: the seam between the control API and the rest of the node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from comity.v1 import control_pb2 as pb


class ControlHandlers(Protocol):
    """One async trio method for each rpc of ControlService.

    A method runs in the node's trio loop; it is cancelled when its client goes away or its deadline passes, so an
    effect that must not be torn apart is shielded by the method itself. A `ComityError` reaches the client with its
    code, message and advice; any other exception is logged and reaches it as INTERNAL.
    """

    async def get_status(self, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        """Who this node is, and what it has counted."""

    async def list_peers(self, request: pb.ListPeersRequest) -> pb.ListPeersResponse:
        """The links to other organizations' nodes."""

    async def list_agents(self, request: pb.ListAgentsRequest) -> pb.ListAgentsResponse:
        """Own and peers' agents, with their reliability."""

    async def submit_workflow(self, request: pb.SubmitWorkflowRequest) -> pb.SubmitWorkflowResponse:
        """Start a workflow; returns when it is durable, before it is negotiated."""

    async def get_workflow(self, request: pb.GetWorkflowRequest) -> pb.GetWorkflowResponse:
        """One workflow, or all."""

    async def cancel_workflow(self, request: pb.CancelWorkflowRequest) -> pb.CancelWorkflowResponse:
        """End the own tasks of a workflow, and tell whoever has them."""

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        """Own tasks, the one that changed last first."""

    async def show_task(self, request: pb.ShowTaskRequest) -> pb.ShowTaskResponse:
        """One task's whole way."""

    def list_records(self, request: pb.ListRecordsRequest) -> AsyncIterator[pb.ListRecordsResponse]:
        """Certified records, in pages; a slow reader holds the iterator up, so it keeps no lock between pages."""

    async def get_record(self, request: pb.GetRecordRequest) -> pb.GetRecordResponse:
        """One record with its provenance."""

    async def sign_export(self, request: pb.SignExportRequest) -> pb.SignExportResponse:
        """A signed statement about a file of records."""

    async def explain_policy(self, request: pb.ExplainPolicyRequest) -> pb.ExplainPolicyResponse:
        """What the policy says to a request, and why."""

    async def release_update(self, request: pb.ReleaseUpdateRequest) -> pb.ReleaseUpdateResponse:
        """Let a model update leave: decided, audited and signed."""

    async def admit_update(self, request: pb.AdmitUpdateRequest) -> pb.AdmitUpdateResponse:
        """Check a peer's update before it is aggregated."""

    async def serve_tunnel(self, request: pb.ServeTunnelRequest) -> pb.ServeTunnelResponse:
        """Serve a local HTTP server to other organizations."""

    async def open_tunnel(self, request: pb.OpenTunnelRequest) -> pb.OpenTunnelResponse:
        """Listen on loopback for a tunnel to another organization."""

    async def send_bulk(
        self, request: pb.SendBulkRequest, send: Callable[[pb.SendBulkResponse], Awaitable[None]]
    ) -> None:
        """Send a table, or go on with an open transfer; `send` takes the progress, and waits for a slow reader."""

    async def list_bulk(self, request: pb.ListBulkRequest) -> pb.ListBulkResponse:
        """The bulk transfers, both ways."""

    def read_bulk(self, request: pb.ReadBulkRequest) -> AsyncIterator[pb.ReadBulkResponse]:
        """A received table's Arrow IPC stream, in pieces."""

    async def remove_bulk(self, request: pb.RemoveBulkRequest) -> pb.RemoveBulkResponse:
        """Delete a transfer's table, or give an open transfer up."""

    async def revoke_certificate(self, request: pb.RevokeCertificateRequest) -> pb.RevokeCertificateResponse:
        """Refuse a node's certificate from now on, and tell the others."""

    async def list_agreements(self, request: pb.ListAgreementsRequest) -> pb.ListAgreementsResponse:
        """The agreements of this node, whatever has become of them."""

    async def get_agreement(self, request: pb.GetAgreementRequest) -> pb.GetAgreementResponse:
        """One agreement, with all signatures."""

    async def withdraw_agreement(self, request: pb.WithdrawAgreementRequest) -> pb.WithdrawAgreementResponse:
        """Withdraw from an agreement; it is over when this returns, and the others are told."""

    async def amend_agreement(self, request: pb.AmendAgreementRequest) -> pb.AmendAgreementResponse:
        """Begin to negotiate terms that take the place of an agreement's."""

    def watch_decisions(self, request: pb.WatchDecisionsRequest) -> AsyncIterator[pb.WatchDecisionsResponse]:
        """The decisions that the node makes from now on; a slow reader misses some, and is told how many."""

    async def reload(self, request: pb.ReloadRequest) -> pb.ReloadResponse:
        """Look at the policy, the trust bundle and the certificate, and take in what has changed."""

    async def list_approvals(self, request: pb.ListApprovalsRequest) -> pb.ListApprovalsResponse:
        """What a person has to approve, or has decided."""

    async def decide_approval(self, request: pb.DecideApprovalRequest) -> pb.DecideApprovalResponse:
        """Grant or deny an approval."""

    async def list_notices(self, request: pb.ListNoticesRequest) -> pb.ListNoticesResponse:
        """What people are told of."""

    async def shutdown(self, request: pb.ShutdownRequest) -> pb.ShutdownResponse:
        """Begin to stop the node."""
