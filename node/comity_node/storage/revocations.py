"""Revocations of nodes' certificates that this node has verified: in force from the first moment after a restart.

Plain functions over a connection, for `Database.transact` and `Database.read`. What is read is verified again.
"""

from __future__ import annotations

import sqlite3

from comity.revocation import Revocation
from comity_node.storage import audit
from comity_node.storage.audit import AuditEntry

_MOST = 100_000


def keep(connection: sqlite3.Connection, revocation: Revocation, now_ms: int) -> None:
    """Write a revocation down, in the audit log, too; of two for one certificate the one that begins earlier stays.

    The refusal itself does not wait for this: it only takes away.
    """
    changed = connection.execute(
        "INSERT INTO revocations (fingerprint, organization, issued_ms, envelope) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (fingerprint) DO UPDATE SET issued_ms = excluded.issued_ms, envelope = excluded.envelope"
        " WHERE excluded.issued_ms < issued_ms",
        (revocation.fingerprint, revocation.organization, revocation.issued_ms, revocation.raw),
    )
    if changed.rowcount:
        entry = AuditEntry(
            kind="key",
            action="certificate.revoked",
            peer=revocation.organization,
            subject=revocation.fingerprint,
            detail={"from_ms": revocation.issued_ms},
        )
        audit.append(connection, entry, now_ms)


def kept(connection: sqlite3.Connection) -> list[bytes]:
    """Return every revocation as it was signed."""
    rows = connection.execute("SELECT envelope FROM revocations ORDER BY issued_ms LIMIT ?", (_MOST,))
    return [envelope for (envelope,) in rows]
