"""What obligations and federations count: rates of records, and updates that are good once.

Plain functions over a connection, for `Database.transact` and `Database.read`. Reserve in the transaction that journals
the release, before anything leaves: a crash afterwards has counted too much, never too little.
"""

from __future__ import annotations

import sqlite3
from typing import Final, Literal

from comity.errors import StorageError
from comity_node.storage.reviews import Added

#: A window is counted in this many parts.
_BUCKETS: Final = 64


def reserve(connection: sqlite3.Connection, rule_id: str, records: int, per_ms: int, amount: int, now_ms: int) -> bool:
    """Reserve `amount` of what a rule's rate allows: at most `records` in any window of `per_ms`.

    The window slides in 64 steps and a step counts until it has left the window as a whole. So no window ever has more
    than `records`, and one that is used up opens again at most `per_ms`/64 later than it might. Reservations that lie
    in the future because the clock was set back count as well.

    Args:
        connection: the database.
        rule_id: the rule (and whatever else the rate is kept apart by).
        records: the limit.
        per_ms: the window's length.
        amount: how many records are about to leave, at least 1.
        now_ms: the time.

    Returns:
        False, and nothing reserved, if there is not room for all of `amount`.

    Raises:
        StorageError: a number is not positive.
    """
    if min(per_ms, amount) < 1 or records < 0:
        raise StorageError(f"the rate of {rule_id} is not {records} records in {per_ms} ms, {amount} at a time")
    connection.execute("DELETE FROM rate_buckets WHERE rule_id = ? AND end_ms <= ?", (rule_id, now_ms - per_ms))
    used = connection.execute(
        "SELECT coalesce(sum(amount), 0) FROM rate_buckets WHERE rule_id = ?", (rule_id,)
    ).fetchone()[0]
    if used + amount > records:
        return False
    width = max(1, per_ms // _BUCKETS)
    connection.execute(
        "INSERT INTO rate_buckets (rule_id, end_ms, amount) VALUES (?, ?, ?)"
        " ON CONFLICT (rule_id, end_ms) DO UPDATE SET amount = amount + excluded.amount",
        (rule_id, (now_ms // width + 1) * width, amount),
    )
    return True


def reserved(connection: sqlite3.Connection, rule_id: str, per_ms: int, now_ms: int) -> int:
    """Return how much of a rule's rate is in use."""
    row = connection.execute(
        "SELECT coalesce(sum(amount), 0) FROM rate_buckets WHERE rule_id = ? AND end_ms > ?",
        (rule_id, now_ms - per_ms),
    ).fetchone()
    return int(row[0])


def add_update(
    connection: sqlite3.Connection,
    direction: Literal["released", "admitted"],
    federation: str,
    round_number: int,
    organization: str,
    digest: bytes,
    now_ms: int,
) -> Added:
    """Note that a federated update was released to, or admitted from, an organization: one for each round.

    Returns:
        NEW; SAME if this very update was noted before; DIFFERENT if another one was: it stays, and this one must be
        refused.
    """
    key = (direction, federation, round_number, organization)
    stored = connection.execute(
        "SELECT digest FROM updates WHERE direction = ? AND federation = ? AND round = ? AND organization = ?", key
    ).fetchone()
    if stored is not None:
        return Added.SAME if stored[0] == digest else Added.DIFFERENT
    connection.execute(
        "INSERT INTO updates (direction, federation, round, organization, digest, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (*key, digest, now_ms),
    )
    return Added.NEW
