"""The control API: gRPC on a thread of its own, in front of the node's trio loop."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import trio
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from comity.errors import ComityError, ConfigError
from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc
from comity_node.control.address import ServerTls, TcpAddress, UnixAddress, claim_socket, parse_address
from comity_node.control.bridge import Bridge, Stream
from comity_node.control.handlers import ControlHandlers
from comity_node.control.status import sole, status_of
from comity_node.control.workers import WorkerPool

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # mypy sees trio through trio-typing's stubs, which libp2p brings

_log = logging.getLogger(__name__)

Req = TypeVar("Req")
Res = TypeVar("Res")

if TYPE_CHECKING:
    _Context = aio.ServicerContext[Any, Any]
else:
    _Context = aio.ServicerContext

_SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What clients and workers may cost.

    Attributes:
        max_message: bytes of one message, either way.
        max_streams: calls of one connection at a time.
        max_calls: calls of all connections together; one more is refused.
        call_s: seconds that a unary call may take when its client set no deadline, or a later one.
        drain_s: seconds that calls in flight get when the node stops.
        stop_s: seconds after which a thread that does not end is left behind.
    """

    max_message: int = 8 * 1024 * 1024
    max_streams: int = 256
    max_calls: int = 1024
    call_s: float = 300.0
    drain_s: float = 2.0
    stop_s: float = 3.0


class ControlServer:
    """Serves ControlService and WorkerService, with health and reflection.

    Args:
        address: `unix:/path` (socket 0600 in a directory 0700) or `host:port` (mutual TLS only).
        handlers: what the calls do.
        workers: where workers join.
        tls: the files for mutual TLS; needed for TCP.
        limits: see `ServerLimits`.

    Raises:
        ConfigError: the address is malformed, or TCP without `tls`.
    """

    def __init__(
        self,
        address: str,
        handlers: ControlHandlers,
        workers: WorkerPool,
        *,
        tls: ServerTls | None = None,
        limits: ServerLimits = ServerLimits(),
    ) -> None:
        self._address = parse_address(address)
        if isinstance(self._address, TcpAddress) and tls is None:
            raise ConfigError(
                f"the control API on {address} needs mutual TLS (key, certificate, client CA), or a unix socket"
            )
        self.handlers, self.workers, self._tls, self._limits = handlers, workers, tls, limits
        self._bridge = Bridge(max_calls=limits.max_calls, stop_s=limits.stop_s)
        self._server: aio.Server
        self._health: Any

    async def run(self, *, task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, then drain: no new calls, `drain_s` for those in flight, UNAVAILABLE for the rest.

        Started with the address to give to clients (a TCP port 0 is replaced by the real one).

        Raises:
            ConfigError: another node runs there, the port is in use, or a TLS file is unreadable or wrong.
        """
        claim = claim_socket(self._address) if isinstance(self._address, UnixAddress) else nullcontext()
        with claim:
            try:
                await self._run(task_status)
            except BaseExceptionGroup as group:  # taken apart: the caller gets what is in it
                if sole(group) is not group:
                    raise sole(group) from None
                raise

    async def _run(self, task_status: TaskStatus[str]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._bridge.run)
            try:
                address = await self._bridge.call_asyncio(self._listen)
                _log.info("control API on %s", address)
                task_status.started(address)
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):  # each of the three is bounded by itself
                    await self._bridge.drain(self._limits.drain_s)
                    with trio.move_on_after(self._limits.stop_s):
                        await self._bridge.call_asyncio(self._close)
                    await self._bridge.stop()

    # ---- on the asyncio thread

    async def _listen(self) -> str:
        limits = self._limits
        self._server = aio.server(
            maximum_concurrent_rpcs=limits.max_calls + limits.max_streams,
            options=[
                ("grpc.max_receive_message_length", limits.max_message),
                ("grpc.max_send_message_length", limits.max_message),
                ("grpc.max_concurrent_streams", limits.max_streams),
                ("grpc.so_reuseport", 0),  # else a second node would share the port without a word
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
        )
        pb_grpc.add_ControlServiceServicer_to_server(_ControlServicer(self), self._server)
        pb_grpc.add_WorkerServiceServicer_to_server(_WorkerServicer(self), self._server)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs do not know it
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service in _SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = self._bind()
        await self._server.start()
        return address

    def _bind(self) -> str:
        address, tls = self._address, self._tls
        try:
            if isinstance(address, UnixAddress):
                self._server.add_insecure_port(str(address))
                os.chmod(address.path, 0o600)
                return str(address)
            key, chain, ca = tls.read() if tls is not None else (b"", b"", b"")
            credentials = grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=True)
            port = self._server.add_secure_port(str(address), credentials)
            return str(TcpAddress(address.host, port))
        except RuntimeError as error:  # what grpc raises, whatever the reason
            hint = "is the port in use, or is the key not the certificate's?" if tls else "is its directory writable?"
            raise ConfigError(f"cannot listen on {address}: {hint}") from error

    async def _close(self) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace=1.0)

    async def unary(self, function: Callable[[Req], Awaitable[Res]], request: Req, context: _Context) -> Res:
        """Run one handler in trio; an error becomes the call's status."""
        remaining = context.time_remaining()
        timeout = self._limits.call_s if remaining is None else min(remaining, self._limits.call_s)
        try:
            return await self._bridge.call(function, request, timeout_s=timeout)
        except Exception as error:  # noqa: BLE001  reported to the client by its status, and logged if it is ours
            await _abort(context, error, function.__name__)

    async def stream(
        self,
        function: Callable[[Stream[Req, Res]], Awaitable[None]],
        incoming: AsyncIterator[Req],
        context: _Context,
    ) -> None:
        """Run one handler of a stream in trio; an error becomes the call's status."""
        try:
            async with aclosing(self._bridge.stream(function, incoming)) as responses:
                async for response in responses:
                    await context.write(response)
        except Exception as error:  # noqa: BLE001  reported to the client by its status, and logged if it is ours
            await _abort(context, error, function.__name__)


async def _abort(context: _Context, error: Exception, method: str) -> NoReturn:
    status = status_of(error, method)
    if isinstance(error, ComityError):
        _log.debug("%s refused: %s", method, error)
    await context.abort(status.code, status.message, status.metadata)


class _WorkerServicer(pb_grpc.WorkerServiceServicer):
    def __init__(self, server: ControlServer) -> None:
        self._server = server

    # grpc.aio also takes a coroutine that writes to its context; unlike a generator it is told of a cancellation.
    async def Work(self, request_iterator: AsyncIterator[pb.WorkRequest], context: _Context) -> None:  # type: ignore[override]
        await self._server.stream(self._server.workers.serve, request_iterator, context)


class _ControlServicer(pb_grpc.ControlServiceServicer):
    """One line for each rpc: the schema's names to the handlers'."""

    def __init__(self, server: ControlServer) -> None:
        self._server, self._handlers = server, server.handlers

    async def GetStatus(self, request: pb.GetStatusRequest, context: _Context) -> pb.GetStatusResponse:
        return await self._server.unary(self._handlers.get_status, request, context)

    async def ListPeers(self, request: pb.ListPeersRequest, context: _Context) -> pb.ListPeersResponse:
        return await self._server.unary(self._handlers.list_peers, request, context)

    async def ListAgents(self, request: pb.ListAgentsRequest, context: _Context) -> pb.ListAgentsResponse:
        return await self._server.unary(self._handlers.list_agents, request, context)

    async def SubmitWorkflow(self, request: pb.SubmitWorkflowRequest, context: _Context) -> pb.SubmitWorkflowResponse:
        return await self._server.unary(self._handlers.submit_workflow, request, context)

    async def GetWorkflow(self, request: pb.GetWorkflowRequest, context: _Context) -> pb.GetWorkflowResponse:
        return await self._server.unary(self._handlers.get_workflow, request, context)

    async def CancelWorkflow(self, request: pb.CancelWorkflowRequest, context: _Context) -> pb.CancelWorkflowResponse:
        return await self._server.unary(self._handlers.cancel_workflow, request, context)

    async def ListTasks(self, request: pb.ListTasksRequest, context: _Context) -> pb.ListTasksResponse:
        return await self._server.unary(self._handlers.list_tasks, request, context)

    async def ShowTask(self, request: pb.ShowTaskRequest, context: _Context) -> pb.ShowTaskResponse:
        return await self._server.unary(self._handlers.show_task, request, context)

    async def ListRecords(self, request: pb.ListRecordsRequest, context: _Context) -> None:  # type: ignore[override]
        async def list_records(stream: Stream[None, pb.ListRecordsResponse]) -> None:
            await _send_all(self._handlers.list_records(request), stream)

        await self._server.stream(list_records, _nothing(), context)

    async def GetRecord(self, request: pb.GetRecordRequest, context: _Context) -> pb.GetRecordResponse:
        return await self._server.unary(self._handlers.get_record, request, context)

    async def SignExport(self, request: pb.SignExportRequest, context: _Context) -> pb.SignExportResponse:
        return await self._server.unary(self._handlers.sign_export, request, context)

    async def ExplainPolicy(self, request: pb.ExplainPolicyRequest, context: _Context) -> pb.ExplainPolicyResponse:
        return await self._server.unary(self._handlers.explain_policy, request, context)

    async def WatchDecisions(self, request: pb.WatchDecisionsRequest, context: _Context) -> None:  # type: ignore[override]
        async def watch_decisions(stream: Stream[None, pb.WatchDecisionsResponse]) -> None:
            await _send_all(self._handlers.watch_decisions(request), stream)

        await self._server.stream(watch_decisions, _nothing(), context)

    async def ReleaseUpdate(self, request: pb.ReleaseUpdateRequest, context: _Context) -> pb.ReleaseUpdateResponse:
        return await self._server.unary(self._handlers.release_update, request, context)

    async def AdmitUpdate(self, request: pb.AdmitUpdateRequest, context: _Context) -> pb.AdmitUpdateResponse:
        return await self._server.unary(self._handlers.admit_update, request, context)

    async def ServeTunnel(self, request: pb.ServeTunnelRequest, context: _Context) -> pb.ServeTunnelResponse:
        return await self._server.unary(self._handlers.serve_tunnel, request, context)

    async def OpenTunnel(self, request: pb.OpenTunnelRequest, context: _Context) -> pb.OpenTunnelResponse:
        return await self._server.unary(self._handlers.open_tunnel, request, context)

    async def SendBulk(self, request: pb.SendBulkRequest, context: _Context) -> None:  # type: ignore[override]
        async def send_bulk(stream: Stream[None, pb.SendBulkResponse]) -> None:
            await self._handlers.send_bulk(request, stream.send)

        await self._server.stream(send_bulk, _nothing(), context)

    async def ListBulk(self, request: pb.ListBulkRequest, context: _Context) -> pb.ListBulkResponse:
        return await self._server.unary(self._handlers.list_bulk, request, context)

    async def ReadBulk(self, request: pb.ReadBulkRequest, context: _Context) -> None:  # type: ignore[override]
        async def read_bulk(stream: Stream[None, pb.ReadBulkResponse]) -> None:
            await _send_all(self._handlers.read_bulk(request), stream)

        await self._server.stream(read_bulk, _nothing(), context)

    async def RemoveBulk(self, request: pb.RemoveBulkRequest, context: _Context) -> pb.RemoveBulkResponse:
        return await self._server.unary(self._handlers.remove_bulk, request, context)

    async def ListAgreements(self, request: pb.ListAgreementsRequest, context: _Context) -> pb.ListAgreementsResponse:
        return await self._server.unary(self._handlers.list_agreements, request, context)

    async def GetAgreement(self, request: pb.GetAgreementRequest, context: _Context) -> pb.GetAgreementResponse:
        return await self._server.unary(self._handlers.get_agreement, request, context)

    async def WithdrawAgreement(
        self, request: pb.WithdrawAgreementRequest, context: _Context
    ) -> pb.WithdrawAgreementResponse:
        return await self._server.unary(self._handlers.withdraw_agreement, request, context)

    async def AmendAgreement(self, request: pb.AmendAgreementRequest, context: _Context) -> pb.AmendAgreementResponse:
        return await self._server.unary(self._handlers.amend_agreement, request, context)

    async def RevokeCertificate(
        self, request: pb.RevokeCertificateRequest, context: _Context
    ) -> pb.RevokeCertificateResponse:
        return await self._server.unary(self._handlers.revoke_certificate, request, context)

    async def Reload(self, request: pb.ReloadRequest, context: _Context) -> pb.ReloadResponse:
        return await self._server.unary(self._handlers.reload, request, context)

    async def ListApprovals(self, request: pb.ListApprovalsRequest, context: _Context) -> pb.ListApprovalsResponse:
        return await self._server.unary(self._handlers.list_approvals, request, context)

    async def DecideApproval(self, request: pb.DecideApprovalRequest, context: _Context) -> pb.DecideApprovalResponse:
        return await self._server.unary(self._handlers.decide_approval, request, context)

    async def ListNotices(self, request: pb.ListNoticesRequest, context: _Context) -> pb.ListNoticesResponse:
        return await self._server.unary(self._handlers.list_notices, request, context)

    async def Shutdown(self, request: pb.ShutdownRequest, context: _Context) -> pb.ShutdownResponse:
        return await self._server.unary(self._handlers.shutdown, request, context)


async def _send_all(messages: AsyncIterator[Res], stream: Stream[None, Res]) -> None:
    async with aclosing(messages) if isinstance(messages, AsyncGenerator) else nullcontext():
        async for message in messages:
            await stream.send(message)


async def _nothing() -> AsyncIterator[None]:
    """A request stream without messages."""
    nothing: tuple[None, ...] = ()
    for message in nothing:
        yield message
