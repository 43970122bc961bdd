"""Names and sizes of batches: they follow from the agreement, so that a restart makes nothing twice."""

from __future__ import annotations

from collections.abc import Iterator

from comity.agreement import Agreed
from comity.digest import sha256


def sizes(agreed: Agreed) -> Iterator[int]:
    """Yield how many records each of an organization's batches holds."""
    total, each = agreed.terms.records_per_organization, agreed.terms.batch_records
    return (min(each, total - start) for start in range(0, total, each))


def batch_id(agreed: Agreed, organization: str, number: int) -> bytes:
    """Return the 16-byte id of an organization's batch."""
    return sha256(b"\x00".join((b"batch", agreed.digest, organization.encode(), str(number).encode())))[:16]


def task_id(batch: bytes, ordinal: int) -> bytes:
    """Return the 16-byte id of a batch's task."""
    return sha256(b"\x00".join((b"task", batch, str(ordinal).encode())))[:16]


def offer_key(batch: bytes, revision: int, organization: str) -> str:
    """Return the outbox key under which a batch's revision goes to a reviewer once."""
    return f"offer/{batch.hex()}/{revision}/{organization}"


def parse_offer_key(key: str) -> tuple[bytes, int, str]:
    """Return (batch, revision, organization) of an `offer_key`."""
    _, batch, revision, organization = key.split("/")
    return bytes.fromhex(batch), int(revision), organization
