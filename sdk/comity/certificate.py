"""Quorum certificates: what makes one valid, and how anyone checks it.

Reviews are votes in a grow-only set, one for each organization, pinned to a bundle epoch. For n eligible
reviewers of which at most f are faulty, with n >= 3 f + 1, a certificate holds q = floor((n + f) / 2) + 1 votes
that say the same. Two certificates of opposite verdict would share at least f + 1 voters, hence an honest one who
voted twice: there is never both an accept and a reject certificate. At least f + 1 of the q votes are honest, so
the lower median of their scores lies within the range of honest scores. The author's organization does not vote.
(Byzantine quorum systems: Malkhi and Reiter, 1998.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comity.digest import sha256
from comity.envelope import open_document
from comity.errors import CertificateInvalid, TrustError
from comity.trust import TrustStore
from comity.v1.task_pb2 import Certificate, Review, Vote

MAX_SCORE = 10_000
#: How long after an agreement's end what was under way may be concluded and signed.
LINGER_MS = 86_400_000
#: How far clocks may differ.
_SKEW_MS = 60_000
#: Bytes of one review's envelope: a certificate carries those of others, and has to fit into a message.
MAX_REVIEW = 32 * 1024
_MAX_VOTES = 256


@dataclass(frozen=True, slots=True)
class QuorumRule:
    """n eligible reviewers, at most f faulty, q equal votes."""

    eligible: int
    faulty: int
    quorum: int

    @classmethod
    def of(cls, eligible: int, quorum: int = 0) -> QuorumRule:
        """Return the rule for `eligible` reviewers, with at least `quorum` votes if a policy wants more.

        Raises:
            CertificateInvalid: there are not that many reviewers.
        """
        if eligible < 1:
            raise CertificateInvalid("nobody is left to review: an agreement takes at least two organizations")
        faulty = (eligible - 1) // 3
        needed = max((eligible + faulty) // 2 + 1, quorum)
        if needed > eligible:
            raise CertificateInvalid(f"a quorum of {needed} takes as many reviewers; there are {eligible}")
        return cls(eligible, faulty, needed)

    def check(self) -> None:
        """Refuse numbers under which two opposite certificates could exist.

        Raises:
            CertificateInvalid: n < 3 f + 1, or q is below floor((n + f) / 2) + 1 or above n.
        """
        if self.faulty < 0 or self.eligible < 3 * self.faulty + 1:
            raise CertificateInvalid(f"{self.eligible} reviewers cannot bear {self.faulty} faulty ones")
        if not (self.eligible + self.faulty) // 2 + 1 <= self.quorum <= self.eligible:
            raise CertificateInvalid(
                f"a quorum of {self.quorum} does not fit {self.eligible} reviewers, {self.faulty} faulty"
            )


@dataclass(frozen=True, slots=True)
class CheckedReview:
    """A review whose signature and chain verified."""

    review: Review
    envelope: bytes
    chain: tuple[bytes, ...]

    @property
    def organization(self) -> str:
        """The organization that voted."""
        return self.review.organization


def lower_median(scores: Iterable[int]) -> int:
    """Return the lower median (the middle one, or the lower of the two in the middle)."""
    ordered = sorted(scores)
    return ordered[(len(ordered) - 1) // 2]


def signing_window(issued_ms: int, expires_ms: int) -> tuple[int, int]:
    """Return the first and the last moment at which something under an agreement can have been signed.

    Args:
        issued_ms: when the agreement's terms were issued, in milliseconds since the Unix epoch.
        expires_ms: when it ends, in milliseconds since the Unix epoch.
    """
    return issued_ms - _SKEW_MS, expires_ms + LINGER_MS


def signing_moment(now_ms: int, *before_ms: int) -> int:
    """Return the moment that a signature names: what the clock says, but never before what came before it.

    A clock that says so was set back, or is behind; what names such a moment would be refused for good, everywhere.

    Args:
        now_ms: what the own clock says, in milliseconds since the Unix epoch.
        before_ms: when something was done that this signature follows: its agreement was issued, the last hop made.
    """
    return max((now_ms, *before_ms))


def check_moment(at_ms: int, window: tuple[int, int], what: str) -> None:
    """Refuse what says that it was signed outside of an agreement's time (`signing_window`).

    A signature's chain is verified at the time that the signature names: that time must not be the signer's choice.

    Raises:
        CertificateInvalid: it does.
    """
    if not window[0] <= at_ms <= window[1]:
        raise CertificateInvalid(f"{what} is dated outside of its agreement's time: compare the clocks")


def check_review(
    envelope: bytes, chain: Sequence[bytes], trust: TrustStore, *, window: tuple[int, int] | None = None
) -> CheckedReview:
    """Verify one review: signature, chain at the time of signing, and that it speaks for its own organization.

    Args:
        envelope: as received.
        chain: of the node that signed, in DER, its own certificate first.
        trust: the consortium.
        window: the `signing_window` of the agreement; None where no agreement is known.

    Raises:
        TrustError: signature or chain do not verify.
        EnvelopeError: it is no review.
        CertificateInvalid: it is too large, speaks for another organization, its score is out of range, or its date
            is not in the window.
    """
    if len(envelope) > MAX_REVIEW:
        raise CertificateInvalid(f"a review of {len(envelope)} bytes; at most {MAX_REVIEW}")
    document = open_document(envelope, "review")
    try:
        review = Review.FromString(document.body)
    except DecodeError as error:
        raise CertificateInvalid("a review does not parse") from error
    if window is not None:
        check_moment(review.at_ms, window, "a review")
    attested = trust.verify_signed(chain, review.at_ms)
    if attested.public_key != document.signer:
        raise CertificateInvalid("a review is not signed by the node of its chain")
    if attested.organization != review.organization:
        raise CertificateInvalid(f"{attested.organization} signed a review in the name of {review.organization}")
    if review.score > MAX_SCORE or any(value > MAX_SCORE for value in review.axes.values()):
        raise CertificateInvalid(f"a score of {review.organization} is over {MAX_SCORE}")
    return CheckedReview(review, envelope, tuple(chain))


def build_certificate(votes: Sequence[CheckedReview], *, author: str, rule: QuorumRule, accept: bool) -> Certificate:
    """Make the certificate of `votes`, all of which say `accept` about the same record.

    Votes beyond the quorum are kept: they narrow the median.
    """
    ordered = sorted(votes, key=lambda vote: vote.organization)
    first = ordered[0].review
    return Certificate(
        task_id=first.task_id,
        record_digest=first.record_digest,
        agreement_digest=first.agreement_digest,
        bundle_epoch=first.bundle_epoch,
        author=author,
        verdict=Certificate.VERDICT_ACCEPT if accept else Certificate.VERDICT_REJECT,
        score=lower_median(vote.review.score for vote in ordered),
        eligible=rule.eligible,
        faulty=rule.faulty,
        quorum=rule.quorum,
        votes=[Vote(review=vote.envelope, chain=vote.chain) for vote in ordered],
    )


def verify_certificate(
    certificate: Certificate,
    *,
    record: bytes,
    participants: Iterable[str],
    rule: QuorumRule,
    min_score: int,
    trust: TrustStore,
    window: tuple[int, int] | None = None,
) -> tuple[CheckedReview, ...]:
    """Check a certificate against the record and the agreement that it was made under.

    1. Its quorum rule is the agreement's, and sound.
    2. It speaks about the SHA-256 of `record`.
    3. At least q votes, of distinct organizations, participants and not the author.
    4. Each vote verifies, speaks about the same task, record, author, agreement and epoch, and says the verdict.
    5. A vote accepts exactly when its score reaches `min_score`.
    6. The score is the lower median of the votes' scores.

    Each vote's chain is verified at the time at which the vote says it was signed, which must be in `window`, the
    agreement's `signing_window` (None where no agreement is known).

    Returns the votes.

    Raises:
        CertificateInvalid: one of these does not hold (the message says which).
    """
    if (certificate.eligible, certificate.faulty, certificate.quorum) != (rule.eligible, rule.faulty, rule.quorum):
        raise CertificateInvalid("the certificate's quorum is not the agreement's")
    rule.check()
    if certificate.record_digest != sha256(record):
        raise CertificateInvalid("the certificate is about another record")
    eligible = set(participants) - {certificate.author}
    if len(eligible) != rule.eligible:
        raise CertificateInvalid(
            f"the agreement has {len(eligible)} eligible reviewers, the certificate says {rule.eligible}"
        )
    if not rule.quorum <= len(certificate.votes) <= min(rule.eligible, _MAX_VOTES):
        raise CertificateInvalid(f"{len(certificate.votes)} votes; the quorum is {rule.quorum} of {rule.eligible}")
    checked = tuple(_check_vote(vote, certificate, min_score, trust, window) for vote in certificate.votes)
    voters = [vote.organization for vote in checked]
    if len(set(voters)) != len(voters):
        raise CertificateInvalid("an organization voted twice")
    if strangers := set(voters) - eligible:
        raise CertificateInvalid(f"not eligible to vote: {', '.join(sorted(strangers))}")
    if certificate.score != lower_median(vote.review.score for vote in checked):
        raise CertificateInvalid("the score is not the lower median of the votes")
    return checked


def _check_vote(
    vote: Vote, certificate: Certificate, min_score: int, trust: TrustStore, window: tuple[int, int] | None
) -> CheckedReview:
    try:
        checked = check_review(vote.review, vote.chain, trust, window=window)
    except TrustError as error:
        raise CertificateInvalid(f"a vote does not verify: {error}") from error
    review = checked.review
    about = (review.task_id, review.record_digest, review.agreement_digest, review.bundle_epoch, review.author)
    if about != (
        certificate.task_id,
        certificate.record_digest,
        certificate.agreement_digest,
        certificate.bundle_epoch,
        certificate.author,
    ):
        raise CertificateInvalid(f"the vote of {review.organization} is about something else")
    if review.accept != (review.score >= min_score):
        raise CertificateInvalid(f"the vote of {review.organization} does not follow from its score")
    if review.accept != (certificate.verdict == Certificate.VERDICT_ACCEPT):
        raise CertificateInvalid(f"the vote of {review.organization} is not for the verdict")
    return checked
