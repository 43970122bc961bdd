"""The audit log: append-only, tamper-evident, verifiable offline.

Entry n is canonical JSON (RFC 8785) that names n and the hash of entry n-1. An entry's hash is its leaf hash in the
Merkle tree of RFC 6962, so one hash serves the chain and the tree. A signed checkpoint (`note.py`) fixes the
tree every so many entries and at stop; what was written before it cannot be changed, dropped or reordered without
breaking it. Entries after the last checkpoint are protected by the chain alone: whoever can write the file can cut them
off or write them anew; `AuditReport.unsigned` counts them. Whoever holds the key can write a whole new log; only
checkpoints that others keep (`known` in `verify_file`) show that.

Invariant
  S8  a decision is appended in the transaction of its effect or before it, and the log verifies offline.

Entries carry digests and names of organizations and rules, never fields of records.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from comity import merkle
from comity.errors import AuditBroken, ProofInvalid
from comity.merkle import HASH_BYTES, CompactRange
from comity_node.storage import connections
from comity_node.storage.audit_entry import AuditEntry, Detail, StoredEntry, decode, encode, links
from comity_node.storage.note import Checkpoint, NoteSigner, note_text, open_note, parse_checkpoint, sign_note

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
    "prove_inclusion",
    "thin_checkpoints",
    "verify_file",
]

#: What the first entry names as the hash before it.
GENESIS: Final = bytes(HASH_BYTES)
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


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Proof that an entry stands in the tree of a size and root (RFC 6962, section 2.1.1)."""

    index: int
    size: int
    leaf: bytes
    path: tuple[bytes, ...]
    root: bytes

    def verify(self) -> None:
        """Check the proof.

        Raises:
            AuditBroken: the path does not lead from the leaf to the root.
        """
        try:
            merkle.verify_inclusion(self.leaf, self.index, self.size, self.path, self.root)
        except ProofInvalid as error:
            raise AuditBroken(str(error), index=self.index) from error


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an offline verification found; nothing is wrong, or there would be no report.

    Attributes:
        entries: how many there are.
        root: the tree's head over all of them.
        checkpoints: how many were checked.
        signed: entries under the last checkpoint.
        unsigned: entries after it: protected by the chain alone.
        signatures_checked: False if no public key was given.
        origin: the log's name in its checkpoints; empty if there are none.
    """

    entries: int
    root: bytes
    checkpoints: int
    signed: int
    unsigned: int
    signatures_checked: bool
    origin: str


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
    tree, previous = _head(connection)
    rows: list[tuple[int, bytes, bytes]] = []
    for index, (entry, now_ms) in enumerate(appended, tree.size):
        data = encode(entry, index, previous, now_ms)
        previous = merkle.leaf_hash(data)
        rows.append((index, data, previous))
    if rows:
        grown = tree.extend([leaf for _, _, leaf in rows])
        _insert(connection, rows)
        connection.execute(
            "INSERT INTO audit_head (id, size, peaks, last_hash) VALUES (0, ?, ?, ?) ON CONFLICT (id)"
            " DO UPDATE SET size = excluded.size, peaks = excluded.peaks, last_hash = excluded.last_hash",
            (grown.size, b"".join(grown.peaks), previous),
        )
    return [AuditRef(index, leaf) for index, _, leaf in rows]


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[int, bytes, bytes]]) -> None:
    """Insert the rows by few statements: around each one the interpreter's lock is given away and waited for again."""
    at = 0
    for count, statement in _INSERTS:
        while len(rows) - at >= count:
            connection.execute(statement, [value for row in rows[at : at + count] for value in row])
            at += count


def head(connection: sqlite3.Connection) -> CompactRange:
    """Return the tree over all entries; `.size` and `.root()` are its head."""
    return _head(connection)[0]


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
    """Delete at most `limit` checkpoints and return how many.

    The newest `keep` stay, and the last of each day (UTC): a later checkpoint covers all that an earlier one did.
    """
    changed = connection.execute(
        "DELETE FROM audit_checkpoints WHERE size IN (SELECT size FROM (SELECT size,"
        " row_number() OVER (ORDER BY size DESC) AS place,"
        " row_number() OVER (PARTITION BY created_ms / 86400000 ORDER BY size DESC) AS place_in_day"
        " FROM audit_checkpoints) WHERE place > ? AND place_in_day > 1 ORDER BY size LIMIT ?)",
        (keep, limit),
    )
    return changed.rowcount


def prove_inclusion(connection: sqlite3.Connection, index: int, *, size: int | None = None) -> Inclusion:
    """Prove that entry `index` stands in the tree of the first `size` entries (all, if None). Reads `size` hashes.

    Raises:
        AuditBroken: there is no such entry or no such tree.
    """
    total = head(connection).size
    wanted = total if size is None else size
    if not 0 <= index < wanted <= total:
        raise AuditBroken(f"there is no entry {index} in a tree of {wanted}; the log has {total}")
    rows = connection.execute("SELECT hash FROM audit_entries WHERE position < ? ORDER BY position", (wanted,))
    leaves = [bytes(hashed) for (hashed,) in rows]
    tree = merkle.Tree(leaves)
    return Inclusion(index, wanted, leaves[index], tree.path(index), tree.root)


def verify_file(path: Path, public_key: bytes | None, *, known: Iterable[str] = ()) -> AuditReport:
    """Verify the log in a node's database, offline and read-only; a node may be running on it.

    1. Each entry is JSON that names its own index and the hash of the one before.
    2. Each stored hash is the entry's leaf hash; none is missing and none is too many.
    3. Each checkpoint in the file names one log, a size that the log has and the root that it had at that size.
    4. Each checkpoint in the file is signed by `public_key`, if one is given.
    5. Checkpoints that were kept elsewhere (`known`) fulfil 3 and 4 as well.
    6. The stored head is the head that came out.

    Args:
        path: the database.
        public_key: 32 bytes, the node's Ed25519 key; None checks no signature, and the report says so.
        known: notes of checkpoints from other places, such as a peer or a printout.

    Raises:
        AuditBroken: something is wrong; `.index` is the first entry that is, where one can be named.
        StorageError: the file cannot be read.
    """
    connection = connections.connect_readonly(path)
    try:
        connection.execute("BEGIN")
        return _verify(connection, public_key, known)
    except sqlite3.Error as error:
        raise connections.storage_error(error, path.name) from error
    finally:
        connection.close()


def _verify(connection: sqlite3.Connection, public_key: bytes | None, known: Iterable[str]) -> AuditReport:
    pending = _pending_checkpoints(connection, public_key, known)
    tree, previous, checked, signed, origin = CompactRange(), GENESIS, 0, 0, ""
    for index, data, hashed in _rows(connection):
        _check_entry(index, data, hashed, tree.size, previous)
        tree, previous = tree.append(hashed), hashed
        for found in pending.pop(tree.size, ()):
            if found.root != tree.root():
                where = f"entries {signed} to {tree.size - 1} are not those that the checkpoint of {tree.size} covers"
                raise AuditBroken(where, index=signed)
            checked, signed, origin = checked + 1, tree.size, found.origin
    for found in pending.pop(0, ()):
        checked, origin = checked + 1, found.origin
        if found.root != merkle.EMPTY_ROOT:
            raise AuditBroken("the checkpoint of the empty log has another root")
    if pending:
        raise AuditBroken(f"a checkpoint covers {min(pending)} entries and only {tree.size} are there", index=tree.size)
    if _head(connection) != (tree, previous):
        raise AuditBroken(f"the stored head is not the head of the {tree.size} entries", index=tree.size)
    return AuditReport(
        entries=tree.size,
        root=tree.root(),
        checkpoints=checked,
        signed=signed,
        unsigned=tree.size - signed,
        signatures_checked=public_key is not None,
        origin=origin,
    )


def _pending_checkpoints(
    connection: sqlite3.Connection, public_key: bytes | None, known: Iterable[str]
) -> dict[int, list[Checkpoint]]:
    """Parse all checkpoints and check their signatures; return them by tree size."""
    pending: dict[int, list[Checkpoint]] = {}
    origins: set[str] = set()
    stored = connection.execute("SELECT size, note FROM audit_checkpoints ORDER BY size").fetchall()
    for size, note in [*stored, *((None, note) for note in known)]:
        found = parse_checkpoint(note_text(note))
        if size is not None and found.size != size:
            raise AuditBroken(f"the checkpoint stored for {size} entries speaks of {found.size}")
        if public_key is not None:
            open_note(note, found.origin, public_key)
        origins.add(found.origin)
        pending.setdefault(found.size, []).append(found)
    if len(origins) > 1:
        raise AuditBroken(f"the checkpoints name several logs: {', '.join(sorted(origins))}")
    return pending


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes, bytes]]:
    for index, data, hashed in connection.execute("SELECT position, entry, hash FROM audit_entries ORDER BY position"):
        yield int(index), bytes(data), bytes(hashed)


def _check_entry(index: int, data: bytes, hashed: bytes, expected: int, previous: bytes) -> None:
    if index != expected:
        raise AuditBroken(f"the entry is missing; the next one is {index}", index=expected)
    if merkle.leaf_hash(data) != hashed:
        raise AuditBroken("its hash is not the hash of its bytes", index=index)
    if links(index, data) != (index, previous.hex()):
        raise AuditBroken("it does not continue the chain", index=index)


def _head(connection: sqlite3.Connection) -> tuple[CompactRange, bytes]:
    row = connection.execute("SELECT size, peaks, last_hash FROM audit_head WHERE id = 0").fetchone()
    if row is None:
        return CompactRange(), GENESIS
    size, peaks, last = row
    parts = tuple(bytes(peaks[at : at + HASH_BYTES]) for at in range(0, len(peaks), HASH_BYTES))
    if len(parts) != int(size).bit_count():
        raise AuditBroken("the stored head is malformed")
    return CompactRange(size, parts), bytes(last)
