"""Members with valid keys that send nonsense: refused with a code and a reason, nothing kept, the node goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.agreement import Agreed, open_agreement
from comity.digest import canonical_json, sha256
from comity.envelope import sign_document
from comity.hops import CREATE, SEND
from comity.v1.task_pb2 import (
    Certificate,
    CertifiedRecord,
    Receipt,
    RecordDelivery,
    Review,
    ReviewDelivery,
    ReviewedTask,
    TaskOffer,
)
from comity_node.storage import journal
from kit.consortium import NOW_MS
from kit.documents import (
    TASK_ID,
    make_agreement,
    make_certified,
    make_history,
    make_passage,
    make_terms,
)
from kit.hostile import concluded, refusal
from kit.lab import Lab, now_ms, run, until

ADA, BEA, CYD, DOT = (f"org{number:02}.example" for number in range(4))
BATCH = b"a batch of ada's"


# -- reviews -----------------------------------------------------------------------------------------------------------


def review_delivery(lab: Lab, signer: str, batch: bytes, *reviews: Review) -> bytes:
    identity = lab.consortium.nodes[signer]
    signed = [sign_document(identity.key, "review", one.SerializeToString()) for one in reviews]
    return ReviewDelivery(
        batch_id=batch, reviews=[ReviewedTask(review=one) for one in signed], chain=identity.chain
    ).SerializeToString()


def review_of(agreed: Agreed, task: journal.TaskRow, home: str, voter: str, /, **changes: Any) -> Review:
    review = Review(
        task_id=task.task_id,
        revision=task.revision,
        record_digest=task.record_digest,
        agreement_digest=agreed.digest,
        bundle_epoch=agreed.terms.bundle_epoch,
        organization=voter,
        reviewer=f"spiffe://{voter}/agent/validator",
        accept=True,
        score=9000,
        validator="test",
        at_ms=now_ms(),
        author=home,
    )
    for name, value in changes.items():
        setattr(review, name, value)
    return review


@pytest.mark.invariant("S9")
@pytest.mark.invariant("R3")
def test_votes_that_no_ballot_takes_are_refused_and_harm_nobody(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 4)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (BEA, CYD):
            lab.members[name].hold()
        workflow_id = await lab.submit(ADA, participants=[BEA, CYD], minimum_participants=3)
        ada = lab.members[ADA].up

        async def in_review() -> bool:
            return (await lab.counts(ADA)).get("in_review", 0) == 4

        await until(in_review, "ada's records are with the reviewers")
        (agreed,) = ada.runtime.agreements.all()
        tasks = await ada.database.read(journal.list_tasks)
        task = tasks[0]
        other = next(one for one in tasks if one.batch_id != task.batch_id)
        bad: list[tuple[str, dict[str, Any], str]] = [
            (BEA, {"score": 0}, "does not follow from its score"),
            (BEA, {"accept": False}, "does not follow from its score"),
            (BEA, {"bundle_epoch": 9}, "another author or epoch"),
            (BEA, {"author": CYD}, "another author or epoch"),
            (BEA, {"organization": CYD}, "in the name of"),
            (BEA, {"record_digest": bytes(32)}, "another record than it was sent"),
            (BEA, {"task_id": bytes(16)}, "not of this batch"),
            (BEA, {"task_id": other.task_id, "record_digest": other.record_digest}, "not of this batch"),
            (BEA, {"score": 10_001}, "over 10000"),
            (DOT, {}, "may not vote"),
        ]
        for voter, changes, reason in bad:
            review = review_of(agreed, task, ADA, voter, **changes)
            receipt = await lab.deliver(voter, ADA, "reviews", review_delivery(lab, voter, task.batch_id, review))
            assert reason in refusal(receipt)[1], changes
        unknown = review_delivery(
            lab, BEA, task.batch_id, review_of(agreed, task, ADA, BEA, agreement_digest=bytes(32))
        )
        assert (await lab.deliver(BEA, ADA, "reviews", unknown)).status == Receipt.STATUS_BUSY, "it may still come"
        good = review_of(agreed, task, ADA, BEA)
        passed_on = review_delivery(lab, BEA, task.batch_id, good)
        assert "delivered a review of" in refusal(await lab.deliver(CYD, ADA, "reviews", passed_on))[1]
        assert "0 reviews" in refusal(await lab.deliver(BEA, ADA, "reviews", ReviewDelivery().SerializeToString()))[1]
        assert refusal(await lab.deliver(BEA, ADA, "reviews", b"\xff\xff"))[0] == "envelope_malformed"
        assert not lab.members[ADA].rows("SELECT 1 FROM votes")
        for name in (BEA, CYD):
            lab.members[name].free.set()
        await lab.until_done(workflow_id, ADA, BEA, CYD)
        assert await lab.counts(ADA) == {"certified": 4}

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("S9")
@pytest.mark.invariant("R2")
def test_a_member_that_votes_twice_is_counted_once_and_proven(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (BEA, CYD):
            lab.members[name].hold()
        workflow_id = await lab.submit(ADA)
        ada = lab.members[ADA].up

        async def in_review() -> bool:
            return (await lab.counts(ADA)).get("in_review", 0) == 4

        await until(in_review, "ada's records are with the reviewers")
        (agreed,) = ada.runtime.agreements.all()
        task = (await ada.database.read(journal.list_tasks))[0]
        for changes in ({}, {"score": 0, "accept": False}, {}):
            review = review_of(agreed, task, ADA, BEA, **changes)
            receipt = await lab.deliver(BEA, ADA, "reviews", review_delivery(lab, BEA, task.batch_id, review))
            assert receipt.status == Receipt.STATUS_ACCEPTED
        votes = await ada.database.read(lambda c: journal.batch_votes(c, task.batch_id, 0))
        assert [(vote.organization, vote.score) for vote in votes[task.task_id]] == [(BEA, 9000)]
        (proof,) = await ada.database.read(journal.list_equivocations)
        assert (proof.organization, proof.task_id) == (BEA, task.task_id)
        for name in (BEA, CYD):
            lab.members[name].free.set()
        await lab.until_done(workflow_id)

    run(main)


# -- offers ------------------------------------------------------------------------------------------------------------


def offer(agreed: Agreed, lab: Lab, *, tasks: int = 1, first: int = 0, revision: int = 0, **changes: Any) -> TaskOffer:
    """An offer of ada's to bea."""
    made = TaskOffer(batch_id=BATCH)
    for number in range(first, first + tasks):
        record = canonical_json({"x": float(number), "label": 1})
        passage: dict[str, Any] = {
            "task_id": sha256(bytes([number]))[:16],
            "record": record,
            "revision": revision,
            "policy_digest": b"",
            **changes,
        }
        history = make_history(
            lab.consortium.nodes[ADA], [make_passage(CREATE, **passage), make_passage(SEND, to=BEA, **passage)]
        )
        made.tasks.add(
            id=passage["task_id"],
            agreement_digest=agreed.digest,
            home=ADA,
            revision=revision,
            record=record,
            hops=history,
        )
    return made


Spoil = Callable[[TaskOffer], object]


def double_a_task(made: TaskOffer) -> None:
    made.tasks.append(made.tasks[0])


@pytest.mark.invariant("S7")
@pytest.mark.invariant("S1")
def test_offers_that_are_not_what_was_agreed(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    cases: list[tuple[str, dict[str, Any], Spoil, str]] = [
        ("unexpected_message", {}, lambda made: setattr(made, "batch_id", b""), "16 bytes"),
        ("unexpected_message", {"tasks": 0}, lambda made: None, "and tasks"),
        ("agreement_violated", {"tasks": 11}, lambda made: None, "10 were agreed"),
        ("agreement_violated", {"revision": 2}, lambda made: None, "1 were agreed"),
        ("unexpected_message", {}, double_a_task, "twice in an offer"),
        ("unexpected_message", {"tasks": 2}, lambda made: setattr(made.tasks[1], "revision", 1), "one revision"),
        ("agreement_violated", {"tasks": 2}, lambda made: setattr(made.tasks[1], "home", CYD), "a task of"),
        ("agreement_violated", {"purpose": "marketing"}, lambda made: None, "marketing"),
        ("invalid_record", {}, lambda made: setattr(made.tasks[0], "record", b"[]"), "JSON object"),
        ("certificate_invalid", {}, lambda made: made.tasks[0].hops.pop(0), "hop 0 does not follow"),
        ("certificate_invalid", {}, lambda made: made.tasks[0].ClearField("hops"), "making of the record"),
        ("signature_invalid", {}, lambda made: made.tasks[0].hops.__setitem__(0, forged(made.tasks[0].hops[0])), ""),
    ]

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD)
        for code, changes, spoil, reason in cases:
            made = offer(agreed, lab, **changes)
            spoil(made)
            seen = refusal(await lab.deliver(ADA, BEA, "task-offer", made.SerializeToString()))
            assert seen[0] == code
            assert reason in seen[1], changes
        unknown = offer(agreed, lab)
        unknown.tasks[0].agreement_digest = bytes(32)
        receipt = await lab.deliver(ADA, BEA, "task-offer", unknown.SerializeToString())
        assert (receipt.status, receipt.code) == (Receipt.STATUS_BUSY, "busy"), "it may still be on its way"
        assert not lab.members[BEA].rows("SELECT 1 FROM inbox")
        good = offer(agreed, lab, tasks=10).SerializeToString()
        for _ in range(2):
            receipt = await lab.deliver(ADA, BEA, "task-offer", good)
            assert receipt.status == Receipt.STATUS_ACCEPTED
        assert len(lab.members[BEA].rows("SELECT 1 FROM inbox")) == 1

    run(main)


def forged(envelope: bytes) -> bytes:
    return envelope[:-1] + bytes([envelope[-1] ^ 1])


@pytest.mark.invariant("S7")
def test_a_home_cannot_fill_a_reviewers_disk(tmp_path: Path) -> None:
    """No more records than were agreed, in whatever batches."""
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD, records_per_organization=25)
        codes = []
        for number in range(4):
            made = offer(agreed, lab, tasks=10, first=number * 10)
            made.batch_id = bytes([number]) * 16
            codes.append((await lab.deliver(ADA, BEA, "task-offer", made.SerializeToString())).code)
        assert codes == ["", "", "agreement_violated", "agreement_violated"]
        assert len(lab.members[BEA].rows("SELECT 1 FROM inbox")) == 2

    run(main)


# -- certified records -------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_records_that_no_quorum_certified_are_not_kept(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        names = lab.names
        lab.members[ADA].hold()
        lab.members[BEA].hold()
        terms = make_terms(lab.consortium, issued_ms=NOW_MS, expires_ms=now_ms() + 600_000)
        data = make_agreement(lab.consortium, terms)
        await lab.members[BEA].up.runtime.agreements.add(data)
        agreed = open_agreement(data, lab.consortium.trust)
        scores = {name: 9000 for name in names[1:4]}
        good = make_certified(lab.consortium, agreed, author=ADA, holder=BEA, scores=scores)

        def spoilt(change: Callable[[CertifiedRecord], object]) -> bytes:
            copy = CertifiedRecord()
            copy.CopyFrom(good)
            change(copy)
            return RecordDelivery(records=[copy]).SerializeToString()

        for change in (
            lambda one: one.certificate.votes.pop(),
            lambda one: one.certificate.votes[0].CopyFrom(one.certificate.votes[1]),
            lambda one: setattr(one.certificate, "score", 9999),
            lambda one: setattr(one.certificate, "verdict", Certificate.VERDICT_REJECT),
            lambda one: setattr(one.certificate, "author", CYD),
            lambda one: setattr(one.certificate, "bundle_epoch", 2),
            lambda one: one.ClearField("certificate"),
            lambda one: one.ClearField("home_chain"),
            lambda one: one.task.hops.pop(),
            lambda one: setattr(one.task, "record", canonical_json({"x": 3, "label": 1})),
        ):
            refusal(await lab.deliver(ADA, BEA, "records", spoilt(change)))
        for body in (b"\xff\xff", RecordDelivery().SerializeToString()):
            refusal(await lab.deliver(ADA, BEA, "records", body))
        refusal(await lab.deliver(CYD, BEA, "records", spoilt(lambda one: None)))
        unknown = spoilt(lambda one: setattr(one.task, "agreement_digest", bytes(32)))
        assert (await lab.deliver(ADA, BEA, "records", unknown)).status == Receipt.STATUS_BUSY
        assert not lab.members[BEA].rows("SELECT 1 FROM records")
        for _ in range(2):
            receipt = await lab.deliver(ADA, BEA, "records", spoilt(lambda one: None))
            assert receipt.status == Receipt.STATUS_ACCEPTED
        assert lab.members[BEA].rows("SELECT task_id FROM records") == [(TASK_ID,)]

    run(main)
