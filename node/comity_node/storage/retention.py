"""Until when batches in custody may be kept, whatever becomes of them.

Plain functions over a connection, for `Database.transact` and `Database.read`. Certified records have their time in
their own row (`records`), tables in theirs (`bulk`).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class ExpiredOffer:
    """A batch in custody whose time is over: its key, whose it is, the agreement; and whether it is still here."""

    digest: bytes
    home: str
    agreement_digest: bytes
    held: bool


def keep_offer_until(connection: sqlite3.Connection, digest: bytes, until_ms: int) -> None:
    """Note until when a batch may be kept; of two times the earlier one counts."""
    connection.execute(
        "INSERT INTO offer_retention (digest, retain_until_ms) VALUES (?, ?) ON CONFLICT (digest)"
        " DO UPDATE SET retain_until_ms = min(retain_until_ms, excluded.retain_until_ms)",
        (digest, until_ms),
    )


def expired_offers(connection: sqlite3.Connection, now_ms: int, *, limit: int = _MAX_PAGE) -> list[ExpiredOffer]:
    """Return at most `limit` (up to 1000) batches whose time is over, those that have been answered too."""
    rows = connection.execute(
        "SELECT digest, coalesce(home, ''), coalesce(agreement_digest, x''), coalesce(state = 'held', 0)"
        " FROM offer_retention LEFT JOIN inbox USING (digest) WHERE retain_until_ms <= ?"
        " ORDER BY retain_until_ms LIMIT ?",
        (now_ms, min(limit, _MAX_PAGE)),
    )
    return [ExpiredOffer(digest, home, agreement, bool(held)) for digest, home, agreement, held in rows]


def drop_offer_retention(connection: sqlite3.Connection, digest: bytes) -> None:
    """Forget the time of a batch that is gone."""
    connection.execute("DELETE FROM offer_retention WHERE digest = ?", (digest,))
