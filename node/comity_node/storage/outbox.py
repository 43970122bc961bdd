"""Messages that this node has promised to send.

Plain functions over a connection, for `Database.transact` and `Database.read`. A message is enqueued in the transaction
of the effect that it tells of, and sent until the peer says that it has it on disk.

Invariants
  R1  a message is here until it is acknowledged, refused for good or expired, whatever is restarted.
  R2  `dedup_key` is good once, also after the message is done, until it expires; `reopen` sends the same one again.
  R4  at most `max_open` messages wait for one organization, and one under each key.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from comity.errors import Busy

_MAX_PAGE: Final = 1000
_MAX_OPEN: Final = 10_000


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message to another organization.

    Attributes:
        message_id: 16 random bytes.
        organization: whom it is for.
        kind: of message, such as "task-offer".
        body: what is sealed into an envelope anew for each attempt; empty once it is done or failed.
        dedup_key: what the message is about; a second one with the same key is not enqueued.
        created_ms: when it was enqueued.
        expires_ms: when it is no longer worth sending.
        not_before_ms: when it is due.
        priority: larger goes first.
        attempts: how often it was sent.
        state: "pending", "sent" (due again at `not_before_ms`), "done" or "failed".
        reason: why it failed or was put off.
    """

    message_id: bytes
    organization: str
    kind: str
    body: bytes
    dedup_key: str
    created_ms: int
    expires_ms: int
    not_before_ms: int = 0
    priority: int = 0
    attempts: int = 0
    state: str = "pending"
    reason: str = ""


_COLUMNS: Final = (
    "message_id, organization, kind, body, dedup_key, created_ms, expires_ms, not_before_ms, priority, attempts, state,"
    " reason"
)
_OPEN: Final = "state IN ('pending', 'sent')"


def enqueue(connection: sqlite3.Connection, row: OutboxRow, *, max_open: int = _MAX_OPEN) -> bool:
    """Enqueue a message; False, and nothing changed, if its `dedup_key` was enqueued before.

    Raises:
        Busy: `max_open` messages wait for the organization.
    """
    if _state(connection, row.dedup_key) is not None:
        return False
    _check_room(connection, row.organization, max_open)
    connection.execute(
        f"INSERT INTO outbox ({_COLUMNS}) VALUES ({', '.join('?' * 12)})",
        (
            row.message_id,
            row.organization,
            row.kind,
            row.body,
            row.dedup_key,
            row.created_ms,
            row.expires_ms,
            row.not_before_ms,
            row.priority,
            0,
            "pending",
            "",
        ),
    )
    return True


def try_enqueue(connection: sqlite3.Connection, row: OutboxRow, *, max_open: int = _MAX_OPEN) -> bool:
    """Enqueue a message where others must not suffer if there is no room for it.

    Returns:
        False, and nothing changed, if `max_open` messages wait for the organization. True if the message is in the
        outbox: new, or enqueued before under its `dedup_key` (and perhaps done).
    """
    try:
        enqueue(connection, row, max_open=max_open)
    except Busy:
        return False
    return True


def reopen(connection: sqlite3.Connection, row: OutboxRow, *, max_open: int = _MAX_OPEN) -> bool:
    """Have a message sent once more, as when its recipient asks again for what it has acknowledged or refused.

    Returns:
        True if it waits anew: it was not there, or was done or failed. False, and nothing changed, if one with its
        `dedup_key` waits already.

    Raises:
        Busy: `max_open` messages wait for the organization.
    """
    state = _state(connection, row.dedup_key)
    if state is None:
        return enqueue(connection, row, max_open=max_open)
    if state not in ("done", "failed"):
        return False
    _check_room(connection, row.organization, max_open)
    connection.execute(
        "UPDATE outbox SET state = 'pending', body = ?, reason = '', attempts = 0, not_before_ms = ?, expires_ms = ?"
        " WHERE dedup_key = ?",
        (row.body, row.not_before_ms, row.expires_ms, row.dedup_key),
    )
    return True


def _state(connection: sqlite3.Connection, dedup_key: str) -> str | None:
    row = connection.execute("SELECT state FROM outbox WHERE dedup_key = ?", (dedup_key,)).fetchone()
    return None if row is None else str(row[0])


def _check_room(connection: sqlite3.Connection, organization: str, max_open: int) -> None:
    waiting = connection.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM outbox WHERE organization = ? AND {_OPEN} LIMIT ?)",
        (organization, max_open),
    ).fetchone()[0]
    if waiting >= max_open:
        raise Busy(f"{waiting} messages wait for {organization}; it does not take them as fast as they come")


def due(connection: sqlite3.Connection, organization: str, now_ms: int, *, limit: int = 100) -> list[OutboxRow]:
    """Return at most `limit` (up to 1000) messages to send now: highest priority first, then oldest."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM outbox WHERE organization = ? AND {_OPEN} AND not_before_ms <= ? AND expires_ms > ?"
        " ORDER BY priority DESC, created_ms LIMIT ?",
        (organization, now_ms, now_ms, min(limit, _MAX_PAGE)),
    )
    return [OutboxRow(*row) for row in rows]


def next_due_ms(connection: sqlite3.Connection, organization: str, now_ms: int) -> int | None:
    """Return when the next message to an organization is due, None if none waits that has not expired."""
    row = connection.execute(
        f"SELECT min(not_before_ms) FROM outbox WHERE organization = ? AND {_OPEN} AND expires_ms > ?",
        (organization, now_ms),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def count_open(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many messages wait for each organization."""
    rows = connection.execute(f"SELECT organization, count(*) FROM outbox WHERE {_OPEN} GROUP BY organization")
    return {str(organization): int(count) for organization, count in rows}


def open_messages(connection: sqlite3.Connection, *, after: bytes = b"", limit: int = 100) -> list[OutboxRow]:
    """Return at most `limit` (up to 1000) messages that wait, for whomever, by id from the one after `after`."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM outbox WHERE message_id > ? AND {_OPEN} ORDER BY message_id LIMIT ?",
        (after, min(limit, _MAX_PAGE)),
    )
    return [OutboxRow(*row) for row in rows]


def mark_sent(connection: sqlite3.Connection, message_id: bytes, *, retry_at_ms: int) -> bool:
    """Count an attempt; if nothing is heard, the message is due again at `retry_at_ms`. False if it is closed."""
    return _change(
        connection,
        "state = 'sent', attempts = attempts + 1, not_before_ms = ?, reason = ''",
        (retry_at_ms,),
        message_id,
    )


def defer(connection: sqlite3.Connection, message_id: bytes, *, until_ms: int, reason: str = "") -> bool:
    """Put a message off, as when the peer is busy or away. False if it is closed."""
    return _change(connection, "state = 'pending', not_before_ms = ?, reason = ?", (until_ms, reason), message_id)


def mark_done(connection: sqlite3.Connection, message_id: bytes) -> bool:
    """Close a message that the peer has on disk. False if it was closed before."""
    return _change(connection, "state = 'done', body = x'', reason = ''", (), message_id)


def mark_failed(connection: sqlite3.Connection, message_id: bytes, reason: str) -> bool:
    """Close a message that the peer refused for good. False if it was closed before."""
    return _change(connection, "state = 'failed', body = x'', reason = ?", (reason,), message_id)


def expired(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_PAGE) -> list[OutboxRow]:
    """Return at most `limit` (up to 1000) open messages that are past their time, to be closed with `mark_failed`."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM outbox WHERE {_OPEN} AND expires_ms <= ? ORDER BY expires_ms LIMIT ?",
        (now_ms, min(limit, _MAX_PAGE)),
    )
    return [OutboxRow(*row) for row in rows]


def forget(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_PAGE) -> int:
    """Delete at most `limit` (up to 1000) closed messages that are past their time, and return how many."""
    changed = connection.execute(
        f"DELETE FROM outbox WHERE message_id IN (SELECT message_id FROM outbox WHERE NOT {_OPEN} AND expires_ms <= ?"
        " ORDER BY expires_ms LIMIT ?)",
        (now_ms, min(limit, _MAX_PAGE)),
    )
    return changed.rowcount


def _change(connection: sqlite3.Connection, change: str, values: tuple[object, ...], message_id: bytes) -> bool:
    sql = f"UPDATE outbox SET {change} WHERE message_id = ? AND {_OPEN}"
    return connection.execute(sql, (*values, message_id)).rowcount == 1
