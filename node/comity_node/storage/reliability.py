"""What this node has learned about others: Beta counts per organization and role.

Plain functions over a connection, for `Database.transact` and `Database.read`. They add: call them in the transaction
whose `update_task` or `add_vote` says that the outcome is new, and nothing is counted twice (R2).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

_MAX_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class ReliabilityRow:
    """How often an organization in a role ("generator", "reviewer") agreed with the certificates, and did not."""

    organization: str
    role: str
    agreed: float
    disagreed: float


def mean(agreed: float, disagreed: float) -> float:
    """Return the mean of the Beta posterior over a uniform prior (Jøsang and Ismail, The Beta Reputation System, 2002).

    Nothing known is 0.5.
    """
    return (agreed + 1.0) / (agreed + disagreed + 2.0)


def add_agreement(connection: sqlite3.Connection, organization: str, role: str, weight: float = 1.0) -> None:
    """Count an outcome that agreed, with a weight of at least 0."""
    _add(connection, organization, role, weight, 0.0)


def add_disagreement(connection: sqlite3.Connection, organization: str, role: str, weight: float = 1.0) -> None:
    """Count an outcome that disagreed, with a weight of at least 0."""
    _add(connection, organization, role, 0.0, weight)


def list_reliability(connection: sqlite3.Connection) -> list[ReliabilityRow]:
    """Return all counts (up to 10000), by organization and role."""
    rows = connection.execute(
        "SELECT organization, role, agreed, disagreed FROM reliability ORDER BY organization, role LIMIT ?",
        (_MAX_PAGE,),
    )
    return [ReliabilityRow(*row) for row in rows]


def _add(connection: sqlite3.Connection, organization: str, role: str, agreed: float, disagreed: float) -> None:
    connection.execute(
        "INSERT INTO reliability (organization, role, agreed, disagreed) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (organization, role)"
        " DO UPDATE SET agreed = agreed + excluded.agreed, disagreed = disagreed + excluded.disagreed",
        (organization, role, agreed, disagreed),
    )
