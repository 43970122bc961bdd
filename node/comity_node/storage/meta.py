"""Small values that a node keeps: the bundle's epoch, the freshness high-water mark.

Plain functions over a connection, for `Database.transact` and `Database.read`.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from comity.errors import StorageError

_MAX_VALUE: Final = 64 * 1024
_INTEGER_BYTES: Final = 8


def get_meta(connection: sqlite3.Connection, key: str) -> bytes | None:
    """Return the value of `key`, None if there is none."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else bytes(row[0])


def set_meta(connection: sqlite3.Connection, key: str, value: bytes) -> None:
    """Set the value of `key`.

    Raises:
        StorageError: the value has more than 64 KiB.
    """
    if len(value) > _MAX_VALUE:
        raise StorageError(f"the value of {key} has {len(value)} bytes and may have {_MAX_VALUE}")
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )


def get_number(connection: sqlite3.Connection, key: str) -> int:
    """Return the number kept under `key`, 0 if there is none."""
    value = get_meta(connection, key)
    return 0 if value is None else int.from_bytes(value, "big", signed=True)


def raise_number(connection: sqlite3.Connection, key: str, number: int) -> int:
    """Set the number under `key` if it is larger than what is there, and return what is there then.

    A high-water mark or an epoch never goes back, whatever order its writers come in.
    """
    current = get_number(connection, key)
    if number <= current:
        return current
    set_meta(connection, key, number.to_bytes(_INTEGER_BYTES, "big", signed=True))
    return number
