"""Names and sizes of batches: they follow from the agreement, so that a restart makes nothing twice."""

from __future__ import annotations

from collections.abc import Iterator

from comity import draw
from comity.agreement import Agreed
from comity.errors import UnexpectedMessage
from comity_node.storage import journal
from comity_node.storage.database import Database


def sizes(agreed: Agreed) -> Iterator[int]:
    """Yield how many records each of an organization's batches holds."""
    total, each = agreed.terms.records_per_organization, agreed.terms.batch_records
    return (min(each, total - start) for start in range(0, total, each))


def batch_id(agreed: Agreed, organization: str, number: int) -> bytes:
    """Return the 16-byte id of an organization's batch."""
    return draw.batch_id(agreed.digest, organization, number)


def task_id(batch: bytes, ordinal: int) -> bytes:
    """Return the 16-byte id of a batch's task."""
    return draw.task_id(batch, ordinal)


def offer_key(batch: bytes, revision: int, organization: str) -> str:
    """Return the outbox key under which a batch's revision goes to a reviewer once."""
    return f"offer/{batch.hex()}/{revision}/{organization}"


def parse_offer_key(key: str) -> tuple[bytes, int, str]:
    """Return (batch, revision, organization) of an `offer_key`."""
    _, batch, revision, organization = key.split("/")
    return bytes.fromhex(batch), int(revision), organization


async def check_own(agreed: Agreed, database: Database, batch: bytes) -> None:
    """Refuse a batch id that is none of this node's, before its number is searched for: that takes 65536 digests.

    Raises:
        UnexpectedMessage: it is none.
    """
    if agreed.terms.review.panel and not await database.read(lambda c: journal.batch_tasks(c, batch, limit=1)):
        raise UnexpectedMessage("no such batch was made here")
