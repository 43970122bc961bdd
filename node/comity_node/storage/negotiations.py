"""Negotiations under way, what this node has signed, and what ended agreements.

Plain functions over a connection, for `Database.transact` and `Database.read`.

Invariants
  R1  a signature leaves only after it is here; a negotiation goes on after a restart where it stood.
  R2  one set of terms for an id: `put_promise` keeps the first one, whoever comes second, until the terms have expired.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from comity.errors import Busy
from comity_node.storage import packing

_MAX_PAGE: Final = 1000
#: Terms that one organization has proposed, this node has signed, and that may still bind it.
_MAX_OPEN_OF_ONE: Final = 100
#: All promises of one organization's ids, those that it has given up included, until the terms have expired.
_MAX_OF_ONE: Final = 1_000


@dataclass(frozen=True, slots=True)
class NegotiationRow:
    """A negotiation that this node has begun.

    Attributes:
        workflow_id: what it is for.
        agreement_id: of the terms.
        phase: where it stands: a `protocol.negotiation.Phase`.
        round: how many revisions were proposed.
        terms: the latest of them.
        participants: the other organizations.
        ends_ms: when it fails at the latest.
    """

    workflow_id: str
    agreement_id: str
    phase: str
    round: int
    terms: bytes
    participants: tuple[str, ...]
    ends_ms: int


@dataclass(frozen=True, slots=True)
class PromiseRow:
    """What this node has signed.

    Attributes:
        agreement_id: of the terms.
        initiator: who proposed them.
        digest: SHA-256 of the terms.
        terms: as they were signed.
        envelope: the signature.
        chain: of the node's certificate.
        replaces: digest of the agreement that these terms would take the place of; empty for none.
        stage: what is known of them: a `protocol.negotiation_promise.Stage`.
        signed_ms: when.
        ends_ms: when the terms expire.
        asks: how often somebody was asked what became of them.
        ask_ms: when to ask again.
    """

    agreement_id: str
    initiator: str
    digest: bytes
    terms: bytes
    envelope: bytes
    chain: tuple[bytes, ...]
    replaces: bytes
    stage: str
    signed_ms: int
    ends_ms: int
    asks: int = 0
    ask_ms: int = 0


@dataclass(frozen=True, slots=True)
class WithdrawalRow:
    """A verified statement that ended an agreement; `statement` is a `SignedWithdrawal`."""

    agreement_digest: bytes
    organization: str
    statement: bytes
    reason: str
    at_ms: int
    received_ms: int


_NEGOTIATION: Final = "workflow_id, agreement_id, phase, round, terms, participants, ends_ms"
_PROMISE: Final = (
    "agreement_id, initiator, digest, terms, envelope, chain, replaces, stage, signed_ms, ends_ms, asks, ask_ms"
)


def save_negotiation(connection: sqlite3.Connection, row: NegotiationRow) -> None:
    """Write down where a negotiation stands, over what was there."""
    connection.execute(
        f"INSERT INTO negotiations ({_NEGOTIATION}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (workflow_id) DO UPDATE SET agreement_id = excluded.agreement_id,"
        " phase = excluded.phase, round = excluded.round, terms = excluded.terms,"
        " participants = excluded.participants, ends_ms = excluded.ends_ms",
        (
            row.workflow_id,
            row.agreement_id,
            row.phase,
            row.round,
            row.terms,
            packing.pack_text(row.participants),
            row.ends_ms,
        ),
    )


def get_negotiation(connection: sqlite3.Connection, workflow_id: str) -> NegotiationRow | None:
    """Return where the negotiation of a workflow stands, None if none is under way."""
    row = connection.execute(
        f"SELECT {_NEGOTIATION} FROM negotiations WHERE workflow_id = ?", (workflow_id,)
    ).fetchone()
    return None if row is None else _negotiation(row)


def list_negotiations(connection: sqlite3.Connection) -> list[NegotiationRow]:
    """Return at most 1000 negotiations that are under way."""
    rows = connection.execute(f"SELECT {_NEGOTIATION} FROM negotiations LIMIT ?", (_MAX_PAGE,))
    return [_negotiation(row) for row in rows]


def end_negotiation(connection: sqlite3.Connection, workflow_id: str) -> None:
    """Forget the negotiation of a workflow: it has concluded or failed."""
    connection.execute("DELETE FROM negotiations WHERE workflow_id = ?", (workflow_id,))


def _negotiation(row: tuple[str, str, str, int, bytes, str, int]) -> NegotiationRow:
    workflow_id, agreement_id, phase, number, terms, participants, ends_ms = row
    names = packing.unpack_text(participants)
    return NegotiationRow(workflow_id, agreement_id, phase, number, terms, names, ends_ms)


def put_promise(connection: sqlite3.Connection, row: PromiseRow, now_ms: int) -> bool:
    """Keep a signature before it leaves; False, and nothing changed, if there is one under the agreement's id.

    Raises:
        Busy: as many terms of the initiator are signed as may be.
    """
    if get_promise(connection, row.agreement_id) is not None:
        return False
    _check_room(connection, row.initiator, now_ms)
    connection.execute(
        f"INSERT INTO promises ({_PROMISE}) VALUES ({', '.join('?' * 12)})",
        (
            row.agreement_id,
            row.initiator,
            row.digest,
            row.terms,
            row.envelope,
            packing.pack(row.chain),
            row.replaces,
            row.stage,
            row.signed_ms,
            row.ends_ms,
            row.asks,
            row.ask_ms,
        ),
    )
    return True


def _check_room(connection: sqlite3.Connection, initiator: str, now_ms: int) -> None:
    count = "SELECT count(*) FROM promises WHERE initiator = ?"
    binding = connection.execute(f"{count} AND stage <> 'released' AND ends_ms > ?", (initiator, now_ms)).fetchone()[0]
    kept = connection.execute(count, (initiator,)).fetchone()[0]
    if binding >= _MAX_OPEN_OF_ONE or kept >= _MAX_OF_ONE:
        raise Busy(f"as many terms of {initiator} are signed here as may be", retry_after_ms=60_000)


def save_promise(connection: sqlite3.Connection, row: PromiseRow) -> None:
    """Write down what is known of terms that this node has signed."""
    connection.execute(
        "UPDATE promises SET stage = ?, asks = ?, ask_ms = ? WHERE agreement_id = ? AND digest = ?",
        (row.stage, row.asks, row.ask_ms, row.agreement_id, row.digest),
    )


def get_promise(connection: sqlite3.Connection, agreement_id: str) -> PromiseRow | None:
    """Return what this node has signed under an agreement's id, None if nothing."""
    row = connection.execute(f"SELECT {_PROMISE} FROM promises WHERE agreement_id = ?", (agreement_id,)).fetchone()
    return None if row is None else _promise(row)


def promise_of(connection: sqlite3.Connection, digest: bytes) -> PromiseRow | None:
    """Return the signed terms with this digest, None if this node has not signed them."""
    row = connection.execute(f"SELECT {_PROMISE} FROM promises WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else _promise(row)


def open_promises(
    connection: sqlite3.Connection, *, due_ms: int | None = None, limit: int = _MAX_PAGE
) -> list[PromiseRow]:
    """Return promises of which it is not known that they were concluded, the one that is due first at the head.

    Args:
        connection: the database.
        due_ms: only those that are to be asked about at this time and have not expired then; None: all.
        limit: at most so many (up to 1000).
    """
    rows = connection.execute(
        f"SELECT {_PROMISE} FROM promises WHERE stage <> 'concluded'"
        " AND (?1 IS NULL OR (ask_ms <= ?1 AND ends_ms > ?1)) ORDER BY ask_ms LIMIT ?2",
        (due_ms, min(limit, _MAX_PAGE)),
    )
    return [_promise(row) for row in rows]


def is_amended(connection: sqlite3.Connection, replaces: bytes, now_ms: int) -> bool:
    """Whether this node has signed terms that take the place of an agreement, and that may still be concluded."""
    found = connection.execute(
        "SELECT 1 FROM promises WHERE replaces = ? AND stage <> 'released' AND ends_ms > ?", (replaces, now_ms)
    ).fetchone()
    return found is not None


def forget_promises(connection: sqlite3.Connection, before_ms: int, *, limit: int = _MAX_PAGE) -> int:
    """Delete at most `limit` (up to 1000) promises whose terms expired before `before_ms`; returns how many."""
    return connection.execute(
        "DELETE FROM promises WHERE agreement_id IN (SELECT agreement_id FROM promises WHERE ends_ms < ? LIMIT ?)",
        (before_ms, min(limit, _MAX_PAGE)),
    ).rowcount


def _promise(row: Any) -> PromiseRow:  # noqa: ANN401  (a row of the columns above)
    agreement_id, initiator, digest, terms, envelope, chain, *rest = row
    return PromiseRow(agreement_id, initiator, digest, terms, envelope, packing.unpack(chain), *rest)


def put_withdrawal(connection: sqlite3.Connection, row: WithdrawalRow) -> bool:
    """Keep a statement; False, and nothing changed, if there is one of its organization about this agreement."""
    changed = connection.execute(
        "INSERT INTO withdrawals (agreement_digest, organization, statement, reason, at_ms, received_ms)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (row.agreement_digest, row.organization, row.statement, row.reason, row.at_ms, row.received_ms),
    )
    return changed.rowcount == 1


def withdrawals_from(connection: sqlite3.Connection, digest: bytes) -> list[WithdrawalRow]:
    """Return who withdrew from an agreement, the first one first."""
    rows = connection.execute(
        "SELECT agreement_digest, organization, statement, reason, at_ms, received_ms FROM withdrawals"
        " WHERE agreement_digest = ? ORDER BY received_ms, organization",
        (digest,),
    )
    return [WithdrawalRow(*row) for row in rows]


def withdrawn_from(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_PAGE) -> list[WithdrawalRow]:
    """Return the statements about at most `limit` (up to 1000) agreements that have not expired, in no order."""
    rows = connection.execute(
        "SELECT agreement_digest, organization, statement, reason, at_ms, received_ms"
        " FROM withdrawals JOIN agreements ON digest = agreement_digest WHERE expires_ms > ? LIMIT ?",
        (now_ms, min(limit, _MAX_PAGE)),
    )
    return [WithdrawalRow(*row) for row in rows]
