"""Scores that are committed to before any is shown: between nodes, with copiers, liars, dead ones and restarts."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.commitment import commit
from comity.envelope import open_document, sign_document
from comity.evidence import verify_evidence
from comity.provenance import verify_provenance
from comity.v1.task_pb2 import (
    CommitmentSet,
    Receipt,
    Review,
    ReviewDelivery,
    ReviewedTask,
    SignedCommitment,
    TaskOffer,
)
from comity_node.storage import evidence, journal, records
from kit.consortium import names
from kit.lab import Carried, Lab, now_ms, run, until

FIVE = names(5)
ADA, BEA, CYD, DAN, EVE = FIVE
ROUNDS: dict[str, Any] = {
    "commit_reveal": True,
    "records_per_organization": 2,
    "batch_records": 2,
    "minimum_participants": 5,
}


def only_ada(lab: Lab) -> None:
    """Nobody but ada makes records: the others' generators never answer."""
    for name in FIVE[1:]:
        lab.members[name].agents["generate"] = lambda _: {"records": []}


def provenances(lab: Lab, name: str) -> list[Any]:
    return lab.members[name].rows("SELECT provenance FROM records")


@pytest.mark.invariant("S9")
def test_scores_are_committed_to_shown_and_certified(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **ROUNDS)
        await lab.until_done(workflow_id)
        for name in FIVE:
            assert await lab.counts(name) == {"certified": 2}
            kinds = lab.network.kinds(name)
            assert {"commitments", "commitment-set", "reviews"} <= set(kinds)
        page = await lab.members[BEA].up.database.read(lambda c: records.list_records(c, limit=50))
        assert page.records
        for one in page.records:
            row = await lab.members[BEA].up.database.read(lambda c: records.get_record(c, one.task_id))  # noqa: B023
            assert row is not None
            proof = verify_provenance(row.provenance, lab.consortium.trust)
            assert len(proof.certificate.commitments) >= 3
            assert all(vote.commitment for vote in proof.certificate.votes)

    run(main)
    lab.verify_audit_logs()
    check_order(lab)


def check_order(lab: Lab) -> None:
    """No review leaves for a home before that home has shown its sender the commitments."""
    shown: set[tuple[str, str, bytes]] = set()
    for one in lab.network.carried:
        if one.kind == "commitment-set":
            shown.add((one.sender, one.receiver, CommitmentSet.FromString(one.body).batch_id))
        if one.kind == "reviews":
            assert (one.receiver, one.sender, ReviewDelivery.FromString(one.body).batch_id) in shown


@pytest.mark.invariant("R3")
@pytest.mark.invariant("S9")
def test_who_commits_and_does_not_show_or_is_dead_holds_nobody_up(tmp_path: Path) -> None:
    """Eve commits and then refuses every set: after its lease the others go on without it."""
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)

        async def deaf(*_: object) -> Receipt:
            await trio.lowlevel.checkpoint()
            return Receipt(status=Receipt.STATUS_REFUSED, code="x", reason="never")

        lab.members[EVE].up.runtime.messenger.serve({"commitment-set": deaf})
        workflow_id = await lab.submit(ADA, **ROUNDS, lease_seconds=2)
        await lab.until_done(workflow_id)
        for name in FIVE:
            assert await lab.counts(name) == {"certified": 2}
        assert "commitments" in lab.network.kinds(EVE)
        assert "reviews" not in lab.network.kinds(EVE)

    run(main)


@pytest.mark.invariant("R3")
def test_a_dead_reviewer_delays_the_set_until_its_lease_ends(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)
    only_ada(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[EVE].hold()  # it takes custody and its validator never ends
        workflow_id = await lab.submit(ADA, **ROUNDS, lease_seconds=2)
        await lab.until_done(workflow_id, ADA)
        assert await lab.counts(ADA) == {"certified": 2}
        lab.members[EVE].free.set()

        async def given_back() -> bool:
            return lab.members[EVE].rows("SELECT reviews FROM inbox WHERE home = ?", ADA) == [(b"",)]

        await until(given_back, "eve's late commitment is refused, and it gives the batch back")
        assert EVE not in {row[0] for row in lab.members[ADA].rows("SELECT organization FROM votes")}

    run(main)


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
def test_what_is_sealed_survives_restarts_of_reviewer_and_home(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)
    only_ada(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        held = trio.Event()

        async def busy(*_: object) -> Receipt:
            await trio.lowlevel.checkpoint()
            held.set()
            return Receipt(status=Receipt.STATUS_BUSY, retry_after_ms=50)

        for name in FIVE[1:]:
            lab.members[name].up.runtime.messenger.serve({"commitment-set": busy})
        workflow_id = await lab.submit(ADA, **ROUNDS)
        await held.wait()
        sealed = {name: lab.members[name].rows("SELECT nonce, commitment FROM sealed_reviews") for name in FIVE[1:]}
        for name in (BEA, ADA):
            await lab.stop(name)
            await lab.start(nursery, name)
        for name in FIVE[2:]:
            await lab.stop(name)
            await lab.start(nursery, name)
        await lab.until_done(workflow_id, ADA)
        assert await lab.counts(ADA) == {"certified": 2}
        for name in FIVE[1:]:
            assert lab.members[name].rows("SELECT nonce, commitment FROM sealed_reviews") == sealed[name]
            assert lab.members[name].calls.count("review") <= 1
        assert not lab.members[ADA].rows("SELECT 1 FROM evidence")

    run(main)


# -- who tries to copy -------------------------------------------------------------------------------------------------


@pytest.mark.invariant("R1")
def test_a_commitment_for_which_the_outbox_had_no_room_goes_out_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, 5)
    monkeypatch.setattr("comity_node.runtime.reviewer._SEALED_S", 0.05)
    only_ada(lab)
    enqueue, refused = journal.try_enqueue, set[bytes]()

    def full(connection: sqlite3.Connection, message: journal.OutboxRow) -> bool:
        if message.kind == "commitments" and message.body not in refused:
            refused.add(message.body)
            return False
        return enqueue(connection, message)

    monkeypatch.setattr(journal, "try_enqueue", full)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.submit(ADA, **ROUNDS)

        async def decided() -> bool:
            return await lab.counts(ADA) == {"certified": 2}

        await until(decided, "the scores were committed to after all")
        assert len(refused) == 4

    run(main)


@pytest.mark.invariant("S9")
def test_a_copier_who_colludes_with_the_home_never_gets_a_score_before_it_has_committed(tmp_path: Path) -> None:
    """Ada, the home, shows bea a set without bea's own commitment, one with too few, one with a stranger's digest."""
    lab = Lab(tmp_path, 5)
    only_ada(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        caught: list[bytes] = []

        async def catch(_: object, body: bytes) -> Receipt:
            await trio.lowlevel.checkpoint()
            caught.append(body)
            return Receipt(status=Receipt.STATUS_BUSY, retry_after_ms=60_000)

        honest = lab.members[BEA].up.runtime.reviewer.handlers["commitment-set"]
        lab.members[BEA].up.runtime.messenger.serve({"commitment-set": catch})
        await lab.submit(ADA, **ROUNDS)

        async def come() -> bool:
            return bool(caught)

        await until(come, "ada shows bea the set")
        lab.members[BEA].up.runtime.messenger.serve({"commitment-set": honest})
        good = CommitmentSet.FromString(caught[0])
        by_name = {read(one).organization: one for one in good.commitments}
        others = [one for name, one in by_name.items() if name != BEA]
        forged = late_commitment(lab, CYD, read(by_name[CYD]).organization, good)
        for commitments, said in (
            (others, "not among these"),
            ([by_name[BEA], others[0]], "2 commitments"),
            ([by_name[BEA], by_name[BEA], others[0]], "has twice"),
            ([*others, late_commitment(lab, BEA, BEA, good)], "not among these"),
            ([by_name[BEA], others[0], late_commitment(lab, EVE, CYD, good)], "in the name of"),
            ([by_name[BEA], others[0], late_commitment(lab, ADA, ADA, good)], "may not commit"),
        ):
            shown = CommitmentSet(
                batch_id=good.batch_id, revision=0, agreement_digest=good.agreement_digest, commitments=commitments
            )
            receipt = await lab.deliver(ADA, BEA, "commitment-set", shown.SerializeToString())
            assert receipt.status == Receipt.STATUS_REFUSED
            assert said in receipt.reason
        assert "reviews" not in lab.network.kinds(BEA), "no score was shown to any of these"
        assert forged.envelope != by_name[CYD].envelope
        assert (await lab.deliver(ADA, BEA, "commitment-set", caught[0])).status == Receipt.STATUS_ACCEPTED
        # A second set, in which the copier's commitment is another one, gets nothing new out of bea.
        second = CommitmentSet.FromString(caught[0])
        kept_others = [one for one in good.commitments if read(one).organization != CYD]
        del second.commitments[:]
        second.commitments.extend([*kept_others, forged])
        kept = lab.members[BEA].rows("SELECT reviews FROM inbox WHERE home = ?", ADA)
        assert (await lab.deliver(ADA, BEA, "commitment-set", second.SerializeToString())).status == (
            Receipt.STATUS_ACCEPTED
        )
        assert lab.members[BEA].rows("SELECT reviews FROM inbox WHERE home = ?", ADA) == kept

    run(main)


def read(signed: SignedCommitment) -> Any:
    from comity.commitment import read_commitment

    return read_commitment(signed.envelope)[0]


def late_commitment(lab: Lab, signer: str, name: str, like: CommitmentSet) -> SignedCommitment:
    """A commitment to copied scores, made once they are known."""
    made = read(like.commitments[0])
    reviews = [
        Review(
            task_id=one.task_id, agreement_digest=like.agreement_digest, organization=name, author=ADA, score=9000
        )
        for one in made.tasks
    ]  # fmt: skip
    signed = commit(lab.consortium.nodes[signer], reviews, b"n" * 32, batch=like.batch_id, at_ms=now_ms())
    if signer != name:
        body = type(made).FromString(open_document(signed.envelope, "commitment").body)
        body.organization = name
        key = lab.consortium.nodes[signer].key
        signed.envelope = sign_document(key, "commitment", body.SerializeToString())
    return signed


@pytest.mark.invariant("S9")
def test_a_review_that_is_not_what_was_committed_to_counts_not_and_is_evidence(tmp_path: Path) -> None:
    """Eve commits to one score and shows another; then commits twice."""
    lab = Lab(tmp_path, 5)
    only_ada(lab)
    answers: list[Receipt] = []

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        reviewer = lab.members[EVE].up.runtime.reviewer
        honest = reviewer._show

        async def lie(agreed: Any, item: Any, sealed: Any, about: bytes) -> None:
            sealed.answer["reviews"][0]["score"] = 100
            await honest(agreed, item, sealed, about)

        reviewer._revealing._show = lie

        def note(carried: Carried, receipt: Receipt) -> None:
            if (carried.sender, carried.kind) == (EVE, "reviews"):
                answers.append(receipt)

        lab.network.after = note
        workflow_id = await lab.submit(ADA, **ROUNDS, lease_seconds=3)
        await lab.until_done(workflow_id, ADA)
        assert await lab.counts(ADA) == {"certified": 2}

        async def answered() -> bool:
            return bool(answers)

        await until(answered, "eve has shown another score")
        assert answers[0].status == Receipt.STATUS_REFUSED
        assert EVE not in {row[0] for row in lab.members[ADA].rows("SELECT organization FROM votes")}
        (row,) = await lab.members[ADA].up.database.read(evidence.list_evidence)
        proven = verify_evidence(row.proof, lab.consortium.trust)
        assert (proven.organization, proven.kind) == (EVE, "opening")
        await commit_twice(lab)

    run(main)


async def commit_twice(lab: Lab) -> None:
    commitment = lab.members[EVE].rows("SELECT commitment FROM sealed_reviews")[0][0]
    made = read(SignedCommitment(envelope=commitment))
    like = CommitmentSet(
        batch_id=made.batch_id, agreement_digest=made.agreement_digest,
        commitments=[SignedCommitment(envelope=commitment)],
    )  # fmt: skip
    second = late_commitment(lab, EVE, EVE, like)
    receipt = await lab.deliver(EVE, ADA, "commitments", second.SerializeToString())
    assert receipt.status == Receipt.STATUS_REFUSED
    kinds = {row.kind for row in await lab.members[ADA].up.database.read(evidence.list_evidence)}
    assert kinds == {"opening", "commitments"}


@pytest.mark.invariant("S9")
def test_a_vote_without_a_commitment_in_time_does_not_count(tmp_path: Path) -> None:
    """A review that eve sends though it has committed to nothing; and one made for another set."""
    lab = Lab(tmp_path, 5)
    only_ada(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        offers: list[bytes] = []

        def note(carried: Carried) -> None:
            if (carried.receiver, carried.kind) == (EVE, "task-offer"):
                offers.append(carried.body)

        lab.network.before = note
        lab.members[EVE].hold()
        workflow_id = await lab.submit(ADA, **ROUNDS, lease_seconds=3)

        async def offered() -> bool:
            return bool(offers)

        await until(offered, "eve is asked")
        offer = TaskOffer.FromString(offers[0])
        reviewer = lab.members[EVE].up.runtime.reviewer
        (agreed,) = lab.members[EVE].up.runtime.agreements.all()
        answer = {"reviews": [{"score": 9000, "axes": {}, "feedback": []}] * len(offer.tasks), "validator": "hasty"}

        class Item:
            home, batch_id = ADA, offer.batch_id

        delivery = ReviewDelivery(batch_id=offer.batch_id, chain=lab.consortium.nodes[EVE].chain)
        for review in reviewer._writer.reviews(agreed, Item, offer, answer):  # type: ignore[arg-type]
            review.commitments, review.nonce = b"s" * 32, b"n" * 32
            envelope = sign_document(lab.consortium.nodes[EVE].key, "review", review.SerializeToString())
            delivery.reviews.append(ReviewedTask(review=envelope))
        receipt = await lab.deliver(EVE, ADA, "reviews", delivery.SerializeToString())
        assert receipt.status == Receipt.STATUS_REFUSED
        assert "has not committed" in receipt.reason
        await lab.until_done(workflow_id, ADA)
        assert EVE not in {row[0] for row in lab.members[ADA].rows("SELECT organization FROM votes")}
        lab.members[EVE].free.set()

    run(main)


def test_terms_say_whether_scores_are_committed_to(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)
    only_ada(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **{**ROUNDS, "commit_reveal": False})
        await lab.until_done(workflow_id, ADA)
        assert not {"commitments", "commitment-set"} & {one.kind for one in lab.network.carried}
        (agreed,) = lab.members[EVE].up.runtime.agreements.all()
        assert not agreed.terms.review.commit_reveal
        assert json.dumps(ROUNDS)

    run(main)
