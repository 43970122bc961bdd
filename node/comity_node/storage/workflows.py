"""Workflows with the steps of their negotiation, and the agreements that came of them.

Plain functions over a connection, for `Database.transact` and `Database.read`.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """A workflow that was submitted to this node.

    Attributes:
        workflow_id: its name.
        document: the JSON that was submitted.
        state: "negotiating", "running", "done" or "failed".
        reason: why it failed; else empty.
        agreement_digest: SHA-256 of the agreed terms; None until there are some.
        created_ms: when it was submitted.
    """

    workflow_id: str
    document: bytes
    state: str
    reason: str
    agreement_digest: bytes | None
    created_ms: int


@dataclass(frozen=True, slots=True)
class WorkflowStep:
    """One line of a negotiation: who did what ("proposed", "accepted", "countered", "rejected", "concluded")."""

    at_ms: int
    organization: str
    step: str
    detail: str


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """An agreement that this node signed.

    Attributes:
        digest: SHA-256 of the terms.
        agreement: the `Agreement` message, as received or made.
        initiator: the organization that proposed it.
        purpose: of its terms.
        dataset: of its terms.
        expires_ms: of its terms.
        state: "active", or why it is not.
        created_ms: when it was stored.
    """

    digest: bytes
    agreement: bytes
    initiator: str
    purpose: str
    dataset: str
    expires_ms: int
    state: str
    created_ms: int


_WORKFLOW: Final = "workflow_id, document, state, reason, agreement_digest, created_ms"
_AGREEMENT: Final = "digest, agreement, initiator, purpose, dataset, expires_ms, state, created_ms"


def put_workflow(connection: sqlite3.Connection, row: WorkflowRow) -> bool:
    """Store a workflow; False, and nothing changed, if its id is there already."""
    changed = connection.execute(
        f"INSERT INTO workflows ({_WORKFLOW}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (row.workflow_id, row.document, row.state, row.reason, row.agreement_digest, row.created_ms),
    )
    return changed.rowcount == 1


def update_workflow(
    connection: sqlite3.Connection,
    workflow_id: str,
    *,
    state: str,
    reason: str = "",
    agreement_digest: bytes | None = None,
) -> bool:
    """Set a workflow's state and reason, and its agreement if one is given; False if there is no such workflow."""
    changed = connection.execute(
        "UPDATE workflows SET state = ?, reason = ?, agreement_digest = coalesce(?, agreement_digest)"
        " WHERE workflow_id = ?",
        (state, reason, agreement_digest, workflow_id),
    )
    return changed.rowcount == 1


def finish_workflow(connection: sqlite3.Connection, agreement_digest: bytes, reason: str = "") -> None:
    """Set the state of an agreement's workflow to "done", and why it ended early, if it is running."""
    connection.execute(
        "UPDATE workflows SET state = 'done', reason = ? WHERE agreement_digest = ? AND state = 'running'",
        (reason, agreement_digest),
    )


def get_workflow(connection: sqlite3.Connection, workflow_id: str) -> WorkflowRow | None:
    """Return a workflow, None if there is none."""
    row = connection.execute(f"SELECT {_WORKFLOW} FROM workflows WHERE workflow_id = ?", (workflow_id,)).fetchone()
    return None if row is None else WorkflowRow(*row)


def workflow_of(connection: sqlite3.Connection, agreement_digest: bytes) -> WorkflowRow | None:
    """Return the workflow that runs under an agreement, None if there is none."""
    row = connection.execute(
        f"SELECT {_WORKFLOW} FROM workflows WHERE agreement_digest = ?", (agreement_digest,)
    ).fetchone()
    return None if row is None else WorkflowRow(*row)


def list_workflows(
    connection: sqlite3.Connection, *, state: str | None = None, limit: int = _MAX_PAGE
) -> list[WorkflowRow]:
    """Return the newest `limit` (up to 1000) workflows, newest first."""
    rows = connection.execute(
        f"SELECT {_WORKFLOW} FROM workflows WHERE state = coalesce(?, state)"
        " ORDER BY created_ms DESC, rowid DESC LIMIT ?",
        (state, min(limit, _MAX_PAGE)),
    )
    return [WorkflowRow(*row) for row in rows]


def add_workflow_step(connection: sqlite3.Connection, workflow_id: str, step: WorkflowStep) -> None:
    """Append a step to a workflow's negotiation."""
    connection.execute(
        "INSERT INTO workflow_steps (workflow_id, ordinal, at_ms, organization, step, detail)"
        " SELECT ?1, count(*), ?2, ?3, ?4, ?5 FROM workflow_steps WHERE workflow_id = ?1",
        (workflow_id, step.at_ms, step.organization, step.step, step.detail),
    )


def workflow_steps(connection: sqlite3.Connection, workflow_id: str) -> list[WorkflowStep]:
    """Return the first 1000 steps of a workflow's negotiation, oldest first."""
    rows = connection.execute(
        "SELECT at_ms, organization, step, detail FROM workflow_steps WHERE workflow_id = ? ORDER BY ordinal LIMIT ?",
        (workflow_id, _MAX_PAGE),
    )
    return [WorkflowStep(*row) for row in rows]


def put_agreement(connection: sqlite3.Connection, row: AgreementRow) -> bool:
    """Store an agreement; False, and nothing changed, if its digest is there already."""
    changed = connection.execute(
        f"INSERT INTO agreements ({_AGREEMENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            row.digest,
            row.agreement,
            row.initiator,
            row.purpose,
            row.dataset,
            row.expires_ms,
            row.state,
            row.created_ms,
        ),
    )
    return changed.rowcount == 1


def get_agreement(connection: sqlite3.Connection, digest: bytes) -> AgreementRow | None:
    """Return an agreement in whatever state, None if there is none."""
    row = connection.execute(f"SELECT {_AGREEMENT} FROM agreements WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else AgreementRow(*row)


def list_agreements(
    connection: sqlite3.Connection,
    *,
    state: str | None = None,
    purpose: str | None = None,
    dataset: str | None = None,
    valid_at_ms: int | None = None,
    limit: int = _MAX_PAGE,
) -> list[AgreementRow]:
    """Return the newest `limit` (up to 1000) agreements that fit, newest first; None fits all."""
    rows = connection.execute(
        f"SELECT {_AGREEMENT} FROM agreements WHERE state = coalesce(?, state) AND purpose = coalesce(?, purpose)"
        " AND dataset = coalesce(?, dataset) AND (?4 IS NULL OR expires_ms > ?4)"
        " ORDER BY created_ms DESC, rowid DESC LIMIT ?5",
        (state, purpose, dataset, valid_at_ms, min(limit, _MAX_PAGE)),
    )
    return [AgreementRow(*row) for row in rows]


def set_agreement_state(connection: sqlite3.Connection, digest: bytes, state: str) -> bool:
    """Set an agreement's state; False if there is no such agreement."""
    return connection.execute("UPDATE agreements SET state = ? WHERE digest = ?", (state, digest)).rowcount == 1
