"""Verified evidence that organizations lied (`comity.evidence`), found here or heard of.

Plain functions over a connection, for `Database.transact` and `Database.read`. Only what `verify_evidence` has let pass
comes here.

Invariants
  S9  without a verified evidence nobody is suspended.
  S7  of one organization so many are kept: one is enough to suspend it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from comity.evidence import Proven
from comity_node.storage import audit

#: Evidence of one organization: one is enough, more tell how it went on.
PER_ORGANIZATION: Final = 64
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """An evidence that this node has verified.

    Attributes:
        organization: who contradicted itself.
        kind: "votes", "commitments" or "opening".
        subject: 32 bytes: what it is about.
        proof: the evidence, for `comity.evidence.verify_evidence`.
        signed_ms: when the later of the two documents was signed, by its signer's clock.
        known_ms: since when this node knows it.
        until_ms: until when it has this node suspend the organization.
    """

    organization: str
    kind: str
    subject: bytes
    proof: bytes
    signed_ms: int
    known_ms: int
    until_ms: int


_COLUMNS: Final = "organization, kind, subject, proof, signed_ms, known_ms, until_ms"


def add_evidence(connection: sqlite3.Connection, proven: Proven, now_ms: int, suspension_ms: int) -> bool:
    """Keep a verified evidence, with an entry in the audit log; False if it adds nothing.

    Over `PER_ORGANIZATION` the oldest goes: who goes on lying stays suspended.
    """
    changed = connection.execute(
        f"INSERT INTO evidence ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (proven.organization, proven.kind, proven.subject, proven.raw, proven.at_ms, now_ms, now_ms + suspension_ms),
    )
    if not changed.rowcount:
        return False
    connection.execute(
        "DELETE FROM evidence WHERE organization = ? AND (kind, subject) NOT IN (SELECT kind, subject FROM evidence"
        " WHERE organization = ? ORDER BY known_ms DESC, signed_ms DESC LIMIT ?)",
        (proven.organization, proven.organization, PER_ORGANIZATION),
    )
    entry = audit.AuditEntry(
        kind="evidence",
        action=f"equivocation.{proven.kind}",
        peer=proven.organization,
        subject=proven.subject,
        detail={"signed_ms": proven.at_ms},
    )
    audit.append(connection, entry, now_ms)
    return True


def list_evidence(connection: sqlite3.Connection, *, limit: int = _PAGE) -> list[EvidenceRow]:
    """Return the newest `limit` (up to 1000) pieces of evidence, newest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM evidence ORDER BY known_ms DESC, organization LIMIT ?", (min(limit, _PAGE),)
    )
    return [EvidenceRow(*row) for row in rows]


def suspended(connection: sqlite3.Connection, now_ms: int) -> dict[str, int]:
    """Return who is suspended now, and until when (milliseconds since the Unix epoch)."""
    rows = connection.execute(
        "SELECT organization, max(until_ms) FROM evidence WHERE until_ms > ? GROUP BY organization", (now_ms,)
    )
    return {str(organization): int(until_ms) for organization, until_ms in rows}
