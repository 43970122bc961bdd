"""The verifier that has nothing of Comity knows panels and scores that are committed to, as Comity does."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comity import draw
from comity.agreement import Agreed, conclude, open_agreement, sign_terms
from comity.certificate import QuorumRule, build_certificate, check_review
from comity.commitment import commit, references, set_digest
from comity.digest import sha256
from comity.errors import ComityError
from comity.hops import CREATE, RELEASE, SEND
from comity.provenance import make_provenance, verify_provenance
from comity.v1.agreement_pb2 import Agreement, ReviewTerms, Terms
from comity.v1.task_pb2 import CertifiedRecord, Task
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import MIN_SCORE, RECORD, make_history, make_passage, make_review, make_terms, sign_review

pytestmark = pytest.mark.invariant("S9")

SEVEN = names(7)
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "verify-provenance" / "verify.py"


class World:
    """A record of the initiator's, judged by a panel of four (or by all) in two rounds (or in one)."""

    def __init__(self, *, panel: int = 4, commit_reveal: bool = True) -> None:
        self.lab: Consortium = consortium(*SEVEN)
        rule = QuorumRule.of(panel or 6)
        review = ReviewTerms(
            eligible=rule.eligible, faulty=rule.faulty, quorum=rule.quorum, min_score=MIN_SCORE, panel=panel,
            commit_reveal=commit_reveal,
        )  # fmt: skip
        terms: Terms = make_terms(self.lab, review=review)
        keys = {name: self.lab.nodes[name].key for name in SEVEN}
        raw = terms.SerializeToString()
        if panel:
            raw = draw.bound(terms, {name: draw.own_commitment(key, terms) for name, key in keys.items()})
        self.agreement = conclude(raw, [sign_terms(self.lab.nodes[name], raw) for name in SEVEN])
        self.agreed: Agreed = open_agreement(self.agreement, self.lab.trust)
        self.author = terms.initiator
        self.batch = draw.batch_id(self.agreed.digest, self.author, 1)
        self.task = draw.task_id(self.batch, 2)
        self.panel = sorted(self.agreed.numbered_panel(self.author, 1))
        script = runpy.run_path(str(SCRIPT))
        self._roots = script["read_bundle"](self.lab.bundle)
        self._verify, self._refused = script["verify_record"], (script["Unproven"], *script["MALFORMED"])

    def certified(
        self, voters: list[str] | None = None, *, said: int = 8000, shown: int = 8000, seen: bytes = b"",
        place: tuple[int, int] = (1, 2),
    ) -> CertifiedRecord:  # fmt: skip
        """Each voter commits to `said` and shows `shown`; all have seen the set of all of them, or `seen`."""
        voters = self.panel if voters is None else voters
        asked, nodes = self.agreed.terms.review, self.lab.nodes
        about: dict[str, Any] = {"author": self.author, "task_id": self.task, "record_digest": sha256(RECORD)}
        nonces = {name: sha256(name.encode()) for name in voters}
        made = {
            name: commit(
                nodes[name], [make_review(self.agreed, name, said, **about, nonce=nonces[name])], nonces[name],
                batch=self.batch, at_ms=NOW_MS + 10,
            )
            for name in voters
        }  # fmt: skip
        digests = {name: sha256(one.envelope) for name, one in made.items()}
        seen = seen or set_digest(self.agreed.digest, self.batch, 0, digests)
        two = asked.commit_reveal
        votes = [
            check_review(
                sign_review(
                    nodes[name],
                    make_review(
                        self.agreed, name, shown, **about, nonce=nonces[name] if two else b"",
                        commitments=seen if two else b"",
                    ),
                ),
                nodes[name].chain,
                self.lab.trust,
            )
            for name in voters
        ]  # fmt: skip
        certificate = build_certificate(votes, author=self.author, rule=self.agreed.rule, accept=True)
        certificate.batch, certificate.ordinal = place if asked.panel else (0, 0)
        if two:
            certificate.commitments.extend(references(digests))
            for vote, name in zip(certificate.votes, sorted(voters), strict=True):
                vote.commitment = made[name].envelope
        passage = partial(make_passage, task_id=self.task, record=RECORD)
        history = [passage(CREATE), *(passage(SEND, to=name) for name in voters), passage(RELEASE, to=SEVEN[1])]
        home = nodes[self.author]
        task = Task(
            id=self.task, agreement_digest=self.agreed.digest, home=self.author, record=RECORD,
            hops=make_history(home, history),
        )  # fmt: skip
        return CertifiedRecord(task=task, certificate=certificate, home_chain=home.chain)

    def verdicts(self, one: CertifiedRecord, agreement: bytes = b"") -> tuple[bool, bool]:
        """Whether Comity finds it proved, and whether the script does."""
        data = make_provenance(self.lab.nodes[SEVEN[1]], one, agreement or self.agreement)
        found = []
        for check, refused in (
            (lambda: verify_provenance(data, self.lab.trust), (ComityError,)),
            (lambda: self._verify(data, self._roots), self._refused),
        ):
            try:
                check()
            except refused:
                found.append(False)
            else:
                found.append(True)
        return found[0], found[1]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(("panel", "commit_reveal"), [(0, False), (4, False), (0, True), (4, True)])
def test_both_verifiers_prove_what_a_panel_has_judged_in_one_round_or_two(panel: int, commit_reveal: bool) -> None:
    world = World(panel=panel, commit_reveal=commit_reveal)
    assert world.verdicts(world.certified()) == (True, True)


def of_strangers(world: World) -> CertifiedRecord:
    strangers = sorted(set(SEVEN) - {world.author} - set(world.panel))
    return world.certified([*world.panel[:2], *strangers[:1]])


def elsewhere(world: World) -> CertifiedRecord:
    return world.certified(place=(1, 3))


def beyond(world: World) -> CertifiedRecord:
    return world.certified(place=(world.agreed.batches, 2))


def another_score(world: World) -> CertifiedRecord:
    return world.certified(said=9000)


def another_set(world: World) -> CertifiedRecord:
    return world.certified(seen=b"s" * 32)


def without_commitments(world: World) -> CertifiedRecord:
    made = world.certified()
    del made.certificate.commitments[:]
    return made


def without_a_vote_s_commitment(world: World) -> CertifiedRecord:
    made = world.certified()
    made.certificate.votes[0].commitment = b""
    return made


def anothers_commitment(world: World) -> CertifiedRecord:
    made = world.certified()
    made.certificate.votes[0].commitment = made.certificate.votes[1].commitment
    return made


def one_twice(world: World) -> CertifiedRecord:
    made = world.certified()
    made.certificate.commitments.append(made.certificate.commitments[0])
    return made


@pytest.mark.parametrize(
    "spoil",
    [
        of_strangers, elsewhere, beyond, another_score, another_set, without_commitments, without_a_vote_s_commitment,
        anothers_commitment, one_twice,
    ],
)  # fmt: skip
def test_neither_verifier_proves_what_the_panel_has_not_judged_as_agreed(
    world: World, spoil: Callable[[World], CertifiedRecord]
) -> None:
    assert world.verdicts(spoil(world)) == (False, False)


@pytest.mark.parametrize(
    "spoil",
    [another_score, another_set, without_commitments, without_a_vote_s_commitment, anothers_commitment, one_twice],
)
def test_where_all_judge_commitments_are_verified_too(spoil: Callable[[World], CertifiedRecord]) -> None:
    world = World(panel=0)
    made = spoil(world)
    assert world.verdicts(made) == (False, False)


def test_neither_verifier_takes_a_place_where_no_panel_is_drawn() -> None:
    world = World(panel=0, commit_reveal=False)
    made = world.certified()
    made.certificate.batch = 1
    assert world.verdicts(made) == (False, False)


def test_neither_verifier_takes_a_draw_that_somebody_has_moved(world: World) -> None:
    """One participant shows other bytes than those that the terms bind it to: another panel would be drawn."""
    moved = Agreement.FromString(world.agreement)
    moved.signatures[3].draw = b"m" * 32
    data = moved.SerializeToString()
    added = [one.draw for one in moved.signatures]
    other = replace(world.agreed, chance=draw.entropy(added))
    voters = sorted(other.numbered_panel(world.author, 1))
    assert world.verdicts(world.certified(voters), data) == (False, False)
