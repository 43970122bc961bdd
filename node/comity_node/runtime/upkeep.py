"""Upkeep of a node's state: what has to be deleted is, and what is over does not pile up."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable

import trio

from comity.errors import StorageFull
from comity_node.runtime.seams import TaskStatus
from comity_node.storage import audit, journal, records
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

    def __init__(self, database: Database, signer: NoteSigner, now_ms: Callable[[], int]) -> None:
        """Keep `database`, signing in the name of the node."""
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
                if turn % _SWEEP_EVERY == 1:
                    await self.sweep()
            except StorageFull as error:
                log.error("no upkeep now: %s", error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)

    async def checkpoint(self) -> None:
        """Sign the head of the audit log."""
        now_ms = self._now_ms()
        await self._database.transact(lambda c: audit.checkpoint(c, self._signer, now_ms))

    async def sweep(self) -> None:
        """Delete certified records whose retention is over, each with an audit entry, and forget what is long done.

        What is left after some thousands goes in the next sweep.
        """
        deleted = 0
        for _ in range(_BATCHES):
            gone, more = await self._sweep_some()
            deleted += gone
            if not more:
                break
        if deleted:
            log.info("deleted %d certified records whose retention is over", deleted)

    async def _sweep_some(self) -> tuple[int, bool]:
        """Do a part of the work; returns how many records went, and whether there may be more of anything."""
        now_ms = self._now_ms()

        def write(connection: sqlite3.Connection) -> tuple[int, bool]:
            gone = records.delete_expired(connection, now_ms, limit=_PER_BATCH)
            for record in gone:
                entry = audit.AuditEntry(
                    kind="deletion",
                    action="record.retention",
                    subject=record.record_digest,
                    agreement=record.agreement_digest,
                )
                audit.append(connection, entry, now_ms)
            done = [
                len(gone),
                journal.forget(connection, now_ms, limit=_PER_BATCH),
                journal.forget_offers(connection, now_ms - _KEEP_MS, limit=_PER_BATCH),
                journal.forget_tasks(connection, now_ms - _KEEP_MS, limit=_PER_BATCH),
                audit.thin_checkpoints(connection, limit=_PER_BATCH),
            ]
            return len(gone), _PER_BATCH in done

        return await self._database.transact(write)
