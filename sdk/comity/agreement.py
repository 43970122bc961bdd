"""Agreements: terms that every participant has signed, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from comity import draw
from comity.envelope import open_document, sign_document
from comity.errors import AgreementError, TrustError
from comity.terms import (
    DIGEST_BYTES,
    MAX_FLOW,
    MAX_LIFETIME_MS,
    MAX_RECORDS,
    MAX_TEXT,
    Agreed,
    parse_terms,
)
from comity.trust import NodeIdentity, TrustStore
from comity.v1.agreement_pb2 import (
    Agreement,
    AgreementDocument,
    AgreementSignature,
    SignedWithdrawal,
    Terms,
    Withdrawal,
)

__all__ = [
    "KIND", "MAX_FLOW", "MAX_LIFETIME_MS", "MAX_REASON", "MAX_RECORDS", "WITHDRAWAL", "Agreed", "Withdrawn",
    "check_signature", "conclude", "open_agreement", "open_document_of_agreement", "open_withdrawal", "parse_terms",
    "read_terms", "sign_terms", "sign_withdrawal",
]  # fmt: skip

#: The document kind that participants sign.
KIND = "terms"
#: The document kind by which one of them ends it.
WITHDRAWAL = "withdrawal"
#: Characters of the reason of a withdrawal.
MAX_REASON = 500


def sign_terms(identity: NodeIdentity, terms: bytes) -> AgreementSignature:
    """Sign exactly these bytes in the name of the node's organization, and add to the draw if there is a panel."""
    envelope = sign_document(identity.key, KIND, terms)
    return AgreementSignature(
        organization=identity.organization,
        envelope=envelope,
        chain=identity.chain,
        draw=draw.own(identity.key, Terms.FromString(terms)),
    )


def check_signature(
    signature: AgreementSignature, terms: bytes, trust: TrustStore, at_ms: int, *, until_ms: int | None = None
) -> str:
    """Check one participant's signature over `terms` and return the organization.

    Args:
        signature: as received.
        terms: what it has to be over.
        trust: the consortium.
        at_ms: when the signer's certificate has to be good, in milliseconds since the Unix epoch: now.
        until_ms: for something old: it has to have been good at some time from `at_ms` to then.

    Raises:
        AgreementError: it is over other terms, or speaks for another organization.
        TrustError: signature or chain do not verify.
    """
    document = open_document(signature.envelope, KIND)
    if until_ms is None:
        attested = trust.verify_chain(signature.chain, at_ms)
    else:
        attested = trust.verify_within(signature.chain, at_ms, until_ms)
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

    A signature on terms does not say when it was made: its chain has to have been good while the agreement was.

    Raises:
        AgreementError: one of these does not hold.
    """
    agreement = _parse(data)
    agreed = parse_terms(agreement.terms)
    begins, ends = agreed.terms.issued_ms, agreed.terms.expires_ms
    if len(agreement.signatures) != len(agreed.terms.participants):
        raise AgreementError("an agreement has one signature of each participant, and no other")
    if agreed.terms.consortium != trust.bundle.consortium:
        raise AgreementError(f"the agreement is of the consortium {agreed.terms.consortium!r}")
    signers = [one.organization for one in agreement.signatures]
    if sorted(signers) != list(agreed.terms.participants):  # before any is verified: each says whose it is
        missing = sorted(agreed.participants - set(signers))
        raise AgreementError(f"not signed by {', '.join(missing) or 'the participants, each once'}")
    try:
        for one in agreement.signatures:
            check_signature(one, agreement.terms, trust, begins, until_ms=ends)
    except TrustError as error:
        raise AgreementError(f"a signature does not verify: {error}") from error
    added = {one.organization: one.draw for one in agreement.signatures}
    return replace(agreed, chance=draw.chance_of(agreed.terms, added))


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A participant's verified statement that it ends an agreement.

    Attributes:
        digest: of the agreement's terms.
        organization: who withdrew.
        reason: in its words.
        at_ms: when, by its clock, in milliseconds since the Unix epoch.
    """

    digest: bytes
    organization: str
    reason: str
    at_ms: int


def sign_withdrawal(identity: NodeIdentity, digest: bytes, reason: str, at_ms: int) -> bytes:
    """Return a `SignedWithdrawal` from the agreement with this digest, in the name of the node's organization.

    Raises:
        AgreementError: the reason is too long, or holds what is no text for a line.
    """
    _check_reason(reason)
    body = Withdrawal(
        agreement_digest=digest, organization=identity.organization, reason=reason, at_ms=at_ms
    ).SerializeToString()
    envelope = sign_document(identity.key, WITHDRAWAL, body)
    return SignedWithdrawal(envelope=envelope, chain=identity.chain).SerializeToString()


def open_withdrawal(data: bytes, trust: TrustStore) -> Withdrawn:
    """Verify a `SignedWithdrawal`. Whether its author takes part in the agreement is for the caller to check.

    The chain is checked at the time that the statement names.

    Raises:
        AgreementError: it does not parse, or speaks for another organization than it was signed by.
        TrustError: signature or chain do not verify.
    """
    try:
        signed = SignedWithdrawal.FromString(data)
        document = open_document(signed.envelope, WITHDRAWAL)
        said = Withdrawal.FromString(document.body)
    except DecodeError as error:
        raise AgreementError("the withdrawal does not parse") from error
    attested = trust.verify_signed(signed.chain, said.at_ms)
    if attested.public_key != document.signer or attested.organization != said.organization:
        raise AgreementError(f"the withdrawal of {said.organization[:MAX_TEXT]!r} was made by somebody else")
    if len(said.agreement_digest) != DIGEST_BYTES:
        raise AgreementError("the withdrawal names no agreement")
    _check_reason(said.reason)
    return Withdrawn(said.agreement_digest, attested.organization, said.reason, said.at_ms)


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise AgreementError(f"the reason of a withdrawal is one line of at most {MAX_REASON} characters")


def open_document_of_agreement(data: bytes, trust: TrustStore) -> tuple[Agreed, tuple[Withdrawn, ...]]:
    """Verify an `AgreementDocument`: the agreement, and whatever statements of withdrawal it holds.

    It has exactly one encoding, so that no byte of it can be changed without a signature that fails.

    Raises:
        AgreementError: it does not parse, holds more than it needs, or something in it does not verify.
    """
    try:
        document = AgreementDocument.FromString(data)
        agreement = Agreement.FromString(document.agreement)
        inner = agreement.SerializeToString()
        agreement.DiscardUnknownFields()
        document.DiscardUnknownFields()
    except DecodeError as error:
        raise AgreementError("the document does not parse") from error
    if document.SerializeToString() != data or {inner, agreement.SerializeToString()} != {document.agreement}:
        raise AgreementError("the document has been encoded anew, or holds more than an agreement and withdrawals")
    agreed = open_agreement(document.agreement, trust)
    try:
        withdrawn = tuple(open_withdrawal(one.SerializeToString(), trust) for one in document.withdrawals)
    except TrustError as error:
        raise AgreementError(f"a withdrawal does not verify: {error}") from error
    for one in withdrawn:
        if one.digest != agreed.digest or one.organization not in agreed.participants:
            raise AgreementError(f"the withdrawal of {one.organization} is from another agreement")
    return agreed, withdrawn
