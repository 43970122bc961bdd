"""Federated learning and whole tables: model updates, tunnels, bulk transfers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from comity.errors import ComityError, StorageError
from comity.trust import NodeIdentity
from comity.v1 import control_pb2 as pb
from comity_node.runtime.core import Runtime
from comity_node.service.seams import Bulk, Tunnels


class FederationService:
    """Answers about model updates and tunnels."""

    def __init__(self, identity: NodeIdentity, runtime: Runtime, tunnels: Tunnels) -> None:
        """Release updates as `identity`."""
        self._identity = identity
        self._runtime = runtime
        self._tunnels = tunnels

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


class BulkTransferService:
    """Answers about transfers of whole tables; all are those of `Bulk`."""

    def __init__(self, bulk: Bulk) -> None:
        """Pass the calls on to `bulk`."""
        self._bulk = bulk

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
