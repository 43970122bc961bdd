"""The home's side of reviewing: who was asked for a batch, and the votes that came.

Plain functions over a connection, for `Database.transact` and `Database.read`.

Invariants
  R2  one vote per task, revision and organization: the same one again changes nothing.
  S9  a second, different vote on the same record is kept aside with the first: a portable proof against its signer.
"""

from __future__ import annotations

import enum
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from comity.digest import sha256
from comity_node.storage import audit
from comity_node.storage.packing import pack, unpack

_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """A batch in one revision, with one reviewing organization.

    Attributes:
        batch_id: 16 bytes.
        revision: of the batch.
        organization: the reviewer.
        state: "offered", "held" (it has custody), "voted", "refused" or "expired".
        offered_ms: when it was first offered.
        lease_until_ms: until when others need not be asked.
    """

    batch_id: bytes
    revision: int
    organization: str
    state: str
    offered_ms: int
    lease_until_ms: int


@dataclass(frozen=True, slots=True)
class VoteRow:
    """One organization's signed review of one task.

    Attributes:
        task_id: 16 bytes.
        revision: that was reviewed.
        organization: that voted.
        review: the envelope, as received.
        chain: DER certificates of its signer, leaf first.
        accept: the vote.
        score: 0 to 10000.
        received_ms: when it came.
        subject: `vote_subject` of what was reviewed; empty where all votes on a task's revision that come this far are
            about one record, agreement and epoch.
    """

    task_id: bytes
    revision: int
    organization: str
    review: bytes
    chain: tuple[bytes, ...]
    accept: bool
    score: int
    received_ms: int
    subject: bytes = b""


@dataclass(frozen=True, slots=True)
class EquivocationRow:
    """Two reviews of one record that one organization signed, with different votes or scores."""

    task_id: bytes
    revision: int
    organization: str
    first_review: bytes
    second_review: bytes
    chain: tuple[bytes, ...]
    received_ms: int


class Added(enum.Enum):
    """What became of something that may be there only once."""

    NEW = "new"
    SAME = "same"
    DIFFERENT = "different"


_ASSIGNMENT: Final = "batch_id, revision, organization, state, offered_ms, lease_until_ms"
_VOTE: Final = "task_id, revision, organization, review, chain, accept, score, received_ms, subject"
_EQUIVOCATION: Final = "task_id, revision, organization, first_review, second_review, chain, received_ms"


def put_assignment(connection: sqlite3.Connection, row: AssignmentRow) -> bool:
    """Store who is asked for a batch; False, and nothing changed, if it was asked before."""
    changed = connection.execute(
        f"INSERT INTO assignments ({_ASSIGNMENT}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (row.batch_id, row.revision, row.organization, row.state, row.offered_ms, row.lease_until_ms),
    )
    return changed.rowcount == 1


def update_assignment(connection: sqlite3.Connection, row: AssignmentRow, *, state: str) -> bool:
    """Set an assignment's state and lease to those of `row` if it still has `state`; False if it has gone on."""
    changed = connection.execute(
        "UPDATE assignments SET state = ?, lease_until_ms = ?"
        " WHERE batch_id = ? AND revision = ? AND organization = ? AND state = ?",
        (row.state, row.lease_until_ms, row.batch_id, row.revision, row.organization, state),
    )
    return changed.rowcount == 1


def list_assignments(connection: sqlite3.Connection, batch_id: bytes, revision: int) -> list[AssignmentRow]:
    """Return who was asked for a batch (up to 1000), by organization."""
    rows = connection.execute(
        f"SELECT {_ASSIGNMENT} FROM assignments WHERE batch_id = ? AND revision = ? ORDER BY organization LIMIT ?",
        (batch_id, revision, _MAX_PAGE),
    )
    return [AssignmentRow(*row) for row in rows]


def vote_subject(record_digest: bytes, agreement_digest: bytes, bundle_epoch: int) -> bytes:
    """Return the 32-byte digest of what a review is about: a record, under an agreement, in an epoch of the trust."""
    return sha256(pack((record_digest, agreement_digest, bundle_epoch.to_bytes(8, "big"))))


def add_vote(connection: sqlite3.Connection, vote: VoteRow) -> Added:
    """Store a vote, once.

    Returns:
        NEW if it was stored; SAME if one of the same organization is there that is about the same and says the same
        (signed anew, perhaps); DIFFERENT if one is there that does not: that one stays. If both are about the same
        record, agreement and epoch and accept or score differs, the first such pair is kept as an equivocation: an
        honest reviewer signs no such two. Reviews of two records prove nothing against who signed them.

    Raises:
        sqlite3.IntegrityError: there is no such task (`StorageError` out of `Database.transact`).
    """
    key = (vote.task_id, vote.revision, vote.organization)
    stored = connection.execute(
        "SELECT review, subject, accept, score FROM votes WHERE task_id = ? AND revision = ? AND organization = ?", key
    ).fetchone()
    if stored is None:
        connection.execute(
            f"INSERT INTO votes ({_VOTE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, vote.review, pack(vote.chain), int(vote.accept), vote.score, vote.received_ms, vote.subject),
        )
        return Added.NEW
    first_review, subject, *said = stored
    if subject != vote.subject:
        return Added.DIFFERENT
    if said == [int(vote.accept), vote.score]:
        return Added.SAME
    kept = connection.execute(
        f"INSERT INTO equivocations ({_EQUIVOCATION}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (*key, first_review, vote.review, pack(vote.chain), vote.received_ms),
    )
    if kept.rowcount:
        audit.append(connection, _equivocation(vote, first_review), vote.received_ms)
    return Added.DIFFERENT


def _equivocation(vote: VoteRow, first_review: bytes) -> audit.AuditEntry:
    """What the audit log says of two signed reviews; `comity audit evidence` has the reviews themselves."""
    return audit.AuditEntry(
        kind="evidence",
        action="review.equivocation",
        peer=vote.organization,
        subject=sha256(vote.review),
        detail={"task": vote.task_id.hex(), "revision": vote.revision, "other": sha256(first_review).hex()},
    )


def get_vote(connection: sqlite3.Connection, task_id: bytes, revision: int, organization: str) -> VoteRow | None:
    """Return the vote of an organization on a task's revision that counts; None if it has not voted."""
    row = connection.execute(
        f"SELECT {_VOTE} FROM votes WHERE task_id = ? AND revision = ? AND organization = ?",
        (task_id, revision, organization),
    ).fetchone()
    return None if row is None else _vote(row)


def batch_votes(connection: sqlite3.Connection, batch_id: bytes, revision: int) -> dict[bytes, list[VoteRow]]:
    """Return the votes on all tasks of a batch, by task id, each by organization."""
    columns = ", ".join(f"votes.{name}" for name in _VOTE.split(", "))
    rows = connection.execute(
        f"SELECT {columns} FROM tasks JOIN votes ON votes.task_id = tasks.task_id AND votes.revision = ?"
        " WHERE tasks.batch_id = ? ORDER BY tasks.ordinal, votes.organization",
        (revision, batch_id),
    )
    votes: dict[bytes, list[VoteRow]] = {}
    for row in rows:
        vote = _vote(row)
        votes.setdefault(vote.task_id, []).append(vote)
    return votes


def list_equivocations(
    connection: sqlite3.Connection, organization: str | None = None, *, limit: int = _MAX_PAGE
) -> list[EquivocationRow]:
    """Return the newest `limit` (up to 1000) equivocations, of one organization or of all, newest first."""
    rows = connection.execute(
        f"SELECT {_EQUIVOCATION} FROM equivocations WHERE organization = coalesce(?, organization)"
        " ORDER BY received_ms DESC, task_id LIMIT ?",
        (organization, min(limit, _MAX_PAGE)),
    )
    return [EquivocationRow(*(*row[:5], unpack(row[5]), row[6])) for row in rows]


def _vote(row: tuple[Any, ...]) -> VoteRow:
    task_id, revision, organization, review, chain, accept, score, received_ms, subject = row
    return VoteRow(task_id, revision, organization, review, unpack(chain), bool(accept), score, received_ms, subject)
