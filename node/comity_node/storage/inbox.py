"""The reviewer's side: batches that this node took custody of.

Plain functions over a connection, for `Database.transact` and `Database.read`.

Invariants
  R1  the custody acknowledgement leaves after `put_offer` is committed.
  R2  an offer that comes again finds the reviews that were made for it; nothing is reviewed or signed twice.
  S9  of a task's revision one record is reviewed, in one batch, whatever its home offers beside it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from comity.digest import sha256
from comity.errors import AgreementError
from comity_node.storage.packing import pack

_MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class OfferRow:
    """A batch in custody.

    Attributes:
        home: the organization whose tasks these are.
        batch_id: 16 bytes.
        revision: of the batch.
        peer_id: the node that sent it.
        agreement_digest: SHA-256 of the terms.
        offer: the body of the message, as received.
        received_ms: when it came.
        lease_until_ms: until when this node may take.
        state: "held" or "done".
        reviews: the body that answers it; None while held.
        done_ms: when it was answered; None while held.
    """

    home: str
    batch_id: bytes
    revision: int
    peer_id: str
    agreement_digest: bytes
    offer: bytes
    received_ms: int
    lease_until_ms: int
    state: str = "held"
    reviews: bytes | None = None
    done_ms: int | None = None

    @property
    def digest(self) -> bytes:
        """The offer's key."""
        return offer_digest(self.home, self.batch_id, self.revision)


@dataclass(frozen=True, slots=True)
class HeldOffer:
    """A batch that waits for review: its key, whose it is, and the agreement; without its body."""

    digest: bytes
    home: str
    agreement_digest: bytes


_COLUMNS: Final = (
    "home, batch_id, revision, peer_id, agreement_digest, offer, received_ms, lease_until_ms, state, reviews, done_ms"
)


def offer_digest(home: str, batch_id: bytes, revision: int) -> bytes:
    """Return the 32-byte key of an offer: a digest of its home, batch and revision."""
    return sha256(pack((home.encode(), batch_id, revision.to_bytes(8, "big"))))


def put_offer(connection: sqlite3.Connection, row: OfferRow) -> bool:
    """Take a batch into custody; False, and nothing changed, if it was taken before (see `get_offer`)."""
    changed = connection.execute(
        f"INSERT INTO inbox (digest, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'held', NULL, NULL)"
        " ON CONFLICT DO NOTHING",
        (
            row.digest,
            row.home,
            row.batch_id,
            row.revision,
            row.peer_id,
            row.agreement_digest,
            row.offer,
            row.received_ms,
            row.lease_until_ms,
        ),
    )
    return changed.rowcount == 1


def get_offer(connection: sqlite3.Connection, digest: bytes) -> OfferRow | None:
    """Return a batch in custody, with its reviews if it is done; None if it never came."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM inbox WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else OfferRow(*row)


def count_new_tasks(connection: sqlite3.Connection, offer: OfferRow, tasks: Iterable[tuple[bytes, bytes]]) -> int:
    """Check the tasks of an offer against what their home has offered before, and return how many are new.

    A repaired task is not new. A task may come in its second revision first: others reviewed the one before.

    Args:
        connection: the database.
        offer: the batch.
        tasks: id and record digest of each of its tasks.

    Raises:
        AgreementError: a task came in another batch, or with another record in this revision.
    """
    new = 0
    for task_id, record_digest in tasks:
        known = connection.execute(
            "SELECT revision, record_digest, batch_id FROM reviewed"
            " WHERE agreement_digest = ? AND home = ? AND task_id = ?",
            (offer.agreement_digest, offer.home, task_id),
        ).fetchall()
        new += not known
        for revision, digest, batch_id in known:
            if batch_id != offer.batch_id:
                raise AgreementError(f"task {task_id.hex()} came in another batch before")
            if revision == offer.revision and digest != record_digest:
                raise AgreementError(f"task {task_id.hex()} came with another record in revision {revision} before")
    return new


def take_tasks(connection: sqlite3.Connection, offer: OfferRow, tasks: Iterable[tuple[bytes, bytes]]) -> int:
    """Bind the tasks of an offer to their records and batch; arguments, result and errors are `count_new_tasks`'."""
    taken = list(tasks)
    new = count_new_tasks(connection, offer, taken)
    connection.executemany(
        "INSERT INTO reviewed (agreement_digest, home, task_id, revision, record_digest, batch_id, taken_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (offer.agreement_digest, offer.home, task_id, offer.revision, digest, offer.batch_id, offer.received_ms)
            for task_id, digest in taken
        ],
    )
    return new


def taken_digests(connection: sqlite3.Connection, task_id: bytes, *, limit: int = _MAX_PAGE) -> list[bytes]:
    """Return the digests (at most `limit`) of the records that came to be reviewed under another home's task."""
    rows = connection.execute("SELECT record_digest FROM reviewed WHERE task_id = ? LIMIT ?", (task_id, limit))
    return [bytes(digest) for (digest,) in rows]


def held_offers(connection: sqlite3.Connection, *, limit: int = _MAX_PAGE) -> list[HeldOffer]:
    """Return at most `limit` (up to 1000) batches that wait for review: what a restart goes on with.

    The oldest of each home comes first, then the second of each, and so on: no home hides another's.
    """
    rows = connection.execute(
        "SELECT digest, home, agreement_digest FROM (SELECT digest, home, agreement_digest, received_ms,"
        " row_number() OVER (PARTITION BY home ORDER BY received_ms, digest) AS place FROM inbox WHERE state = 'held')"
        " ORDER BY place, received_ms, digest LIMIT ?",
        (min(limit, _MAX_PAGE),),
    )
    return [HeldOffer(*row) for row in rows]


def count_held(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many batches this node holds of each home: what a limit per organization is checked against."""
    rows = connection.execute("SELECT home, count(*) FROM inbox WHERE state = 'held' GROUP BY home")
    return {str(home): int(count) for home, count in rows}


def finish_offer(connection: sqlite3.Connection, digest: bytes, reviews: bytes, now_ms: int) -> bool:
    """Keep the reviews of a held batch; False, and the first ones stay, if it is done already or unknown.

    The offer's body is dropped: what is answered needs no custody.
    """
    changed = connection.execute(
        "UPDATE inbox SET state = 'done', reviews = ?, done_ms = ?, offer = x'' WHERE digest = ? AND state = 'held'",
        (reviews, now_ms, digest),
    )
    return changed.rowcount == 1


def forget_offers(connection: sqlite3.Connection, done_before_ms: int, *, limit: int = _MAX_PAGE) -> int:
    """Delete at most `limit` (up to 1000) batches that were done before a time, and return how many.

    One that is forgotten would be reviewed anew: keep them as long as their agreement is valid.
    """
    changed = connection.execute(
        "DELETE FROM inbox WHERE digest IN"
        " (SELECT digest FROM inbox WHERE state = 'done' AND done_ms < ? ORDER BY done_ms LIMIT ?)",
        (done_before_ms, min(limit, _MAX_PAGE)),
    )
    return changed.rowcount


def forget_tasks(connection: sqlite3.Connection, taken_before_ms: int, *, limit: int = _MAX_PAGE) -> int:
    """Delete at most `limit` (up to 1000) bindings of tasks that were taken before a time, and return how many.

    Keep them as long as their agreement is valid, as the batches.
    """
    changed = connection.execute(
        "DELETE FROM reviewed WHERE (agreement_digest, home, task_id, revision) IN (SELECT agreement_digest, home,"
        " task_id, revision FROM reviewed WHERE taken_ms < ? ORDER BY taken_ms LIMIT ?)",
        (taken_before_ms, min(limit, _MAX_PAGE)),
    )
    return changed.rowcount
