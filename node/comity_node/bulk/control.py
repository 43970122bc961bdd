"""Bulk transfers on the control API: the node's own people ask, and see how far it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

import trio

from comity.errors import AgreementError, ComityError, ConfigError
from comity.v1 import control_pb2 as pb
from comity_node.bulk.channel import flat_nursery
from comity_node.bulk.common import Progress
from comity_node.bulk.prepare import Order
from comity_node.bulk.service import BulkService, Listed

_EVERY_S: Final = 0.1

Send = Callable[[pb.SendBulkResponse], Awaitable[None]]


class BulkControl:
    """What the control API's bulk calls do."""

    def __init__(self, service: BulkService) -> None:
        """Answer for `service`."""
        self._service = service

    async def send_bulk(self, request: pb.SendBulkRequest, send: Send) -> None:
        """Send a table, or go on with an open transfer, and report progress, about ten times a second at most.

        A client that goes away interrupts the transfer, which stays open.
        """
        latest = _Latest()
        failure: ComityError | None = None
        async with flat_nursery() as nursery:
            nursery.start_soon(_report, latest, send)
            try:
                if request.resume:
                    await self._service.resume(request.resume, latest.put)
                else:
                    await self._service.send(_order(request), latest.put)
            except ComityError as error:  # raised below: the client has to hear the transfer's id before
                failure = error
            latest.end()
        if failure is not None:
            raise failure

    async def list_bulk(self, request: pb.ListBulkRequest) -> pb.ListBulkResponse:
        """Return the transfers, the newest first."""
        return pb.ListBulkResponse(transfers=[_transfer(one) for one in await self._service.list()])

    async def read_bulk(self, request: pb.ReadBulkRequest) -> AsyncIterator[pb.ReadBulkResponse]:
        """Return a received table's Arrow IPC stream in pieces."""
        async with aclosing(self._service.read(request.transfer_id)) as pieces:
            async for piece in pieces:
                yield pb.ReadBulkResponse(data=piece)

    async def remove_bulk(self, request: pb.RemoveBulkRequest) -> pb.RemoveBulkResponse:
        """Delete a transfer's table, or give an open transfer up."""
        row = await self._service.remove(request.transfer_id)
        return pb.RemoveBulkResponse(transfer_id=row.transfer_id.hex())


class _Latest:
    """The newest progress: a reader that is slow misses steps, and holds nobody up."""

    def __init__(self) -> None:
        self._value: Progress | None = None
        self._changed = trio.Event()
        self.ended = False

    def put(self, progress: Progress) -> None:
        self._value = progress
        self._changed.set()

    def end(self) -> None:
        self.ended = True
        self._changed.set()

    async def take(self) -> Progress | None:
        """Return what has not been taken yet; None at the end."""
        while self._value is None and not self.ended:
            self._changed = trio.Event()
            await self._changed.wait()
        value, self._value = self._value, None
        return value


async def _report(latest: _Latest, send: Send) -> None:
    while (progress := await latest.take()) is not None:
        await send(
            pb.SendBulkResponse(
                transfer_id=progress.transfer_id,
                state=progress.state,
                rows=progress.rows,
                bytes_total=progress.bytes_total,
                bytes_done=progress.bytes_done,
                note=progress.note,
            )
        )
        if not latest.ended:
            await trio.sleep(_EVERY_S)


def _order(request: pb.SendBulkRequest) -> Order:
    path = Path(request.path) if request.path else None
    if path is not None and not path.is_absolute():
        raise ConfigError(f"{request.path[:200]!r} is no absolute path: the node has another working directory")
    try:
        agreement = bytes.fromhex(request.agreement_digest)
    except ValueError as error:
        raise AgreementError(f"{request.agreement_digest[:80]!r} is no agreement's digest: it is not hex") from error
    return Order(
        to=request.to_organization,
        dataset=request.dataset,
        purpose=request.purpose,
        kind=request.kind or "synthetic",
        path=path,
        agreement=agreement,
    )


def _transfer(listed: Listed) -> pb.BulkTransfer:
    row = listed.row
    return pb.BulkTransfer(
        transfer_id=row.transfer_id.hex(),
        direction=row.direction,
        organization=row.organization,
        dataset=row.dataset,
        kind=row.kind,
        purpose=row.purpose,
        agreement_digest=row.agreement_digest.hex(),
        rows=row.row_count,
        bytes=row.byte_count,
        state="running" if listed.running else row.state,
        stored_chunks=row.stored_chunks,
        reason=row.reason,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        retain_until_ms=row.retain_until_ms or 0,
    )
