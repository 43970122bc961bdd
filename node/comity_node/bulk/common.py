"""What both sides of a transfer use: the node's parts that they stand on, and how they report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from comity.agreement import Agreed
from comity.digest import sha256
from comity.errors import AgreementError
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.admission import Gate
from comity_node.admission.records import Dataset
from comity_node.bulk.limits import BulkLimits
from comity_node.bulk.spool import Spool
from comity_node.policy import obligations as duties
from comity_node.policy.model import Labels, Obligations, Request
from comity_node.protocol.bulk_manifest import Manifest
from comity_node.storage.bulk import BulkRow
from comity_node.storage.database import Database

T = TypeVar("T")

#: A column of certified tables: each row's proof. It is no field of the dataset, so no policy names it.
PROVENANCE = "comity_provenance"
#: Threads that all transfers of a node use at a time.
_THREADS = 4
#: The slowest that a receiver's check of the whole may be before it is given up.
_CHECK_BASE_S = 60.0
_SLOWEST_BYTES_S = 2_000_000
_SLOWEST_PROOFS_S = 20


class Stream(Protocol):
    """What a transfer needs of a stream: `transport.base.ByteStream` is one."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return some bytes, b"" at the end."""

    async def send(self, data: bytes) -> None:
        """Send all of `data`, waiting while the other side does not read."""

    async def aclose(self) -> None:
        """End the stream; what was sent still arrives."""

    def reset(self) -> None:
        """Tear the stream down at once."""


class Peers(Protocol):
    """What is asked of the links."""

    def peer(self, organization: str) -> Attested | None:
        """Return a linked node of `organization`, if there is one."""


#: Opens the tunnel for bulk transfers to the node with this PeerId.
OpenStream = Callable[[str], Awaitable[Stream]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts of a node that transfers stand on.

    Attributes:
        identity: signs manifests and receipts.
        trust: the members.
        gate: asks the policy and writes the audit log.
        database: the journal.
        spool: where the files lie.
        datasets: what this node knows of its datasets, by name.
        agreement: returns the agreement with a digest; AgreementError if this node takes part in none such.
        limits: the bounds.
        threads: bounds the threads that read, hash and write.
    """

    identity: NodeIdentity
    trust: TrustStore
    gate: Gate
    database: Database
    spool: Spool
    datasets: Mapping[str, Dataset]
    agreement: Callable[[bytes], Agreed]
    limits: BulkLimits = field(default_factory=BulkLimits)
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_THREADS))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what blocks in a thread. A cancelled call is waited for: it holds files and buffers."""
        return await trio.to_thread.run_sync(work, limiter=self.threads)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is, for a person.

    Attributes:
        transfer_id: in hex; empty while it has none yet.
        state: "preparing", "waiting", "sending", "checking" or "done".
        rows: prepared so far, then all.
        bytes_total: of the stream; 0 while it is not known.
        bytes_done: written into the spool, then sent, then checked by the receiver.
        note: why it waits.
    """

    transfer_id: str
    state: str
    rows: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    note: str = ""


Report = Callable[[Progress], None]


def transfer_id_of(envelope: bytes) -> bytes:
    """Return a transfer's id: the SHA-256 of its manifest's envelope, which both sides compute for themselves."""
    return sha256(envelope)


def agreed_obligations(parts: Surroundings, digest: bytes, other: str, dataset: str, purpose: str) -> Obligations:
    """Return what an agreement asks of a transfer under it; nothing where there is none.

    Raises:
        AgreementError: it is not known or not in force, one of the two does not take part, or its dataset or purpose
            is another.
    """
    if not digest:
        return Obligations()
    agreed = parts.agreement(digest)
    agreed.check_active(parts.gate.now_ms())
    name = digest.hex()[:12]
    for organization in (parts.identity.organization, other):
        if organization not in agreed.participants:
            raise AgreementError(f"{organization} does not take part in agreement {name}")
    if (agreed.terms.dataset, agreed.terms.purpose) != (dataset, purpose):
        raise AgreementError(
            f"agreement {name} is about {agreed.terms.dataset!r} for {agreed.terms.purpose!r}, not {dataset!r} for"
            f" {purpose!r}"
        )
    return duties.from_terms(agreed.terms.obligations)


def make_request(
    action: str, other: str, *, purpose: str, dataset: str, kind: str, fields: frozenset[str], labels: Labels
) -> Request:
    """Return the question to the policy about a table; the proofs' column of certified records is no field of it."""
    return Request(
        action=action,
        organization=other,
        purpose=purpose,
        dataset=dataset,
        kind=kind,
        fields=fields - {PROVENANCE} if kind == "certified" else fields,
        labels=labels,
    )


def check_budget_s(manifest: Manifest) -> float:
    """Return the seconds that checking a complete table may take, for the receiver and for the sender who waits."""
    proofs = manifest.rows / _SLOWEST_PROOFS_S if manifest.kind == "certified" else 0.0
    return _CHECK_BASE_S + manifest.geometry.length / _SLOWEST_BYTES_S + proofs


def classification_of(parts: Surroundings, dataset: str) -> str:
    """Return what the policy says of a dataset; empty if it does not declare it."""
    declared = parts.gate.policy.datasets.get(dataset)
    return declared.classification if declared is not None else ""


def describe(row: BulkRow) -> Mapping[str, str | int]:
    """Return what the audit log says about a transfer, beside its root."""
    return {
        "transfer": row.transfer_id.hex(),
        "dataset": row.dataset,
        "kind": row.kind,
        "purpose": row.purpose,
        "rows": row.row_count,
        "bytes": row.byte_count,
    }
