"""Upkeep of a node's state: what has to be deleted is, and what is over does not pile up."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable

import trio

from comity.agreement import read_terms
from comity.errors import ComityError, StorageFull
from comity_node.admission.approvals import Approvals
from comity_node.policy import obligations as duties
from comity_node.runtime.seams import TaskStatus
from comity_node.storage import audit, commitments, journal, journeys, records, retention, tokens
from comity_node.storage.database import Database
from comity_node.storage.note import NoteSigner

log = logging.getLogger(__name__)

_CHECKPOINT_S = 10.0
_SWEEP_EVERY = 30
#: Rows of each kind in one transaction, and transactions in one sweep.
_PER_BATCH = 500
_BATCHES = 20
#: How long an answered batch is kept: no agreement lasts longer, and one that came again would be judged anew.
_KEEP_MS = 367 * 24 * 3600 * 1000


class Upkeep:
    """Signs the audit log's head now and then, and sweeps."""

    def __init__(
        self, database: Database, signer: NoteSigner, now_ms: Callable[[], int], approvals: Approvals | None = None
    ) -> None:
        """Keep `database`, signing in the name of the node; of `approvals`, those that nobody decides in time end."""
        self._approvals = approvals
        self._unfolded = True
        self._database = database
        self._signer = signer
        self._now_ms = now_ms

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Go on until cancelled."""
        task_status.started()
        turn = 0
        while True:
            await trio.sleep(_CHECKPOINT_S)
            turn += 1
            try:
                await self.checkpoint()
                if self._approvals is not None:
                    await self._approvals.expire()
                if turn % _SWEEP_EVERY == 1:
                    await self.sweep()
            except StorageFull as error:
                log.error("no upkeep now: %s", error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)

    async def checkpoint(self) -> None:
        """Sign the head of the audit log."""
        now_ms = self._now_ms()
        await self._database.transact(lambda c: audit.checkpoint(c, self._signer, now_ms))

    async def sweep(self) -> None:
        """Delete records whose retention is over, each with an audit entry, and forget what is long done.

        Those are certified records, batches in custody, and what own tasks of flows ended with. What is left after some
        thousands goes in the next sweep. Their bytes are overwritten in the file and in the write-ahead log; what a
        file system or a disk keeps of blocks that were freed is not ours to know.
        """
        deleted = 0
        for _ in range(_BATCHES):
            gone, more = await self._sweep_some()
            deleted += gone
            if not more:
                break
        if deleted:
            log.info("deleted %d records, batches and rows of tasks whose retention is over", deleted)
            self._unfolded = True
        if self._unfolded:  # at the first sweep too: an earlier run may have been killed before it came to this
            self._unfolded = not await self._database.fold()

    async def _sweep_some(self) -> tuple[int, bool]:
        """Do a part of the work; returns how many records went, and whether there may be more of anything."""
        now_ms = self._now_ms()

        def write(connection: sqlite3.Connection) -> tuple[int, bool]:
            gone = records.expired_records(connection, now_ms, limit=_PER_BATCH)
            for record in gone:
                audit.append(connection, _record_entry(record), now_ms)
            records.delete_records(connection, gone)
            offers = _drop_offers(connection, now_ms)
            states = _drop_states(connection, now_ms)
            batches = journal.forget_offers(connection, now_ms - _KEEP_MS, limit=_PER_BATCH)
            tasks = journal.forget_tasks(connection, now_ms - _KEEP_MS, limit=_PER_BATCH)
            sealed = commitments.forget_sealed(connection, now_ms - _KEEP_MS, limit=_PER_BATCH)
            ways = journeys.forget_journeys(connection, now_ms - _KEEP_MS, limit=_PER_BATCH)
            if batches or tasks or ways:
                forgotten = audit.AuditEntry(
                    "deletion", "journal.forgotten", detail={"batches": batches, "tasks": tasks + ways}
                )
                audit.append(connection, forgotten, now_ms)
            done = [
                len(gone),
                offers,
                states,
                journal.forget(connection, now_ms, limit=_PER_BATCH),
                batches,
                tasks,
                sealed,
                ways,
                tokens.forget_seen(connection, now_ms, limit=_PER_BATCH),
                audit.thin_checkpoints(connection, limit=_PER_BATCH),
            ]
            return len(gone) + offers + states, _PER_BATCH in done

        return await self._database.transact(write)


def _record_entry(record: records.StoredRecord) -> audit.AuditEntry:
    return audit.AuditEntry(
        kind="deletion",
        action="record.retention",
        peer=record.author,
        subject=record.record_digest,
        agreement=record.agreement_digest,
        detail={"reason": "its retention is over", "task": record.task_id.hex(), "dataset": record.dataset},
    )


def _drop_states(connection: sqlite3.Connection, now_ms: int) -> int:
    """Delete what tasks of flows ended with, of those that end under terms that say for how long; returns how many.

    Others have written in it, under the same obligations that they keep. Terms that cannot be read by this version say
    nothing: their tasks go with all others (`_KEEP_MS`).
    """
    dropped = 0
    for digest, agreement in journeys.agreements_of(connection):
        until_ms = _kept_until(agreement, now_ms)
        room = _PER_BATCH - dropped
        if until_ms is None or not (gone := journeys.forget_states(connection, digest, until_ms, limit=room)):
            continue
        entry = audit.AuditEntry(
            kind="deletion",
            action="journey.retention",
            agreement=digest,
            detail={"reason": "its retention is over", "tasks": gone},
        )
        audit.append(connection, entry, now_ms)
        dropped += gone
        if dropped >= _PER_BATCH:
            break
    return dropped


def _kept_until(agreement: bytes, now_ms: int) -> int | None:
    """Return by when a task has to have ended that what it ended with has to be gone by now; None: it may stay."""
    try:
        owed = duties.from_terms(read_terms(agreement).terms.obligations)
    except ComityError:
        return None
    if owed.expire_ms is not None and owed.expire_ms <= now_ms:
        return now_ms
    return None if owed.retain_ms is None else now_ms - owed.retain_ms


def _drop_offers(connection: sqlite3.Connection, now_ms: int) -> int:
    """Delete the batches in custody whose retention is over; returns how many there were."""
    expired = retention.expired_offers(connection, now_ms, limit=_PER_BATCH)
    for offer in expired:
        if offer.held:
            entry = audit.AuditEntry(
                kind="deletion",
                action="offer.retention",
                peer=offer.home,
                subject=offer.digest,
                agreement=offer.agreement_digest,
                detail={"reason": "its retention is over"},
            )
            audit.append(connection, entry, now_ms)
            journal.finish_offer(connection, offer.digest, b"", now_ms)
        retention.drop_offer_retention(connection, offer.digest)
    return len(expired)
