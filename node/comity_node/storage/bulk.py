"""Bulk transfers, both ways: what has been agreed to move, how far it is, and what became of it.

Plain functions over a connection, for `Database.transact` and `Database.read`. The rows are the truth about the spool's
files: a file that no open or done row names is deleted at the next start.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final, Literal

_MAX_PAGE: Final = 1000
_MAX_REASON: Final = 500
_LEAST: Final = 64 * 1024

Direction = Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class BulkRow:
    """One transfer.

    Attributes:
        transfer_id: SHA-256 of the manifest's envelope.
        direction: "out" or "in".
        organization: the other side.
        dataset: what the rows belong to.
        kind: of the rows.
        purpose: what they may be used for.
        agreement_digest: 32 bytes, or empty.
        root: head of the tree over the chunks; names the spool's file.
        row_count: rows of the table.
        byte_count: bytes of the file.
        manifest: the envelope.
        state: "open" (under way, or waiting to be resumed), "done", "failed" or "deleted".
        stored_chunks: chunks that are verified and on the receiver's disk.
        receipt: the receipt's envelope; empty before "done".
        reason: why it failed, or how it broke off last.
        created_ms: when it was begun.
        updated_ms: when something last changed.
        expires_ms: until when it can be resumed.
        retain_until_ms: when the receiver has to delete it; None if no obligation says so.
    """

    transfer_id: bytes
    direction: Direction
    organization: str
    dataset: str
    kind: str
    purpose: str
    agreement_digest: bytes
    root: bytes
    row_count: int
    byte_count: int
    manifest: bytes
    state: str
    stored_chunks: int
    receipt: bytes
    reason: str
    created_ms: int
    updated_ms: int
    expires_ms: int
    retain_until_ms: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one direction holds: open transfers and bytes, of one organization and of all."""

    open_of_one: int
    bytes_of_one: int
    bytes_of_all: int


_COLUMNS: Final = ", ".join(BulkRow.__slots__)
#: The same without the envelopes: many rows are listed at once, and a peer's manifest may have half a megabyte.
_LISTED: Final = ", ".join("x''" if name in ("manifest", "receipt") else name for name in BulkRow.__slots__)


def put_bulk(connection: sqlite3.Connection, row: BulkRow) -> bool:
    """Store a new transfer; False, and nothing changed, if it is there already."""
    marks = ", ".join("?" * len(BulkRow.__slots__))
    values = [getattr(row, name) for name in BulkRow.__slots__]
    cursor = connection.execute(f"INSERT INTO bulk ({_COLUMNS}) VALUES ({marks}) ON CONFLICT DO NOTHING", values)
    return cursor.rowcount == 1


def get_bulk(connection: sqlite3.Connection, transfer_id: bytes) -> BulkRow | None:
    """Return a transfer, None if there is none with this id."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM bulk WHERE transfer_id = ?", (transfer_id,)).fetchone()
    return None if row is None else BulkRow(*row)


def find_bulk(connection: sqlite3.Connection, prefix: str) -> list[BulkRow]:
    """Return at most two transfers whose id in hex begins with `prefix`: two are one too many."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM bulk WHERE substr(lower(hex(transfer_id)), 1, ?) = ? LIMIT 2",
        (len(prefix), prefix.lower()),
    )
    return [BulkRow(*row) for row in rows]


def list_bulk(
    connection: sqlite3.Connection,
    *,
    direction: Direction | None = None,
    state: str | None = None,
    limit: int = _MAX_PAGE,
) -> list[BulkRow]:
    """Return transfers without their envelopes, the newest first, at most `limit` (up to 1000); None fits all."""
    rows = connection.execute(
        f"SELECT {_LISTED} FROM bulk WHERE direction = coalesce(?, direction) AND state = coalesce(?, state)"
        " ORDER BY created_ms DESC, transfer_id LIMIT ?",
        (direction, state, max(1, min(limit, _MAX_PAGE))),
    )
    return [BulkRow(*row) for row in rows]


def bulk_files(connection: sqlite3.Connection) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """Return what the spool has to hold: roots going out, ids coming in, ids that are there."""

    def some(column: str, where: str) -> set[bytes]:
        return {bytes(one) for (one,) in connection.execute(f"SELECT {column} FROM bulk WHERE {where}")}

    return (
        some("root", "direction = 'out' AND state = 'open'"),
        some("transfer_id", "direction = 'in' AND state = 'open'"),
        some("transfer_id", "direction = 'in' AND state = 'done'"),
    )


def received_manifests(connection: sqlite3.Connection, root: bytes) -> list[bytes]:
    """Return the manifests of the received tables of this root, unless it was sent from here before one of them came.

    At most 100: one is enough to say no.
    """
    rows = connection.execute(
        "SELECT manifest FROM bulk AS came WHERE root = ? AND direction = 'in' AND state = 'done' AND NOT EXISTS"
        " (SELECT 1 FROM bulk AS sent WHERE sent.root = came.root AND sent.direction = 'out'"
        " AND sent.created_ms <= came.created_ms) LIMIT 100",
        (root,),
    )
    return [bytes(manifest) for (manifest,) in rows]


def is_wanted(connection: sqlite3.Connection, root: bytes) -> bool:
    """Whether an open transfer still has to send the file of this root."""
    sql = "SELECT 1 FROM bulk WHERE root = ? AND direction = 'out' AND state = 'open' LIMIT 1"
    return connection.execute(sql, (root,)).fetchone() is not None


def usage(connection: sqlite3.Connection, direction: Direction, organization: str) -> Usage:
    """Return how much is held, or promised room to, in one direction.

    What goes out is counted once for each transfer, even where two send the same file; a small file counts as 64 KiB.
    """
    held = ("open",) if direction == "out" else ("open", "done")
    marks = ", ".join("?" * len(held))
    rows = connection.execute(
        f"SELECT organization = ?, state, count(*), sum(max(byte_count, {_LEAST}) + length(manifest)) FROM bulk"
        f" WHERE direction = ? AND state IN ({marks}) GROUP BY 1, 2",
        (organization, direction, *held),
    ).fetchall()
    return Usage(
        open_of_one=sum(count for of_one, state, count, _ in rows if of_one and state == "open"),
        bytes_of_one=sum(size for of_one, _, _, size in rows if of_one),
        bytes_of_all=sum(size for _, _, _, size in rows),
    )


def set_stored(connection: sqlite3.Connection, transfer_id: bytes, chunks: int, now_ms: int) -> None:
    """Note how many chunks of an open transfer are verified and on the receiver's disk."""
    connection.execute(
        "UPDATE bulk SET stored_chunks = ?, updated_ms = ? WHERE transfer_id = ? AND state = 'open'",
        (chunks, now_ms, transfer_id),
    )


def note_broken(connection: sqlite3.Connection, transfer_id: bytes, reason: str, now_ms: int) -> None:
    """Note why an open transfer broke off; it stays open."""
    connection.execute(
        "UPDATE bulk SET reason = ?, updated_ms = ? WHERE transfer_id = ? AND state = 'open'",
        (reason[:_MAX_REASON], now_ms, transfer_id),
    )


def finish_bulk(
    connection: sqlite3.Connection, transfer_id: bytes, receipt: bytes, retain_until_ms: int | None, now_ms: int
) -> bool:
    """Note that a transfer is done; False if it was not open any more."""
    cursor = connection.execute(
        "UPDATE bulk SET state = 'done', reason = '', receipt = ?, retain_until_ms = ?, updated_ms = ?"
        " WHERE transfer_id = ? AND state = 'open'",
        (receipt, retain_until_ms, now_ms, transfer_id),
    )
    return cursor.rowcount == 1


def end_bulk(
    connection: sqlite3.Connection,
    transfer_id: bytes,
    state: Literal["failed", "deleted"],
    reason: str,
    now_ms: int,
    *,
    held: tuple[str, ...] = ("open", "done"),
) -> bool:
    """Note that a transfer came to nothing, or that its file goes; False if it is in none of the states `held`.

    The manifest is dropped, and of one organization's ended transfers the last 1000 are remembered.
    """
    cursor = connection.execute(
        "UPDATE bulk SET state = ?, reason = ?, updated_ms = ?, manifest = x'' WHERE transfer_id = ?"
        f" AND state IN ({', '.join('?' * len(held))})",
        (state, reason[:_MAX_REASON], now_ms, transfer_id, *held),
    )
    connection.execute(
        "DELETE FROM bulk WHERE transfer_id IN (SELECT transfer_id FROM bulk WHERE state IN ('failed', 'deleted')"
        " AND organization = (SELECT organization FROM bulk WHERE transfer_id = ?)"
        " ORDER BY updated_ms DESC LIMIT -1 OFFSET ?)",
        (transfer_id, _MAX_PAGE),
    )
    return cursor.rowcount == 1


def overdue(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_PAGE) -> list[BulkRow]:
    """Return transfers whose files must go, without their envelopes.

    They are open ones that have expired, and received ones whose retention is over.
    """
    rows = connection.execute(
        f"SELECT {_LISTED} FROM bulk WHERE (state = 'open' AND expires_ms <= ?)"
        " OR (state = 'done' AND direction = 'in' AND retain_until_ms <= ?) LIMIT ?",
        (now_ms, now_ms, min(limit, _MAX_PAGE)),
    )
    return [BulkRow(*row) for row in rows]


def count_certified(connection: sqlite3.Connection, dataset: str, agreement_digest: bytes) -> int:
    """Return how many certified records of a dataset there are, made under an agreement (empty: under any)."""
    row = connection.execute(
        "SELECT count(*) FROM records WHERE dataset = ? AND (? = x'' OR agreement_digest = ?)",
        (dataset, agreement_digest, agreement_digest),
    ).fetchone()
    return int(row[0])


def certified_page(
    connection: sqlite3.Connection, dataset: str, agreement_digest: bytes, cursor: int, *, limit: int = 100
) -> list[tuple[int, bytes, bytes]]:
    """Return the next certified records with their proofs, in the order in which they were stored.

    Args:
        connection: the database.
        dataset: of which.
        agreement_digest: made under this agreement; empty: under any.
        cursor: the first value of the last record of the page before; 0 starts.
        limit: records in the page.

    Returns:
        For each record its cursor, its bytes and its provenance.
    """
    rows = connection.execute(
        "SELECT sequence, record, provenance FROM records WHERE sequence > ? AND dataset = ?"
        " AND (? = x'' OR agreement_digest = ?) ORDER BY sequence LIMIT ?",
        (cursor, dataset, agreement_digest, agreement_digest, max(1, min(limit, _MAX_PAGE))),
    )
    return [(int(sequence), bytes(record), bytes(provenance)) for sequence, record, provenance in rows]


def forget_bulk(connection: sqlite3.Connection, before_ms: int, *, limit: int = _MAX_PAGE) -> int:
    """Forget transfers that hold no file any more and ended before `before_ms`; returns how many."""
    cursor = connection.execute(
        "DELETE FROM bulk WHERE transfer_id IN (SELECT transfer_id FROM bulk WHERE updated_ms < ? AND"
        " (state IN ('failed', 'deleted') OR (state = 'done' AND direction = 'out')) LIMIT ?)",
        (before_ms, min(limit, _MAX_PAGE)),
    )
    return cursor.rowcount
