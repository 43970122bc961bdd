"""Who has been asked to review a batch, and what has become of it."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from enum import StrEnum

from comity_node.storage import journal


class Assigned(StrEnum):
    """What has become of a batch at one reviewer."""

    OFFERED = "offered"
    #: It has custody.
    HELD = "held"
    VOTED = "voted"
    #: Its policy, or the home's own, says no.
    REFUSED = "refused"
    #: Its lease ran out, or it could not be reached in time.
    EXPIRED = "expired"


#: Nothing more is expected of an assignment in one of these.
OVER = frozenset({Assigned.VOTED, Assigned.REFUSED, Assigned.EXPIRED})


def set_state(
    connection: sqlite3.Connection, batch: bytes, revision: int, organization: str, state: Assigned
) -> journal.AssignmentRow | None:
    """Move one assignment on and return what it was; one that is over stays, but a late vote still counts as one."""
    for row in journal.list_assignments(connection, batch, revision):
        if row.organization == organization:
            if row.state not in OVER or state is Assigned.VOTED:
                journal.update_assignment(connection, replace(row, state=state.value), state=row.state)
            return row
    return None
