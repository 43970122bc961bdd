"""What is kept of witnessing: the cosignatures that others gave this node's log, and the heads that it cosigned.

Plain functions over a connection, for `Database.transact` and `Database.read`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from comity_node.storage.cosignature import with_cosignatures

_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A witness's cosignature of a checkpoint of this node.

    Attributes:
        size: of the checkpoint.
        witness: the witness's name, as `stlukes.example/node/n1`.
        public_key: its 32-byte Ed25519 key.
        line: the signature line, with its newline.
    """

    size: int
    witness: str
    public_key: bytes
    line: str


@dataclass(frozen=True, slots=True)
class WitnessedHead:
    """The last head of another log that this node cosigned.

    Attributes:
        origin: the log's name.
        organization: whose log it is.
        size: of the tree.
        note: the checkpoint, with the log's signature.
        cosigned_ms: when this node last cosigned it.
        contradictions: how many signed checkpoints that contradict it are in the audit log.
    """

    origin: str
    organization: str
    size: int
    note: str
    cosigned_ms: int
    contradictions: int = 0


def put_cosignature(connection: sqlite3.Connection, cosignature: Cosignature) -> None:
    """Keep a cosignature beside its checkpoint; a later one of the same checkpoint takes its place."""
    connection.execute(
        "INSERT INTO audit_cosignatures (size, witness, public_key, line) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET public_key = excluded.public_key, line = excluded.line",
        (cosignature.size, cosignature.witness, cosignature.public_key, cosignature.line),
    )


def cosigned_size(connection: sqlite3.Connection, witness: str) -> int:
    """Return the size of the largest checkpoint that a witness cosigned, 0 if there is none."""
    row = connection.execute("SELECT max(size) FROM audit_cosignatures WHERE witness = ?", (witness,)).fetchone()
    return int(row[0] or 0)


def cosignatures(connection: sqlite3.Connection, size: int) -> list[Cosignature]:
    """Return the cosignatures of one checkpoint (at most 1000), by witness."""
    rows = connection.execute(
        "SELECT size, witness, public_key, line FROM audit_cosignatures WHERE size = ? ORDER BY witness LIMIT ?",
        (size, _MOST),
    )
    return [Cosignature(int(at), str(name), bytes(key), str(line)) for at, name, key, line in rows]


def newest_by_witness(connection: sqlite3.Connection) -> list[Cosignature]:
    """Return each witness's cosignature of the largest checkpoint that it cosigned (at most 1000), by witness."""
    rows = connection.execute(
        "SELECT max(size), witness, public_key, line FROM audit_cosignatures GROUP BY witness ORDER BY witness LIMIT ?",
        (_MOST,),
    )
    return [Cosignature(int(at), str(name), bytes(key), str(line)) for at, name, key, line in rows]


def cosigned_note(connection: sqlite3.Connection, size: int, *, least: int = 0) -> str | None:
    """Return the checkpoint of `size` with its cosignatures; None if there is none with at least so many."""
    row = connection.execute("SELECT note FROM audit_checkpoints WHERE size = ?", (size,)).fetchone()
    given = cosignatures(connection, size)
    if row is None or len(given) < least:
        return None
    return with_cosignatures(str(row[0]), (each.line for each in given))


def covering_note(connection: sqlite3.Connection, index: int) -> str | None:
    """Return the checkpoint over entry `index` that most witnesses cosigned, the newest of these; None without one."""
    row = connection.execute(
        "SELECT size FROM audit_checkpoints AS c WHERE size > ? ORDER BY"
        " (SELECT count(*) FROM audit_cosignatures AS s WHERE s.size = c.size) DESC, size DESC LIMIT 1",
        (index,),
    ).fetchone()
    return None if row is None else cosigned_note(connection, int(row[0]))


def forget_cosignatures(connection: sqlite3.Connection) -> None:
    """Delete the cosignatures of checkpoints that are gone."""
    connection.execute("DELETE FROM audit_cosignatures WHERE size NOT IN (SELECT size FROM audit_checkpoints)")


def head_of(connection: sqlite3.Connection, origin: str) -> WitnessedHead | None:
    """Return what this node last cosigned of the log `origin`."""
    for found in _heads(connection, "WHERE origin = ?", (origin,)):
        return found
    return None


def heads(connection: sqlite3.Connection) -> list[WitnessedHead]:
    """Return what this node last cosigned of each log (at most 1000), by origin."""
    return list(_heads(connection, "ORDER BY origin LIMIT ?", (_MOST,)))


def put_head(connection: sqlite3.Connection, head: WitnessedHead) -> None:
    """Keep a head in the place of the log's last one. Whoever cosigns it does so after the commit."""
    connection.execute(
        "INSERT INTO witness_heads (origin, organization, size, note, cosigned_ms, contradictions)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET organization = excluded.organization,"
        " size = excluded.size, note = excluded.note, cosigned_ms = excluded.cosigned_ms",
        (head.origin, head.organization, head.size, head.note, head.cosigned_ms, head.contradictions),
    )


def count_contradiction(connection: sqlite3.Connection, origin: str) -> None:
    """Count one more contradiction of a log."""
    connection.execute("UPDATE witness_heads SET contradictions = contradictions + 1 WHERE origin = ?", (origin,))


def count_origins(connection: sqlite3.Connection, organization: str) -> int:
    """Return how many logs of an organization this node witnesses."""
    row = connection.execute("SELECT count(*) FROM witness_heads WHERE organization = ?", (organization,)).fetchone()
    return int(row[0])


def _heads(connection: sqlite3.Connection, where: str, values: Iterable[object]) -> Iterable[WitnessedHead]:
    rows = connection.execute(
        f"SELECT origin, organization, size, note, cosigned_ms, contradictions FROM witness_heads {where}",
        tuple(values),
    )
    for origin, organization, size, note, cosigned_ms, contradictions in rows:
        yield WitnessedHead(str(origin), str(organization), int(size), str(note), int(cosigned_ms), int(contradictions))
