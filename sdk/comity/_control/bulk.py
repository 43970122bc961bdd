"""Transfers of whole tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comity._control.connection import Call, Followed, Stream
from comity._control.defined import call, stream
from comity._control.values import read_value, read_values
from comity.v1 import control_pb2 as pb


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


class BulkCalls:
    """Calls about transfers of whole tables."""

    @call
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
    ) -> Followed[BulkProgress]:
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
        request = pb.SendBulkRequest(
            path="" if path is None else os.path.abspath(path),  # here, where it means what its author meant
            dataset=dataset,
            to_organization=to_organization,
            purpose=purpose,
            kind=kind,
            agreement_digest=agreement,
        )
        return _send(request, on_progress)

    @call
    def resume_bulk(
        self, transfer_id: str, *, on_progress: Callable[[BulkProgress], None] | None = None
    ) -> Followed[BulkProgress]:
        """Go on with an open transfer: what the other side holds already is not sent again."""
        return _send(pb.SendBulkRequest(resume=transfer_id), on_progress)

    @call
    def bulk_transfers(self) -> Call[tuple[BulkTransfer, ...]]:
        """The bulk transfers, both ways, the newest first."""
        return Call("ListBulk", pb.ListBulkRequest(), lambda it: read_values(BulkTransfer, it.transfers))

    @stream
    def read_bulk(self, transfer_id: str) -> Stream[bytes]:
        """Yield a received table as an Arrow IPC stream, piece by piece as it is used."""
        return Stream("ReadBulk", pb.ReadBulkRequest(transfer_id=transfer_id), lambda it: (it.data,))

    @call
    def remove_bulk(self, transfer_id: str) -> Call[str]:
        """Delete a transfer's table, or give an open transfer up; returns the whole id."""
        request = pb.RemoveBulkRequest(transfer_id=transfer_id)
        return Call("RemoveBulk", request, lambda it: str(it.transfer_id))


def _send(request: pb.SendBulkRequest, on_progress: Callable[[BulkProgress], None] | None) -> Followed[BulkProgress]:
    return Followed("SendBulk", request, _progress, before=_progress(pb.SendBulkResponse()), on_each=on_progress)


def _progress(it: pb.SendBulkResponse) -> BulkProgress:
    return read_value(BulkProgress, it)
