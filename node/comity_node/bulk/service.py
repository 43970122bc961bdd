"""Bulk transfers of one node: what its people ask for, what its peers offer, and what has to be deleted."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import trio

from comity.errors import Busy, ComityError, ConfigError, NotFound, StorageError, TransferFailed
from comity.trust import Attested
from comity_node.bulk.common import OpenStream, Peers, Progress, Report, Stream, Surroundings, describe
from comity_node.bulk.prepare import Order, Preparer
from comity_node.bulk.receiver import BulkReceiver
from comity_node.bulk.sender import BulkSender
from comity_node.storage import audit
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

_SWEEP_S: Final = 60.0
_PIECE: Final = 1024 * 1024
_LEAST_PREFIX: Final = 6


@dataclass(frozen=True, slots=True)
class Listed:
    """A transfer for a person: its row, and whether it is under way at this moment."""

    row: BulkRow
    running: bool


class BulkService:
    """One node's bulk transfers.

    `recover` first, then `run` in a nursery; `serve` is for the tunnels that peers open under the name
    `protocol.bulk.TUNNEL`.
    """

    def __init__(self, parts: Surroundings, peers: Peers, open_stream: OpenStream) -> None:
        """Make the service.

        Args:
            parts: the node's parts.
            peers: tells which node of an organization is linked.
            open_stream: opens the tunnel to the node with a PeerId.
        """
        self._parts = parts
        self._preparer = Preparer(parts)
        self._sender = BulkSender(parts, peers, open_stream)
        self._receiver = BulkReceiver(parts)

    async def recover(self) -> None:
        """Bring the spool in line with the journal: a crash leaves files that nothing names, or moved too early.

        Raises:
            StorageError: the spool cannot be read or written.
        """
        parts = self._parts
        outgoing, incoming, inbox = await parts.database.read(journal.bulk_files)

        def tidy() -> int:
            parts.spool.prepare()
            for transfer_id in incoming:
                parts.spool.demote(transfer_id)
            return parts.spool.sweep(outgoing, incoming, inbox)

        if gone := await parts.in_thread(tidy):
            log.info("deleted %d files of transfers that came to nothing", gone)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Delete what is overdue, now and then, until cancelled."""
        task_status.started()
        while True:
            try:
                await self.sweep()
            except StorageError as error:
                log.error("bulk transfers cannot be tidied now: %s", error.diagnostics())  # noqa: TRY400  (no bug)
            await trio.sleep(_SWEEP_S)

    async def sweep(self) -> None:
        """Delete files whose retention is over or whose transfer has expired; each deletion is audited before it."""
        parts, now_ms = self._parts, self._parts.gate.now_ms()
        for row in await parts.database.read(lambda c: journal.overdue(c, now_ms)):
            if row.state == "done":
                await self._delete(row, "bulk.retention", "deleted", "its retention is over")
            elif not self._sender.is_running(row.transfer_id):
                await self._delete(row, "bulk.expired", "failed", "it was not completed in time")
        before_ms = now_ms - parts.limits.remember_ms
        await parts.database.transact(lambda c: journal.forget_bulk(c, before_ms))

    async def look_again(self) -> None:
        """Cut what is under way and may not go on: the policy, the trust bundle or an agreement has changed."""
        await self._sender.look_again()
        await self._receiver.look_again()

    # For the node's people.

    async def send(self, order: Order, report: Report) -> BulkRow:
        """Prepare a table and send it; returns when the receiver has signed for it.

        Raises:
            ComityError: as `Preparer.prepare` and `BulkSender.send`. After a `LinkError` or a refusal the transfer is
                open, and `resume` goes on with it; so it is after a cancellation.
        """
        row = await self._preparer.prepare(order, report)
        report(Progress(row.transfer_id.hex(), "waiting", row.row_count, row.byte_count))
        return await self._send(row, report)

    async def resume(self, name: str, report: Report) -> BulkRow:
        """Go on with an open transfer.

        Raises:
            NotFound: there is no such transfer.
            TransferFailed: it has failed or was deleted, or is one that comes in.
            ComityError: as `send`.
        """
        row = await self._find(name)
        if row.direction == "in":
            raise TransferFailed(f"{row.organization} sends this transfer; it is theirs to resume")
        if row.state == "done":
            report(_done(row))
            return row
        if row.state != "open":
            raise TransferFailed(f"the transfer is {row.state}: {row.reason}")
        return await self._send(row, report)

    async def _send(self, row: BulkRow, report: Report) -> BulkRow:
        done = await self._sender.send(row, report)
        report(_done(done))
        log.info("sent %d rows of %s to %s", done.row_count, done.dataset, done.organization)
        return done

    async def list(self) -> list[Listed]:
        """Return the transfers, the newest first, at most 1000."""
        rows = await self._parts.database.read(journal.list_bulk)
        return [Listed(row, self._is_running(row)) for row in rows]

    async def remove(self, name: str) -> BulkRow:
        """Delete a transfer's file, or give an open transfer up; audited before it happens.

        Raises:
            NotFound: there is no such transfer.
            Busy: it is being sent: interrupt that first.
        """
        row = await self._find(name)
        if self._sender.is_running(row.transfer_id):
            raise Busy("the transfer is being sent; interrupt that first")
        await self._receiver.stop(row.transfer_id)
        row = await self._find(row.transfer_id.hex())
        if row.state in ("open", "done"):
            await self._delete(row, "bulk.removed", "deleted", "removed by hand")
        return row

    async def read(self, name: str) -> AsyncGenerator[bytes]:
        """Yield a received table's Arrow IPC stream in pieces.

        Raises:
            NotFound: there is no such transfer, or its table is not here.
        """
        row = await self._find(name)
        if row.direction != "in" or row.state != "done":
            way = "comes in" if row.direction == "in" else "goes out"
            raise NotFound(f"transfer {row.transfer_id.hex()[:16]} has no table here: it {way} and is {row.state}")
        parts = self._parts
        descriptor = await parts.in_thread(lambda: parts.spool.received(row.transfer_id))
        try:
            at = 0
            while piece := await parts.in_thread(lambda: parts.spool.read_at(descriptor, _PIECE, at)):  # noqa: B023  (awaited)
                at += len(piece)
                yield piece
        finally:
            os.close(descriptor)

    # For the peers.

    async def serve(self, sender: Attested, stream: Stream) -> None:
        """Serve a tunnel that a peer has opened for a transfer; returns when it is over."""
        try:
            await self._receiver.serve(sender, stream)
        except ComityError as error:
            log.info("a transfer of %s broke off: %s", sender.organization, error)

    def _is_running(self, row: BulkRow) -> bool:
        side = self._sender if row.direction == "out" else self._receiver
        return side.is_running(row.transfer_id)

    async def _find(self, name: str) -> BulkRow:
        if len(name) < _LEAST_PREFIX or set(name.lower()) - set("0123456789abcdef"):
            raise ConfigError(f"{name[:80]!r} names no transfer: at least {_LEAST_PREFIX} hex digits of its id, please")
        found = await self._parts.database.read(lambda c: journal.find_bulk(c, name))
        if not found:
            raise NotFound(f"there is no transfer {name[:80]}; `comity bulk list` shows them")
        if len(found) > 1:
            raise ConfigError(f"{name} names several transfers; give more digits")
        return found[0]

    async def _delete(self, row: BulkRow, action: str, state: Literal["failed", "deleted"], reason: str) -> None:
        """Audit, journal, then delete: a crash in between leaves a file that the next start deletes."""
        parts, now_ms = self._parts, self._parts.gate.now_ms()
        await self._receiver.stop(row.transfer_id)
        entry = audit.AuditEntry(
            kind="deletion",
            action=action,
            peer=row.organization,
            subject=row.root,
            agreement=row.agreement_digest,
            detail={**describe(row), "reason": reason},
        )

        def write(connection: sqlite3.Connection) -> bool | None:
            if not journal.end_bulk(connection, row.transfer_id, state, reason, now_ms, held=(row.state,)):
                return None  # it went on in the meantime: whoever asked looks again
            audit.append(connection, entry, now_ms)
            return journal.is_wanted(connection, row.root)

        wanted = await parts.database.transact(write)
        if wanted is None:
            return
        if row.direction == "in":
            await parts.in_thread(lambda: parts.spool.drop_incoming(row.transfer_id))
        elif not wanted:
            await parts.in_thread(lambda: parts.spool.drop_outgoing(row.root))


def _done(row: BulkRow) -> Progress:
    return Progress(row.transfer_id.hex(), "done", row.row_count, row.byte_count, row.byte_count)
