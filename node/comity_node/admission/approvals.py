"""Approvals: what waits for a person, and how it goes on once somebody has decided."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from comity.errors import ConfigError
from comity_node.admission.settling import approval_entry
from comity_node.storage import approvals as store
from comity_node.storage import audit
from comity_node.storage.approvals import ApprovalRow
from comity_node.storage.database import Database
from comity_node.storage.notices import Notice, list_notices

log = logging.getLogger(__name__)

_MAX_REASON: Final = 500
_MAX_EXPIRED: Final = 500


class Approvals:
    """The approvals of one node; asked for by `Gate.decide`, given by its people.

    Whoever waits for one:

        while True:
            changed = gate.approvals.changed
            try:
                return await gate.demand(question)
            except ApprovalPending as error:
                with trio.move_on_after(...until error.deadline_ms...):
                    await changed.wait()

    Attributes:
        changed: is set, and replaced by a new event, when an approval is granted, denied or past its deadline.
    """

    def __init__(self, database: Database, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = now_ms
        self.changed = trio.Event()

    def note_asked(self, rows: Iterable[ApprovalRow], notices: Iterable[Notice]) -> None:
        """Write a line to the node's log for what its people should look at."""
        for row in rows:
            log.warning(
                "%s with %s waits for a person (rule %s): comity approvals approve %s",
                row.action, row.organization, row.rule, row.approval_id.hex()[:12],
            )  # fmt: skip
        for notice in notices:
            log.warning(
                "notice for %s: %s with %s, %d times (rules %s)",
                ", ".join(notice.persons), notice.action, notice.organization, notice.times, ", ".join(notice.rules),
            )  # fmt: skip

    async def list(self, *, all_of_them: bool = False) -> Sequence[ApprovalRow]:
        """Return the approvals that are waited for, or all that are kept, the newest first."""
        now_ms = self._now_ms()
        return await self._database.read(lambda c: store.list_approvals(c, now_ms, all_of_them=all_of_them))

    async def notices(self) -> Sequence[Notice]:
        """Return the newest notices, the newest first."""
        return await self._database.read(list_notices)

    async def decide(self, name: str, *, approve: bool, reason: str = "") -> ApprovalRow:
        """Grant or deny an approval in the name of this organization; it is in the audit log when this returns.

        One that was denied or is past its deadline can still be granted, and one that was granted be taken back: it
        counts from the next time that it is asked for.

        Args:
            name: the id in hex, or at least six digits of its beginning.
            approve: whether it is granted.
            reason: what is said about it.

        Raises:
            NotFound: no approval has this name, or several do.
            ConfigError: the reason is too long.
        """
        if len(reason) > _MAX_REASON:
            raise ConfigError(f"the reason has {len(reason)} characters and may have {_MAX_REASON}")
        now_ms = self._now_ms()

        def write(connection: sqlite3.Connection) -> ApprovalRow:
            row = store.name_approval(connection, name)
            state: store.State = "approved" if approve else "denied"
            settled = store.settle_approval(connection, row.approval_id, state, reason, now_ms)
            audit.append(connection, approval_entry(settled), now_ms)
            return settled

        settled = await self._database.transact(write)
        log.info("approval %s of %s: %s", settled.approval_id.hex()[:12], settled.rule, settled.state)
        self._changed()
        return settled

    async def expire(self) -> int:
        """Settle what nobody has decided in time, each with its audit entry; returns how many that were."""
        now_ms = self._now_ms()

        def write(connection: sqlite3.Connection) -> int:
            overdue = store.overdue_approvals(connection, now_ms, limit=_MAX_EXPIRED)
            for row in overdue:
                expired = store.settle_approval(connection, row.approval_id, "expired", "", now_ms)
                audit.append(connection, approval_entry(expired), now_ms)
            return len(overdue)

        count = await self._database.transact(write)
        if count:
            self._changed()
        return count

    def _changed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
