"""Agreements: terms that every participant has signed, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity.certificate import MAX_SCORE, QuorumRule
from comity.digest import sha256
from comity.envelope import open_document, sign_document
from comity.errors import AgreementError, CertificateInvalid, InvalidName, TrustError
from comity.ids import organization_name
from comity.trust import NodeIdentity, TrustStore
from comity.v1.agreement_pb2 import Agreement, AgreementSignature, Terms

#: The document kind that participants sign.
KIND = "terms"
_MAX_PARTICIPANTS = 256
_MAX_BATCH = 256
_MAX_REPAIRS = 10
_MAX_LEASE_S = 3600
_MAX_TEXT = 128
_MAX_PATHS = 256
#: Of one organization, under one agreement.
MAX_RECORDS = 1_000_000
#: No agreement lasts longer.
MAX_LIFETIME_MS = 366 * 24 * 3600 * 1000
_MAX_RETAIN_S = 100 * 366 * 24 * 3600
#: How far another organization's clock may be ahead.
_SKEW_MS = 30_000
_ONWARD = frozenset({"", "never", "with_consent", "allowed"})


@dataclass(frozen=True, slots=True)
class Agreed:
    """An agreement whose signatures verified (or terms that are still being negotiated)."""

    terms: Terms
    digest: bytes

    @property
    def participants(self) -> frozenset[str]:
        """The organizations that take part."""
        return frozenset(self.terms.participants)

    @property
    def rule(self) -> QuorumRule:
        """The quorum that certificates under it take."""
        review = self.terms.review
        return QuorumRule(review.eligible, review.faulty, review.quorum)

    def reviewers(self, author: str) -> frozenset[str]:
        """The organizations that may vote on a record of `author`."""
        return self.participants - {author}

    def check_active(self, now_ms: int) -> None:
        """Refuse an agreement that is over, or has not begun.

        Raises:
            AgreementError: it is not in force at `now_ms`.
        """
        if now_ms >= self.terms.expires_ms:
            raise AgreementError(f"agreement {self.digest.hex()[:12]} has expired; negotiate a new one")
        if now_ms < self.terms.issued_ms - _SKEW_MS:
            raise AgreementError(f"agreement {self.digest.hex()[:12]} has not begun: compare the clocks")


def parse_terms(data: bytes) -> Agreed:
    """Read terms and check that they make sense.

    Raises:
        AgreementError: they do not parse, or a value is out of range (the message says which).
    """
    try:
        terms = Terms.FromString(data)
    except DecodeError as error:
        raise AgreementError("the terms do not parse") from error
    participants = list(terms.participants)
    if participants != sorted(set(participants)) or not 2 <= len(participants) <= _MAX_PARTICIPANTS:
        raise AgreementError("participants have to be sorted, distinct, and from 2 to 256")
    try:
        for name in participants:
            organization_name(name)
        QuorumRule(terms.review.eligible, terms.review.faulty, terms.review.quorum).check()
    except (InvalidName, CertificateInvalid) as error:
        raise AgreementError(str(error)) from error
    wrong = [text for text, bad in _faults(terms) if bad]
    if wrong:
        raise AgreementError("terms refused: " + "; ".join(wrong))
    return Agreed(terms, sha256(data))


def _faults(terms: Terms) -> list[tuple[str, bool]]:
    return [
        ("the initiator does not take part", terms.initiator not in terms.participants),
        (
            "the author does not vote, so eligible is participants - 1",
            terms.review.eligible != len(terms.participants) - 1,
        ),
        ("min_score is over 10000", terms.review.min_score > MAX_SCORE),
        (f"records_per_organization is not 1..{MAX_RECORDS}", not 1 <= terms.records_per_organization <= MAX_RECORDS),
        ("an id, a purpose or a dataset is over 128 characters", _longest(terms) > _MAX_TEXT),
        (f"over {_MAX_PATHS} fields are redacted or generalized", _paths(terms) > _MAX_PATHS),
        (f"batch_records is not 1..{_MAX_BATCH}", not 1 <= terms.batch_records <= _MAX_BATCH),
        (f"repair_rounds is over {_MAX_REPAIRS}", terms.repair_rounds > _MAX_REPAIRS),
        (f"lease_seconds is not 1..{_MAX_LEASE_S}", not 1 <= terms.lease_seconds <= _MAX_LEASE_S),
        ("it does not last from 1 ms to 366 days", not 0 < terms.expires_ms - terms.issued_ms <= MAX_LIFETIME_MS),
        ("onward is not never, with_consent or allowed", terms.obligations.onward not in _ONWARD),
        (
            "a grid of generalize is no positive number",
            not all(0 < grid < math.inf for grid in terms.obligations.generalize.values()),
        ),
        (
            "min_distance_to_private is no number of at least 0",
            not 0 <= terms.obligations.min_distance_to_private < math.inf,
        ),
        ("retain_seconds is over 100 years", terms.obligations.retain_seconds > _MAX_RETAIN_S),
    ]


def _longest(terms: Terms) -> int:
    return max(len(text) for text in (terms.id, terms.purpose, terms.dataset, terms.consortium))


def _paths(terms: Terms) -> int:
    return len(terms.obligations.redact) + len(terms.obligations.generalize)


def sign_terms(identity: NodeIdentity, terms: bytes) -> AgreementSignature:
    """Sign exactly these bytes in the name of the node's organization."""
    envelope = sign_document(identity.key, KIND, terms)
    return AgreementSignature(organization=identity.organization, envelope=envelope, chain=identity.chain)


def check_signature(signature: AgreementSignature, terms: bytes, trust: TrustStore, at_ms: int) -> str:
    """Check one participant's signature over `terms` and return the organization.

    Raises:
        AgreementError: it is over other terms, or speaks for another organization.
        TrustError: signature or chain do not verify.
    """
    document = open_document(signature.envelope, KIND)
    attested = trust.verify_chain(signature.chain, at_ms)
    if attested.public_key != document.signer or attested.organization != signature.organization:
        raise AgreementError(f"the signature of {signature.organization} was made by somebody else")
    if document.body != terms:
        raise AgreementError(f"{signature.organization} signed other terms")
    return attested.organization


def conclude(terms: bytes, signatures: Sequence[AgreementSignature]) -> bytes:
    """Return the agreement of `terms` and everybody's signature."""
    ordered = sorted(signatures, key=lambda signature: signature.organization)
    return Agreement(terms=terms, signatures=ordered).SerializeToString()


def read_terms(data: bytes) -> Agreed:
    """Read the terms of an agreement without verifying its signatures.

    Raises:
        AgreementError: the agreement or its terms do not parse, or make no sense.
    """
    return parse_terms(_parse(data).terms)


def _parse(data: bytes) -> Agreement:
    try:
        return Agreement.FromString(data)
    except DecodeError as error:
        raise AgreementError("the agreement does not parse") from error


def open_agreement(data: bytes, trust: TrustStore) -> Agreed:
    """Verify an agreement: sound terms, of this consortium, signed by every participant over the same bytes.

    Chains are checked at the time the terms were issued.

    Raises:
        AgreementError: one of these does not hold.
    """
    agreement = _parse(data)
    agreed = parse_terms(agreement.terms)
    if len(agreement.signatures) != len(agreed.terms.participants):
        raise AgreementError("an agreement has one signature of each participant, and no other")
    if agreed.terms.consortium != trust.bundle.consortium:
        raise AgreementError(f"the agreement is of the consortium {agreed.terms.consortium!r}")
    try:
        signed = [check_signature(one, agreement.terms, trust, agreed.terms.issued_ms) for one in agreement.signatures]
    except TrustError as error:
        raise AgreementError(f"a signature does not verify: {error}") from error
    if sorted(signed) != list(agreed.terms.participants):
        missing = sorted(agreed.participants - set(signed))
        raise AgreementError(f"not signed by {', '.join(missing) or 'the participants, each once'}")
    return agreed
