"""A certificate proves what it says, or is refused: each of the steps of `verify_certificate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from comity.agreement import Agreed
from comity.certificate import (
    MAX_REVIEW,
    CheckedReview,
    QuorumRule,
    build_certificate,
    check_review,
    verify_certificate,
)
from comity.errors import CertificateInvalid, EnvelopeError, TrustError
from comity.v1.agreement_pb2 import ReviewTerms
from comity.v1.task_pb2 import Certificate, Vote
from kit.consortium import Consortium, consortium, names
from kit.documents import MIN_SCORE, RECORD, agree, make_review, make_vote, sign_review

AUTHOR, *VOTERS = names(5)
SCORES = (9000, 8000, 7000)


class World:
    def __init__(self) -> None:
        self.lab: Consortium = consortium(*names(5))
        self.agreed: Agreed = agree(self.lab)

    def vote(self, organization: str, score: int, **changes: object) -> CheckedReview:
        return make_vote(self.lab, self.agreed, organization, score, **changes)

    def certificate(self, votes: Iterable[CheckedReview] = (), accept: bool = True) -> Certificate:
        given = list(votes) or [self.vote(name, score) for name, score in zip(VOTERS, SCORES, strict=False)]
        return build_certificate(given, author=AUTHOR, rule=self.agreed.rule, accept=accept)

    def verify(self, certificate: Certificate, **changes: object) -> tuple[CheckedReview, ...]:
        known: dict[str, object] = {
            "record": RECORD,
            "participants": self.agreed.participants,
            "rule": self.agreed.rule,
            "min_score": MIN_SCORE,
            "trust": self.lab.trust,
        }
        return verify_certificate(certificate, **{**known, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_certificate_verifies(world: World) -> None:
    votes = world.verify(world.certificate())
    assert [vote.organization for vote in votes] == VOTERS[:3]
    assert world.certificate().score == 8000
    rejected = world.certificate([world.vote(name, 100) for name in VOTERS], accept=False)
    assert len(world.verify(rejected)) == 4, "votes beyond the quorum are kept"


def repeat_a_voter(world: World, certificate: Certificate) -> None:
    again = world.vote(VOTERS[0], 8500)
    certificate.votes[1].CopyFrom(Vote(review=again.envelope, chain=again.chain))


def let_the_author_vote(world: World, certificate: Certificate) -> None:
    own = world.vote(AUTHOR, 8000)
    certificate.votes[1].CopyFrom(Vote(review=own.envelope, chain=own.chain))


def name_an_author_from_outside(_: World, certificate: Certificate) -> None:
    certificate.author = "nobody.example"


def let_a_stranger_vote(world: World, certificate: Certificate) -> None:
    stranger = consortium(*names(5), name="elsewhere").nodes[VOTERS[1]]
    envelope = sign_review(stranger, make_review(world.agreed, VOTERS[1], 8000))
    certificate.votes[1].CopyFrom(Vote(review=envelope, chain=stranger.chain))


def sign_in_another_s_name(world: World, certificate: Certificate) -> None:
    liar = world.lab.nodes[VOTERS[3]]
    envelope = sign_review(liar, make_review(world.agreed, VOTERS[1], 8000))
    certificate.votes[1].CopyFrom(Vote(review=envelope, chain=liar.chain))


def show_the_chain_of_another(world: World, certificate: Certificate) -> None:
    liar = world.lab.nodes[VOTERS[3]]
    certificate.votes[1].review = sign_review(liar, make_review(world.agreed, VOTERS[1], 8000))


def about(**changes: object) -> Callable[[World, Certificate], None]:
    def change(world: World, certificate: Certificate) -> None:
        other = world.vote(VOTERS[1], 8000, **changes)
        certificate.votes[1].CopyFrom(Vote(review=other.envelope, chain=other.chain))

    return change


def vote_without_reason(world: World, certificate: Certificate) -> None:
    other = world.vote(VOTERS[1], 100, accept=True)
    certificate.votes[1].CopyFrom(Vote(review=other.envelope, chain=other.chain))


def vote_for_the_other_side(world: World, certificate: Certificate) -> None:
    other = world.vote(VOTERS[1], 100)
    certificate.votes[1].CopyFrom(Vote(review=other.envelope, chain=other.chain))


def drop_a_vote(_: World, certificate: Certificate) -> None:
    del certificate.votes[2]


def swap_the_verdict(_: World, certificate: Certificate) -> None:
    certificate.verdict = Certificate.VERDICT_REJECT


def raise_the_score(_: World, certificate: Certificate) -> None:
    certificate.score += 1


def set_field(name: str, value: object) -> Callable[[World, Certificate], None]:
    def change(_: World, certificate: Certificate) -> None:
        setattr(certificate, name, value)

    return change


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (repeat_a_voter, "voted twice"),
        (let_the_author_vote, f"not eligible to vote: {AUTHOR}"),
        (name_an_author_from_outside, "5 eligible reviewers"),
        (let_a_stranger_vote, "does not lead to a root"),
        (sign_in_another_s_name, f"{VOTERS[3]} signed a review in the name of {VOTERS[1]}"),
        (show_the_chain_of_another, "not signed by the node of its chain"),
        (about(record_digest=bytes(32)), "about something else"),
        (about(task_id=bytes(16)), "about something else"),
        (about(agreement_digest=bytes(32)), "about something else"),
        (about(bundle_epoch=2), "about something else"),
        (vote_without_reason, "does not follow from its score"),
        (vote_for_the_other_side, "not for the verdict"),
        (drop_a_vote, "2 votes; the quorum is 3 of 4"),
        (swap_the_verdict, "not for the verdict"),
        (raise_the_score, "not the lower median"),
        (set_field("task_id", bytes(16)), "about something else"),
        (set_field("record_digest", bytes(32)), "about another record"),
        (set_field("agreement_digest", bytes(32)), "about something else"),
        (set_field("bundle_epoch", 7), "about something else"),
        (set_field("quorum", 2), "not the agreement's"),
        (set_field("eligible", 3), "not the agreement's"),
        (set_field("faulty", 0), "not the agreement's"),
        (set_field("author", VOTERS[0]), "about something else"),
        (set_field("author", VOTERS[3]), "about something else"),
        (about(author=VOTERS[3]), "about something else"),
    ],
)
def test_a_certificate_that_does_not_prove_it(
    world: World, spoil: Callable[[World, Certificate], None], reason: str
) -> None:
    certificate = world.certificate()
    spoil(world, certificate)
    with pytest.raises(CertificateInvalid, match=reason):
        world.verify(certificate)


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(("eligible", "faulty", "quorum"), [(4, 1, 2), (4, 0, 2), (4, 2, 3), (3, 1, 3), (4, 1, 5)])
def test_a_rule_under_which_opposite_certificates_could_exist(eligible: int, faulty: int, quorum: int) -> None:
    """Also if the certificate and the agreement both say so."""
    world, rule = World(), QuorumRule(eligible, faulty, quorum)
    certificate = world.certificate()
    certificate.eligible, certificate.faulty, certificate.quorum = eligible, faulty, quorum
    with pytest.raises(CertificateInvalid, match="reviewers"):
        world.verify(certificate, rule=rule)


@pytest.mark.invariant("S9")
def test_another_record_other_participants_another_threshold(world: World) -> None:
    certificate = world.certificate()
    with pytest.raises(CertificateInvalid, match="another record"):
        world.verify(certificate, record=RECORD + b" ")
    with pytest.raises(CertificateInvalid, match="3 eligible reviewers"):
        world.verify(certificate, participants=names(4))
    with pytest.raises(CertificateInvalid, match="does not follow"):
        world.verify(certificate, min_score=7500)


@pytest.mark.invariant("S9")
def test_a_member_that_takes_no_part_does_not_vote(world: World) -> None:
    few = agree(world.lab, participants=names(4), review=ReviewTerms(eligible=3, quorum=2, min_score=MIN_SCORE))
    votes = [make_vote(world.lab, few, name, 9000) for name in (VOTERS[0], VOTERS[3])]
    certificate = build_certificate(votes, author=AUTHOR, rule=few.rule, accept=True)
    with pytest.raises(CertificateInvalid, match=f"not eligible to vote: {VOTERS[3]}"):
        world.verify(certificate, participants=few.participants, rule=few.rule)


@pytest.mark.parametrize(
    ("eligible", "faulty", "quorum"), [(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 1, 3), (7, 2, 5), (10, 3, 7)]
)
def test_the_rule_for_a_number_of_reviewers(eligible: int, faulty: int, quorum: int) -> None:
    rule = QuorumRule.of(eligible)
    assert (rule.faulty, rule.quorum) == (faulty, quorum)
    rule.check()
    assert QuorumRule.of(eligible, eligible).quorum == eligible
    with pytest.raises(CertificateInvalid, match=f"there are {eligible}"):
        QuorumRule.of(eligible, eligible + 1)


def test_nobody_left_to_review() -> None:
    with pytest.raises(CertificateInvalid, match="at least two organizations"):
        QuorumRule.of(0)


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    "changes", [{"score": 10_001, "accept": True}, {"axes": {"range": 10_001}}], ids=["score", "axis"]
)
def test_a_score_out_of_range(world: World, changes: dict[str, object]) -> None:
    review = make_review(world.agreed, VOTERS[0], 9000)
    for name, value in changes.items():
        if isinstance(value, dict):
            review.axes.update(value)
        else:
            setattr(review, name, value)
    identity = world.lab.nodes[VOTERS[0]]
    with pytest.raises(CertificateInvalid, match="over 10000"):
        check_review(sign_review(identity, review), identity.chain, world.lab.trust)


@pytest.mark.invariant("S2")
def test_a_review_is_not_read_before_its_signature_holds(world: World) -> None:
    identity = world.lab.nodes[VOTERS[0]]
    envelope = bytearray(sign_review(identity, make_review(world.agreed, VOTERS[0], 9000)))
    envelope[-1] ^= 1
    with pytest.raises(TrustError, match="signature"):
        check_review(bytes(envelope), identity.chain, world.lab.trust)
    with pytest.raises(EnvelopeError):
        check_review(b"", identity.chain, world.lab.trust)


@pytest.mark.invariant("S7")
def test_a_review_is_of_bounded_size(world: World) -> None:
    """A certificate carries reviews of others: one that is huge would keep the author's records from being sent."""
    identity = world.lab.nodes[VOTERS[0]]
    long = make_review(world.agreed, VOTERS[0], 9000, validator="x" * MAX_REVIEW)
    with pytest.raises(CertificateInvalid, match=f"at most {MAX_REVIEW}"):
        check_review(sign_review(identity, long), identity.chain, world.lab.trust)
