"""The audit log's Merkle tree in the database: its head, its subtrees, and proofs from them.

The head is a compact range in one row. Roots of full subtrees of height 8, 16, 24, … (256, 65,536, … entries) are kept
as the log grows, at 32 bytes for 256 entries: a proof reads at most some hundred hashes for each of its nodes, whatever
the log's size. They are a cache: where one is missing (an older version wrote the log) it is made from what is below.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from comity import merkle
from comity.errors import AuditBroken, ProofInvalid
from comity.merkle import HASH_BYTES, CompactRange

__all__ = [
    "GENESIS",
    "STEP",
    "Inclusion",
    "head",
    "prove_consistency",
    "prove_inclusion",
    "read_head",
    "root_at",
    "write_head",
]

#: What the first entry names as the hash before it.
GENESIS: Final = bytes(HASH_BYTES)
#: Subtrees are kept at heights that this divides.
STEP: Final = 8


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


def head(connection: sqlite3.Connection) -> CompactRange:
    """Return the tree over all entries; `.size` and `.root()` are its head."""
    return read_head(connection)[0]


def read_head(connection: sqlite3.Connection) -> tuple[CompactRange, bytes]:
    """Return the tree over all entries and the hash of the last one.

    Raises:
        AuditBroken: the stored head is malformed.
    """
    row = connection.execute("SELECT size, peaks, last_hash FROM audit_head WHERE id = 0").fetchone()
    if row is None:
        return CompactRange(), GENESIS
    size, peaks, last = row
    parts = tuple(bytes(peaks[at : at + HASH_BYTES]) for at in range(0, len(peaks), HASH_BYTES))
    if len(parts) != int(size).bit_count() or len(peaks) % HASH_BYTES or len(last) != HASH_BYTES:
        raise AuditBroken("the stored head is malformed")
    return CompactRange(size, parts), bytes(last)


def write_head(connection: sqlite3.Connection, tree: CompactRange, leaves: Sequence[bytes]) -> None:
    """Let the tree grow by `leaves` (hashes, at least one), and keep its head and its new full subtrees."""
    kept: list[tuple[int, int, bytes]] = []

    def completed(height: int, place: int, roots: Sequence[bytes]) -> None:
        if height % STEP == 0:
            kept.extend((height, number, root) for number, root in enumerate(roots, place))

    grown = tree.extend(leaves, completed)
    connection.execute(
        "INSERT INTO audit_head (id, size, peaks, last_hash) VALUES (0, ?, ?, ?) ON CONFLICT (id)"
        " DO UPDATE SET size = excluded.size, peaks = excluded.peaks, last_hash = excluded.last_hash",
        (grown.size, b"".join(grown.peaks), leaves[-1]),
    )
    if kept:
        connection.executemany("INSERT INTO audit_subtrees (height, place, hash) VALUES (?, ?, ?)", kept)


def prove_inclusion(connection: sqlite3.Connection, index: int, *, size: int | None = None) -> Inclusion:
    """Prove that entry `index` stands in the tree of the first `size` entries (all, if None).

    Raises:
        AuditBroken: there is no such entry or no such tree.
    """
    total = head(connection).size
    wanted = total if size is None else size
    if not 0 <= index < wanted <= total:
        raise AuditBroken(f"there is no entry {index} in a tree of {wanted}; the log has {total}")
    tree = _Subtrees(connection)
    path = tuple(tree.root(*each) for each in merkle.inclusion_ranges(index, wanted))
    return Inclusion(index, wanted, tree.root(index, index + 1), path, tree.root(0, wanted))


def prove_consistency(connection: sqlite3.Connection, old: int, new: int) -> tuple[bytes, ...]:
    """Prove that the log's first `new` entries begin with its first `old` ones (RFC 6962, section 2.1.2).

    Raises:
        AuditBroken: the log has no such trees.
    """
    total = head(connection).size
    if not 0 <= old <= new <= total:
        raise AuditBroken(f"there is no proof from {old} to {new} entries; the log has {total}")
    tree = _Subtrees(connection)
    return tuple(tree.root(*each) for each in merkle.consistency_ranges(old, new))


def root_at(connection: sqlite3.Connection, size: int) -> bytes:
    """Return the head of the tree of the first `size` entries.

    Raises:
        AuditBroken: the log has fewer.
    """
    total = head(connection).size
    if not 0 <= size <= total:
        raise AuditBroken(f"there is no tree of {size} entries; the log has {total}")
    return _Subtrees(connection).root(0, size)


class _Subtrees:
    """Roots of ranges of the log, from what is stored."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def root(self, start: int, end: int) -> bytes:
        """The root over a range that `merkle.inclusion_ranges` or `consistency_ranges` named, or one from 0 on."""
        return merkle.range_root(start, end, self._full) if end > start else merkle.EMPTY_ROOT

    def _full(self, height: int, place: int) -> bytes:
        below = height - height % STEP
        count = 1 << height - below
        return merkle.root_of(self._stored(below, place * count, count))

    def _stored(self, height: int, first: int, count: int) -> list[bytes]:
        where = (first, first + count)
        if not height:
            rows = self._connection.execute(
                "SELECT hash FROM audit_entries WHERE position >= ? AND position < ? ORDER BY position", where
            )
            leaves = [bytes(hashed) for (hashed,) in rows]
            if len(leaves) != count:
                raise AuditBroken("entries are missing", index=first)
            return leaves
        rows = self._connection.execute(
            "SELECT place, hash FROM audit_subtrees WHERE height = ? AND place >= ? AND place < ?", (height, *where)
        )
        found = {place: bytes(hashed) for place, hashed in rows}
        below = 1 << STEP
        return [
            found[place] if place in found else merkle.root_of(self._stored(height - STEP, place * below, below))
            for place in range(*where)
        ]
