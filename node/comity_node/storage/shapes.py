"""The requests that decisions were made about: each distinct one once, named by its SHA-256.

Plain functions over a connection, for `Database.transact` and `Database.read`. A decision's audit entry names the
digest; the bytes stand here, so that the decision can be asked again. Rows are never changed and never deleted.
"""

from __future__ import annotations

import sqlite3
from typing import Final

#: Distinct requests of one organization that are kept, and bytes of one.
_MAX_PER_ORGANIZATION: Final = 1024
_MAX_SHAPE: Final = 16 * 1024


def put_shape(connection: sqlite3.Connection, digest: bytes, shape: bytes, organization: str) -> bool:
    """Store a request's bytes.

    A request of over 16 KiB, and one that its organization has no room for (1,024 distinct ones), is left out: the
    decision about it stands in the audit log with the request's digest all the same.

    Returns:
        Whether it is stored now.
    """
    if len(shape) > _MAX_SHAPE:
        return False
    if get_shape(connection, digest) is not None:
        return True
    count = "SELECT count(*) FROM request_shapes WHERE organization = ?"
    if connection.execute(count, (organization,)).fetchone()[0] >= _MAX_PER_ORGANIZATION:
        return False
    connection.execute(
        "INSERT INTO request_shapes (digest, organization, shape) VALUES (?, ?, ?)", (digest, organization, shape)
    )
    return True


def get_shape(connection: sqlite3.Connection, digest: bytes) -> bytes | None:
    """Return the bytes of the request with this SHA-256, None if they are not here."""
    row = connection.execute("SELECT shape FROM request_shapes WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else bytes(row[0])
