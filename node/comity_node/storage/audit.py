"""The audit log: append-only, tamper-evident, verifiable offline.

Entry n is canonical JSON (RFC 8785) that names n and the hash of entry n-1. An entry's hash is its leaf hash in the
Merkle tree of RFC 6962, so one hash serves the chain and the tree. A signed checkpoint (`note.py`) fixes the
tree every so many entries and at stop; what was written before it cannot be changed, dropped or reordered without
breaking it. Entries after the last checkpoint are protected by the chain alone: whoever can write the file can cut them
off or write them anew; `AuditReport.unsigned` counts them. Whoever holds the key can write a whole new log; only
checkpoints that others keep (`known` in `verify_file`) or have cosigned (`require_witnesses`) show that.

Beside this module: `audit_entry` (an entry's bytes), `audit_tree` (head, subtrees, proofs), `audit_verify`,
`audit_proof` (one entry, proved in a file), `audit_export`, `note` and `cosignature` (signatures), `witness` (tables).

Invariant
  S8  a decision is appended in the transaction of its effect or before it, and the log verifies offline.

Entries carry digests and names of organizations and rules, never fields of records.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from comity import merkle
from comity_node.storage import witness
from comity_node.storage.audit_entry import AuditEntry, Detail, StoredEntry, decode, encode
from comity_node.storage.audit_tree import (
    GENESIS,
    Inclusion,
    head,
    prove_consistency,
    prove_inclusion,
    read_head,
    root_at,
    write_head,
)
from comity_node.storage.audit_verify import AuditReport, verify_file
from comity_node.storage.note import Checkpoint, NoteSigner, sign_note

__all__ = [
    "CHECKPOINT_EVERY",
    "GENESIS",
    "AuditEntry",
    "AuditLog",
    "AuditRef",
    "AuditReport",
    "Detail",
    "Inclusion",
    "NoteSigner",
    "StoredEntry",
    "append",
    "append_all",
    "checkpoint",
    "checkpoints",
    "entries",
    "head",
    "prove_consistency",
    "prove_inclusion",
    "root_at",
    "thin_checkpoints",
    "verify_file",
]

CHECKPOINT_EVERY: Final = 256
_PAGE: Final = 1000
#: Statements that insert so many rows at once, the largest first.
_INSERTS: Final = [
    (count, "INSERT INTO audit_entries (position, entry, hash) VALUES " + ", ".join(["(?, ?, ?)"] * count))
    for count in (128, 64, 32, 16, 8, 4, 2, 1)
]


@dataclass(frozen=True, slots=True)
class AuditRef:
    """Where an entry stands (from 0) and its hash (32 bytes)."""

    index: int
    hash: bytes


def append(connection: sqlite3.Connection, entry: AuditEntry, now_ms: int) -> AuditRef:
    """Append `entry` and return where it stands. It is on the disk when the transaction is.

    Raises:
        StorageError: the entry is too large or its detail is not plain JSON.
    """
    return append_all(connection, ((entry, now_ms),))[0]


def append_all(connection: sqlite3.Connection, appended: Sequence[tuple[AuditEntry, int]]) -> list[AuditRef]:
    """Append entries, each with its time, as `append` does one by one, at half the cost.

    Raises:
        StorageError: an entry is too large or its detail is not plain JSON; none is appended.
    """
    tree, previous = read_head(connection)
    rows: list[tuple[int, bytes, bytes]] = []
    for index, (entry, now_ms) in enumerate(appended, tree.size):
        data = encode(entry, index, previous, now_ms)
        previous = merkle.leaf_hash(data)
        rows.append((index, data, previous))
    if rows:
        _insert(connection, rows)
        write_head(connection, tree, [leaf for _, _, leaf in rows])
    return [AuditRef(index, leaf) for index, _, leaf in rows]


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[int, bytes, bytes]]) -> None:
    """Insert the rows by few statements: around each one the interpreter's lock is given away and waited for again."""
    at = 0
    for count, statement in _INSERTS:
        while len(rows) - at >= count:
            connection.execute(statement, [value for row in rows[at : at + count] for value in row])
            at += count


def checkpoint(connection: sqlite3.Connection, signer: NoteSigner, now_ms: int) -> str:
    """Sign the tree's head, store it and return the note; if this head is signed already, return that note."""
    tree = head(connection)
    stored = connection.execute("SELECT note FROM audit_checkpoints WHERE size = ?", (tree.size,)).fetchone()
    if stored is not None:
        return str(stored[0])
    note = sign_note(Checkpoint(signer.name, tree.size, tree.root()).text(), signer)
    connection.execute(
        "INSERT INTO audit_checkpoints (size, note, created_ms) VALUES (?, ?, ?)", (tree.size, note, now_ms)
    )
    return note


class AuditLog:
    """`append` that also signs a checkpoint after every `every` entries."""

    def __init__(self, signer: NoteSigner, *, every: int = CHECKPOINT_EVERY) -> None:
        self._signer = signer
        self._every = every

    def append(self, connection: sqlite3.Connection, entry: AuditEntry, now_ms: int) -> AuditRef:
        """Append `entry`; see the function `append`."""
        ref = append(connection, entry, now_ms)
        if (ref.index + 1) % self._every == 0:
            checkpoint(connection, self._signer, now_ms)
        return ref

    def checkpoint(self, connection: sqlite3.Connection, now_ms: int) -> str:
        """Sign the head now, as a node does when it stops."""
        return checkpoint(connection, self._signer, now_ms)


def entries(connection: sqlite3.Connection, *, start: int = 0, limit: int = _PAGE) -> list[StoredEntry]:
    """Return at most `limit` (up to 1000) entries from index `start` on.

    Raises:
        AuditBroken: an entry is not what this log writes.
    """
    rows = connection.execute(
        "SELECT position, entry, hash FROM audit_entries WHERE position >= ? ORDER BY position LIMIT ?",
        (start, min(limit, _PAGE)),
    )
    return [decode(index, data, hashed) for index, data, hashed in rows]


def checkpoints(connection: sqlite3.Connection, *, limit: int = _PAGE) -> list[str]:
    """Return the newest `limit` (up to 1000) checkpoint notes, newest first."""
    rows = connection.execute(
        "SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT ?", (min(limit, _PAGE),)
    ).fetchall()
    return [str(note) for (note,) in rows]


def thin_checkpoints(connection: sqlite3.Connection, *, keep: int = _PAGE, limit: int = _PAGE) -> int:
    """Delete at most `limit` checkpoints, with their cosignatures, and return how many.

    The newest `keep` stay, the last of each day (UTC), and the largest that each witness has cosigned: a later
    checkpoint covers all that an earlier one did.
    """
    changed = connection.execute(
        "DELETE FROM audit_checkpoints WHERE size IN (SELECT size FROM (SELECT size,"
        " row_number() OVER (ORDER BY size DESC) AS place,"
        " row_number() OVER (PARTITION BY created_ms / 86400000 ORDER BY size DESC) AS place_in_day"
        " FROM audit_checkpoints) WHERE place > ? AND place_in_day > 1"
        " AND size NOT IN (SELECT max(size) FROM audit_cosignatures GROUP BY witness) ORDER BY size LIMIT ?)",
        (keep, limit),
    )
    if changed.rowcount:
        witness.forget_cosignatures(connection)
    return changed.rowcount
