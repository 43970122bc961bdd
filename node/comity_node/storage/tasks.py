"""The home's own tasks: one row's journey each.

Plain functions over a connection, for `Database.transact` and `Database.read`.

Invariants
  R1  a task is here, committed, before it is handed to anybody.
  R2  `update_task` changes a task only from the state and revision that the caller saw.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from comity_node.storage.packing import pack, pack_text, unpack, unpack_text

_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task at its home. Change one with `dataclasses.replace` and `update_task`.

    Attributes:
        task_id: 16 bytes.
        agreement_digest: SHA-256 of the terms that it runs under; the agreement is stored before.
        workflow_id: what it belongs to.
        batch_id: 16 bytes; the tasks that travel together.
        ordinal: its place in the batch, from 0.
        revision: 0 for the first attempt, one more for each repair.
        state: a state of the task's state machine.
        record: JSON in RFC 8785 form.
        record_digest: SHA-256 of `record`.
        hops: envelopes, oldest first.
        reason: why it was refused or rejected: a rule or an axis; else empty.
        rules: ids of the rules that decided last.
        feedback: what reviewers asked for.
        updated_ms: when it changed last.
    """

    task_id: bytes
    agreement_digest: bytes
    workflow_id: str
    batch_id: bytes
    ordinal: int
    revision: int
    state: str
    record: bytes
    record_digest: bytes
    hops: tuple[bytes, ...] = ()
    reason: str = ""
    rules: tuple[str, ...] = ()
    feedback: tuple[str, ...] = ()
    updated_ms: int = 0


_COLUMNS: Final = (
    "task_id, agreement_digest, workflow_id, batch_id, ordinal, revision, state, record, record_digest, hops, reason,"
    " rules, feedback, updated_ms"
)


def put_tasks(connection: sqlite3.Connection, tasks: Iterable[TaskRow]) -> int:
    """Store tasks that are not there yet and return how many those were; the others are left as they are.

    Raises:
        sqlite3.IntegrityError: a task's agreement is not stored (`StorageError` out of `Database.transact`).
    """
    sql = f"INSERT INTO tasks ({_COLUMNS}) VALUES ({', '.join('?' * 14)}) ON CONFLICT (task_id) DO NOTHING"
    return sum(connection.execute(sql, _values(task)).rowcount for task in tasks)


def update_task(connection: sqlite3.Connection, task: TaskRow, *, state: str, revision: int) -> bool:
    """Replace a task by `task` if it still has `state` and `revision`.

    Returns:
        False, and nothing changed, if it has gone on meanwhile or does not exist.
    """
    changed = connection.execute(
        f"UPDATE tasks SET ({_COLUMNS}) = ({', '.join('?' * 14)}) WHERE task_id = ? AND state = ? AND revision = ?",
        (*_values(task), task.task_id, state, revision),
    )
    return changed.rowcount == 1


def get_task(connection: sqlite3.Connection, task_id: bytes) -> TaskRow | None:
    """Return a task, None if there is none."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
    return None if row is None else _task(row)


def batch_tasks(connection: sqlite3.Connection, batch_id: bytes, *, limit: int = _MAX_PAGE) -> list[TaskRow]:
    """Return the tasks of a batch (up to 1000) in their order."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM tasks WHERE batch_id = ? ORDER BY ordinal LIMIT ?", (batch_id, min(limit, _MAX_PAGE))
    )
    return [_task(row) for row in rows]


def list_batches(
    connection: sqlite3.Connection, agreement_digest: bytes, *, states: Iterable[str] | None = None
) -> list[bytes]:
    """Return the batches of an agreement, or those that have a task in one of `states`: as many as it has at most."""
    rows = connection.execute(
        "SELECT DISTINCT batch_id FROM tasks WHERE agreement_digest = ?1"
        " AND (?2 IS NULL OR state IN (SELECT value FROM json_each(?2)))",
        (agreement_digest, None if states is None else pack_text(states)),
    )
    return [bytes(batch) for (batch,) in rows]


def list_tasks(
    connection: sqlite3.Connection,
    *,
    agreement_digest: bytes | None = None,
    states: Iterable[str] | None = None,
    after: bytes = b"",
    limit: int = _MAX_PAGE,
) -> list[TaskRow]:
    """Return at most `limit` (up to 1000) tasks that fit, by id.

    Args:
        connection: the database.
        agreement_digest: None fits all.
        states: None fits all.
        after: the id of the last task of the page before.
        limit: tasks in a page.
    """
    conditions: dict[str, object] = {"task_id > ?": after}
    if agreement_digest is not None:
        conditions["agreement_digest = ?"] = agreement_digest
    if states is not None:
        conditions["state IN (SELECT value FROM json_each(?))"] = pack_text(states)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM tasks WHERE {' AND '.join(conditions)} ORDER BY task_id LIMIT ?",
        (*conditions.values(), min(limit, _MAX_PAGE)),
    )
    return [_task(row) for row in rows]


def count_tasks_by_state(connection: sqlite3.Connection, agreement_digest: bytes | None = None) -> dict[str, int]:
    """Return how many tasks are in each state, of one agreement or of all."""
    rows = connection.execute(
        "SELECT state, count(*) FROM tasks WHERE ?1 IS NULL OR agreement_digest = ?1 GROUP BY state",
        (agreement_digest,),
    )
    return {str(state): int(count) for state, count in rows}


def count_tasks_by_reason(
    connection: sqlite3.Connection, state: str, agreement_digest: bytes | None = None
) -> dict[str, int]:
    """Return how many tasks in `state` have each reason, of one agreement or of all."""
    rows = connection.execute(
        "SELECT reason, count(*) FROM tasks WHERE state = ?1 AND (?2 IS NULL OR agreement_digest = ?2) GROUP BY reason",
        (state, agreement_digest),
    )
    return {str(reason): int(count) for reason, count in rows}


def count_repaired(connection: sqlite3.Connection, agreement_digest: bytes | None = None) -> int:
    """Return how many tasks were repaired at least once, of one agreement or of all."""
    row = connection.execute(
        "SELECT count(*) FROM tasks WHERE revision > 0 AND (?1 IS NULL OR agreement_digest = ?1)", (agreement_digest,)
    ).fetchone()
    return int(row[0])


def _values(task: TaskRow) -> tuple[object, ...]:
    return (
        task.task_id,
        task.agreement_digest,
        task.workflow_id,
        task.batch_id,
        task.ordinal,
        task.revision,
        task.state,
        task.record,
        task.record_digest,
        pack(task.hops),
        task.reason,
        pack_text(task.rules),
        pack_text(task.feedback),
        task.updated_ms,
    )


def _task(row: tuple[Any, ...]) -> TaskRow:
    hops, reason, rules, feedback, updated_ms = row[9:]
    return TaskRow(*(*row[:9], unpack(hops), reason, unpack_text(rules), unpack_text(feedback), updated_ms))
