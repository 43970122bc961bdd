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

    def list_records(self, request: pb.ListRecordsRequest) -> AsyncIterator[pb.ListRecordsResponse]:
        """Certified records, in pages; a slow reader holds the iterator up, so it keeps no lock between pages."""

    async def get_record(self, request: pb.GetRecordRequest) -> pb.GetRecordResponse:
        """One record with its provenance."""

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

    async def shutdown(self, request: pb.ShutdownRequest) -> pb.ShutdownResponse:
        """Begin to stop the node."""
