"""The ballot of one record: whose votes count, and what they amount to."""

from __future__ import annotations

import pytest

from comity.agreement import Agreed
from comity.certificate import CheckedReview, QuorumRule
from comity.digest import sha256
from comity.errors import CertificateInvalid, UnexpectedMessage
from comity_node.protocol.quorum import Ballot, Outcome
from kit.consortium import consortium, names
from kit.documents import MIN_SCORE, RECORD, TASK_ID, agree, make_vote

AUTHOR, *VOTERS = names(5)


class World:
    """Four reviewers, one of whom may be faulty: three equal votes make a certificate."""

    def __init__(self) -> None:
        self.lab = consortium(*names(5))
        self.agreed: Agreed = agree(self.lab)

    def ballot(self, **changes: object) -> Ballot:
        values: dict[str, object] = {
            "task_id": TASK_ID,
            "record_digest": sha256(RECORD),
            "agreement_digest": self.agreed.digest,
            "epoch": self.agreed.terms.bundle_epoch,
            "author": AUTHOR,
            "eligible": frozenset(VOTERS),
            "rule": self.agreed.rule,
            "min_score": MIN_SCORE,
        }
        return Ballot(**{**values, **changes})  # type: ignore[arg-type]

    def vote(self, organization: str, score: int, **changes: object) -> CheckedReview:
        return make_vote(self.lab, self.agreed, organization, score, **changes)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("scores", "outcome", "can_accept"),
    [
        ((), Outcome.OPEN, True),
        ((9000, 9000), Outcome.OPEN, True),
        ((9000, 9000, 5000), Outcome.ACCEPT, True),
        ((9000, 9000, 9000, 0), Outcome.ACCEPT, True),
        ((0,), Outcome.OPEN, True),
        ((0, 0), Outcome.OPEN, False),
        ((0, 0, 4999), Outcome.REJECT, False),
        ((9000, 9000, 0, 0), Outcome.SPLIT, False),
    ],
)
def test_what_votes_amount_to(world: World, scores: tuple[int, ...], outcome: Outcome, can_accept: bool) -> None:
    ballot = world.ballot()
    for name, score in zip(VOTERS, scores, strict=False):
        assert ballot.add(world.vote(name, score)) is None
    assert (ballot.outcome(), ballot.can_accept()) == (outcome, can_accept)
    assert ballot.voted == frozenset(VOTERS[: len(scores)])
    if outcome in (Outcome.ACCEPT, Outcome.REJECT):
        assert len(ballot.certificate().votes) == 3
    else:
        with pytest.raises(CertificateInvalid, match="nothing to certify"):
            ballot.certificate()


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    "changes",
    [
        {"task_id": bytes(16)},
        {"record_digest": bytes(32)},
        {"agreement_digest": b""},
        {"bundle_epoch": 2},
        {"author": VOTERS[1]},
    ],
)
def test_a_vote_about_something_else_does_not_count(world: World, changes: dict[str, object]) -> None:
    ballot = world.ballot()
    with pytest.raises(UnexpectedMessage, match="about another record"):
        ballot.add(world.vote(VOTERS[0], 9000, **changes))
    assert not ballot.voted


@pytest.mark.invariant("S9")
def test_the_author_and_strangers_have_no_vote(world: World) -> None:
    ballot = world.ballot()
    with pytest.raises(UnexpectedMessage, match=f"{AUTHOR} may not vote"):
        ballot.add(world.vote(AUTHOR, 9000))
    few = world.ballot(eligible=frozenset(VOTERS[:3]), rule=QuorumRule.of(3))
    with pytest.raises(UnexpectedMessage, match=f"{VOTERS[3]} may not vote"):
        few.add(world.vote(VOTERS[3], 9000))
    for wrong in (frozenset({AUTHOR, *VOTERS[:3]}), frozenset(VOTERS[:3])):
        with pytest.raises(CertificateInvalid, match="author does not vote"):
            world.ballot(eligible=wrong)
    with pytest.raises(CertificateInvalid, match="quorum of 2"):
        world.ballot(rule=QuorumRule(4, 1, 2))


@pytest.mark.invariant("S9")
def test_a_vote_that_does_not_follow_from_its_score_does_not_count(world: World) -> None:
    ballot = world.ballot()
    for score, accept in ((9000, False), (0, True)):
        with pytest.raises(UnexpectedMessage, match="does not follow"):
            ballot.add(world.vote(VOTERS[0], score, accept=accept))
    assert not ballot.voted


@pytest.mark.invariant("R2")
def test_a_vote_counts_once_and_the_first_one_stands(world: World) -> None:
    ballot, first = world.ballot(), world.vote(VOTERS[0], 9000)
    assert ballot.add(first) is None
    assert ballot.add(first) is None
    later = world.vote(VOTERS[0], 9000, at_ms=first.review.at_ms + 1)
    assert ballot.add(later) is None, "it says the same"
    for other in (world.vote(VOTERS[0], 0), world.vote(VOTERS[0], 8999)):
        proof = ballot.add(other)
        assert proof is not None
        assert (proof.organization, proof.first, proof.second) == (VOTERS[0], first.envelope, other.envelope)
    assert [vote.envelope for vote in ballot.votes(True)] == [first.envelope]
    assert not ballot.votes(False)
