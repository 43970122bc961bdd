"""Evidence that an organization lied: two documents that no honest one signs both.

Anybody checks it offline, with nothing but the trust bundle. Who is accused cannot be framed: both documents are signed
with the accused's own key, and an honest node writes what it signs down before it leaves and signs nothing that
contradicts it. There are three kinds:

- *votes*: two reviews of one record, task and revision, under one agreement, that differ in score or vote;
- *commitments*: two commitments for one batch and revision, under one agreement, to different things;
- *opening*: a review and a commitment to another score for the same task and revision.

Reviews of two different records prove nothing against their signer: the home may have sent it both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity.certificate import CheckedReview, check_review
from comity.commitment import Checked, check_commitment, check_opened
from comity.digest import sha256
from comity.envelope import open_document
from comity.errors import CertificateInvalid, EnvelopeError
from comity.trust import TrustStore
from comity.v1.task_pb2 import Evidence

#: Bytes of an evidence: two documents and two chains.
MAX_EVIDENCE = 128 * 1024
_MAX_CHAIN = 8


@dataclass(frozen=True, slots=True)
class Proven:
    """A verified evidence.

    Attributes:
        organization: who signed both.
        kind: "votes", "commitments" or "opening".
        subject: 32 bytes: what it is about. Two evidences of one kind about one subject add nothing to each other.
        at_ms: when the later of the two was signed, by the signer's clock; milliseconds since the Unix epoch.
        raw: the evidence.
    """

    organization: str
    kind: str
    subject: bytes
    at_ms: int
    raw: bytes


def make_evidence(first: bytes, first_chain: Sequence[bytes], second: bytes, second_chain: Sequence[bytes]) -> bytes:
    """Return the evidence of two documents; the same bytes in whichever order they are given."""
    one, other = sorted(((first, tuple(first_chain)), (second, tuple(second_chain))), key=lambda each: sha256(each[0]))
    return Evidence(first=one[0], second=other[0], first_chain=one[1], second_chain=other[1]).SerializeToString()


def verify_evidence(data: bytes, trust: TrustStore) -> Proven:
    """Check an evidence: both documents are of one organization, which contradicts itself.

    Each chain is verified at the time that its document names.

    Raises:
        CertificateInvalid: it is too large, does not parse, or the two do not contradict each other.
        EnvelopeError, TrustError: a signature or a chain does not verify.
    """
    if len(data) > MAX_EVIDENCE:
        raise CertificateInvalid(f"an evidence of {len(data)} bytes; at most {MAX_EVIDENCE}")
    try:
        evidence = Evidence.FromString(data)
    except DecodeError as error:
        raise CertificateInvalid("an evidence does not parse") from error
    if max(len(evidence.first_chain), len(evidence.second_chain)) > _MAX_CHAIN:
        raise CertificateInvalid("the chains of an evidence are too long")
    first = _check(evidence.first, evidence.first_chain, trust)
    second = _check(evidence.second, evidence.second_chain, trust)
    if first.organization != second.organization:
        raise CertificateInvalid(f"{first.organization} and {second.organization} may say different things")
    match first, second:
        case (CheckedReview(), CheckedReview()):
            kind, subject = "votes", _votes(first, second)
        case (Checked(), Checked()):
            kind, subject = "commitments", _commitments(first, second)
        case (CheckedReview(), Checked()):
            kind, subject = "opening", _opening(first, second)
        case (Checked(), CheckedReview()):
            kind, subject = "opening", _opening(second, first)
    return Proven(first.organization, kind, subject, max(_moment(first), _moment(second)), data)


def _check(envelope: bytes, chain: Sequence[bytes], trust: TrustStore) -> CheckedReview | Checked:
    try:
        open_document(envelope, "review")
    except EnvelopeError:
        return check_commitment(envelope, chain, trust)
    return check_review(envelope, chain, trust)


def _moment(one: CheckedReview | Checked) -> int:
    return one.review.at_ms if isinstance(one, CheckedReview) else one.commitment.at_ms


def _votes(first: CheckedReview, second: CheckedReview) -> bytes:
    about, other = (
        (
            one.review.agreement_digest, one.review.bundle_epoch.to_bytes(8, "big"), one.review.author.encode(),
            one.review.task_id, one.review.revision.to_bytes(4, "big"), one.review.record_digest,
        )
        for one in (first, second)
    )  # fmt: skip
    if about != other:
        raise CertificateInvalid("the two reviews are about different things: they prove nothing")
    if (first.review.accept, first.review.score) == (second.review.accept, second.review.score):
        raise CertificateInvalid("the two reviews say the same: they prove nothing")
    return _subject(first.organization, *about)


def _commitments(first: Checked, second: Checked) -> bytes:
    about, other = (
        (
            one.commitment.agreement_digest, one.commitment.author.encode(), one.commitment.batch_id,
            one.commitment.revision.to_bytes(4, "big"),
        )
        for one in (first, second)
    )  # fmt: skip
    if about != other:
        raise CertificateInvalid("the two commitments are about different things: they prove nothing")
    said = [[(one.task_id, one.digest) for one in each.commitment.tasks] for each in (first, second)]
    if said[0] == said[1]:
        raise CertificateInvalid("the two commitments say the same: they prove nothing")
    return _subject(first.organization, *about)


def _opening(vote: CheckedReview, committed: Checked) -> bytes:
    review, made = vote.review, committed.commitment
    about = (review.agreement_digest, review.revision, review.author)
    if about != (made.agreement_digest, made.revision, made.author) or not review.commitments:
        raise CertificateInvalid("the review and the commitment are about different things: they prove nothing")
    if review.task_id not in {one.task_id for one in made.tasks}:
        raise CertificateInvalid("the commitment says nothing about the task of the review: they prove nothing")
    try:
        check_opened(review, made)
    except CertificateInvalid:
        numbers = review.revision.to_bytes(4, "big")
        return _subject(vote.organization, review.agreement_digest, review.author.encode(), review.task_id, numbers)
    raise CertificateInvalid("the review is what was committed to: they prove nothing")


def _subject(*parts: str | bytes) -> bytes:
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in raw))
