"""An audit log as a text file: JSON lines that any tool reads and `verify_log` verifies without the database.

The first line says what follows; then come the checkpoints, the cosignatures, and the entries, oldest first. The line
of an entry is the entry's own bytes, so SHA-256(0x00 || line) is its leaf hash.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from comity import merkle
from comity.errors import AuditBroken, StorageError
from comity_node.storage.audit_tree import head
from comity_node.storage.audit_verify import Log
from comity_node.storage.witness import Cosignature

_VERSION: Final = 1
_MAX_LINE: Final = 128 * 1024


def export_lines(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Yield the lines of an export, each with its newline. The connection is in one transaction the while."""
    notes = connection.execute("SELECT size, note FROM audit_checkpoints ORDER BY size").fetchall()
    given = connection.execute(
        "SELECT size, witness, public_key, line FROM audit_cosignatures ORDER BY size, witness"
    ).fetchall()
    tree = head(connection)
    counts = {"checkpoints": len(notes), "cosignatures": len(given), "entries": tree.size}
    yield _line({"comity_audit_export": _VERSION, **counts, "root": tree.root().hex()})
    for size, note in notes:
        yield _line({"checkpoint": note, "size": size})
    for size, name, key, line in given:
        yield _line({"cosignature": line, "public_key": key.hex(), "size": size, "witness": name})
    for (data,) in connection.execute("SELECT entry FROM audit_entries ORDER BY position"):
        yield bytes(data) + b"\n"


@contextmanager
def open_export(path: Path) -> Iterator[Log]:
    """Open an exported log, for `verify_log`.

    Raises:
        AuditBroken: it is no export; while it is verified, also that it is shorter or longer than its first line says.
        StorageError: the file cannot be read, now or while the log is verified.
    """
    try:
        with path.open("rb") as file:
            yield _read(file)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _read(file: IO[bytes]) -> Log:
    first = _object(file)
    try:
        if first["comity_audit_export"] != _VERSION:
            raise AuditBroken("the export is of another version; use the comity that wrote it")
        counts = [int(first[each]) for each in ("checkpoints", "cosignatures", "entries")]
        notes = [_object(file) for _ in range(counts[0])]
        given = [_object(file) for _ in range(counts[1])]
        return Log(
            rows=_rows(file, counts[2]),
            notes=[(int(each["size"]), str(each["checkpoint"])) for each in notes],
            cosignatures=[_cosignature(each) for each in given],
            root=_bytes(first["root"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AuditBroken("this is no export of an audit log: a field is missing or has the wrong type") from error


def _rows(file: IO[bytes], count: int) -> Iterator[tuple[int, bytes, bytes]]:
    for index in range(count):
        data = _next(file)
        yield index, data, merkle.leaf_hash(data)
    if file.read(1):
        raise AuditBroken(f"there is more in the file than the {count} entries of its first line", index=count)


def _object(file: IO[bytes]) -> dict[str, Any]:
    line = _next(file)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AuditBroken("this is no export of an audit log: a line is no JSON") from error
    if not isinstance(value, dict) or _line(value) != line + b"\n":
        raise AuditBroken("this is no export of an audit log: a line is no JSON object in its one form")
    return value


def _cosignature(line: dict[str, Any]) -> Cosignature:
    return Cosignature(int(line["size"]), str(line["witness"]), _bytes(line["public_key"]), str(line["cosignature"]))


def _bytes(text: str) -> bytes:
    value = bytes.fromhex(text)
    if value.hex() != text:
        raise ValueError("bytes are written in small hex digits")
    return value


def _next(file: IO[bytes]) -> bytes:
    line = file.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        raise AuditBroken("the export ends early, or has a line that is too long")
    return line[:-1]


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
