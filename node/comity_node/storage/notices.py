"""Notices: what a rule wants somebody to be told. The newest are kept; the audit log has all of them.

Plain functions over a connection, for `Database.transact` and `Database.read`.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Final

_MAX_NOTICES: Final = 1000


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that was allowed, and that somebody is told of.

    Attributes:
        at_ms: when it was decided.
        persons: who is told.
        rules: ids of the rules that allowed it.
        action: what was done.
        organization: the other side.
        purpose: what for.
        dataset: whose data.
        subject: digest of what it was about; of the first, if there were several.
        agreement: digest of the agreement.
        times: how many things it was about.
    """

    at_ms: int
    persons: tuple[str, ...]
    rules: tuple[str, ...]
    action: str
    organization: str
    purpose: str
    dataset: str
    subject: bytes
    agreement: bytes
    times: int


def put_notice(connection: sqlite3.Connection, notice: Notice) -> None:
    """Store a notice; the oldest goes when there are over a thousand."""
    connection.execute(
        "INSERT INTO notices (at_ms, persons, rules, action, organization, purpose, dataset, subject, agreement_digest,"
        " times) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            notice.at_ms, json.dumps(notice.persons), json.dumps(notice.rules), notice.action, notice.organization,
            notice.purpose, notice.dataset, notice.subject, notice.agreement, notice.times,
        ),
    )  # fmt: skip
    connection.execute(
        "DELETE FROM notices WHERE sequence <= (SELECT sequence FROM notices ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
        (_MAX_NOTICES,),
    )


def list_notices(connection: sqlite3.Connection, *, limit: int = 100) -> list[Notice]:
    """Return the newest `limit` (up to 1000) notices, newest first."""
    rows = connection.execute(
        "SELECT at_ms, persons, rules, action, organization, purpose, dataset, subject, agreement_digest, times"
        " FROM notices ORDER BY sequence DESC LIMIT ?",
        (min(limit, _MAX_NOTICES),),
    )
    return [
        Notice(at_ms, tuple(json.loads(persons)), tuple(json.loads(rules)), *rest)
        for at_ms, persons, rules, *rest in rows
    ]
