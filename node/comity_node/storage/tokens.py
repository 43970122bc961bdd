"""Tokens in this node's custody: held for other homes, and on their way out.

Plain functions over a connection, for `Database.transact` and `Database.read`; each takes a whole batch.

Invariants
  R1  a token is here, committed, from before its receipt leaves until somebody else has it in custody.
  R2  the last visit of a task is remembered until its deadline: one that comes again is known.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from comity_node.protocol.token import Key, Token
from comity_node.protocol.token_wire import of_bytes, to_bytes
from comity_node.storage.packing import pack, unpack

#: Nodes whose chains are kept: the oldest goes.
_MAX_SIGNERS: Final = 4096
#: Visits that are forgotten in one transaction.
_MAX_FORGOTTEN: Final = 1000
_KEY: Final = "home = ? AND task_id = ? AND attempt = ? AND sequence = ?"


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A token of another home in custody, and who brought it."""

    token: Token
    sender: str


@dataclass(frozen=True, slots=True)
class OutRow:
    """A token on its way out.

    Attributes:
        token: as it leaves, once `passed`.
        to: the organization that gets it.
        role: what it is to do with it.
        passed: whether the gate has let it pass.
    """

    token: Token
    to: str
    role: str
    passed: bool = False


def hold(connection: sqlite3.Connection, rows: Sequence[HeldRow]) -> None:
    """Take tokens into custody, and remember each as the last visit of its task; one that is here stays as it is."""
    connection.executemany(
        "INSERT INTO tokens_held (home, task_id, attempt, sequence, agreement_digest, sender, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(*row.token.key, row.token.agreement, row.sender, to_bytes(row.token)) for row in rows],
    )
    connection.executemany(
        "INSERT INTO tokens_seen (home, task_id, attempt, sequence, deadline_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET attempt = excluded.attempt, sequence = excluded.sequence,"
        " deadline_ms = max(deadline_ms, excluded.deadline_ms)"
        " WHERE (excluded.attempt, excluded.sequence) > (attempt, sequence)",
        [(*row.token.key, row.token.deadline_ms) for row in rows],
    )


def release_held(connection: sqlite3.Connection, keys: Iterable[Key]) -> None:
    """Delete tokens whose visits are done."""
    connection.executemany(f"DELETE FROM tokens_held WHERE {_KEY}", keys)


def put_out(connection: sqlite3.Connection, rows: Sequence[OutRow]) -> None:
    """Put tokens on their way out; one with the same key is replaced."""
    connection.executemany(
        "INSERT OR REPLACE INTO tokens_out (home, task_id, attempt, sequence, agreement_digest, to_organization, role,"
        " passed, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*row.token.key, row.token.agreement, row.to, row.role, row.passed, to_bytes(row.token)) for row in rows],
    )


def set_passed(connection: sqlite3.Connection, rows: Sequence[tuple[Key, Token | None]]) -> None:
    """Put what passed the gate in the place of outgoing tokens (None: it has not passed); one that is gone stays so."""
    connection.executemany(
        f"UPDATE tokens_out SET passed = 1, body = ? WHERE {_KEY}",
        [(to_bytes(token), *key) for key, token in rows if token is not None],
    )
    if refused := [key for key, token in rows if token is None]:
        connection.executemany(f"UPDATE tokens_out SET passed = 0 WHERE {_KEY}", refused)


def release_out(connection: sqlite3.Connection, keys: Iterable[Key]) -> None:
    """Delete outgoing tokens: somebody else has them, or nobody needs them."""
    connection.executemany(f"DELETE FROM tokens_out WHERE {_KEY}", keys)


def release_out_of(connection: sqlite3.Connection, home: str, tasks: Iterable[bytes]) -> None:
    """Delete all outgoing tokens of tasks of one home."""
    connection.executemany("DELETE FROM tokens_out WHERE home = ? AND task_id = ?", [(home, task) for task in tasks])


def all_held(connection: sqlite3.Connection) -> list[HeldRow]:
    """Return the tokens in custody: as many as the engine took, which bounds them."""
    rows = connection.execute("SELECT agreement_digest, sender, body FROM tokens_held")
    return [HeldRow(of_bytes(body, agreement), sender) for agreement, sender, body in rows]


def all_out(connection: sqlite3.Connection) -> list[OutRow]:
    """Return the outgoing tokens: as many as the engine put out, which bounds them."""
    rows = connection.execute("SELECT agreement_digest, body, to_organization, role, passed FROM tokens_out")
    return [OutRow(of_bytes(body, agreement), to, role, bool(passed)) for agreement, body, to, role, passed in rows]


def seen(connection: sqlite3.Connection, now_ms: int) -> dict[tuple[str, bytes], tuple[int, int, int]]:
    """Return (attempt, sequence, deadline) of the last visit of each task that is not past its deadline."""
    rows = connection.execute(
        "SELECT home, task_id, attempt, sequence, deadline_ms FROM tokens_seen WHERE deadline_ms > ?", (now_ms,)
    )
    return {(home, task_id): (attempt, sequence, deadline) for home, task_id, attempt, sequence, deadline in rows}


def forget_seen(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_FORGOTTEN) -> int:
    """Delete at most `limit` (up to 1000) visits that are past their deadline, and return how many."""
    changed = connection.execute(
        "DELETE FROM tokens_seen WHERE (home, task_id) IN"
        " (SELECT home, task_id FROM tokens_seen WHERE deadline_ms <= ? ORDER BY deadline_ms LIMIT ?)",
        (now_ms, min(limit, _MAX_FORGOTTEN)),
    )
    return changed.rowcount


def drop_agreement(connection: sqlite3.Connection, agreement: bytes) -> tuple[int, int]:
    """Delete what is held and what is to leave under an agreement that is over; returns how many of each."""
    held = connection.execute("DELETE FROM tokens_held WHERE agreement_digest = ?", (agreement,)).rowcount
    out = connection.execute("DELETE FROM tokens_out WHERE agreement_digest = ?", (agreement,)).rowcount
    return held, out


def count_held(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many tokens this node holds of each home."""
    rows = connection.execute("SELECT home, count(*) FROM tokens_held GROUP BY home")
    return {str(home): int(count) for home, count in rows}


def put_signers(connection: sqlite3.Connection, chains: Mapping[bytes, Sequence[bytes]], now_ms: int) -> None:
    """Keep the chains of nodes by their keys; of too many, those that were seen longest ago go."""
    connection.executemany(
        "INSERT INTO hop_signers (signer, chain, seen_ms) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET chain = excluded.chain, seen_ms = excluded.seen_ms",
        [(signer, pack(chain), now_ms) for signer, chain in chains.items()],
    )
    connection.execute(
        "DELETE FROM hop_signers WHERE signer IN (SELECT signer FROM hop_signers ORDER BY seen_ms DESC LIMIT -1"
        " OFFSET ?)",
        (_MAX_SIGNERS,),
    )


def all_signers(connection: sqlite3.Connection) -> dict[bytes, tuple[bytes, ...]]:
    """Return the chains that are kept, by the nodes' keys."""
    rows = connection.execute("SELECT signer, chain FROM hop_signers LIMIT ?", (_MAX_SIGNERS,))
    return {bytes(signer): unpack(chain) for signer, chain in rows}
