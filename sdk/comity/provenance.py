"""The provenance of a certified record: made by its holder, checked by anyone, offline, with only the trust bundle.

An in-toto Statement (subject: the record's SHA-256) in DSSE. Its predicate carries the documents themselves, in base64:
the record, the agreement with everybody's signature, the hops, the certificate with its reviews, and the chains of
those who signed, so that nothing has to be asked of anybody.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity.agreement import Agreed, open_agreement
from comity.certificate import CheckedReview, verify_certificate
from comity.digest import hex_digest
from comity.errors import CertificateInvalid
from comity.hops import check_attested, verify_hops
from comity.signing import from_libp2p_public_key, peer_id_to_bytes, verify
from comity.statement import (
    PREDICATE_CERTIFIED_RECORD,
    Signature,
    Statement,
    Subject,
    ed25519_signer,
    open_statement,
    sign_statement,
)
from comity.trust import NodeIdentity, TrustStore
from comity.v1.task_pb2 import Certificate, CertifiedRecord, Hop

_MULTIHASH_PREFIX = 2


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a verified provenance says."""

    task_id: str
    record: bytes
    author: str
    holder: str
    agreed: Agreed
    hops: tuple[Hop, ...]
    certificate: Certificate
    reviews: tuple[CheckedReview, ...]

    def lines(self) -> list[str]:
        """Return it for a person, one line a fact."""
        terms = self.agreed.terms
        votes = ", ".join(f"{one.organization} {one.review.score / 100:.2f}%" for one in self.reviews)
        rule = self.agreed.rule
        lines = [
            f"record      {hex_digest(self.record)}",
            f"task        {self.task_id}, revision {self.hops[-1].revision}",
            f"author      {self.author}",
            f"agreement   {self.agreed.digest.hex()} for {terms.purpose!r}, signed by {', '.join(terms.participants)}",
        ]
        for hop in self.hops:
            to = f" to {hop.to_organization}" if hop.to_organization else ""
            says = "".join(f", {key} {value}" for key, value in sorted(hop.attested.items()))
            lines.append(f"hop         {hop.action}{to} by {hop.node}, rules {', '.join(hop.rules) or '-'}{says}")
        lines.append(f"certificate {rule.quorum} of {rule.eligible} votes, {rule.faulty} may be faulty: {votes}")
        return lines


def make_provenance(holder: NodeIdentity, certified: CertifiedRecord, agreement: bytes) -> bytes:
    """Return the DSSE envelope in which `holder` states where a certified record came from."""
    task = certified.task
    predicate = {
        "task": task.id.hex(),
        "home": task.home,
        "agreement": _encode(agreement),
        "certified": _encode(certified.SerializeToString()),
        "holder": holder.organization,
        "holderChain": [_encode(each) for each in holder.chain],
    }
    subject = Subject(f"record/{task.id.hex()}", hex_digest(task.record))
    statement = Statement((subject,), PREDICATE_CERTIFIED_RECORD, predicate)
    return sign_statement(statement, [ed25519_signer(holder.key)])


def verify_provenance(data: bytes, trust: TrustStore) -> Provenance:
    """Check a provenance against the trust bundle.

    1. The statement is signed by the holder, a node of a member.
    2. Its subject is the record that it carries.
    3. Every participant signed the agreement, and home and holder are participants.
    4. Every hop is signed by the home's node, about this record, in one unbroken chain.
    5. The certificate is a quorum of valid, distinct, eligible votes to accept this record under this agreement.

    Raises:
        CertificateInvalid: one of these does not hold.
        TrustError, EnvelopeError, AgreementError: a signature, a chain or a document does not verify.
    """
    signers: list[bytes] = []

    def check(signature: Signature, message: bytes) -> None:
        key = from_libp2p_public_key(peer_id_to_bytes(signature.keyid)[_MULTIHASH_PREFIX:])
        verify(key, signature.signature, message)
        signers.append(key)

    statement = open_statement(data, PREDICATE_CERTIFIED_RECORD, check)
    predicate = statement.predicate
    certified, chain = _read(predicate.get("certified")), predicate.get("holderChain")
    agreed = open_agreement(_decode(predicate.get("agreement")), trust)
    task = certified.task
    if [(one.name, one.sha256) for one in statement.subjects] != [(f"record/{task.id.hex()}", hex_digest(task.record))]:
        raise CertificateInvalid("the statement is about another record than it carries")
    holder = trust.verify_chain(_decode_all(chain), agreed.terms.issued_ms)
    if signers != [holder.public_key] or predicate.get("holder") != holder.organization:
        raise CertificateInvalid("the statement is not signed by the holder that it names")
    if not {holder.organization, task.home} <= agreed.participants:
        raise CertificateInvalid("home and holder have to be participants of the agreement")
    hops, reviews = verify_certified(certified, agreed, trust)
    if predicate.get("home") != task.home or predicate.get("task") != task.id.hex():
        raise CertificateInvalid("the statement names another home or task than it carries")
    return Provenance(
        task.id.hex(), task.record, task.home, holder.organization, agreed, hops, certified.certificate, reviews
    )


def verify_certified(
    certified: CertifiedRecord, agreed: Agreed, trust: TrustStore
) -> tuple[tuple[Hop, ...], tuple[CheckedReview, ...]]:
    """Check steps 4 and 5 for a certified record under an agreement; returns its hops and its reviews.

    Raises:
        CertificateInvalid: history or certificate do not prove what they say.
    """
    task, certificate = certified.task, certified.certificate
    home = trust.verify_chain(certified.home_chain, agreed.terms.issued_ms)
    if home.organization != task.home or certificate.author != task.home:
        raise CertificateInvalid(f"the record of {task.home} was sent off by a node of {home.organization}")
    hops = verify_hops(task.hops, task_id=task.id, record=task.record, home=home)
    if task.revision != hops[-1].revision:
        raise CertificateInvalid(f"the task says revision {task.revision}, its last hop {hops[-1].revision}")
    check_attested(hops, agreed.terms.obligations.min_distance_to_private)
    if (certificate.task_id, certificate.agreement_digest) != (task.id, agreed.digest):
        raise CertificateInvalid("the certificate is about another task or agreement")
    if certificate.bundle_epoch != agreed.terms.bundle_epoch or task.agreement_digest != agreed.digest:
        raise CertificateInvalid("the task or the certificate is of another agreement or epoch")
    if certificate.verdict != Certificate.VERDICT_ACCEPT:
        raise CertificateInvalid("the certificate does not accept the record")
    reviews = verify_certificate(
        certificate,
        record=task.record,
        participants=agreed.participants,
        rule=agreed.rule,
        min_score=agreed.terms.review.min_score,
        trust=trust,
    )
    return hops, reviews


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(value: object) -> bytes:
    if not isinstance(value, str):
        raise CertificateInvalid("a document is missing from the statement")
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error) as error:
        raise CertificateInvalid("a document in the statement is not base64") from error


def _decode_all(value: object) -> Sequence[bytes]:
    if not isinstance(value, list):
        raise CertificateInvalid("the holder's chain is missing from the statement")
    return [_decode(each) for each in value]


def _read(value: object) -> CertifiedRecord:
    try:
        return CertifiedRecord.FromString(_decode(value))
    except DecodeError as error:
        raise CertificateInvalid("the certified record does not parse") from error
