"""Clients of a node's control API: `Client` and, for asyncio, `AsyncClient`.

    with Client("unix:/run/comity/mercy/control.sock") as node:
        for record in node.records(dataset="tumour-features"):
            print(record.fields)

Without an address both take the one in COMITY_CONTROL. Every failure is a `ControlError`, with the code and the advice
of the node's own error if it sent one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
from grpc import aio

from comity import _control
from comity._control import (
    CHANNEL_OPTIONS,
    Admission,
    AgentInfo,
    BulkProgress,
    BulkTransfer,
    Call,
    CertifiedRecord,
    NegotiationStep,
    Peer,
    Record,
    ReleasedUpdate,
    RevokedCertificate,
    Status,
    Tls,
    Workflow,
    control_address,
    to_bulk_progress,
    to_control_error,
    to_record,
    too_slow,
)
from comity.errors import ControlError
from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc

__all__ = [
    "Admission",
    "AgentInfo",
    "AsyncClient",
    "BulkProgress",
    "BulkTransfer",
    "CertifiedRecord",
    "Client",
    "NegotiationStep",
    "Peer",
    "Record",
    "ReleasedUpdate",
    "RevokedCertificate",
    "Status",
    "Tls",
    "Workflow",
]

T = TypeVar("T")


class Client:
    """A connection to a node, for programs without a loop; usable from several threads.

    Args:
        address: `unix:/path` or `host:port`; None: COMITY_CONTROL.
        tls: the files for mutual TLS, for a TCP address.
        timeout_s: seconds that a call may take.

    Raises:
        ControlError: no address, or a TLS file is unreadable. Whether a node answers shows at the first call.
    """

    def __init__(self, address: str | None = None, *, tls: Tls | None = None, timeout_s: float = 30.0) -> None:
        self.address = control_address(address)
        self._timeout_s = timeout_s
        self._channel = (
            grpc.insecure_channel(self.address, CHANNEL_OPTIONS)
            if tls is None
            else grpc.secure_channel(self.address, tls.credentials(), CHANNEL_OPTIONS)
        )
        self._stub = pb_grpc.ControlServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self._channel.close()

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the node accepts the connection.

        Raises:
            ControlError: it did not within `timeout_s` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError as error:
            raise _not_ready(self.address, timeout_s) from error

    def status(self) -> Status:
        """Who the node is, and what it has counted."""
        return self._invoke(_control.status())

    def peers(self) -> tuple[Peer, ...]:
        """The links to other organizations."""
        return self._invoke(_control.peers())

    def agents(self) -> tuple[AgentInfo, ...]:
        """Own and peers' agents."""
        return self._invoke(_control.agents())

    def submit_workflow(self, document: Mapping[str, Any]) -> str:
        """Start a workflow and return its id; it is durable then, and not yet negotiated."""
        return self._invoke(_control.submit_workflow(document))

    def workflow(self, workflow_id: str) -> Workflow:
        """One workflow; a ControlError with code "not_found" if there is no such one."""
        return self._invoke(_control.one_workflow(workflow_id))

    def workflows(self) -> tuple[Workflow, ...]:
        """All workflows of the node."""
        return self._invoke(_control.workflows(""))

    def records(
        self, *, dataset: str = "", author: str = "", agreement: str = "", limit: int = 0
    ) -> Generator[Record, None, None]:
        """Yield certified records, page by page as they are used.

        Args:
            dataset: of this data set; empty: of all.
            author: of this organization; empty: of all.
            agreement: under the agreement with this digest; empty: under any.
            limit: at most so many; 0: all.
        """
        call = self._stub.ListRecords(
            pb.ListRecordsRequest(dataset=dataset, author=author, agreement_digest=agreement, limit=limit)
        )
        try:
            while (page := _next_page(call, self._timeout_s, "ListRecords")) is not None:
                yield from map(to_record, page.records)
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, "ListRecords") from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def record(self, task_id: str) -> CertifiedRecord:
        """One record with its provenance."""
        return self._invoke(_control.record(task_id))

    def explain_policy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the node's policy says to a request, and why."""
        return self._invoke(_control.explain_policy(request))

    def release_update(
        self,
        *,
        to_organization: str,
        agreement: str,
        federation: str,
        round_number: int,
        update_digest: bytes,
        private_examples: int,
        certified_examples: int,
    ) -> ReleasedUpdate:
        """Ask that a model update may leave; `update_digest` is the SHA-256 of the packed arrays.

        Raises:
            ControlError: with code "policy_denied" if the policy says no.
        """
        request = pb.ReleaseUpdateRequest(
            to_organization=to_organization,
            agreement_digest=agreement,
            federation=federation,
            round=round_number,
            update_digest=update_digest,
            private_examples=private_examples,
            certified_examples=certified_examples,
        )
        return self._invoke(_control.release_update(request))

    def admit_update(
        self, *, manifest: bytes, chain: Sequence[bytes], federation: str, round_number: int, update_digest: bytes
    ) -> Admission:
        """Have a peer's update checked before it is aggregated."""
        request = pb.AdmitUpdateRequest(
            manifest=manifest, chain=chain, federation=federation, round=round_number, update_digest=update_digest
        )
        return self._invoke(_control.admit_update(request))

    def serve_tunnel(self, name: str, target: str, *, filter_name: str = "flower-fleet") -> None:
        """Serve the local HTTP server at `target` (host:port) to other organizations, through a filter."""
        self._invoke(_control.serve_tunnel(name, target, filter_name))

    def open_tunnel(self, name: str, organization: str, *, port: int = 0, app_digests: Iterable[str] = ()) -> int:
        """Listen on loopback for a tunnel to `organization`; returns the port.

        Args:
            name: of the tunnel, as it is served there.
            organization: who serves it.
            port: where to listen; 0 for any free port.
            app_digests: SHA-256 in hex of the Flower app bundles that may come in through it; none: no app comes in.
        """
        return self._invoke(_control.open_tunnel(name, organization, port, app_digests))

    def send_bulk(
        self,
        path: str | Path | None,
        *,
        to_organization: str,
        dataset: str,
        purpose: str,
        kind: str = "synthetic",
        agreement: str = "",
        on_progress: Callable[[BulkProgress], None] | None = None,
    ) -> BulkProgress:
        """Send a whole table to another organization; returns when the other side has checked and signed for it.

        However long it takes: the node bounds each step of it. A call that is interrupted leaves an open transfer.

        Args:
            path: a Parquet, Arrow or CSV file on the node's machine; None: the certified records of the dataset.
            to_organization: who gets it.
            dataset: what the rows belong to.
            purpose: what they may be used for.
            kind: "raw", "synthetic" or "certified".
            agreement: digest of the agreement that it happens under; empty: none.
            on_progress: called with each step.

        Raises:
            ControlError: with the code of what went wrong, such as "policy_denied" or "peer_refused".
        """
        request = _control.bulk_request(path, to_organization, dataset, purpose, kind, agreement)
        return self._send_bulk(request, on_progress)

    def resume_bulk(
        self, transfer_id: str, *, on_progress: Callable[[BulkProgress], None] | None = None
    ) -> BulkProgress:
        """Go on with an open transfer: what the other side holds already is not sent again."""
        return self._send_bulk(pb.SendBulkRequest(resume=transfer_id), on_progress)

    def bulk_transfers(self) -> tuple[BulkTransfer, ...]:
        """The bulk transfers, both ways, the newest first."""
        return self._invoke(_control.bulk_transfers())

    def read_bulk(self, transfer_id: str) -> Generator[bytes, None, None]:
        """Yield a received table as an Arrow IPC stream, piece by piece as it is used."""
        call = self._stub.ReadBulk(pb.ReadBulkRequest(transfer_id=transfer_id))
        try:
            while (piece := _next_page(call, self._timeout_s, "ReadBulk")) is not None:
                yield piece.data
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, "ReadBulk") from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def remove_bulk(self, transfer_id: str) -> str:
        """Delete a transfer's table, or give an open transfer up; returns the whole id."""
        return self._invoke(_control.remove_bulk(transfer_id))

    def revoke_certificate(self, revocation: bytes) -> RevokedCertificate:
        """Give the node a signed revocation: it refuses the certificate from then on, and tells the other members."""
        return self._invoke(_control.revoke_certificate(revocation))

    def shutdown(self) -> None:
        """Have the node drain and stop."""
        self._invoke(_control.shutdown())

    def _send_bulk(
        self, request: pb.SendBulkRequest, on_progress: Callable[[BulkProgress], None] | None
    ) -> BulkProgress:
        call = self._stub.SendBulk(request)
        last = to_bulk_progress(pb.SendBulkResponse())
        try:
            for message in call:
                last = to_bulk_progress(message)
                if on_progress is not None:
                    on_progress(last)
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, "SendBulk") from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]
        return last

    def _invoke(self, call: Call[T]) -> T:
        try:
            return call.parse(getattr(self._stub, call.method)(call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, call.method) from error


class AsyncClient:
    """The same for asyncio. Arguments and methods as `Client`'s."""

    def __init__(self, address: str | None = None, *, tls: Tls | None = None, timeout_s: float = 30.0) -> None:
        self.address = control_address(address)
        self._timeout_s = timeout_s
        self._channel = (
            aio.insecure_channel(self.address, CHANNEL_OPTIONS)
            if tls is None
            else aio.secure_channel(self.address, tls.credentials(), CHANNEL_OPTIONS)
        )
        self._stub = pb_grpc.ControlServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight fail."""
        await self._channel.close(None)

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the node accepts the connection.

        Raises:
            ControlError: it did not within `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise _not_ready(self.address, timeout_s) from error

    async def status(self) -> Status:
        """Who the node is, and what it has counted."""
        return await self._invoke(_control.status())

    async def peers(self) -> tuple[Peer, ...]:
        """The links to other organizations."""
        return await self._invoke(_control.peers())

    async def agents(self) -> tuple[AgentInfo, ...]:
        """Own and peers' agents."""
        return await self._invoke(_control.agents())

    async def submit_workflow(self, document: Mapping[str, Any]) -> str:
        """Start a workflow and return its id; it is durable then, and not yet negotiated."""
        return await self._invoke(_control.submit_workflow(document))

    async def workflow(self, workflow_id: str) -> Workflow:
        """One workflow; a ControlError with code "not_found" if there is no such one."""
        return await self._invoke(_control.one_workflow(workflow_id))

    async def workflows(self) -> tuple[Workflow, ...]:
        """All workflows of the node."""
        return await self._invoke(_control.workflows(""))

    async def records(
        self, *, dataset: str = "", author: str = "", agreement: str = "", limit: int = 0
    ) -> AsyncGenerator[Record, None]:
        """Yield certified records, page by page as they are used.

        Args:
            dataset: of this data set; empty: of all.
            author: of this organization; empty: of all.
            agreement: under the agreement with this digest; empty: under any.
            limit: at most so many; 0: all.
        """
        call = self._stub.ListRecords(
            pb.ListRecordsRequest(dataset=dataset, author=author, agreement_digest=agreement, limit=limit)
        )
        try:
            while True:
                async with asyncio.timeout(self._timeout_s):  # for a page, not for what the caller does with it
                    page = await call.read()
                if not isinstance(page, pb.ListRecordsResponse):
                    return
                for record in page.records:
                    yield to_record(record)
        except TimeoutError as error:
            raise too_slow("ListRecords") from error
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, "ListRecords") from error
        finally:
            call.cancel()

    async def record(self, task_id: str) -> CertifiedRecord:
        """One record with its provenance."""
        return await self._invoke(_control.record(task_id))

    async def explain_policy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the node's policy says to a request, and why."""
        return await self._invoke(_control.explain_policy(request))

    async def release_update(
        self,
        *,
        to_organization: str,
        agreement: str,
        federation: str,
        round_number: int,
        update_digest: bytes,
        private_examples: int,
        certified_examples: int,
    ) -> ReleasedUpdate:
        """Ask that a model update may leave; `update_digest` is the SHA-256 of the packed arrays.

        Raises:
            ControlError: with code "policy_denied" if the policy says no.
        """
        request = pb.ReleaseUpdateRequest(
            to_organization=to_organization,
            agreement_digest=agreement,
            federation=federation,
            round=round_number,
            update_digest=update_digest,
            private_examples=private_examples,
            certified_examples=certified_examples,
        )
        return await self._invoke(_control.release_update(request))

    async def admit_update(
        self, *, manifest: bytes, chain: Sequence[bytes], federation: str, round_number: int, update_digest: bytes
    ) -> Admission:
        """Have a peer's update checked before it is aggregated."""
        request = pb.AdmitUpdateRequest(
            manifest=manifest, chain=chain, federation=federation, round=round_number, update_digest=update_digest
        )
        return await self._invoke(_control.admit_update(request))

    async def serve_tunnel(self, name: str, target: str, *, filter_name: str = "flower-fleet") -> None:
        """Serve the local HTTP server at `target` (host:port) to other organizations, through a filter."""
        await self._invoke(_control.serve_tunnel(name, target, filter_name))

    async def open_tunnel(self, name: str, organization: str, *, port: int = 0, app_digests: Iterable[str] = ()) -> int:
        """Listen on loopback for a tunnel to `organization`; returns the port.

        Args:
            name: of the tunnel, as it is served there.
            organization: who serves it.
            port: where to listen; 0 for any free port.
            app_digests: SHA-256 in hex of the Flower app bundles that may come in through it; none: no app comes in.
        """
        return await self._invoke(_control.open_tunnel(name, organization, port, app_digests))

    async def send_bulk(
        self,
        path: str | Path | None,
        *,
        to_organization: str,
        dataset: str,
        purpose: str,
        kind: str = "synthetic",
        agreement: str = "",
        on_progress: Callable[[BulkProgress], None] | None = None,
    ) -> BulkProgress:
        """Send a whole table to another organization; returns when the other side has checked and signed for it.

        However long it takes: the node bounds each step of it. A call that is interrupted leaves an open transfer.

        Args:
            path: a Parquet, Arrow or CSV file on the node's machine; None: the certified records of the dataset.
            to_organization: who gets it.
            dataset: what the rows belong to.
            purpose: what they may be used for.
            kind: "raw", "synthetic" or "certified".
            agreement: digest of the agreement that it happens under; empty: none.
            on_progress: called with each step.

        Raises:
            ControlError: with the code of what went wrong, such as "policy_denied" or "peer_refused".
        """
        request = _control.bulk_request(path, to_organization, dataset, purpose, kind, agreement)
        return await self._send_bulk(request, on_progress)

    async def resume_bulk(
        self, transfer_id: str, *, on_progress: Callable[[BulkProgress], None] | None = None
    ) -> BulkProgress:
        """Go on with an open transfer: what the other side holds already is not sent again."""
        return await self._send_bulk(pb.SendBulkRequest(resume=transfer_id), on_progress)

    async def bulk_transfers(self) -> tuple[BulkTransfer, ...]:
        """The bulk transfers, both ways, the newest first."""
        return await self._invoke(_control.bulk_transfers())

    async def read_bulk(self, transfer_id: str) -> AsyncGenerator[bytes, None]:
        """Yield a received table as an Arrow IPC stream, piece by piece as it is used."""
        call = self._stub.ReadBulk(pb.ReadBulkRequest(transfer_id=transfer_id))
        try:
            while True:
                async with asyncio.timeout(self._timeout_s):
                    piece = await call.read()
                if not isinstance(piece, pb.ReadBulkResponse):
                    return
                yield piece.data
        except TimeoutError as error:
            raise too_slow("ReadBulk") from error
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, "ReadBulk") from error
        finally:
            call.cancel()

    async def remove_bulk(self, transfer_id: str) -> str:
        """Delete a transfer's table, or give an open transfer up; returns the whole id."""
        return await self._invoke(_control.remove_bulk(transfer_id))

    async def revoke_certificate(self, revocation: bytes) -> RevokedCertificate:
        """Give the node a signed revocation: it refuses the certificate from then on, and tells the other members."""
        return await self._invoke(_control.revoke_certificate(revocation))

    async def shutdown(self) -> None:
        """Have the node drain and stop."""
        await self._invoke(_control.shutdown())

    async def _send_bulk(
        self, request: pb.SendBulkRequest, on_progress: Callable[[BulkProgress], None] | None
    ) -> BulkProgress:
        call = self._stub.SendBulk(request)
        last = to_bulk_progress(pb.SendBulkResponse())
        try:
            async for message in call:
                last = to_bulk_progress(message)
                if on_progress is not None:
                    on_progress(last)
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, "SendBulk") from error
        finally:
            call.cancel()
        return last

    async def _invoke(self, call: Call[T]) -> T:
        try:
            return call.parse(await getattr(self._stub, call.method)(call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise to_control_error(error, self.address, call.method) from error


def _next_page(call: Any, timeout_s: float, method: str) -> Any:  # noqa: ANN401  (grpc's call and message objects)
    """Return the next message, None after the last; the limit on time is a message's, not the reader's."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        call.cancel()

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        return next(call, None)
    except grpc.RpcError as error:
        if expired.is_set():
            raise too_slow(method) from error
        raise
    finally:
        timer.cancel()


def _not_ready(address: str, timeout_s: float) -> ControlError:
    return ControlError(
        f"no node answered at {address} within {timeout_s:g} s",
        code="node_unreachable",
        advice="start it with: comity node run",
    )
