"""Revocations of nodes' certificates that this node has verified: in force from the first moment after a restart.

Plain functions over a connection, for `Database.transact` and `Database.read`. What is read is verified again.
"""

from __future__ import annotations

import sqlite3

from comity.revocation import Revocation

_MOST = 100_000


def keep(connection: sqlite3.Connection, revocation: Revocation) -> None:
    """Write a revocation down; of two for one certificate the one that begins earlier stays."""
    connection.execute(
        "INSERT INTO revocations (fingerprint, organization, issued_ms, envelope) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (fingerprint) DO UPDATE SET issued_ms = excluded.issued_ms, envelope = excluded.envelope"
        " WHERE excluded.issued_ms < issued_ms",
        (revocation.fingerprint, revocation.organization, revocation.issued_ms, revocation.raw),
    )


def kept(connection: sqlite3.Connection) -> list[bytes]:
    """Return every revocation as it was signed."""
    rows = connection.execute("SELECT envelope FROM revocations ORDER BY issued_ms LIMIT ?", (_MOST,))
    return [envelope for (envelope,) in rows]
