"""The manifest of a bulk transfer: what is said about the rows before any of them moves.

The bytes that were signed are the bytes that are read; a manifest that parses has every number within its bounds, so
that whoever allocates or divides by one of them need not look again (S2, S7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from comity.errors import EnvelopeMalformed, InvalidName
from comity.ids import organization_name
from comity.v1.agreement_pb2 import Obligations
from comity.v1.bulk_pb2 import BulkField, BulkManifest

#: Document kinds of the envelopes around a manifest and a receipt.
MANIFEST_KIND: Final = "bulk"
RECEIPT_KIND: Final = "bulk-receipt"

KINDS: Final = ("raw", "synthetic", "certified")
CLASSIFICATIONS: Final = ("", "public", "internal", "confidential", "restricted")
#: Column types that travel. All are flat: a field of a policy is a column, and nothing hides below it.
TYPES: Final = frozenset(
    {
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double",
        "string", "binary", "date32[day]", "timestamp[s]", "timestamp[ms]", "timestamp[us]", "timestamp[ns]",
    }
)  # fmt: skip
MAX_FIELDS: Final = 1000
MAX_NAME: Final = 256
MIN_CHUNK: Final = 64 * 1024
MAX_CHUNK: Final = 4 * 1024 * 1024
#: Chunks of one transfer: their digests are held in memory, 32 bytes each.
MAX_CHUNKS: Final = 262_144
MAX_ROWS: Final = 2**48
#: How long a transfer may be open, and how far the sender's clock may be ahead.
MAX_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
SKEW_MS: Final = 30_000

_MAX_TEXT = 128
_MAX_PATHS = 1000
_DIGEST = 32
_ID = 16
_MAX_TIME_MS = 2**53


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a stream of `length` bytes is cut into chunks of `chunk_bytes`, the last of which may be shorter."""

    length: int
    chunk_bytes: int

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.length // self.chunk_bytes)

    def size(self, index: int) -> int:
        """Bytes of chunk `index`, from 0."""
        return min(self.chunk_bytes, self.length - index * self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name (a field of the dataset) and its type, one of `TYPES`."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose every value is within its bounds; the fields are those of `comity.v1.BulkManifest`."""

    id: bytes
    organization: str
    to_organization: str
    dataset: str
    kind: str
    classification: str
    purpose: str
    agreement_digest: bytes
    columns: tuple[Column, ...]
    rows: int
    geometry: Geometry
    root: bytes
    obligations: Obligations
    policy_digest: bytes
    issued_ms: int
    expires_ms: int

    @property
    def fields(self) -> frozenset[str]:
        """The names of the columns."""
        return frozenset(column.name for column in self.columns)

    def encode(self) -> bytes:
        """Return the bytes that are signed."""
        return BulkManifest(
            id=self.id,
            organization=self.organization,
            to_organization=self.to_organization,
            dataset=self.dataset,
            kind=self.kind,
            classification=self.classification,
            purpose=self.purpose,
            agreement_digest=self.agreement_digest,
            fields=[BulkField(name=column.name, type=column.type) for column in self.columns],
            rows=self.rows,
            bytes=self.geometry.length,
            chunk_bytes=self.geometry.chunk_bytes,
            root=self.root,
            obligations=self.obligations,
            policy_digest=self.policy_digest,
            issued_ms=self.issued_ms,
            expires_ms=self.expires_ms,
        ).SerializeToString()


def parse_manifest(body: bytes) -> Manifest:
    """Read a manifest whose signature was verified.

    Raises:
        EnvelopeMalformed: it does not parse, or a value is out of its bounds; the message says which.
    """
    try:
        message = BulkManifest.FromString(body)
    except DecodeError as error:
        raise EnvelopeMalformed("the manifest does not parse") from error
    if wrong := [text for text, bad in _faults(message) if bad]:
        raise EnvelopeMalformed("the manifest is refused: " + "; ".join(wrong))
    return Manifest(
        id=message.id,
        organization=message.organization,
        to_organization=message.to_organization,
        dataset=message.dataset,
        kind=message.kind,
        classification=message.classification,
        purpose=message.purpose,
        agreement_digest=message.agreement_digest,
        columns=tuple(Column(field.name, field.type) for field in message.fields),
        rows=message.rows,
        geometry=Geometry(message.bytes, message.chunk_bytes),
        root=message.root,
        obligations=message.obligations,
        policy_digest=message.policy_digest,
        issued_ms=message.issued_ms,
        expires_ms=message.expires_ms,
    )


def _faults(it: BulkManifest) -> list[tuple[str, bool]]:
    chunk_ok = MIN_CHUNK <= it.chunk_bytes <= MAX_CHUNK and it.chunk_bytes & (it.chunk_bytes - 1) == 0
    return [
        ("id, root or a digest has another length", not _digests_fit(it)),
        (
            "an organization has no organization's name",
            not (_is_name(it.organization) and _is_name(it.to_organization)),
        ),
        (
            f"dataset and purpose have 1 to {_MAX_TEXT} characters",
            not (0 < len(it.dataset) <= _MAX_TEXT and 0 < len(it.purpose) <= _MAX_TEXT),
        ),
        (f"kind is not one of {', '.join(KINDS)}", it.kind not in KINDS),
        ("there is no such classification", it.classification not in CLASSIFICATIONS),
        (f"there are not 1 to {MAX_FIELDS} columns with distinct names and known types", not _columns_fit(it.fields)),
        (f"over {MAX_ROWS} rows", it.rows > MAX_ROWS),
        (f"chunk_bytes is no power of two from {MIN_CHUNK} to {MAX_CHUNK}", not chunk_ok),
        (
            f"the stream has not 1 to {MAX_CHUNKS} chunks",
            not (chunk_ok and 0 < it.bytes <= MAX_CHUNKS * it.chunk_bytes),
        ),
        (
            f"over {_MAX_PATHS} fields are redacted or generalized, or one has no name of 1 to {MAX_NAME} characters",
            not _paths_fit(it.obligations),
        ),
        (
            "it does not last from 1 ms to 30 days",
            not (0 < it.issued_ms <= _MAX_TIME_MS and 0 < it.expires_ms - it.issued_ms <= MAX_LIFETIME_MS),
        ),
    ]


def _digests_fit(it: BulkManifest) -> bool:
    return (
        len(it.id) == _ID
        and len(it.root) == _DIGEST
        and len(it.policy_digest) == _DIGEST
        and len(it.agreement_digest) in (0, _DIGEST)
    )


def _is_name(text: str) -> bool:
    try:
        return bool(organization_name(text))
    except InvalidName:
        return False


def _columns_fit(fields: Sequence[BulkField]) -> bool:
    if not 1 <= len(fields) <= MAX_FIELDS:
        return False
    names = {field.name for field in fields}
    return (
        len(names) == len(fields)
        and all(0 < len(name) <= MAX_NAME and all(name.split(".")) for name in names)
        and all(field.type in TYPES for field in fields)
    )


def _paths_fit(obligations: Obligations) -> bool:
    """Whether the paths are few and short: taking one apart costs the square of its length."""
    paths = [*obligations.redact, *obligations.generalize]
    return len(paths) <= _MAX_PATHS and all(0 < len(path) <= MAX_NAME for path in paths)
