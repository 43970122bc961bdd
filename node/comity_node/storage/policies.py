"""The policies that a node has decided by: each once, named by its digest, with the schemas that it read.

Plain functions over a connection, for `Database.transact` and `Database.read`. Rows are never changed and never
deleted, so that a decision in the audit log can be explained by the policy that made it.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Mapping
from typing import Final

from comity.errors import StorageError
from comity_node.storage.packing import pack, unpack

#: Bytes that the files of one policy may have when they are read back; a policy and a schema have 1 MiB at most.
_MAX_FILES: Final = 64 << 20


def put_policy(connection: sqlite3.Connection, digest: bytes, source: str, files: Mapping[str, bytes]) -> bool:
    """Store the files of a policy; False if they are stored already.

    Args:
        connection: the node's database.
        digest: 32 bytes, the policy's own.
        source: the file that it came from, for messages.
        files: the bytes of the policy under "", those of its schemas under their paths as written.
    """
    packed = zlib.compress(pack(part for name, data in sorted(files.items()) for part in (name.encode(), data)))
    changed = connection.execute(
        "INSERT INTO policies (digest, source, files) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING",
        (digest, source, packed),
    )
    return changed.rowcount == 1


def get_policy(connection: sqlite3.Connection, digest: bytes) -> tuple[str, dict[str, bytes]] | None:
    """Return a policy's source and files, None if it is not here.

    Raises:
        StorageError: the row was not written by `put_policy`.
    """
    row = connection.execute("SELECT source, files FROM policies WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        return None
    inflate = zlib.decompressobj()
    try:
        packed = inflate.decompress(row[1], _MAX_FILES)
        if not inflate.eof:
            raise StorageError(f"the files of policy {digest.hex()} have over {_MAX_FILES} bytes")
        parts = unpack(packed)
        names = [name.decode() for name in parts[::2]]
        return str(row[0]), dict(zip(names, parts[1::2], strict=True))
    except (zlib.error, ValueError) as error:
        raise StorageError(f"the files of policy {digest.hex()} are damaged; restore the database") from error
