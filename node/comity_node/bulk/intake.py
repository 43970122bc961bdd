"""Taking a transfer that was accepted: chunks to the disk, the check of the whole, the inbox and the receipt."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import trio

from comity.envelope import sign_document
from comity.errors import (
    ChunkInvalid,
    ComityError,
    DeadlineExceeded,
    LinkClosed,
    StorageError,
    TransferFailed,
    UnexpectedMessage,
)
from comity.merkle import leaf_hash, root_of
from comity.v1.bulk_pb2 import BulkReceipt
from comity_node.bulk.channel import Channel, flat_nursery
from comity_node.bulk.check import TableCheck
from comity_node.bulk.common import Surroundings, check_budget_s, describe
from comity_node.bulk.spool import PartFile, leaf_at, split_leaves
from comity_node.policy.model import Obligations
from comity_node.protocol.bulk import LEAF_BYTES, Receiver
from comity_node.protocol.bulk_events import Aborted, ChunkReceived, LeavesReceived, ReceiverEvent
from comity_node.protocol.bulk_manifest import RECEIPT_KIND, Manifest
from comity_node.storage import audit
from comity_node.storage import bulk as journal
from comity_node.storage.bulk import BulkRow

#: Bytes of chunks that wait for the disk, at most (and one more of each kind under way).
_WAITING: Final = 4 * 1024 * 1024
#: Bytes that are checked before the loop gets a turn.
_CHECK_STEP: Final = 8 * 1024 * 1024
#: No retention ends later: a peer names it, and journal and receipt have room for 63 bits.
_LATEST_MS: Final = 2**53


class Intake:
    """One try of taking a transfer."""

    def __init__(
        self,
        parts: Surroundings,
        row: BulkRow,
        manifest: Manifest,
        owed: Obligations,
        session: Receiver,
        channel: Channel[ReceiverEvent],
    ) -> None:
        self._parts, self._row, self._manifest, self._owed = parts, row, manifest, owed
        self._session, self._channel = session, channel
        self._geometry = manifest.geometry
        self._leaves = b""
        self._written = self._synced = 0
        self._syncing = False
        self._retain_ms = owed.retain_ms
        self._expire_ms = owed.expire_ms
        #: Whether the table itself is what is wrong: then no other try can make it good.
        self.is_bad = False

    async def run(self) -> None:
        """Take what is missing, check it, and sign for it.

        Raises:
            ChunkInvalid: a chunk is not the one that the manifest announces (`is_bad`).
            LinkError, ProtocolError: the sender broke off, or broke the protocol; what is verified is kept.
            InvalidRecord, PolicyDenied: the table is not what the manifest says or the policy asks for (`is_bad`).
            StorageError: the disk.
        """
        parts, row = self._parts, self._row
        part = await parts.in_thread(lambda: parts.spool.part(row.transfer_id, self._geometry))
        try:
            await parts.in_thread(lambda: self._find_start(part))
            answer = self._session.answer(self._geometry, self._written, leaves_known=bool(self._leaves))
            await self._channel.send(answer)
            await self._receive(part)
            await self._sync(part)
            await self._check(part)
            await self._keep(part)
        finally:
            with trio.CancelScope(shield=True):  # one system call
                await parts.in_thread(part.close)

    def _find_start(self, part: PartFile) -> None:
        """Look at what an earlier try left: chunks that were noted, and those after them that are good."""
        leaves = self._parts.spool.leaves(self._row.transfer_id, self._manifest.root)
        if len(leaves) == self._geometry.chunks * LEAF_BYTES:
            noted = self._row.stored_chunks if part.holds(self._row.stored_chunks) else 0
            self._leaves = leaves
            self._written = part.count_good(leaves, noted)
            self._synced = min(noted, self._written)

    async def _receive(self, part: PartFile) -> None:
        """Take events until the last chunk is on its way to the disk."""
        waiting = max(1, _WAITING // self._geometry.chunk_bytes)
        async with flat_nursery() as nursery:
            send, receive = trio.open_memory_channel[ChunkReceived](waiting)
            nursery.start_soon(self._write_all, part, receive, nursery)
            expected = self._written
            async with send:
                while not self._leaves or expected < self._geometry.chunks:
                    match await self._channel.next_event():
                        case ChunkReceived() as chunk:
                            await send.send(chunk)
                            expected = chunk.index + 1
                        case LeavesReceived(leaves):
                            await self._parts.in_thread(lambda: self._take_leaves(leaves))
                        case Aborted(code, reason):
                            raise LinkClosed(f"the sender ended the transfer ({code}): {reason}")
                        case event:
                            raise UnexpectedMessage(f"{type(event).__name__} in the middle of a transfer")

    def _take_leaves(self, leaves: bytes) -> None:
        if root_of(split_leaves(leaves)) != self._manifest.root:
            self.is_bad = True
            raise UnexpectedMessage("the digests of the chunks do not lead to the root that the manifest states")
        self._parts.spool.keep_leaves(self._row.transfer_id, leaves)
        self._leaves = leaves

    async def _write_all(
        self, part: PartFile, receive: trio.MemoryReceiveChannel[ChunkReceived], nursery: trio.Nursery
    ) -> None:
        """Verify and write chunks as they come, several at a time when they wait."""
        async for first in receive:  # not closed here: whoever sends is cancelled when this fails
            chunks = [first]
            while receive.statistics().current_buffer_used:
                chunks.append(receive.receive_nowait())
            await self._parts.in_thread(lambda: self._write(part, chunks))  # noqa: B023  (awaited)
            self._written = chunks[-1].index + 1
            for chunk in chunks:
                self._session.recycle(chunk.data)
            behind = (self._written - self._synced) * self._geometry.chunk_bytes
            if behind >= self._parts.limits.sync_bytes and not self._syncing:
                self._syncing = True
                nursery.start_soon(self._sync, part)

    def _write(self, part: PartFile, chunks: list[ChunkReceived]) -> None:
        self._parts.spool.check_room(sum(len(chunk.data) for chunk in chunks))  # others may have filled it meanwhile
        for chunk in chunks:
            if leaf_hash(chunk.data) != leaf_at(self._leaves, chunk.index):
                self.is_bad = True
                raise ChunkInvalid(chunk.index, f"of {self._row.organization}")
            part.write(chunk.index, chunk.data)

    async def _sync(self, part: PartFile) -> None:
        """Bring what was written to the disk, then note it, then say so."""
        parts, done = self._parts, self._written
        await parts.in_thread(part.sync)
        await self._note_stored(done)
        self._synced = max(self._synced, done)
        self._syncing = False
        await self._channel.send(self._session.progress(done, 0))

    async def _note_stored(self, chunks: int) -> None:
        now_ms = self._parts.gate.now_ms()
        await self._parts.database.transact(lambda c: journal.set_stored(c, self._row.transfer_id, chunks, now_ms))

    # The whole.

    async def _check(self, part: PartFile) -> None:
        """Read the whole from the disk, against the tree, and look at every row."""
        manifest = self._manifest
        dataset = self._parts.datasets.get(manifest.dataset)
        check = TableCheck(
            manifest, self._leaves, part, self._owed, dataset.schema if dataset is not None else None, self._parts.trust
        )
        steps = check.steps(_CHECK_STEP)
        with trio.move_on_after(check_budget_s(manifest)) as scope:
            await self._check_steps(part, check, steps)
        if scope.cancelled_caught:
            raise DeadlineExceeded("checking the rows takes too long")
        self._retain_ms = min((one for one in (self._owed.retain_ms, check.retain_ms) if one is not None), default=None)
        self._expire_ms = min((one for one in (self._owed.expire_ms, check.expire_ms) if one is not None), default=None)

    async def _check_steps(self, part: PartFile, check: TableCheck, steps: Iterator[Any]) -> None:
        try:
            await self._parts.in_thread(part.check_length)
            while await self._parts.in_thread(lambda: next(steps, None)) is not None:
                await self._channel.send(self._session.progress(self._geometry.chunks, check.chunks))
        except ChunkInvalid as error:
            # It was good when it came: the disk lost it. What comes from here on has to come again.
            await self._note_stored(error.index)
            raise StorageError(f"{error}; the disk lost it, and it has to be sent again") from error
        except StorageError:
            raise
        except ComityError as error:
            self.is_bad = not isinstance(error, (LinkClosed, DeadlineExceeded))
            raise

    async def _keep(self, part: PartFile) -> None:
        """Move it into the inbox, journal and audit it, and send the receipt."""
        parts, row = self._parts, self._row
        now_ms = parts.gate.now_ms()
        retained_ms = now_ms + self._retain_ms if self._retain_ms is not None else None
        until_ms = min((one for one in (retained_ms, self._expire_ms) if one is not None), default=None)
        until_ms = min(until_ms, _LATEST_MS) if until_ms is not None else None
        receipt = self._receipt(now_ms, until_ms)
        entry = audit.AuditEntry(
            kind="effect",
            action="bulk.received",
            peer=row.organization,
            subject=row.root,
            policy=parts.gate.policy.digest,
            agreement=row.agreement_digest,
            detail=describe(row),
        )

        def write(connection: sqlite3.Connection) -> None:
            if not journal.finish_bulk(connection, row.transfer_id, receipt, until_ms, now_ms):
                raise TransferFailed("the transfer was given up here before it was complete")
            audit.append(connection, entry, now_ms)

        with trio.CancelScope(shield=True):  # bounded by the disk; a move without its row is put right at the start
            await parts.in_thread(lambda: parts.spool.promote(row.transfer_id))
            try:
                await parts.database.transact(write)
            except ComityError:  # not journaled: it goes on from where it lay
                await parts.in_thread(lambda: parts.spool.demote(row.transfer_id))
                raise
            await parts.in_thread(lambda: parts.spool.forget_part(row.transfer_id))
        self._row = replace(row, state="done", receipt=receipt)
        await self._channel.send(self._session.receipt(receipt))

    def _receipt(self, now_ms: int, until_ms: int | None) -> bytes:
        receipt = BulkReceipt(
            transfer_id=self._row.transfer_id,
            root=self._manifest.root,
            rows=self._manifest.rows,
            bytes=self._geometry.length,
            organization=self._manifest.organization,
            to_organization=self._manifest.to_organization,
            policy_digest=self._parts.gate.policy.digest,
            received_ms=now_ms,
            retain_until_ms=until_ms or 0,
        )
        return sign_document(self._parts.identity.key, RECEIPT_KIND, receipt.SerializeToString())
