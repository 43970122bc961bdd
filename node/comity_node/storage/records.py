"""Certified records with what proves them.

Plain functions over a connection, for `Database.transact` and `Database.read`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from comity.errors import CertificateInvalid

_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A certified record without its proof.

    Attributes:
        task_id: 16 bytes.
        agreement_digest: SHA-256 of the terms that it was made under.
        dataset: it belongs to.
        author: the organization that made it.
        record: JSON in RFC 8785 form.
        record_digest: SHA-256 of `record`.
        score: the certificate's, 0 to 10000.
        stored_ms: when this node stored it.
        retain_until_ms: when it must go; None if no obligation says so.
    """

    task_id: bytes
    agreement_digest: bytes
    dataset: str
    author: str
    record: bytes
    record_digest: bytes
    score: int
    stored_ms: int
    retain_until_ms: int | None


@dataclass(frozen=True, slots=True)
class CertifiedRecord(StoredRecord):
    """A certified record with its proof.

    Attributes:
        certificate: the `Certificate` message.
        provenance: DSSE envelope (JSON) of the in-toto statement.
    """

    certificate: bytes
    provenance: bytes


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Some records, oldest first, and the cursor of the next page; None if there is no more now."""

    records: tuple[StoredRecord, ...]
    cursor: int | None


_COLUMNS: Final = "task_id, agreement_digest, dataset, author, record, record_digest, score, stored_ms, retain_until_ms"


def put_record(connection: sqlite3.Connection, record: CertifiedRecord) -> bool:
    """Store a record; False, and nothing changed, if it is there already.

    A task has one record. Its author can have two certified only under two agreements or in two revisions; two of one
    agreement and revision need more than f faulty reviewers, since two quorums share an honest one, which reviews one
    record of a task's revision (`inbox.take_tasks`).

    Raises:
        CertificateInvalid: another record of the same author is certified for the same task; the first one stays.
    """
    stored = connection.execute(
        "SELECT record_digest FROM records WHERE task_id = ? AND author = ?", (record.task_id, record.author)
    ).fetchone()
    if stored is not None:
        if stored[0] != record.record_digest:
            raise CertificateInvalid(
                f"{record.author} had the record {stored[0].hex()} certified for task {record.task_id.hex()} and now "
                f"{record.record_digest.hex()}: by mistake or on purpose, if not more reviewers than agreed are faulty"
            )
        return False
    connection.execute(
        f"INSERT INTO records ({_COLUMNS}, certificate, provenance) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.task_id,
            record.agreement_digest,
            record.dataset,
            record.author,
            record.record,
            record.record_digest,
            record.score,
            record.stored_ms,
            record.retain_until_ms,
            record.certificate,
            record.provenance,
        ),
    )
    return True


def get_record(connection: sqlite3.Connection, task_id: bytes, author: str = "") -> CertifiedRecord | None:
    """Return the record of a task with its proof, None if there is none.

    Without an author it is the first of those that used this id.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS}, certificate, provenance FROM records WHERE task_id = ? AND ? IN ('', author)"
        " ORDER BY sequence",
        (task_id, author),
    ).fetchone()
    return None if row is None else CertifiedRecord(*row)


def stored_digests(connection: sqlite3.Connection, author: str, task_ids: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the digests of the records of an author's tasks, by task id; those that are not stored are left out."""
    sql = "SELECT record_digest FROM records WHERE task_id = ? AND author = ?"
    found = {task_id: connection.execute(sql, (task_id, author)).fetchone() for task_id in task_ids}
    return {task_id: bytes(row[0]) for task_id, row in found.items() if row is not None}


def list_records(
    connection: sqlite3.Connection,
    *,
    dataset: str | None = None,
    author: str | None = None,
    agreement_digest: bytes | None = None,
    cursor: int = 0,
    limit: int = 100,
) -> RecordPage:
    """Return a page of at most `limit` (up to 1000) records in the order in which they were stored.

    Args:
        connection: the database.
        dataset: None fits all.
        author: None fits all.
        agreement_digest: None fits all.
        cursor: `RecordPage.cursor` of the page before; 0 starts.
        limit: records in the page.
    """
    wanted = max(1, min(limit, _MAX_PAGE))
    filters = {"dataset": dataset, "author": author, "agreement_digest": agreement_digest}
    chosen = {name: value for name, value in filters.items() if value is not None}
    where = " AND ".join(["sequence > ?", *(f"{name} = ?" for name in chosen)])
    rows = connection.execute(
        f"SELECT sequence, {_COLUMNS} FROM records WHERE {where} ORDER BY sequence LIMIT ?",
        (cursor, *chosen.values(), wanted + 1),
    ).fetchall()
    page = rows[:wanted]
    more = len(rows) > wanted
    return RecordPage(tuple(StoredRecord(*row[1:]) for row in page), page[-1][0] if more else None)


def count_records(connection: sqlite3.Connection, *, dataset: str | None = None) -> dict[str, int]:
    """Return how many records there are of each author, of one dataset or of all."""
    rows = connection.execute(
        "SELECT author, count(*) FROM records WHERE dataset = coalesce(?, dataset) GROUP BY author", (dataset,)
    )
    return {str(author): int(count) for author, count in rows}


def expired_records(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_PAGE) -> list[StoredRecord]:
    """Return at most `limit` (up to 1000) records that may no longer be kept."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM records WHERE retain_until_ms <= ? ORDER BY retain_until_ms LIMIT ?",
        (now_ms, min(limit, _MAX_PAGE)),
    ).fetchall()
    return [StoredRecord(*row) for row in rows]


def delete_records(connection: sqlite3.Connection, expired: Iterable[StoredRecord]) -> None:
    """Delete records; what they were is in the audit log by then.

    The pages they stood on are overwritten (`PRAGMA secure_delete`); what the write-ahead log still has of them goes
    with `Database.fold`.
    """
    connection.executemany(
        "DELETE FROM records WHERE task_id = ? AND author = ?", [(record.task_id, record.author) for record in expired]
    )
