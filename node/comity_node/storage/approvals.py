"""What a person has to approve before it may happen, and what was decided.

Plain functions over a connection, for `Database.transact` and `Database.read`. An approval is about a rule, an action,
an organization and a scope: the agreement that it happens under, or else what it is about. There is one row for each of
these; its audit entries tell what became of it over time.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import Final, Literal

from comity.errors import NotFound

State = Literal["pending", "approved", "denied", "expired"]

#: Approvals that one organization may wait for at a time, and what is over that is kept of it.
MAX_PENDING: Final = 64
_MAX_KEPT: Final = 1024
_MAX_PAGE: Final = 1000
_COLUMNS: Final = (
    "approval_id, rule_id, action, organization, scope, request, purpose, dataset, state, reason, asked_ms,"
    " deadline_ms, decided_ms"
)


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """One approval.

    Attributes:
        approval_id: 16 bytes.
        rule: the rule that asks for it.
        action: what would be done.
        organization: the other side.
        scope: digest of the agreement, or of what it is about; empty if there is neither.
        request: canonical JSON of what the policy was asked.
        purpose: what for.
        dataset: whose data.
        state: pending, approved, denied by a person, or expired.
        reason: what the person said.
        asked_ms: since when it waits.
        deadline_ms: until when it waits; for an approved one, nothing more.
        decided_ms: when it was decided.
    """

    approval_id: bytes
    rule: str
    action: str
    organization: str
    scope: bytes
    request: bytes
    purpose: str
    dataset: str
    state: State
    reason: str
    asked_ms: int
    deadline_ms: int
    decided_ms: int | None


def find_approval(
    connection: sqlite3.Connection, rule: str, action: str, organization: str, scope: bytes
) -> ApprovalRow | None:
    """Return the approval for this, None if it was never asked for."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM approvals WHERE rule_id = ? AND action = ? AND organization = ? AND scope = ?",
        (rule, action, organization, scope),
    ).fetchone()
    return None if row is None else ApprovalRow(*row)


def put_approval(connection: sqlite3.Connection, row: ApprovalRow) -> bool:
    """Note that an approval is waited for; one of the same rule, action, organization and scope is replaced.

    Of those that were decided the oldest make room; no approved one does, for that would take back what was granted.

    Returns:
        False, and nothing noted, if its organization waits for `MAX_PENDING` already.
    """
    of_state = "SELECT count(*) FROM approvals WHERE state = 'pending' AND organization = ?"
    if connection.execute(of_state, (row.organization,)).fetchone()[0] >= MAX_PENDING:
        return False
    kept = connection.execute("SELECT count(*) FROM approvals WHERE organization = ?", (row.organization,))
    if kept.fetchone()[0] >= _MAX_KEPT:
        dropped = connection.execute(
            "DELETE FROM approvals WHERE approval_id IN (SELECT approval_id FROM approvals WHERE organization = ?"
            " AND state IN ('denied', 'expired') ORDER BY decided_ms LIMIT 1)",
            (row.organization,),
        )
        if not dropped.rowcount:
            return False
    connection.execute(
        "DELETE FROM approvals WHERE rule_id = ? AND action = ? AND organization = ? AND scope = ?",
        (row.rule, row.action, row.organization, row.scope),
    )
    connection.execute(
        f"INSERT INTO approvals ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.approval_id, row.rule, row.action, row.organization, row.scope, row.request, row.purpose, row.dataset,
            row.state, row.reason, row.asked_ms, row.deadline_ms, row.decided_ms,
        ),
    )  # fmt: skip
    return True


def settle_approval(
    connection: sqlite3.Connection, approval_id: bytes, state: State, reason: str, now_ms: int
) -> ApprovalRow:
    """Settle an approval, and return it. A person may change their mind: what is done already stays done.

    Raises:
        NotFound: there is no such approval.
    """
    changed = connection.execute(
        "UPDATE approvals SET state = ?, reason = ?, decided_ms = ? WHERE approval_id = ?",
        (state, reason, now_ms, approval_id),
    )
    if not changed.rowcount:
        raise NotFound(f"there is no approval {approval_id.hex()[:12]}; it was forgotten")
    return get_approval(connection, approval_id)


def overdue_approvals(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_PAGE) -> list[ApprovalRow]:
    """Return at most `limit` approvals whose deadline has passed while they were waited for."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM approvals WHERE state = 'pending' AND deadline_ms <= ? ORDER BY deadline_ms LIMIT ?",
        (now_ms, limit),
    )
    return [ApprovalRow(*row) for row in rows]


def list_approvals(
    connection: sqlite3.Connection, now_ms: int, *, all_of_them: bool = False, limit: int = _MAX_PAGE
) -> list[ApprovalRow]:
    """Return approvals, the newest first: those that are waited for, or all."""
    where = "" if all_of_them else "WHERE state = 'pending' AND deadline_ms > ?"
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM approvals {where} ORDER BY asked_ms DESC, approval_id LIMIT ?",
        (min(limit, _MAX_PAGE),) if all_of_them else (now_ms, min(limit, _MAX_PAGE)),
    )
    return [_as_of(ApprovalRow(*row), now_ms) for row in rows]


def name_approval(connection: sqlite3.Connection, prefix: str) -> ApprovalRow:
    """Return the approval whose id, in hex, begins with `prefix` (6 digits at least).

    Raises:
        NotFound: there is none, or more than one.
    """
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM approvals WHERE substr(lower(hex(approval_id)), 1, ?) = ? LIMIT 2",
        (len(prefix), prefix.lower()),
    ).fetchall()
    if len(prefix) < 6 or len(rows) != 1:
        problem = "more than one approval" if len(rows) > 1 else "no approval"
        raise NotFound(f"there is {problem} {prefix[:40]!r}; `comity approvals list` names them (6 digits at least)")
    return ApprovalRow(*rows[0])


def get_approval(connection: sqlite3.Connection, approval_id: bytes) -> ApprovalRow:
    """Return an approval.

    Raises:
        NotFound: there is no such approval.
    """
    row = connection.execute(f"SELECT {_COLUMNS} FROM approvals WHERE approval_id = ?", (approval_id,)).fetchone()
    if row is None:
        raise NotFound(f"there is no approval {approval_id.hex()[:12]}")
    return ApprovalRow(*row)


def _as_of(row: ApprovalRow, now_ms: int) -> ApprovalRow:
    """Return the row as it is at `now_ms`: one that waits past its deadline has expired, noticed or not."""
    late = row.state == "pending" and row.deadline_ms <= now_ms
    return replace(row, state="expired", decided_ms=row.deadline_ms) if late else row
