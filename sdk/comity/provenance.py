"""The provenance of a certified record: made by its holder, checked by anyone, offline, with only the trust bundle.

An in-toto Statement (subject: the record's SHA-256) in DSSE. Its predicate carries the documents themselves, in base64:
the record, the agreement with everybody's signature, the hops, the certificate with its reviews, and the chains of
those who signed, so that nothing has to be asked of anybody.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from comity.agreement import Agreed, open_agreement
from comity.certificate import CheckedReview, check_moment, signing_window, verify_certificate
from comity.commitment import verify_commitments
from comity.digest import hex_digest
from comity.errors import CertificateInvalid
from comity.hops import check_attested, last_moment, verify_hops
from comity.identity import read_leaf
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


def make_provenance(
    holder: NodeIdentity, certified: CertifiedRecord, agreement: bytes, *, at_ms: int | None = None
) -> bytes:
    """Return the DSSE envelope in which `holder` states where a certified record came from.

    Args:
        holder: who signs.
        certified: the record, with its history and certificate.
        agreement: under which it was made, with everybody's signature.
        at_ms: the time, in milliseconds since the Unix epoch; None: that of the last hop.

    Raises:
        CertificateInvalid: the record has no history.
    """
    task = certified.task
    predicate = {
        "task": task.id.hex(),
        "home": task.home,
        "agreement": _encode(agreement),
        "certified": _encode(certified.SerializeToString()),
        "holder": holder.organization,
        "signedMs": last_moment(task.hops) if at_ms is None else at_ms,
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

    Whoever signed is verified at the time at which the signature says it was made, which has to be within the
    agreement's (`comity.certificate.signing_window`), against the epoch of the bundle that was in force then: neither
    a certificate's renewal or expiry nor a change of members or roots takes away from what was signed before.

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
    signed_ms = _moment(predicate, task.hops)
    check_moment(signed_ms, _window(agreed), "the statement")
    holder = trust.verify_signed(_decode_all(chain), signed_ms)
    if signers != [holder.public_key] or predicate.get("holder") != holder.organization:
        raise CertificateInvalid("the statement is not signed by the holder that it names")
    if not {holder.organization, task.home} <= agreed.participants:
        raise CertificateInvalid("home and holder have to be participants of the agreement")
    hops, reviews = verify_certified(certified, agreed, trust, until_ms=signed_ms)
    if predicate.get("home") != task.home or predicate.get("task") != task.id.hex():
        raise CertificateInvalid("the statement names another home or task than it carries")
    return Provenance(
        task.id.hex(), task.record, task.home, holder.organization, agreed, hops, certified.certificate, reviews
    )


def verify_certified(
    certified: CertifiedRecord, agreed: Agreed, trust: TrustStore, *, until_ms: int | None = None
) -> tuple[tuple[Hop, ...], tuple[CheckedReview, ...]]:
    """Check steps 4 and 5 for a certified record under an agreement; returns its hops and its reviews.

    Args:
        certified: as received.
        agreed: the agreement, verified.
        trust: the consortium.
        until_ms: when it was put together, if that is known: a home that renews its certificate between its last hop
            and then shows the new one, for the same key. None: with the last hop.

    Raises:
        CertificateInvalid: history or certificate do not prove what they say.
    """
    task, certificate = certified.task, certified.certificate
    home = read_leaf(certified.home_chain).attested
    hops = verify_hops(task.hops, task_id=task.id, record=task.record, home=home)
    last_ms = hops[-1].at_ms
    trust.verify_within(certified.home_chain, last_ms, max(last_ms, until_ms or 0))
    if home.organization != task.home or certificate.author != task.home:
        raise CertificateInvalid(f"the record of {task.home} was sent off by a node of {home.organization}")
    for number, hop in enumerate(hops):
        check_moment(hop.at_ms, _window(agreed), f"hop {number}")
    if task.revision != hops[-1].revision:
        raise CertificateInvalid(f"the task says revision {task.revision}, its last hop {hops[-1].revision}")
    check_attested(hops, agreed.terms.obligations.min_distance_to_private)
    if (certificate.task_id, certificate.agreement_digest) != (task.id, agreed.digest):
        raise CertificateInvalid("the certificate is about another task or agreement")
    if certificate.bundle_epoch != agreed.terms.bundle_epoch or task.agreement_digest != agreed.digest:
        raise CertificateInvalid("the task or the certificate is of another agreement or epoch")
    if certificate.verdict != Certificate.VERDICT_ACCEPT:
        raise CertificateInvalid("the certificate does not accept the record")
    agreed.check_place(task.home, task.id, certificate.batch, certificate.ordinal)
    reviews = verify_certificate(
        certificate,
        record=task.record,
        participants=agreed.numbered_panel(task.home, certificate.batch),
        rule=agreed.rule,
        min_score=agreed.terms.review.min_score,
        trust=trust,
        window=_window(agreed),
    )
    if agreed.terms.review.commit_reveal:
        panel = agreed.numbered_panel(task.home, certificate.batch)
        verify_commitments(certificate, reviews, panel=panel, quorum=agreed.rule.quorum)
    return hops, reviews


def _window(agreed: Agreed) -> tuple[int, int]:
    return signing_window(agreed.terms.issued_ms, agreed.terms.expires_ms)


def _moment(predicate: Mapping[str, Any], history: Sequence[bytes]) -> int:
    """When the holder says it signed; statements of before that was said go by the last hop."""
    value = predicate["signedMs"] if "signedMs" in predicate else last_moment(history)
    if type(value) is not int:
        raise CertificateInvalid("the time of the statement is no whole number of milliseconds")
    return value


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
