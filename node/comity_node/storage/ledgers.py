"""What is counted for ever: records against the quotas of rules, and privacy loss against their budgets.

Plain functions over a connection, for `Database.transact` and `Database.read`. Spend in the transaction that holds the
decision, before anything leaves: a crash afterwards has counted too much, never too little. Nothing is ever given back.
Privacy loss (epsilon) is counted in whole millionths, rounded up, so that sums are exact and never too small.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from comity.errors import StorageError

#: SQLite's largest integer; a sum that would not fit is over any budget.
_LARGEST: Final = 2**63 - 1


def quota_used(connection: sqlite3.Connection, rule_id: str) -> int:
    """Return how many records count against the quota of a rule."""
    row = connection.execute("SELECT used FROM quota_used WHERE rule_id = ?", (rule_id,)).fetchone()
    return 0 if row is None else int(row[0])


def spend_quota(connection: sqlite3.Connection, rule_id: str, records: int, amount: int) -> bool:
    """Count `amount` records against a quota of `records` in all.

    Returns:
        False, and nothing counted, if there is not room for all of `amount`.

    Raises:
        StorageError: `amount` is not positive.
    """
    _check_positive(rule_id, amount)
    if quota_used(connection, rule_id) + amount > records:
        return False
    connection.execute(
        "INSERT INTO quota_used (rule_id, used) VALUES (?, ?)"
        " ON CONFLICT (rule_id) DO UPDATE SET used = used + excluded.used",
        (rule_id, amount),
    )
    return True


def epsilon_spent(connection: sqlite3.Connection, scope: str) -> int:
    """Return the privacy loss, in millionths, that counts against the budget of a scope."""
    row = connection.execute("SELECT spent FROM epsilon_spent WHERE scope = ?", (scope,)).fetchone()
    return 0 if row is None else int(row[0])


def is_paid(connection: sqlite3.Connection, scope: str, subject: bytes) -> bool:
    """Whether a release was paid for from the budget of a scope."""
    found = connection.execute("SELECT 1 FROM epsilon_releases WHERE scope = ? AND subject = ?", (scope, subject))
    return found.fetchone() is not None


def spend_epsilon(connection: sqlite3.Connection, scope: str, subject: bytes, cost: int, budget: int) -> bool:
    """Pay for one release from the budget of a scope; one that was paid for is not paid for again.

    Args:
        connection: the database.
        scope: whose budget it is.
        subject: 32 bytes that name the release: one drawing of noise. What is sent a second time is the same release;
            noise that is drawn anew is another one, even if the same numbers come out.
        cost: millionths, at least 1.
        budget: millionths.

    Returns:
        False, and nothing paid, if the budget does not hold all of `cost`.

    Raises:
        StorageError: `cost` is not positive.
    """
    _check_positive(scope, cost)
    if is_paid(connection, scope, subject):
        return True
    if epsilon_spent(connection, scope) + cost > min(budget, _LARGEST):
        return False
    connection.execute("INSERT INTO epsilon_releases (scope, subject, cost) VALUES (?, ?, ?)", (scope, subject, cost))
    connection.execute(
        "INSERT INTO epsilon_spent (scope, spent) VALUES (?, ?)"
        " ON CONFLICT (scope) DO UPDATE SET spent = spent + excluded.spent",
        (scope, cost),
    )
    return True


def _check_positive(name: str, amount: int) -> None:
    if amount < 1:
        raise StorageError(f"{amount} cannot be counted against {name}")
