"""The engine's journal and ledger in the node's database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import trio

from comity import merkle
from comity.digest import sha256
from comity.errors import StorageError
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


class Deciding(Protocol):
    """What decides on tokens as they are put out (`gateway.TokenGateway`)."""

    async def put_out(
        self,
        to: str,
        rows: Sequence[Outgoing],
        put: Callable[[sqlite3.Connection, Sequence[tuple[int, Token | None]]], None],
    ) -> set[int]:
        """Have `put` put out what is decided on, in one transaction; returns the places of those."""

    def let_go(self, keys: Sequence[Key]) -> None:
        """Forget what was decided on tokens that do not leave after all."""


class DurableJournal:
    """Custody of tokens (`ports.Journal`)."""

    def __init__(
        self, database: Database, me: str, now_ms: Callable[[], int], deciding: Deciding | None = None
    ) -> None:  # fmt: skip
        """Keep the custody of organization `me`'s node in `database`.

        What goes out is decided on by `deciding` in the transaction in which it is put out: one, instead of two.
        """
        self._database = database
        self._me = me
        self._now_ms = now_ms
        self._deciding = deciding
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
        lanes: dict[str, list[Move]] = {}
        for move in moves:
            lanes.setdefault("" if move.outgoing is None else move.outgoing.to, []).append(move)
        keys = {move.outgoing.token.key for move in moves if move.outgoing is not None}
        rest = lanes.pop("", [])
        if self._deciding is None or len(keys) + len(rest) < len(moves):  # of two with one key, the later one counts
            rest = list(moves)
        elif len(lanes) == 1:
            ((to, own),) = lanes.items()
            rest += await self._put_out(self._deciding, to, own)
        else:
            rest += await self._put_all(self._deciding, lanes)
        if rest:
            await self._database.transact(lambda connection: self._write(connection, rest, {}))

    async def _put_all(self, deciding: Deciding, lanes: Mapping[str, Sequence[Move]]) -> list[Move]:
        """Put out for several organizations at once: then they share a transaction."""
        left: list[Move] = []
        errors: list[StorageError] = []

        async def put(to: str, own: Sequence[Move]) -> None:
            try:
                left.extend(await self._put_out(deciding, to, own))
            except StorageError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for to, own in lanes.items():
                nursery.start_soon(put, to, own)
        if errors:
            raise errors[0]
        return left

    async def _put_out(self, deciding: Deciding, to: str, moves: Sequence[Move]) -> list[Move]:
        """Put out what is decided on now, and return the others."""

        def put(connection: sqlite3.Connection, passed: Sequence[tuple[int, Token | None]]) -> None:
            self._write(connection, [moves[at] for at, _ in passed], dict(enumerate(token for _, token in passed)))

        there = await deciding.put_out(to, [move.outgoing for move in moves if move.outgoing is not None], put)
        return [move for at, move in enumerate(moves) if at not in there]

    def _write(self, connection: sqlite3.Connection, moves: Sequence[Move], passed: Mapping[int, Token | None]) -> None:
        """Write moves; `passed` has, by their place, the tokens that the gate let pass."""
        custody.release_held(connection, [move.visit for move in moves if move.visit is not None])
        rows, own = [], []
        for place, move in enumerate(moves):
            if (one := move.outgoing) is not None:
                token = passed.get(place)
                rows.append(OutRow(token or one.token, one.to, one.role, token is not None))
                if one.token.home == self._me:
                    own.append((one.token, one.to))
        custody.put_out(connection, rows)
        if own:
            journeys.sent(connection, own, self._now_ms())

    async def let_go(self, keys: Sequence[Key]) -> None:
        """Forget outgoing tokens."""
        if self._deciding is not None:
            self._deciding.let_go(keys)
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
