"""Scores that are committed to before they are shown: what a home gathers, and what a reviewer keeps sealed.

Plain functions over a connection, for `Database.transact` and `Database.read`.

Invariants
  R1  what a reviewer has committed to is on disk, nonce and all, before the commitment leaves.
  R2  one commitment per batch, revision and organization, and one set per batch and revision: the first one stays.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from comity.digest import sha256
from comity_node.storage.packing import pack, unpack

_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class CommitmentRow:
    """One organization's signed commitment to its scores of a batch.

    Attributes:
        batch_id: 16 bytes.
        revision: of the batch.
        organization: that committed.
        envelope: as received.
        chain: DER certificates of its signer, leaf first.
        received_ms: when it came.
        in_set: whether it is in the set that was fixed.
    """

    batch_id: bytes
    revision: int
    organization: str
    envelope: bytes
    chain: tuple[bytes, ...]
    received_ms: int
    in_set: bool = False


@dataclass(frozen=True, slots=True)
class SealedRow:
    """What a reviewer has committed to and not shown yet.

    Attributes:
        digest: of the offer (`inbox.offer_digest`).
        nonce: 32 bytes that open the commitment.
        answer: the validator's, checked.
        commitment: the envelope that was sent.
        sealed_ms: when.
    """

    digest: bytes
    nonce: bytes
    answer: dict[str, Any]
    commitment: bytes
    sealed_ms: int


_COMMITMENT: Final = "batch_id, revision, organization, envelope, chain, received_ms, in_set"


def add_commitment(connection: sqlite3.Connection, row: CommitmentRow) -> CommitmentRow:
    """Store a commitment if its organization has none there; returns the one that is there now."""
    connection.execute(
        f"INSERT INTO commitments ({_COMMITMENT}) VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
        (row.batch_id, row.revision, row.organization, row.envelope, pack(row.chain), row.received_ms),
    )
    found = connection.execute(
        f"SELECT {_COMMITMENT} FROM commitments WHERE batch_id = ? AND revision = ? AND organization = ?",
        (row.batch_id, row.revision, row.organization),
    ).fetchone()
    return _read(found)


def list_commitments(connection: sqlite3.Connection, batch_id: bytes, revision: int) -> list[CommitmentRow]:
    """Return the commitments to a batch (up to 1000), by organization."""
    rows = connection.execute(
        f"SELECT {_COMMITMENT} FROM commitments WHERE batch_id = ? AND revision = ? ORDER BY organization LIMIT ?",
        (batch_id, revision, _PAGE),
    )
    return [_read(row) for row in rows]


def fixed_set(connection: sqlite3.Connection, batch_id: bytes, revision: int) -> bytes:
    """Return the digest of the set that was fixed for a batch; empty while none is."""
    row = connection.execute(
        "SELECT digest FROM commitment_sets WHERE batch_id = ? AND revision = ?", (batch_id, revision)
    ).fetchone()
    return b"" if row is None else bytes(row[0])


def fix_set(
    connection: sqlite3.Connection, batch_id: bytes, revision: int, organizations: Iterable[str], digest: bytes,
    now_ms: int,
) -> bool:  # fmt: skip
    """Fix the set of commitments that count, for good; False, and nothing changed, if there is one."""
    changed = connection.execute(
        "INSERT INTO commitment_sets (batch_id, revision, digest, fixed_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (batch_id, revision, digest, now_ms),
    )
    if not changed.rowcount:
        return False
    connection.executemany(
        "UPDATE commitments SET in_set = 1 WHERE batch_id = ? AND revision = ? AND organization = ?",
        [(batch_id, revision, organization) for organization in organizations],
    )
    return True


def set_digests(rows: Iterable[CommitmentRow]) -> dict[str, bytes]:
    """Return the SHA-256 of the commitments that are in the set, by organization."""
    return {row.organization: sha256(row.envelope) for row in rows if row.in_set}


def seal_review(connection: sqlite3.Connection, row: SealedRow) -> SealedRow:
    """Keep what a reviewer commits to, once; returns what is kept: the first."""
    connection.execute(
        "INSERT INTO sealed_reviews (digest, nonce, answer, commitment, sealed_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (row.digest, row.nonce, json.dumps(row.answer), row.commitment, row.sealed_ms),
    )
    return sealed_review(connection, row.digest) or row


def sealed_review(connection: sqlite3.Connection, digest: bytes) -> SealedRow | None:
    """Return what a reviewer has committed to for an offer; None if it has not."""
    row = connection.execute(
        "SELECT digest, nonce, answer, commitment, sealed_ms FROM sealed_reviews WHERE digest = ?", (digest,)
    ).fetchone()
    return None if row is None else SealedRow(row[0], row[1], json.loads(row[2]), row[3], row[4])


def forget_sealed(connection: sqlite3.Connection, before_ms: int, *, limit: int = _PAGE) -> int:
    """Delete at most `limit` (up to 1000) sealed reviews of before a time, and return how many."""
    changed = connection.execute(
        "DELETE FROM sealed_reviews WHERE digest IN"
        " (SELECT digest FROM sealed_reviews WHERE sealed_ms < ? ORDER BY sealed_ms LIMIT ?)",
        (before_ms, min(limit, _PAGE)),
    )
    return changed.rowcount


def _read(row: tuple[Any, ...]) -> CommitmentRow:
    return CommitmentRow(row[0], row[1], row[2], row[3], unpack(row[4]), row[5], bool(row[6]))
