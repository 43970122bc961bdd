"""What a quorum promises whatever at most f of its n reviewers do, with real keys and signatures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.agreement import Agreed
from comity.certificate import (
    MAX_SCORE,
    CheckedReview,
    build_certificate,
    check_review,
    lower_median,
    verify_certificate,
)
from comity.digest import sha256
from comity.errors import CertificateInvalid
from comity.v1.task_pb2 import Certificate
from comity_node.protocol.quorum import Ballot, Equivocation, Outcome
from kit.consortium import Consortium, consortium, names
from kit.documents import MIN_SCORE, RECORD, TASK_ID, agree, make_vote

SIZES = (1, 2, 4, 7, 10)
AUTHOR = names(1)[0]


@dataclass(frozen=True)
class Votes:
    """One vote of each honest reviewer, and one for each side of each liar."""

    lab: Consortium
    agreed: Agreed
    honest: tuple[CheckedReview, ...]
    accepting: tuple[CheckedReview, ...]
    rejecting: tuple[CheckedReview, ...]

    def of(self, accept: bool) -> list[CheckedReview]:
        lies = self.accepting if accept else self.rejecting
        return [*(vote for vote in self.honest if vote.review.accept == accept), *lies]

    def ballot(self) -> Ballot:
        agreed = self.agreed
        return Ballot(
            task_id=TASK_ID,
            record_digest=sha256(RECORD),
            agreement_digest=agreed.digest,
            epoch=agreed.terms.bundle_epoch,
            author=AUTHOR,
            eligible=agreed.reviewers(AUTHOR),
            rule=agreed.rule,
            min_score=MIN_SCORE,
        )

    def certify(self, votes: Sequence[CheckedReview], accept: bool) -> Certificate | None:
        """The certificate of these votes, None if it does not verify."""
        if not votes:
            return None
        certificate = build_certificate(votes, author=AUTHOR, rule=self.agreed.rule, accept=accept)
        try:
            self.verify(certificate)
        except CertificateInvalid:
            return None
        return certificate

    def verify(self, certificate: Certificate) -> tuple[CheckedReview, ...]:
        return verify_certificate(
            certificate,
            record=RECORD,
            participants=self.agreed.participants,
            rule=self.agreed.rule,
            min_score=MIN_SCORE,
            trust=self.lab.trust,
        )


def make_votes(honest: Sequence[int], lies: Sequence[tuple[int, int]]) -> Votes:
    """Votes of `len(honest) + len(lies)` reviewers; a liar signs one accepting and one rejecting score."""
    lab = consortium(*names(len(honest) + len(lies) + 1))
    agreed = agree(lab)
    voters = lab.names[1:]
    liars = voters[len(honest) :]
    return Votes(
        lab,
        agreed,
        tuple(make_vote(lab, agreed, name, score) for name, score in zip(voters, honest, strict=False)),
        tuple(make_vote(lab, agreed, name, accept) for name, (accept, _) in zip(liars, lies, strict=True)),
        tuple(make_vote(lab, agreed, name, reject) for name, (_, reject) in zip(liars, lies, strict=True)),
    )


accepts = st.integers(MIN_SCORE, MAX_SCORE)
rejects = st.integers(0, MIN_SCORE - 1)


@st.composite
def elections(draw: st.DrawFn) -> Votes:
    """n reviewers, f of them liars who vote both ways; the others agree more often than not."""
    size = draw(st.sampled_from(SIZES))
    faulty = (size - 1) // 3
    opinion = draw(st.sampled_from([accepts, rejects, st.one_of(accepts, rejects)]))
    honest = draw(st.lists(opinion, min_size=size - faulty, max_size=size - faulty))
    lies = draw(st.lists(st.tuples(accepts, rejects), min_size=faulty, max_size=faulty))
    return make_votes(honest, lies)


@pytest.mark.invariant("S9")
@settings(max_examples=40, deadline=None)
@given(elections())
def test_there_is_never_an_accept_and_a_reject_certificate(votes: Votes) -> None:
    """Even if every liar lends its vote to both sides."""
    assert votes.certify(votes.of(True), True) is None or votes.certify(votes.of(False), False) is None


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("size", [size for size in SIZES if size >= 4])
def test_with_one_liar_more_there_can_be_both(size: int) -> None:
    """The bound is tight: the test above is one that can fail."""
    liars = (size - 1) // 3 + 1
    honest = [9000] * ((size - liars) // 2 + (size - liars) % 2) + [1000] * ((size - liars) // 2)
    votes = make_votes(honest, [(9000, 1000)] * liars)
    assert votes.certify(votes.of(True), True)
    assert votes.certify(votes.of(False), False)


@pytest.mark.invariant("S9")
@settings(max_examples=40, deadline=None)
@given(elections(), st.data())
def test_the_score_lies_within_the_range_of_honest_scores(votes: Votes, data: st.DataObject) -> None:
    """Whichever votes of a side a certificate is made of."""
    accept, quorum = data.draw(st.booleans()), votes.agreed.rule.quorum
    side = votes.of(accept)
    if len(side) < quorum:
        assert votes.certify(side, accept) is None
        return
    chosen = data.draw(st.permutations(side))[: data.draw(st.integers(quorum, len(side)))]
    certificate = votes.certify(chosen, accept)
    assert certificate is not None
    honest = [vote.review.score for vote in votes.honest if vote in chosen]
    assert min(honest) <= certificate.score <= max(honest)


@pytest.mark.invariant("S9")
@settings(max_examples=40, deadline=None)
@given(elections(), st.randoms(use_true_random=False), st.data())
def test_two_ballots_that_saw_different_votes_never_contradict_each_other(
    votes: Votes, random: Random, data: st.DataObject
) -> None:
    """Liars show one home this vote and another home that one, in any order and number."""
    outcomes = []
    for side in ("first", "second"):
        ballot = votes.ballot()
        lies = [
            data.draw(st.sampled_from([accept, reject]), label=f"{side} {accept.organization}")
            for accept, reject in zip(votes.accepting, votes.rejecting, strict=True)
        ]
        cast = [*votes.honest, *lies, *votes.honest]
        random.shuffle(cast)
        for vote in cast:
            ballot.add(vote)
        outcomes.append(ballot.outcome())
        assert ballot.outcome() is not Outcome.OPEN, "everybody has voted"
        if ballot.outcome() is not Outcome.SPLIT:
            votes.verify(ballot.certificate())
    assert set(outcomes) != {Outcome.ACCEPT, Outcome.REJECT}


@pytest.mark.invariant("S9")
@settings(max_examples=40, deadline=None)
@given(elections(), st.randoms(use_true_random=False))
def test_a_decision_never_changes_again_and_double_votes_are_proven(votes: Votes, random: Random) -> None:
    cast = [*votes.honest, *votes.accepting, *votes.rejecting]
    random.shuffle(cast)
    ballot, decided, proofs = votes.ballot(), Outcome.OPEN, []
    for vote in cast:
        if (proof := ballot.add(vote)) is not None:
            proofs.append(proof)
        if decided in (Outcome.ACCEPT, Outcome.REJECT):
            assert ballot.outcome() is decided
        decided = ballot.outcome()
        assert ballot.can_accept() or decided is not Outcome.ACCEPT
    assert sorted(proof.organization for proof in proofs) == sorted(organizations(votes.accepting))
    for proof in proofs:
        check_proof(votes, proof)


def check_proof(votes: Votes, proof: Equivocation) -> None:
    """Anyone can check it: both are signed by that organization, about the same record, and say different things."""
    chain = votes.lab.nodes[proof.organization].chain
    first, second = (check_review(each, chain, votes.lab.trust) for each in (proof.first, proof.second))
    assert first.organization == second.organization == proof.organization
    assert first.review.record_digest == second.review.record_digest
    assert first.review.score != second.review.score


def organizations(votes: Iterable[CheckedReview]) -> list[str]:
    return [vote.organization for vote in votes]


@given(st.lists(st.integers(0, MAX_SCORE), min_size=1, max_size=20))
def test_the_lower_median(scores: list[int]) -> None:
    median = lower_median(scores)
    assert median in scores
    assert sum(score < median for score in scores) <= (len(scores) - 1) / 2
    assert sum(score > median for score in scores) <= len(scores) / 2
