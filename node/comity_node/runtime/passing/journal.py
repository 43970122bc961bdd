"""The engine's journal and ledger in the node's database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

from comity import merkle
from comity.digest import sha256
from comity_node.protocol.token import Key, Token
from comity_node.runtime.passing.ports import (
    Checkpoint,
    End,
    Ending,
    Held,
    LedgerRecovery,
    Move,
    Outgoing,
    Recovery,
)
from comity_node.storage import audit, journeys
from comity_node.storage import tokens as custody
from comity_node.storage.database import Database
from comity_node.storage.journeys import EndRow
from comity_node.storage.tokens import HeldRow, OutRow

#: Visits that are taken between two sweeps of those that are past their deadline.
_SWEEP_AFTER = 500


class DurableJournal:
    """Custody of tokens (`ports.Journal`)."""

    def __init__(self, database: Database, me: str, now_ms: Callable[[], int]) -> None:
        """Keep the custody of organization `me`'s node in `database`."""
        self._database = database
        self._me = me
        self._now_ms = now_ms
        self._taken = 0

    async def take(self, visits: Sequence[Held]) -> None:
        """Journal tokens that are taken into custody."""
        rows = [HeldRow(visit.token, visit.sender) for visit in visits]
        now_ms = self._now_ms()
        self._taken += len(rows)
        sweep = self._taken >= _SWEEP_AFTER
        if sweep:
            self._taken = 0

        def write(connection: sqlite3.Connection) -> None:
            custody.hold(connection, rows)
            if sweep:  # twice as many as came, at most: so what is past its deadline does not pile up
                custody.forget_seen(connection, now_ms)

        await self._database.transact(write)

    async def finish(self, moves: Sequence[Move]) -> None:
        """Journal that visits are done and what is outgoing for them."""
        done = [move.visit for move in moves if move.visit is not None]
        outgoing = [move.outgoing for move in moves if move.outgoing is not None]
        rows = [OutRow(one.token, one.to, one.role) for one in outgoing]
        own = [(one.token, one.to) for one in outgoing if one.token.home == self._me]
        now_ms = self._now_ms()

        def write(connection: sqlite3.Connection) -> None:
            custody.release_held(connection, done)
            custody.put_out(connection, rows)
            if own:
                journeys.sent(connection, own, now_ms)

        await self._database.transact(write)

    async def let_go(self, keys: Sequence[Key]) -> None:
        """Forget outgoing tokens."""
        await self._database.transact(lambda c: custody.release_out(c, keys))

    async def recover(self) -> Recovery:
        """Return what an earlier run left."""
        now_ms = self._now_ms()

        def read(connection: sqlite3.Connection) -> Recovery:
            held = [Held(row.token, row.sender) for row in custody.all_held(connection)]
            outgoing = [_outgoing(row) for row in custody.all_out(connection)]
            return Recovery(held, outgoing, custody.seen(connection, now_ms))

        return await self._database.read(read)


def _outgoing(row: OutRow) -> Outgoing:
    if not row.passed:
        return Outgoing(row.token, row.to, row.role)
    return Outgoing(replace(row.token, hops=row.token.hops[:-1]), row.to, row.role, row.token)


class DurableLedger:
    """The home's tasks (`ports.Ledger`)."""

    def __init__(self, database: Database, me: str, now_ms: Callable[[], int]) -> None:
        """Keep the tasks of organization `me` in `database`."""
        self._database = database
        self._me = me
        self._now_ms = now_ms

    async def open(self, tokens: Sequence[Token]) -> Sequence[bool]:
        """Journal new tasks; False for each that was opened before."""
        now_ms = self._now_ms()
        return await self._database.transact(lambda c: journeys.open_journeys(c, tokens, now_ms))

    async def checkpoint(self, tokens: Sequence[Token]) -> None:
        """Journal how far open tasks have come."""
        now_ms = self._now_ms()
        await self._database.transact(lambda c: journeys.checkpoint(c, tokens, now_ms))

    async def end(self, endings: Sequence[Ending]) -> None:
        """Journal that tasks are over; nothing of them is outgoing any longer."""
        rows = [
            EndRow(one.task_id, one.agreement, one.end.value, one.state, one.hops, one.attempt, one.reason, one.at_ms)
            for one in endings
        ]

        now_ms = self._now_ms()

        def write(connection: sqlite3.Connection) -> None:
            ended = journeys.end(connection, rows)
            audit.append_all(connection, [(entry, now_ms) for entry in _entries(ended)])
            custody.release_out_of(connection, self._me, [row.task_id for row in rows])

        await self._database.transact(write)

    async def heard(self, tasks: Sequence[bytes]) -> None:
        """Note that the sink has the ends of these tasks."""
        await self._database.transact(lambda c: journeys.heard(c, tasks))

    async def recover(self) -> LedgerRecovery:
        """Return what an earlier run left."""

        def read(connection: sqlite3.Connection) -> LedgerRecovery:
            open_ = [_checkpoint(token, held_by) for token, held_by in journeys.open_rows(connection)]
            return LedgerRecovery(open_, [_ending(row) for row in journeys.unheard(connection)])

        return await self._database.read(read)


def _checkpoint(token: Token, held_by: str) -> Checkpoint:
    """Return a task as it is at home, or as it left."""
    return Checkpoint(token, held_by)


def _entries(ended: Sequence[EndRow]) -> list[audit.AuditEntry]:
    """Return the audit entries about tasks that are over: one for all that ended alike, which its subject names."""
    groups: dict[tuple[bytes, str], list[EndRow]] = {}
    for row in ended:
        groups.setdefault((row.agreement, row.ending), []).append(row)
    return [
        audit.AuditEntry(
            kind="effect",
            action=f"journey.{ending}",
            subject=merkle.root_of([merkle.leaf_hash(row.task_id + sha256(row.state)) for row in rows]),
            agreement=agreement,
            detail={"tasks": len(rows), "reason": rows[0].reason},
        )
        for (agreement, ending), rows in groups.items()
    ]


def _ending(row: EndRow) -> Ending:
    return Ending(row.task_id, row.agreement, End(row.ending), row.state, row.hops, row.attempt, row.reason, row.at_ms)
