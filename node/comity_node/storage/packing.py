"""Lists of byte strings and of text in one column.

Bytes: each item is a 4-byte big-endian length and the item. Text: a JSON array.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from comity.errors import StorageError

_LENGTH = 4


def pack(items: Iterable[bytes]) -> bytes:
    """Return `items` as one byte string."""
    return b"".join(len(item).to_bytes(_LENGTH, "big") + item for item in items)


def unpack(data: bytes) -> tuple[bytes, ...]:
    """Return the items of a byte string made by `pack`.

    Raises:
        StorageError: the column was not written by `pack`.
    """
    items: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "big")
        if at + _LENGTH > len(data) or end > len(data):
            raise StorageError("a packed list in the database is cut short; restore the database from a backup")
        items.append(data[at + _LENGTH : end])
        at = end
    return tuple(items)


def pack_text(items: Iterable[str]) -> str:
    """Return `items` as a JSON array."""
    return json.dumps(list(items), ensure_ascii=False, separators=(",", ":"))


def unpack_text(data: str) -> tuple[str, ...]:
    """Return the items of a JSON array made by `pack_text`.

    Raises:
        StorageError: the column was not written by `pack_text`.
    """
    try:
        items = json.loads(data)
    except ValueError as error:
        raise StorageError("a list in the database is no JSON; restore the database from a backup") from error
    return tuple(str(item) for item in items)
