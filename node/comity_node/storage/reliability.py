"""What this node has learned about others: Beta counts per organization and role, which lose weight with time.

Plain functions over a connection, for `Database.transact` and `Database.read`. They add: call them in the transaction
whose `update_task` or `add_vote` says that the outcome is new, and nothing is counted twice (R2). What the counts are
worth, and how far a coalition can move them, is in docs/reliability.md.

Organizations are counted by their name in the trust bundle, so new keys change nothing; a new name has to be admitted
by everybody, and begins with nothing.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from typing import Final

from comity_node.storage import evidence

_MAX_PAGE: Final = 10_000
#: Outcomes count half after so long.
HALF_LIFE_MS: Final = 30 * 24 * 3600 * 1000
#: Outcomes of one organization in one role that count at most: what is older gives way, and nobody lives on its past.
MAX_WEIGHT: Final = 200.0
#: Of who is proven to have lied, while it is suspended.
FLOOR: Final = 0.05
#: In which an organization is judged.
ROLES: Final = ("generator", "reviewer")


@dataclass(frozen=True, slots=True)
class ReliabilityRow:
    """How often an organization in a role ("generator", "reviewer") agreed with the certificates, and did not.

    `suspended`: whether there is verified evidence that it lied, for which it is suspended now.
    """

    organization: str
    role: str
    agreed: float
    disagreed: float
    suspended: bool = False

    @property
    def reliability(self) -> float:
        """What the counts are worth: 0 to 1."""
        known = mean(self.agreed, self.disagreed)
        return min(FLOOR, known) if self.suspended else known


def mean(agreed: float, disagreed: float) -> float:
    """Return the mean of the Beta posterior over a uniform prior (Jøsang and Ismail, The Beta Reputation System, 2002).

    Nothing known is 0.5.
    """
    return (agreed + 1.0) / (agreed + disagreed + 2.0)


def decayed(count: float, since_ms: int, now_ms: int) -> float:
    """Return what a count of `since_ms` is worth at `now_ms`; a clock that goes back adds nothing."""
    return count * math.exp2(-max(0, now_ms - since_ms) / HALF_LIFE_MS)


def add_agreement(
    connection: sqlite3.Connection, organization: str, role: str, weight: float = 1.0, *, now_ms: int
) -> None:
    """Count an outcome that agreed, with a weight of at least 0."""
    _add(connection, organization, role, weight, 0.0, now_ms)


def add_disagreement(
    connection: sqlite3.Connection, organization: str, role: str, weight: float = 1.0, *, now_ms: int
) -> None:
    """Count an outcome that disagreed, with a weight of at least 0."""
    _add(connection, organization, role, 0.0, weight, now_ms)


def list_reliability(connection: sqlite3.Connection, now_ms: int) -> list[ReliabilityRow]:
    """Return all counts (up to 10000) as they are worth at `now_ms`, by organization and role.

    Who is suspended is among them in each role, whatever was counted.
    """
    liars = evidence.suspended(connection, now_ms)
    rows = connection.execute(
        "SELECT organization, role, agreed, disagreed, coalesce(at_ms, ?) FROM reliability"
        " LEFT JOIN reliability_times USING (organization, role) ORDER BY organization, role LIMIT ?",
        (now_ms, _MAX_PAGE),
    )
    known = {
        (organization, role): ReliabilityRow(
            organization, role, *_capped(decayed(agreed, at_ms, now_ms), decayed(disagreed, at_ms, now_ms)),
            organization in liars,
        )
        for organization, role, agreed, disagreed, at_ms in rows
    }  # fmt: skip
    for organization in liars:
        for role in ROLES:
            known.setdefault((organization, role), ReliabilityRow(organization, role, 0.0, 0.0, True))
    return [known[key] for key in sorted(known)]


def _capped(agreed: float, disagreed: float) -> tuple[float, float]:
    shrink = min(1.0, MAX_WEIGHT / max(agreed + disagreed, 1.0))
    return agreed * shrink, disagreed * shrink


def _add(
    connection: sqlite3.Connection, organization: str, role: str, agreed: float, disagreed: float, now_ms: int
) -> None:
    row = connection.execute(
        "SELECT agreed, disagreed, coalesce(at_ms, ?) FROM reliability LEFT JOIN reliability_times"
        " USING (organization, role) WHERE organization = ? AND role = ?",
        (now_ms, organization, role),
    ).fetchone()
    before, against, at_ms = row or (0.0, 0.0, now_ms)
    total = _capped(decayed(before, at_ms, now_ms) + agreed, decayed(against, at_ms, now_ms) + disagreed)
    key = (organization, role)
    connection.execute(
        "INSERT INTO reliability (organization, role, agreed, disagreed) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (organization, role) DO UPDATE SET agreed = excluded.agreed, disagreed = excluded.disagreed",
        (*key, *total),
    )
    connection.execute(
        "INSERT INTO reliability_times (organization, role, at_ms) VALUES (?, ?, ?)"
        " ON CONFLICT (organization, role) DO UPDATE SET at_ms = excluded.at_ms",
        (*key, max(at_ms, now_ms)),
    )
