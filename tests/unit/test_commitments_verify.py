"""A certificate of scores that were committed to: what makes it valid, and who could not have copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from comity.agreement import Agreed
from comity.certificate import CheckedReview, build_certificate, check_review
from comity.commitment import (
    check_commitment,
    check_opened,
    check_set,
    commit,
    leaf,
    read_commitment,
    references,
    set_digest,
    verify_commitments,
)
from comity.digest import sha256
from comity.envelope import sign_document
from comity.errors import CertificateInvalid, TrustError
from comity.v1.task_pb2 import Certificate, Review, SignedCommitment
from kit.consortium import NOW_MS, consortium, names
from kit.documents import agree, make_review, sign_review

AUTHOR, *VOTERS = names(5)
BATCH = b"b" * 16


class World:
    """Four who may vote, of whom three make a quorum; each has a nonce of its own."""

    def __init__(self) -> None:
        self.lab = consortium(*names(5))
        self.agreed: Agreed = agree(self.lab)
        self.panel = frozenset(VOTERS)

    def review(self, name: str, score: int, **changes: object) -> Review:
        return make_review(self.agreed, name, score, **{"nonce": sha256(name.encode()), **changes})

    def commitment(self, name: str, score: int, *, key: str = "") -> SignedCommitment:
        review = self.review(name, score)
        node = self.lab.nodes[key or name]
        return commit(node, [review], review.nonce, batch=BATCH, at_ms=NOW_MS + 10)

    def certificate(
        self, scores: dict[str, int], sealed: dict[str, SignedCommitment], about: bytes = b""
    ) -> tuple[Certificate, list[CheckedReview]]:
        """A certificate of what these show, who have seen the set of what is sealed (or another one)."""
        digests = {name: sha256(one.envelope) for name, one in sealed.items()}
        seen = about or set_digest(self.agreed.digest, BATCH, 0, digests)
        votes = []
        for name, score in sorted(scores.items()):
            envelope = sign_review(self.lab.nodes[name], self.review(name, score, commitments=seen))
            votes.append(check_review(envelope, self.lab.nodes[name].chain, self.lab.trust))
        made = build_certificate(votes, author=AUTHOR, rule=self.agreed.rule, accept=True)
        made.commitments.extend(references(digests))
        for vote, checked in zip(made.votes, votes, strict=True):
            if checked.organization in sealed:
                vote.commitment = sealed[checked.organization].envelope
        return made, votes

    def verify(self, made: tuple[Certificate, list[CheckedReview]]) -> None:
        verify_commitments(made[0], made[1], panel=self.panel, quorum=self.agreed.rule.quorum)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


SCORES = {VOTERS[0]: 9000, VOTERS[1]: 8000, VOTERS[2]: 7000}


def sealed(world: World, **other: SignedCommitment) -> dict[str, SignedCommitment]:
    return {**{name: world.commitment(name, score) for name, score in SCORES.items()}, **other}


@pytest.mark.invariant("S9")
def test_what_was_committed_to_and_shown_verifies(world: World) -> None:
    world.verify(world.certificate(SCORES, sealed(world)))
    more = {**sealed(world), VOTERS[3]: world.commitment(VOTERS[3], 10)}
    world.verify(world.certificate(SCORES, more))


Change = Callable[[World], tuple[Certificate, list[CheckedReview]]]


def another_score(world: World) -> tuple[Certificate, list[CheckedReview]]:
    return world.certificate({**SCORES, VOTERS[2]: 9000}, sealed(world))


def committed_after_the_set(world: World) -> tuple[Certificate, list[CheckedReview]]:
    """The copier's commitment is made when the scores are known: it is in no set that the others name."""
    late = {name: one for name, one in sealed(world).items() if name != VOTERS[2]}
    early = {**late, VOTERS[3]: world.commitment(VOTERS[3], 10)}
    made, votes = world.certificate(SCORES, early)
    made.votes[2].commitment = world.commitment(VOTERS[2], 7000).envelope
    return made, votes


def set_extended_afterwards(world: World) -> tuple[Certificate, list[CheckedReview]]:
    early = {name: one for name, one in sealed(world).items() if name != VOTERS[2]}
    digests = {name: sha256(one.envelope) for name, one in early.items()}
    return world.certificate(SCORES, sealed(world), set_digest(world.agreed.digest, BATCH, 0, digests))


def two_sets(world: World) -> tuple[Certificate, list[CheckedReview]]:
    """The honest two have seen one set, the copier another, which has its commitment."""
    made, votes = world.certificate(SCORES, sealed(world))
    digests = {name: sha256(one.envelope) for name, one in sealed(world).items() if name != VOTERS[0]}
    seen = set_digest(world.agreed.digest, BATCH, 0, digests)
    envelope = sign_review(world.lab.nodes[VOTERS[2]], world.review(VOTERS[2], 7000, commitments=seen))
    votes[2] = check_review(envelope, world.lab.nodes[VOTERS[2]].chain, world.lab.trust)
    made.votes[2].review = envelope
    return made, votes


def too_few(world: World) -> tuple[Certificate, list[CheckedReview]]:
    two = {name: one for name, one in sealed(world).items() if name != VOTERS[2]}
    return world.certificate({name: SCORES[name] for name in two}, two)


def a_stranger_in_the_set(world: World) -> tuple[Certificate, list[CheckedReview]]:
    return world.certificate(SCORES, {**sealed(world), AUTHOR: world.commitment(AUTHOR, 10)})


def somebody_else_s_commitment(world: World) -> tuple[Certificate, list[CheckedReview]]:
    other = world.commitment(VOTERS[2], 7000)
    made = read_commitment(other.envelope)[0]
    signed = sign_document(world.lab.nodes[VOTERS[3]].key, "commitment", made.SerializeToString())
    return world.certificate(SCORES, {**sealed(world), VOTERS[2]: SignedCommitment(envelope=signed)})


def no_commitment(world: World) -> tuple[Certificate, list[CheckedReview]]:
    made, votes = world.certificate(SCORES, sealed(world))
    made.votes[1].commitment = b""
    return made, votes


def one_twice(world: World) -> tuple[Certificate, list[CheckedReview]]:
    made, votes = world.certificate(SCORES, sealed(world))
    made.commitments.add().CopyFrom(made.commitments[0])
    return made, votes


def no_set(world: World) -> tuple[Certificate, list[CheckedReview]]:
    made, votes = world.certificate(SCORES, sealed(world))
    del made.commitments[:]
    return made, votes


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_score, "another score"),
        (committed_after_the_set, "has not committed before"),
        (set_extended_afterwards, "had seen other commitments"),
        (two_sets, "had seen other commitments"),
        (too_few, "quorum of the panel"),
        (a_stranger_in_the_set, "quorum of the panel"),
        (somebody_else_s_commitment, "signed by somebody else"),
        (no_commitment, "has not committed before"),
        (one_twice, "quorum of the panel"),
        (no_set, "quorum of the panel"),
    ],
)
def test_a_certificate_of_copied_scores_does_not_verify(world: World, change: Change, said: str) -> None:
    with pytest.raises(CertificateInvalid, match=said):
        world.verify(change(world))


@pytest.mark.invariant("S9")
def test_a_commitment_says_nothing_and_binds_to_everything(world: World) -> None:
    """Without the nonce a score cannot be found by trying all 10001; with it no other one fits."""
    review = world.review(VOTERS[0], 9000)
    committed = leaf(review.nonce, review)
    assert all(leaf(b"x" * 32, world.review(VOTERS[0], score)) != committed for score in range(0, 10_001, 97))
    other = world.review(VOTERS[0], 9000)
    for change in ({"score": 9001}, {"revision": 1}, {"record_digest": b"r" * 32}, {"task_id": b"t" * 16}):
        changed = Review()
        changed.CopyFrom(other)
        for name, value in change.items():
            setattr(changed, name, value)
        assert leaf(review.nonce, changed) != committed
    assert leaf(review.nonce, world.review(VOTERS[1], 9000)) != committed, "nobody takes over another's commitment"


def test_a_commitment_is_its_signers_own(world: World) -> None:
    good = world.commitment(VOTERS[0], 9000)
    assert check_commitment(good.envelope, good.chain, world.lab.trust).organization == VOTERS[0]
    chain = world.lab.nodes[VOTERS[1]].chain
    with pytest.raises((CertificateInvalid, TrustError)):
        check_commitment(good.envelope, chain, world.lab.trust)
    with pytest.raises(CertificateInvalid, match="dated outside"):
        check_commitment(good.envelope, good.chain, world.lab.trust, window=(NOW_MS + 1000, NOW_MS + 2000))
    made = read_commitment(good.envelope)[0]
    with pytest.raises(CertificateInvalid, match="something else"):
        check_opened(world.review(VOTERS[1], 9000), made)
    checked = check_commitment(good.envelope, good.chain, world.lab.trust)
    about = {"agreement": world.agreed.digest, "batch": BATCH, "revision": 0, "author": AUTHOR}
    assert check_set([checked], **about, panel=world.panel, quorum=1)  # type: ignore[arg-type]
    for name, value in (("batch", b"c" * 16), ("revision", 1), ("author", VOTERS[1]), ("agreement", b"a" * 32)):
        with pytest.raises(CertificateInvalid, match="something else"):
            check_set([checked], **{**about, name: value}, panel=world.panel, quorum=1)  # type: ignore[arg-type]
