"""What stopping an agreement writes down, and what it ends: over a connection, for `Database.transact`."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Final

from comity_node.protocol.task import FINAL, State
from comity_node.storage import audit, journal

ACTIVE: Final = "active"
#: The policy does not carry it at the moment.
SUSPENDED: Final = "suspended"
#: An agreement in one of these is over: it never comes back.
ENDED: Final = frozenset({"over", "replaced", "void", "withdrawn"})
_OPEN: Final = tuple(state.value for state in State if state not in FINAL)


def stop(
    connection: sqlite3.Connection, digest: bytes, state: str, reason: str, now_ms: int, *, tasks: State, workflow: str
) -> None:
    """Set an agreement's state, with an audit entry, and end what is open under it.

    Args:
        connection: the database.
        digest: which agreement.
        state: what it is from now on.
        reason: for the audit log, the tasks and the workflow.
        now_ms: milliseconds since the Unix epoch.
        tasks: what becomes of the tasks that are open.
        workflow: the state of its workflow from now on.
    """
    entry = audit.AuditEntry(kind="effect", action=f"agreement.{state}", agreement=digest, detail={"reason": reason})
    audit.append(connection, entry, now_ms)
    journal.set_agreement_state(connection, digest, state)
    _set_workflow(connection, digest, workflow, reason)
    end_tasks(connection, digest, tasks, reason, now_ms)
    for offer in journal.held_offers(connection):
        if offer.agreement_digest == digest:
            journal.finish_offer(connection, offer.digest, b"", now_ms)


def end_tasks(connection: sqlite3.Connection, digest: bytes, state: State, reason: str, now_ms: int) -> int:
    """End the own tasks that are open under an agreement, and return how many there were."""
    count = 0
    while open_ := journal.list_tasks(connection, agreement_digest=digest, states=_OPEN):
        for task in open_:
            ended = replace(task, state=state.value, reason=reason, updated_ms=now_ms)
            journal.update_task(connection, ended, state=task.state, revision=task.revision)
        count += len(open_)
    return count


def resume(connection: sqlite3.Connection, digest: bytes, now_ms: int) -> None:
    """Put an agreement that was suspended in force again, with an audit entry."""
    audit.append(connection, audit.AuditEntry(kind="effect", action="agreement.resumed", agreement=digest), now_ms)
    journal.set_agreement_state(connection, digest, ACTIVE)
    _set_workflow(connection, digest, "running", "")


def _set_workflow(connection: sqlite3.Connection, digest: bytes, state: str, reason: str) -> None:
    for workflow in journal.list_workflows(connection, state="running"):
        if workflow.agreement_digest == digest:
            journal.update_workflow(connection, workflow.workflow_id, state=state, reason=reason)
