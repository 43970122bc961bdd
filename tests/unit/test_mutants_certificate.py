"""Certificates at the edges: each test here goes red for a line of `comity.certificate` that is a little wrong."""

from __future__ import annotations

import pytest

from comity.certificate import (
    MAX_REVIEW,
    MAX_SCORE,
    QuorumRule,
    build_certificate,
    check_moment,
    check_review,
    lower_median,
    signing_window,
    verify_certificate,
)
from comity.envelope import sign_document
from comity.errors import CertificateInvalid
from comity.v1.agreement_pb2 import ReviewTerms
from kit.consortium import NOW_MS, consortium, names
from kit.documents import MIN_SCORE, RECORD, agree, make_review, make_vote, sign_review

AUTHOR, *VOTERS = names(5)
LAB = consortium(*names(5))
AGREED = agree(LAB)
IDENTITY = LAB.nodes[VOTERS[0]]


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("rule", [QuorumRule(3, 1, 3), QuorumRule(6, 2, 5), QuorumRule(4, -1, 3)])
def test_too_many_faulty_ones_are_refused_whatever_the_quorum(rule: QuorumRule) -> None:
    with pytest.raises(CertificateInvalid, match="cannot bear"):
        rule.check()


def test_the_time_in_which_something_can_be_signed() -> None:
    assert signing_window(1_000_000, 2_000_000) == (1_000_000 - 60_000, 2_000_000 + 86_400_000)


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(("at_ms", "good"), [(9, False), (10, True), (20, True), (21, False)])
def test_the_first_and_the_last_moment_are_good(at_ms: int, good: bool) -> None:
    if good:
        check_moment(at_ms, (10, 20), "a review")
        return
    with pytest.raises(CertificateInvalid, match="a review is dated outside"):
        check_moment(at_ms, (10, 20), "a review")


@pytest.mark.invariant("S9")
def test_a_vote_that_is_dated_outside_of_its_agreements_time() -> None:
    """Nobody chooses the moment at which his chain is verified."""
    window = (NOW_MS + 1000, NOW_MS + 5000)
    for at_ms, good in ((NOW_MS + 999, False), (NOW_MS + 5000, True), (NOW_MS + 5001, False)):
        envelope = sign_review(IDENTITY, make_review(AGREED, VOTERS[0], 9000, at_ms=at_ms))
        if good:
            assert check_review(envelope, IDENTITY.chain, LAB.trust, window=window).review.at_ms == at_ms
            continue
        with pytest.raises(CertificateInvalid, match="a review is dated outside"):
            check_review(envelope, IDENTITY.chain, LAB.trust, window=window)
    certificate = build_certificate(
        [make_vote(LAB, AGREED, name, 9000) for name in VOTERS[:3]], author=AUTHOR, rule=AGREED.rule, accept=True
    )
    with pytest.raises(CertificateInvalid, match="a review is dated outside"):
        verify_certificate(
            certificate,
            record=RECORD,
            participants=AGREED.participants,
            rule=AGREED.rule,
            min_score=MIN_SCORE,
            trust=LAB.trust,
            window=(0, NOW_MS),
        )


@pytest.mark.invariant("S7")
def test_a_review_of_just_the_size_that_is_allowed() -> None:
    length = MAX_REVIEW - 1000
    for _ in range(2):  # what is around it may be a byte longer the second time
        envelope = sign_review(IDENTITY, make_review(AGREED, VOTERS[0], 9000, validator="x" * length))
        length += MAX_REVIEW - len(envelope)
    envelope = sign_review(IDENTITY, make_review(AGREED, VOTERS[0], 9000, validator="x" * length))
    assert len(envelope) == MAX_REVIEW
    assert check_review(envelope, IDENTITY.chain, LAB.trust).organization == VOTERS[0]


def test_a_signed_document_that_is_no_review() -> None:
    with pytest.raises(CertificateInvalid, match="does not parse"):
        check_review(sign_document(IDENTITY.key, "review", b"\xff"), IDENTITY.chain, LAB.trust)


@pytest.mark.parametrize(("scores", "median"), [([7], 7), ([9, 1], 1), ([9, 1, 5], 5), ([9, 1, 5, 7], 5)])
def test_the_median_is_the_lower_one(scores: list[int], median: int) -> None:
    assert lower_median(scores) == median


def test_the_highest_score_is_one() -> None:
    review = make_review(AGREED, VOTERS[0], MAX_SCORE)
    assert review.axes["range"] == MAX_SCORE
    assert check_review(sign_review(IDENTITY, review), IDENTITY.chain, LAB.trust).review.score == MAX_SCORE


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(("score", "accept"), [(MIN_SCORE, True), (MIN_SCORE - 1, False)])
def test_one_reviewer_is_a_quorum_of_one_and_the_threshold_itself_accepts(score: int, accept: bool) -> None:
    pair = agree(LAB, participants=names(2), review=ReviewTerms(eligible=1, quorum=1, min_score=MIN_SCORE))
    vote = make_vote(LAB, pair, VOTERS[0], score)
    certificate = build_certificate([vote], author=AUTHOR, rule=pair.rule, accept=accept)
    votes = verify_certificate(
        certificate, record=RECORD, participants=pair.participants, rule=pair.rule, min_score=MIN_SCORE, trust=LAB.trust
    )
    assert [(one.organization, one.review.accept) for one in votes] == [(VOTERS[0], accept)]
