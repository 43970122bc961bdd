"""Scores that are committed to before any is shown, so that nobody can copy another one's.

With `commit_reveal` in an agreement a batch is judged in two rounds:

1. A reviewer signs a `Commitment`: for each task SHA-256(nonce, task, revision, record, organization, score). The nonce
   is 32 random bytes of its own; without it the digest says nothing, though there are only 10001 scores.
2. The home gathers the commitments of a quorum (and f more, while they come) and sends the set to all who are in it.
3. A reviewer looks whether it is of the panel and has its own commitment in it. Only then it signs its reviews: each
   names the digest of the set, and shows the nonce. It does that once, for the first set that it is shown.
4. A certificate names the set, and has each voter's commitment beside its vote. All votes name the same set, and each
   is what its voter had committed to.

*What that gives.* In a certificate every vote was fixed, by a signed commitment in the set, before any honest voter of
this certificate showed its score: an honest one shows it only after it has seen the set, and the set has the
commitments of all whose votes count. A copier who is paid by the home gains nothing: if the home shows it the scores of
those who have revealed, its commitment, made after that, is in no set that they name; and their votes, without which
there is no quorum, count with no other. The home can give up the votes of some to show them to the copier (a set for
these, another one for the rest). Then the votes that were copied do not count in the certificate; those whom it cheated
hold a set from it that the certificate contradicts.

*What it does not give.* Reviewers who confer outside may say the same; that is a coalition, and counted in f. Who
commits and then does not show its score holds up its own vote alone: the others go on without it when its lease ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity.certificate import CheckedReview, check_moment
from comity.digest import sha256
from comity.envelope import open_document, sign_document
from comity.errors import CertificateInvalid, EnvelopeError, TrustError
from comity.trust import NodeIdentity, TrustStore
from comity.v1.task_pb2 import Certificate, Commitment, CommitmentReference, CommittedTask, Review, SignedCommitment

KIND = "commitment"
NONCE_BYTES = 32
#: Bytes of one commitment's envelope: 256 tasks, and the names.
MAX_COMMITMENT = 32 * 1024
_MAX_TASKS = 256
_LEAF, _SET = b"comity/commitment/v1", b"comity/commitments/v1"


@dataclass(frozen=True, slots=True)
class Checked:
    """A commitment whose signature and chain verified."""

    commitment: Commitment
    envelope: bytes
    chain: tuple[bytes, ...]
    signer: bytes

    @property
    def organization(self) -> str:
        """Who has committed."""
        return self.commitment.organization


def leaf(nonce: bytes, review: Review) -> bytes:
    """Return the digest that commits to what a review says: accept and author follow from score and task."""
    numbers = review.revision.to_bytes(4, "big") + review.score.to_bytes(4, "big")
    return sha256(
        b"\x00".join((_LEAF, nonce + review.task_id + review.record_digest + numbers, review.organization.encode()))
    )


def commit(
    identity: NodeIdentity, reviews: Sequence[Review], nonce: bytes, *, batch: bytes, at_ms: int
) -> SignedCommitment:
    """Return the commitment to what reviews of one batch will say, which need not be signed yet."""
    first = reviews[0]
    made = Commitment(
        agreement_digest=first.agreement_digest,
        batch_id=batch,
        revision=first.revision,
        organization=identity.organization,
        author=first.author,
        tasks=[CommittedTask(task_id=one.task_id, digest=leaf(nonce, one)) for one in reviews],
        at_ms=at_ms,
    )
    envelope = sign_document(identity.key, KIND, made.SerializeToString())
    return SignedCommitment(envelope=envelope, chain=identity.chain)


def read_commitment(envelope: bytes) -> tuple[Commitment, bytes]:
    """Return what a commitment says and the key that signed it; whose key that is, is not verified.

    Raises:
        CertificateInvalid: it is too large, does not parse or makes no sense.
        EnvelopeError, TrustError: it is no commitment, or the signature does not verify.
    """
    if len(envelope) > MAX_COMMITMENT:
        raise CertificateInvalid(f"a commitment of {len(envelope)} bytes; at most {MAX_COMMITMENT}")
    document = open_document(envelope, KIND)
    try:
        made = Commitment.FromString(document.body)
    except DecodeError as error:
        raise CertificateInvalid("a commitment does not parse") from error
    tasks = {one.task_id for one in made.tasks}
    if not 0 < len(made.tasks) <= _MAX_TASKS or len(tasks) != len(made.tasks):
        raise CertificateInvalid("a commitment is to 1 to 256 tasks, each of them once")
    return made, document.signer


def check_commitment(
    envelope: bytes, chain: Sequence[bytes], trust: TrustStore, *, window: tuple[int, int] | None = None
) -> Checked:
    """Verify one commitment: signature, chain at the time of signing, and that it speaks for its own organization.

    Args:
        envelope: as received.
        chain: of the node that signed, in DER, its own certificate first.
        trust: the consortium.
        window: the `comity.certificate.signing_window` of the agreement; None where no agreement is known.

    Raises:
        CertificateInvalid: it makes no sense, speaks for another organization, or is not of the agreement's time.
        EnvelopeError, TrustError: it is no commitment, or signature or chain do not verify.
    """
    made, signer = read_commitment(envelope)
    if window is not None:
        check_moment(made.at_ms, window, "a commitment")
    attested = trust.verify_signed(chain, made.at_ms)
    if attested.public_key != signer or attested.organization != made.organization:
        raise CertificateInvalid(f"{attested.organization} committed in the name of {made.organization}")
    return Checked(made, envelope, tuple(chain), signer)


def set_digest(agreement: bytes, batch: bytes, revision: int, digests: Mapping[str, bytes]) -> bytes:
    """Return the digest of a set of commitments, by which reviews name it.

    Args:
        agreement: digest of the terms.
        batch: 16 bytes.
        revision: of the batch.
        digests: SHA-256 of each organization's envelope.
    """
    parts = [_SET, agreement + batch + revision.to_bytes(4, "big")]
    for organization in sorted(digests):
        parts += [digests[organization] + organization.encode()]
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts))


def references(digests: Mapping[str, bytes]) -> list[CommitmentReference]:
    """Return a set of commitments as a certificate has it."""
    return [CommitmentReference(organization=name, digest=digests[name]) for name in sorted(digests)]


def check_set(
    commitments: Iterable[Checked], *, agreement: bytes, batch: bytes, revision: int, author: str,
    panel: Collection[str], quorum: int,
) -> dict[str, bytes]:  # fmt: skip
    """Check what a home shows to those who have committed, and return the set: digests by organization.

    Raises:
        CertificateInvalid: they are about something else, of others than the panel, twice of one, or too few.
    """
    found: dict[str, bytes] = {}
    for one in commitments:
        made = one.commitment
        if (made.agreement_digest, made.batch_id, made.revision, made.author) != (agreement, batch, revision, author):
            raise CertificateInvalid(f"the commitment of {one.organization} is about something else")
        if one.organization not in panel or one.organization in found:
            raise CertificateInvalid(f"{one.organization} may not commit here, or has twice")
        found[one.organization] = sha256(one.envelope)
    if len(found) < quorum:
        raise CertificateInvalid(f"{len(found)} commitments; scores are shown to {quorum} or more who have committed")
    return found


def check_opened(review: Review, made: Commitment) -> None:
    """Refuse a review that is not what its organization has committed to.

    Raises:
        CertificateInvalid: it is not, or is about something else than the commitment.
    """
    about = (review.agreement_digest, review.revision, review.organization, review.author)
    if about != (made.agreement_digest, made.revision, made.organization, made.author):
        raise CertificateInvalid(f"the commitment of {made.organization} is about something else than its review")
    committed = next((one.digest for one in made.tasks if one.task_id == review.task_id), b"")
    if len(review.nonce) != NONCE_BYTES or leaf(review.nonce, review) != committed:
        raise CertificateInvalid(f"{review.organization} has committed to another score than it shows")


def verify_commitments(
    certificate: Certificate, votes: Sequence[CheckedReview], *, panel: Collection[str], quorum: int
) -> None:
    """Check that the votes of a certificate were fixed before any of them was shown.

    1. The set has commitments of distinct members of the panel, a quorum or more.
    2. Every voter's commitment is in the set, and signed by the node that signed its vote.
    3. Every vote names this set, and is what its voter had committed to.

    Args:
        certificate: whose votes verified (`comity.certificate.verify_certificate`).
        votes: what they say, in the certificate's order.
        panel: who may vote.
        quorum: how many votes a certificate takes.

    Raises:
        CertificateInvalid: one of these does not hold.
    """
    digests = {one.organization: one.digest for one in certificate.commitments}
    if len(digests) != len(certificate.commitments) or not set(digests) <= set(panel) or len(digests) < quorum:
        raise CertificateInvalid("the commitments are not those of a quorum of the panel, each once")
    for vote, checked in zip(certificate.votes, votes, strict=True):
        review = checked.review
        if digests.get(checked.organization) != sha256(vote.commitment):
            raise CertificateInvalid(f"{checked.organization} has not committed before scores were shown")
        try:
            made, signer = read_commitment(vote.commitment)
            same_signer = open_document(checked.envelope, "review").signer == signer
        except (EnvelopeError, TrustError) as error:
            raise CertificateInvalid(f"a commitment does not verify: {error}") from error
        if not same_signer:
            raise CertificateInvalid(f"the commitment of {checked.organization} was signed by somebody else")
        check_opened(review, made)
        if review.commitments != set_digest(certificate.agreement_digest, made.batch_id, made.revision, digests):
            raise CertificateInvalid(f"{checked.organization} had seen other commitments when it showed its score")
