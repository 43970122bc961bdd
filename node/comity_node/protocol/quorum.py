"""The ballot of one record: a grow-only set of votes, and what they amount to so far.

Sans-IO and without a clock: who waits for how long is the runtime's matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from comity.certificate import CheckedReview, QuorumRule, build_certificate
from comity.errors import CertificateInvalid, UnexpectedMessage
from comity.v1.task_pb2 import Certificate


class Outcome(StrEnum):
    """What the votes amount to."""

    OPEN = "open"
    ACCEPT = "accept"
    REJECT = "reject"
    #: All who may vote have voted and neither side has a quorum.
    SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two different votes of one organization on one record: anyone can verify both signatures."""

    organization: str
    first: bytes
    second: bytes


class Ballot:
    """Votes on one record under one agreement."""

    def __init__(
        self, *, task_id: bytes, record_digest: bytes, agreement_digest: bytes, epoch: int, author: str,
        eligible: frozenset[str], rule: QuorumRule, min_score: int,
    ) -> None:  # fmt: skip
        """Open the ballot; `eligible` are the organizations that may vote (the author is not one)."""
        if author in eligible or len(eligible) != rule.eligible:
            raise CertificateInvalid("the author does not vote, and everybody else who agreed may")
        rule.check()
        self._about = (task_id, record_digest, agreement_digest, epoch, author)
        self._author = author
        self._eligible = eligible
        self._rule = rule
        self._min_score = min_score
        self._votes: dict[str, CheckedReview] = {}

    @property
    def voted(self) -> frozenset[str]:
        """The organizations whose vote is in."""
        return frozenset(self._votes)

    def votes(self, accept: bool) -> list[CheckedReview]:
        """Return the votes of one side."""
        return [vote for vote in self._votes.values() if vote.review.accept == accept]

    def add(self, vote: CheckedReview) -> Equivocation | None:
        """Count a vote whose signature was checked; the first one of an organization stands.

        Returns the proof if the organization has voted differently before.

        Raises:
            UnexpectedMessage: the vote is about something else, or not this organization's to give.
        """
        review = vote.review
        about = (review.task_id, review.record_digest, review.agreement_digest, review.bundle_epoch, review.author)
        if about != self._about:
            raise UnexpectedMessage(f"the vote of {review.organization} is about another record")
        if review.organization not in self._eligible:
            raise UnexpectedMessage(f"{review.organization} may not vote here")
        if review.accept != (review.score >= self._min_score):
            raise UnexpectedMessage(f"the vote of {review.organization} does not follow from its score")
        known = self._votes.setdefault(review.organization, vote)
        if (known.review.accept, known.review.score) != (review.accept, review.score):
            return Equivocation(review.organization, known.envelope, vote.envelope)
        return None

    def outcome(self) -> Outcome:
        """Return what the votes amount to now; ACCEPT and REJECT never change again."""
        accepts, rejects = len(self.votes(True)), len(self.votes(False))
        if accepts >= self._rule.quorum:
            return Outcome.ACCEPT
        if rejects >= self._rule.quorum:
            return Outcome.REJECT
        if accepts + rejects == len(self._eligible):
            return Outcome.SPLIT
        return Outcome.OPEN

    def can_accept(self) -> bool:
        """Tell whether the votes still out could make an accept certificate."""
        return len(self._eligible) - len(self.votes(False)) >= self._rule.quorum

    def certificate(self) -> Certificate:
        """Return the certificate of the side that has a quorum.

        Raises:
            CertificateInvalid: neither side has one.
        """
        outcome = self.outcome()
        if outcome not in (Outcome.ACCEPT, Outcome.REJECT):
            raise CertificateInvalid(f"the vote is {outcome}: there is nothing to certify")
        accept = outcome is Outcome.ACCEPT
        return build_certificate(self.votes(accept), author=self._author, rule=self._rule, accept=accept)
