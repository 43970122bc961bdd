"""The home's own tasks under way: how far each has come, who has it, and how it ended.

Plain functions over a connection, for `Database.transact` and `Database.read`; those that change take a whole batch.

Invariants
  R1  a task is here, committed, before it leaves for anybody, and stays until its history is forgotten.
  R2  the first end of a task counts; a record that was put into a review batch is put into no other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from comity.digest import sha256
from comity_node.protocol.task import FINAL
from comity_node.protocol.token import Token
from comity_node.protocol.token_wire import of_bytes, read_hop, to_bytes
from comity_node.storage.packing import pack, unpack

_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class EndRow:
    """How a task ended: `ending` is one of "done", "dropped", "failed", "expired", "cancelled"."""

    task_id: bytes
    agreement: bytes
    ending: str
    state: bytes
    hops: tuple[bytes, ...]
    attempt: int
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class JourneyRow:
    """A task of this home, whatever has become of it.

    Attributes:
        task_id: 16 bytes.
        agreement: digest of the terms.
        attempt: the highest that was sent out.
        held_by: the organization that it went to since its checkpoint; empty: it is here.
        checkpoint: what it can start again from; None once it is over.
        ending: how it ended; empty while it is under way.
        reason: of an ending that is not "done".
        state: its row at the end; empty once the agreement's retention is over.
        hops: signed, oldest first: of the end, or while it is under way of the checkpoint.
        updated_ms: when it changed last.
    """

    task_id: bytes
    agreement: bytes
    attempt: int
    held_by: str
    checkpoint: Token | None
    ending: str
    reason: str
    state: bytes
    hops: tuple[bytes, ...]
    updated_ms: int


#: What tasks ended with whose record, if one was made of it, is judged or was never judged.
_DUE: Final = (
    "SELECT task_id, record_task FROM journeys WHERE agreement_digest = ? AND ending <> '' AND heard = 1"
    " AND updated_ms <= ? AND state <> x'' AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.task_id = record_task"
    f" AND tasks.state NOT IN ({', '.join(repr(state.value) for state in sorted(FINAL))})) LIMIT ?"
)
_COLUMNS: Final = "task_id, agreement_digest, attempt, held_by, checkpoint, ending, reason, state, hops, updated_ms"


def open_journeys(connection: sqlite3.Connection, tokens: Sequence[Token], now_ms: int) -> list[bool]:
    """Open tasks; False for each that was opened before: nothing of it is changed."""
    return [
        connection.execute(
            f"INSERT INTO journeys ({_COLUMNS}, heard, record_task, opened_ms)"
            " VALUES (?, ?, ?, '', ?, '', '', x'', x'', ?, 0, x'', ?) ON CONFLICT DO NOTHING",
            (token.task_id, token.agreement, token.attempt, to_bytes(token), now_ms, now_ms),
        ).rowcount
        == 1
        for token in tokens
    ]


def checkpoint(connection: sqlite3.Connection, tokens: Sequence[Token], now_ms: int) -> None:
    """Note how far open tasks have come; nobody else has them. One that is over stays over."""
    connection.executemany(
        "UPDATE journeys SET checkpoint = ?, attempt = ?, held_by = '', updated_ms = ?"
        " WHERE task_id = ? AND ending = ''",
        [(to_bytes(token), token.attempt, now_ms, token.task_id) for token in tokens],
    )


def sent(connection: sqlite3.Connection, gone: Iterable[tuple[Token, str]], now_ms: int) -> None:
    """Note that tasks left, to whom, and as what: what the home did since the checkpoint is its own to vouch for."""
    connection.executemany(
        "UPDATE journeys SET checkpoint = ?, attempt = ?, held_by = ?, updated_ms = ?"
        " WHERE task_id = ? AND ending = ''",
        [(to_bytes(token), token.attempt, to, now_ms, token.task_id) for token, to in gone],
    )


def end(connection: sqlite3.Connection, rows: Sequence[EndRow]) -> list[EndRow]:
    """Note that tasks are over, and return those that were not before."""
    return [
        row
        for row in rows
        if connection.execute(
            "UPDATE journeys SET ending = ?, reason = ?, state = ?, hops = ?, attempt = ?, held_by = '',"
            " checkpoint = x'', updated_ms = ? WHERE task_id = ? AND ending = ''",
            (row.ending, row.reason, row.state, pack(row.hops), row.attempt, row.at_ms, row.task_id),
        ).rowcount
    ]


def heard(connection: sqlite3.Connection, tasks: Iterable[bytes]) -> None:
    """Note that the ends of tasks have been told."""
    connection.executemany("UPDATE journeys SET heard = 1 WHERE task_id = ?", [(task,) for task in tasks])


def open_rows(connection: sqlite3.Connection) -> list[tuple[Token, str]]:
    """Return the checkpoints of the tasks under way with who has each: as many as were opened, which bounds them."""
    rows = connection.execute("SELECT agreement_digest, attempt, held_by, checkpoint FROM journeys WHERE ending = ''")
    return [(_at(of_bytes(body, agreement), attempt), held_by) for agreement, attempt, held_by, body in rows]


def _at(token: Token, attempt: int) -> Token:
    """The checkpoint with the highest attempt that was sent out."""
    if token.attempt == attempt:
        return token
    return Token(
        token.task_id, token.agreement, token.home, token.home_peer, attempt, token.sequence, token.cursor,
        token.state, token.hops, token.deadline_ms, token.outcome, token.reason,
    )  # fmt: skip


def unheard(connection: sqlite3.Connection) -> list[EndRow]:
    """Return the ends that have not been told, oldest first: as many as were under way, which bounds them."""
    rows = connection.execute(
        "SELECT task_id, agreement_digest, ending, state, hops, attempt, reason, updated_ms FROM journeys"
        " WHERE ending <> '' AND heard = 0 ORDER BY updated_ms"
    )
    return [
        EndRow(task_id, agreement, ending, state, unpack(hops), attempt, reason, at_ms)
        for task_id, agreement, ending, state, hops, attempt, reason, at_ms in rows
    ]


def keep_ways(connection: sqlite3.Connection, tokens: Iterable[Token]) -> None:
    """Keep the hops with which tasks came home, before they leave again without them.

    Args:
        connection: of the transaction.
        tokens: as they leave, with those hops.
    """
    connection.executemany(
        "INSERT INTO journey_ways (task_id, sequence, hops) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(token.task_id, token.sequence, pack(token.hops)) for token in tokens],
    )


def way_of(connection: sqlite3.Connection, task_id: bytes) -> tuple[bytes, ...]:
    """Return all signed hops of a task of this home, oldest first: of its end, or while it is under way so far.

    Each stretch follows on the one that its first hop commits to; one that another attempt has overtaken is left out.
    `admission.token_hops.verify_journey` verifies them.
    """
    row = get_journey(connection, task_id)
    way = row.hops if row is not None else ()
    rows = connection.execute("SELECT hops FROM journey_ways WHERE task_id = ? ORDER BY sequence DESC", (task_id,))
    for hops in map(unpack, (packed for (packed,) in rows)):
        if not way or sha256(hops[-1]) == read_hop(way[0]).previous:
            way = (*hops, *way)
    return way


def get_journey(connection: sqlite3.Connection, task_id: bytes) -> JourneyRow | None:
    """Return one task with the history of its way, None if this home has no such task."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM journeys WHERE task_id = ?", (task_id,)).fetchone()
    return None if row is None else _journey(row)


def list_journeys(
    connection: sqlite3.Connection, agreement: bytes, *, after: bytes = b"", limit: int = 100
) -> list[JourneyRow]:
    """Return at most `limit` (up to 1000) tasks of an agreement, by id from the one after `after`."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM journeys WHERE agreement_digest = ? AND task_id > ? ORDER BY task_id LIMIT ?",
        (agreement, after, min(limit, _MAX_PAGE)),
    )
    return [_journey(row) for row in rows]


def _journey(row: tuple[object, ...]) -> JourneyRow:
    task_id, agreement, attempt, held_by, body, ending, reason, state, hops, updated_ms = row
    token = of_bytes(body, agreement) if body else None  # type: ignore[arg-type]  # columns of these types
    way = unpack(hops) or (token.hops if token is not None else ())  # type: ignore[arg-type]
    return JourneyRow(task_id, agreement, attempt, held_by, token, ending, reason, state, way, updated_ms)  # type: ignore[arg-type]


def count_journeys(connection: sqlite3.Connection, agreement: bytes) -> dict[tuple[str, str], int]:
    """Return how many tasks of an agreement there are by (ending, who has it); both are empty for one that is here."""
    rows = connection.execute(
        "SELECT ending, held_by, count(*) FROM journeys WHERE agreement_digest = ? GROUP BY ending, held_by",
        (agreement,),
    )
    return {(str(ending), str(held_by)): int(count) for ending, held_by, count in rows}


def to_batch(
    connection: sqlite3.Connection, agreement: bytes, *, limit: int
) -> list[tuple[bytes, bytes, tuple[bytes, ...]]]:
    """Return (task, row, hops) of at most `limit` (up to 1000) records that wait for review, oldest first."""
    rows = connection.execute(
        "SELECT task_id, state, hops FROM journeys WHERE agreement_digest = ? AND ending = 'done' AND record_task = x''"
        " AND state <> x'' ORDER BY updated_ms LIMIT ?",
        (agreement, min(limit, _MAX_PAGE)),
    )
    return [(task_id, state, unpack(hops)) for task_id, state, hops in rows]


def count_to_batch(connection: sqlite3.Connection, agreement: bytes) -> int:
    """Return how many records of an agreement wait for review."""
    row = connection.execute(
        "SELECT count(*) FROM journeys WHERE agreement_digest = ? AND ending = 'done' AND record_task = x''"
        " AND state <> x''",
        (agreement,),
    ).fetchone()
    return int(row[0])


def count_open(connection: sqlite3.Connection, agreement: bytes) -> int:
    """Return how many tasks of an agreement are under way."""
    row = connection.execute(
        "SELECT count(*) FROM journeys WHERE agreement_digest = ? AND ending = ''", (agreement,)
    ).fetchone()
    return int(row[0])


def batched(connection: sqlite3.Connection, tasks: Iterable[tuple[bytes, bytes]]) -> None:
    """Note that records are in a review batch: (the journey's task, the task that its record is judged as)."""
    connection.executemany(
        "UPDATE journeys SET record_task = ? WHERE task_id = ?", [(record_task, task) for task, record_task in tasks]
    )


def journey_of_record(connection: sqlite3.Connection, record_task: bytes) -> bytes | None:
    """Return the task on whose way a record was made that is judged as `record_task`; None if it is of no flow."""
    row = connection.execute(
        "SELECT task_id FROM journeys WHERE record_task = ? AND record_task <> x''", (record_task,)
    ).fetchone()
    return None if row is None else bytes(row[0])


def agreements_of(connection: sqlite3.Connection) -> list[tuple[bytes, bytes]]:
    """Return (digest, `Agreement` message) of the agreements of which it is still here what tasks ended with."""
    rows = connection.execute(
        "SELECT digest, agreement FROM agreements WHERE EXISTS (SELECT 1 FROM journeys"
        " WHERE agreement_digest = agreements.digest AND ending <> '' AND state <> x'')"
    )
    return [(bytes(digest), bytes(agreement)) for digest, agreement in rows]


def forget_states(connection: sqlite3.Connection, agreement: bytes, until_ms: int, *, limit: int = _MAX_PAGE) -> int:
    """Delete the rows that at most `limit` (up to 1000) tasks ended with by a time, and return of how many.

    The records that were made of them go with them; one that is under review goes when that is over. How they ended and
    their signed hops, which hold digests, stay. A record that waits for its review goes, too.
    """
    gone = connection.execute(_DUE, (agreement, until_ms, min(limit, _MAX_PAGE))).fetchall()
    connection.executemany("UPDATE journeys SET state = x'' WHERE task_id = ?", [(task,) for task, _ in gone])
    connection.executemany("UPDATE tasks SET record = x'' WHERE task_id = ?", [(record,) for _, record in gone])
    return len(gone)


def forget_journeys(connection: sqlite3.Connection, before_ms: int, *, limit: int = _MAX_PAGE) -> int:
    """Delete at most `limit` (up to 1000) tasks that were over before a time, and return how many."""
    changed = connection.execute(
        "DELETE FROM journeys WHERE task_id IN (SELECT task_id FROM journeys WHERE ending <> '' AND heard = 1"
        " AND updated_ms < ? ORDER BY updated_ms LIMIT ?)",
        (before_ms, min(limit, _MAX_PAGE)),
    )
    return changed.rowcount


def journey_digests(connection: sqlite3.Connection, record_tasks: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return, by the task that each record is judged as, SHA-256 of the last hop of the way on which it was made.

    A record that was made without leaving its home has none.
    """
    digests: dict[bytes, bytes] = {}
    for record_task in record_tasks:
        row = connection.execute(
            "SELECT hops FROM journeys WHERE record_task = ? AND record_task <> x''", (record_task,)
        ).fetchone()
        if row is not None and (hops := unpack(row[0])):
            digests[record_task] = sha256(hops[-1])
    return digests
