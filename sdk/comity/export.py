"""Where a file of certified records came from: made by the node that exported it, checked by anyone, offline.

The file's provenance is a text of JSON lines. The first is an in-toto Statement (subject: the file's SHA-256) in DSSE,
signed by the node that holds the records; its predicate says how many there are and commits to the other lines, in
their order, by the root of a Merkle tree (RFC 9162, section 2.1). Each other line is the provenance of one record
(`comity.provenance`): the agreement with everybody's signature, the history and the quorum certificate. So the file
proves itself as a whole, and each of its records can be proved to others without the rest.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from comity.digest import sha256
from comity.errors import CertificateInvalid
from comity.merkle import HASH_BYTES, CompactRange, leaf_hash
from comity.provenance import Provenance, verify_provenance
from comity.signing import from_libp2p_public_key, peer_id_to_bytes, verify
from comity.statement import (
    PREDICATE_DATASET,
    Signature,
    Statement,
    Subject,
    ed25519_signer,
    open_statement,
    sign_statement,
)
from comity.strictjson import MAX_INTEGER
from comity.trust import NodeIdentity, TrustStore

#: How the records stand in the file: one JSON object a line, or an Apache Parquet table with one row a record.
FORMS: Final = ("jsonl", "parquet")
_MAX_FILE_NAME = 255
_MULTIHASH_PREFIX = 2
_SHA256_HEX = 64


@dataclass(frozen=True, slots=True)
class Export:
    """What a statement about a file of records says.

    Attributes:
        name: the file's name when it was made, without a folder.
        sha256: of the file, 64 lower-case hex digits.
        form: one of `FORMS`.
        records: how many it holds.
        root: of the Merkle tree over the records' provenances, 32 bytes.
        signed_ms: when it was made, in milliseconds since the Unix epoch; the signer's word.
    """

    name: str
    sha256: str
    form: str
    records: int
    root: bytes
    signed_ms: int

    def check(self) -> None:
        """Refuse what no export says.

        Raises:
            CertificateInvalid: a value is out of range.
        """
        hex_digits = len(self.sha256) == _SHA256_HEX and not set(self.sha256) - set("0123456789abcdef")
        if not (0 < len(self.name) <= _MAX_FILE_NAME and self.name.isprintable() and "/" not in self.name):
            raise CertificateInvalid(f"a file's name is printable and has 1 to {_MAX_FILE_NAME} characters")
        if not hex_digits or self.form not in FORMS or len(self.root) != HASH_BYTES:
            raise CertificateInvalid("an export has a SHA-256, a Merkle root, and is " + " or ".join(FORMS))
        if not (0 <= self.records <= MAX_INTEGER and 0 < self.signed_ms <= MAX_INTEGER):
            raise CertificateInvalid("an export has a number of records and a time")


@dataclass(frozen=True, slots=True)
class ProvenExport:
    """A verified statement about a file, and the organization whose node signed it."""

    export: Export
    holder: str


def merkle_root(provenances: Iterable[bytes]) -> tuple[int, bytes]:
    """Return how many provenances there are, and the root of the tree over them."""
    tree = CompactRange()
    for each in provenances:
        tree = tree.append(leaf_hash(each))
    return tree.size, tree.root()


def sign_export(holder: NodeIdentity, export: Export) -> bytes:
    """Return the DSSE envelope in which `holder` states what a file holds.

    Raises:
        CertificateInvalid: `export` says what no export says.
    """
    export.check()
    predicate = {
        "form": export.form,
        "records": export.records,
        "root": export.root.hex(),
        "signedMs": export.signed_ms,
        "holder": holder.organization,
        "holderChain": [base64.b64encode(each).decode("ascii") for each in holder.chain],
    }
    statement = Statement((Subject(export.name, export.sha256),), PREDICATE_DATASET, predicate)
    return sign_statement(statement, [ed25519_signer(holder.key)])


def open_export(data: bytes, trust: TrustStore) -> ProvenExport:
    """Verify the statement about a file: one signature, of a member's node that was in order when it signed.

    Raises:
        CertificateInvalid: it says what no export says, or is signed by somebody else than it names.
        TrustError, EnvelopeError: signature or chain do not verify.
    """
    signers: list[bytes] = []

    def check(signature: Signature, message: bytes) -> None:
        key = from_libp2p_public_key(peer_id_to_bytes(signature.keyid)[_MULTIHASH_PREFIX:])
        verify(key, signature.signature, message)
        signers.append(key)

    statement = open_statement(data, PREDICATE_DATASET, check)
    export, chain = _read(statement)
    holder = trust.verify_signed(chain, export.signed_ms)
    if signers != [holder.public_key] or statement.predicate.get("holder") != holder.organization:
        raise CertificateInvalid("the statement is not signed by the holder that it names")
    return ProvenExport(export, holder.organization)


def verify_export(proven: ProvenExport, lines: Iterable[bytes], trust: TrustStore) -> Iterator[Provenance]:
    """Verify the records' provenances, one after the other, and at the end that they are those of the statement.

    Nothing is proved before the iterator has ended.

    Args:
        proven: the statement.
        lines: the other lines, without their ends.
        trust: the consortium.

    Raises:
        CertificateInvalid: a record, an order or a number is another, or a record is another holder's.
        TrustError, EnvelopeError, AgreementError: a document does not verify.
    """
    tree, tasks = CompactRange(), set[bytes]()
    for number, line in enumerate(lines, start=1):
        provenance = verify_provenance(line, trust)
        task = sha256(provenance.task_id.encode() + provenance.agreed.digest + provenance.author.encode())
        if provenance.holder != proven.holder:
            raise CertificateInvalid(f"record {number} is held by {provenance.holder}, the export by {proven.holder}")
        if task in tasks or number > proven.export.records:
            raise CertificateInvalid(f"record {number} stands twice, or is more than the export has")
        tasks.add(task)
        tree = tree.append(leaf_hash(line))
        yield provenance
    if (tree.size, tree.root()) != (proven.export.records, proven.export.root):
        raise CertificateInvalid(f"the {tree.size} records are not those that {proven.holder} has exported")


def _read(statement: Statement) -> tuple[Export, list[bytes]]:
    predicate: Mapping[str, Any] = statement.predicate
    if len(statement.subjects) != 1:
        raise CertificateInvalid("an export is one file")
    root, chain = predicate.get("root"), predicate.get("holderChain")
    records, signed_ms = predicate.get("records"), predicate.get("signedMs")
    if type(records) is not int or type(signed_ms) is not int or not isinstance(root, str):
        raise CertificateInvalid("the statement about the export lacks its number, its root or its time")
    if not isinstance(chain, list) or not all(isinstance(each, str) for each in chain):
        raise CertificateInvalid("the statement about the export lacks its holder's chain")
    try:
        ders = [base64.b64decode(each, validate=True) for each in chain]
        root_bytes = bytes.fromhex(root)
    except (ValueError, binascii.Error) as error:
        raise CertificateInvalid("a value of the statement about the export cannot be read") from error
    subject = statement.subjects[0]
    export = Export(subject.name, subject.sha256, str(predicate.get("form")), records, root_bytes, signed_ms)
    export.check()
    return export, ders
