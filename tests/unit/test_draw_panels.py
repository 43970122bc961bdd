"""Panels: who judges a batch follows from what nobody chooses, and everybody checks it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from comity import draw
from comity.agreement import Agreed, conclude, open_agreement, sign_terms
from comity.certificate import QuorumRule, verify_certificate
from comity.digest import canonical_json, sha256
from comity.errors import AgreementError, CertificateInvalid
from comity.hops import CREATE, SEND
from comity.provenance import verify_certified, verify_provenance
from comity.v1.agreement_pb2 import Proposal, ProposalAnswer, ReviewTerms, Terms
from comity.v1.task_pb2 import CertifiedRecord, Receipt, RecordDelivery, ReviewDelivery, ReviewedTask, TaskOffer
from comity_node.runtime import bargain
from comity_node.storage import records
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import (
    MIN_SCORE,
    RECORD,
    make_certified,
    make_history,
    make_passage,
    make_review,
    make_terms,
    sign_review,
)
from kit.lab import Lab, now_ms, run, until

SEVEN = names(7)
SIZE = 4


def panel_terms(lab: Consortium, size: int = SIZE, **changes: Any) -> Terms:
    rule = QuorumRule.of(size)
    review = ReviewTerms(
        eligible=size, faulty=rule.faulty, quorum=rule.quorum, min_score=MIN_SCORE, panel=size,
    )  # fmt: skip
    terms = make_terms(lab, review=review, **changes)
    return Terms.FromString(
        draw.bound(terms, {name: draw.own_commitment(lab.nodes[name].key, terms) for name in terms.participants})
    )


def panel_agreement(lab: Consortium, terms: Terms | None = None) -> bytes:
    data = (terms or panel_terms(lab)).SerializeToString()
    return conclude(data, [sign_terms(lab.nodes[name], data) for name in lab.names])


@pytest.fixture(scope="module")
def lab() -> Consortium:
    return consortium(*SEVEN)


@pytest.fixture(scope="module")
def agreed(lab: Consortium) -> Agreed:
    return open_agreement(panel_agreement(lab), lab.trust)


# -- the draw ----------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_everybody_draws_the_same_panel_and_the_author_is_never_in_it(lab: Consortium, agreed: Agreed) -> None:
    again = open_agreement(panel_agreement(lab), lab.trust)
    for author in SEVEN:
        for number in range(agreed.batches):
            panel = agreed.numbered_panel(author, number)
            assert panel == again.numbered_panel(author, number)
            assert len(panel) == SIZE
            assert author not in panel
            assert panel == agreed.panel(author, draw.batch_id(agreed.digest, author, number))
    panels = {agreed.numbered_panel(author, number) for author in SEVEN for number in range(agreed.batches)}
    assert len(panels) > 3


@pytest.mark.invariant("S9")
def test_each_organization_is_drawn_as_often_as_any_other() -> None:
    random, drawn = Random(1), Counter[str]()
    rounds = 4000
    for number in range(rounds):
        drawn.update(
            draw.draw(
                agreement=random.randbytes(32),
                chance=random.randbytes(32),
                epoch=1,
                author="a.example",
                batch=number,
                eligible=SEVEN[1:],
                size=2,
            )
        )
    expected = rounds * 2 / 6
    chi = sum((drawn[name] - expected) ** 2 / expected for name in SEVEN[1:])
    assert chi < 20.5, "five degrees of freedom, one in a thousand"


def test_the_tail_of_the_hypergeometric_distribution_is_what_draws_show() -> None:
    random, more, rounds = Random(2), 0, 3000
    for number in range(rounds):
        panel = draw.draw(
            agreement=random.randbytes(32), chance=random.randbytes(32), epoch=1, author="a.example", batch=number,
            eligible=names(21)[1:], size=7,
        )  # fmt: skip
        more += len(set(panel) & set(names(7)[1:])) > 2
    expected = draw.chance_of_more(20, 6, 7, 2)
    assert abs(more / rounds - expected) < 0.03
    assert draw.chance_of_more(10, 3, 10, 3) == 0
    assert draw.chance_of_more(4, 4, 1, 0) == 1


def test_the_document_has_the_chances_that_the_code_has() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M)
    assert len(rows) >= 5
    for row in rows:
        eligible, liars, size, faulty, quorum = map(int, row[:5])
        rule = QuorumRule.of(size)
        assert (rule.faulty, rule.quorum) == (faulty, quorum)
        assert abs(draw.chance_of_more(eligible, liars, size, faulty) - float(row[5])) < 6e-4
        assert draw.chance_of_more(eligible, liars, size, quorum - 1) == pytest.approx(float(row[6]), rel=0.4, abs=1e-9)


# -- nobody chooses it -------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_who_adds_what_it_is_not_bound_to_spoils_the_agreement_and_not_the_draw(lab: Consortium) -> None:
    """The last to sign would otherwise try until it has the panel it wants."""
    data = panel_terms(lab).SerializeToString()
    signatures = [sign_terms(lab.nodes[name], data) for name in SEVEN]
    for added in (b"", b"x" * 31, b"x" * 32):
        signatures[-1].draw = added
        with pytest.raises(AgreementError, match="do not bind"):
            open_agreement(conclude(data, signatures), lab.trust)


@pytest.mark.invariant("S9")
def test_terms_with_a_panel_bind_everybody(lab: Consortium) -> None:
    terms = panel_terms(lab)
    del terms.review.draw_commitments[:]
    with pytest.raises(AgreementError, match="bind"):
        open_agreement(panel_agreement(lab, terms), lab.trust)
    terms = panel_terms(lab)
    del terms.review.draw_commitments[-1:]
    with pytest.raises(AgreementError, match="commits"):
        open_agreement(panel_agreement(lab, terms), lab.trust)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"review": ReviewTerms(eligible=6, faulty=1, quorum=4, panel=6)}, "smaller"),
        ({"review": ReviewTerms(eligible=6, faulty=1, quorum=4, panel=4)}, "eligible"),
        ({"review": ReviewTerms(eligible=4, faulty=2, quorum=4, panel=4)}, "cannot bear"),
        ({"review": ReviewTerms(eligible=6, faulty=1, quorum=4, draw_commitments=[b"x" * 32] * 7)}, "without one"),
        (
            {
                "review": ReviewTerms(eligible=4, faulty=1, quorum=3, panel=4),
                "records_per_organization": draw.MAX_BATCHES + 1,
                "batch_records": 1,
            },
            "batches",
        ),
    ],
)
def test_terms_about_panels_have_to_make_sense(lab: Consortium, change: dict[str, Any], said: str) -> None:
    with pytest.raises(AgreementError, match=said):
        open_agreement(panel_agreement(lab, make_terms(lab, **change)), lab.trust)


def test_terms_without_a_panel_stay_as_they_are_byte_for_byte(lab: Consortium) -> None:
    terms = make_terms(lab)
    assert bargain.review_terms(7, MIN_SCORE) == terms.review
    assert bargain.review_terms(7, MIN_SCORE, like=ReviewTerms(panel=6)) == terms.review, "a panel of all is none"
    signed = sign_terms(lab.nodes[SEVEN[0]], terms.SerializeToString())
    assert not signed.draw
    kept = open_agreement(
        conclude(
            terms.SerializeToString(), [sign_terms(node, terms.SerializeToString()) for node in lab.nodes.values()]
        ),
        lab.trust,
    )
    assert kept.chance == b""
    assert kept.panel(SEVEN[0], b"any") == kept.reviewers(SEVEN[0]) == kept.numbered_panel(SEVEN[0], 0)


@pytest.mark.invariant("S9")
def test_what_an_organization_adds_is_its_own_and_of_one_agreement(lab: Consortium) -> None:
    terms = panel_terms(lab)
    other = panel_terms(lab, id="0b" * 16)
    keys = [lab.nodes[name].key for name in SEVEN]
    added = {draw.own(key, one) for key in keys for one in (terms, other)}
    assert len(added) == 2 * len(SEVEN)
    assert draw.own(keys[0], terms) == draw.own(keys[0], terms), "nothing has to be kept"


@pytest.mark.invariant("S9")
def test_an_id_that_is_used_anew_tells_nobody_what_is_added(lab: Consortium) -> None:
    """Promises end with their terms: who proposes the id again must not know the bytes that were shown then."""
    key, first = lab.nodes[SEVEN[0]].key, panel_terms(lab)
    for later in (Terms(expires_ms=first.expires_ms + 1), Terms(issued_ms=first.issued_ms + 1)):
        again = Terms.FromString(first.SerializeToString())
        again.MergeFrom(later)
        assert again.id == first.id
        assert draw.own(key, again) != draw.own(key, first)


# -- the certificate ---------------------------------------------------------------------------------------------------


def certified_by(lab: Consortium, agreed: Agreed, voters: frozenset[str], *, number: int, ordinal: int = 0) -> Any:
    """A record of the initiator's, certified by these voters, said to be at this place."""
    author = agreed.terms.initiator
    made = make_certified(
        lab, agreed, author=author, holder=SEVEN[1], scores=dict.fromkeys(sorted(voters), 9000),
    )  # fmt: skip
    made.certificate.batch, made.certificate.ordinal = number, ordinal
    return made


@pytest.mark.invariant("S9")
def test_a_certificate_is_the_panel_s_and_nobody_else_s(lab: Consortium, agreed: Agreed) -> None:
    """Offline: three friends of the author, none of whom was drawn, certify nothing."""
    author = agreed.terms.initiator
    panel = agreed.numbered_panel(author, 0)
    friends = agreed.reviewers(author) - panel
    three = frozenset(sorted(panel)[:2]) | frozenset(sorted(friends)[:1])
    for voters, good in ((frozenset(sorted(panel)[:3]), True), (three, False)):
        certificate = certified_by(lab, agreed, voters, number=0).certificate
        check: dict[str, Any] = {
            "record": RECORD, "participants": agreed.numbered_panel(author, 0), "rule": agreed.rule,
            "min_score": MIN_SCORE, "trust": lab.trust,
        }  # fmt: skip
        if good:
            assert len(verify_certificate(certificate, **check)) == 3
        else:
            with pytest.raises(CertificateInvalid, match="not eligible"):
                verify_certificate(certificate, **check)


@pytest.mark.invariant("S9")
def test_an_author_does_not_choose_a_panel_by_the_task_s_id(lab: Consortium, agreed: Agreed) -> None:
    """The kit's task has an id of its own; no number of a batch makes it one that follows from the agreement."""
    author = agreed.terms.initiator
    for number in range(agreed.batches):
        made = certified_by(lab, agreed, frozenset(sorted(agreed.numbered_panel(author, number))[:3]), number=number)
        with pytest.raises(CertificateInvalid, match="is not number"):
            verify_certified(made, agreed, lab.trust)
    with pytest.raises(CertificateInvalid, match="no batch"):
        agreed.numbered_panel(author, agreed.batches)
    with pytest.raises(CertificateInvalid, match="no batch"):
        agreed.panel(author, b"x" * 16)
    with pytest.raises(CertificateInvalid, match="no batch"):
        agreed.numbered_panel("stranger.example", 0)
    batch = draw.batch_id(agreed.digest, author, 1)
    agreed.check_place(author, draw.task_id(batch, 9), 1, 9)
    for number, ordinal in ((0, 9), (1, 8)):
        with pytest.raises(CertificateInvalid, match="is not number"):
            agreed.check_place(author, draw.task_id(batch, 9), number, ordinal)
    with pytest.raises(CertificateInvalid, match="is not number"):
        agreed.check_place(author, draw.task_id(batch, 10), 1, 10)


# -- between nodes -----------------------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_seven_organizations_agree_on_a_panel_draw_it_and_certify(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 7)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(SEVEN[0], panel=SIZE, records_per_organization=4, batch_records=2)
        await lab.until_done(workflow_id)
        agreements = lab.members[SEVEN[0]].up.runtime.agreements
        (agreed,) = agreements.all()
        assert (agreed.terms.review.panel, agreed.terms.review.eligible, agreed.terms.review.quorum) == (4, 4, 3)
        for name in SEVEN:
            assert await lab.counts(name) == {"certified": 4}
        await check_voters(lab, agreed)
        await check_offers(lab, agreed)
        await check_made_up_batches(lab, agreed)

    run(main)
    lab.verify_audit_logs()


async def check_voters(lab: Lab, agreed: Agreed) -> None:
    """Only the panel has voted, and any holder's provenance says so, offline."""
    holder = lab.members[SEVEN[1]]

    async def complete() -> bool:
        return await lab.records(SEVEN[1]) == 28

    await until(complete, "all certified records have come")
    for author in SEVEN:
        rows = lab.members[author].rows("SELECT batch_id, organization FROM votes JOIN tasks USING (task_id)")
        assert rows
        for batch, organization in rows:
            assert organization in agreed.panel(author, batch)
    page = await holder.up.database.read(lambda c: records.list_records(c, limit=50))
    for one in page.records:
        row = await holder.up.database.read(lambda c: records.get_record(c, one.task_id))  # noqa: B023
        assert row is not None
        proof = verify_provenance(row.provenance, lab.consortium.trust)
        voters = {review.organization for review in proof.reviews}
        assert voters <= agreed.numbered_panel(one.author, proof.certificate.batch)


async def check_offers(lab: Lab, agreed: Agreed) -> None:
    """A reviewer refuses batches that it was not drawn for, and tasks whose ids their home has chosen."""
    home = SEVEN[0]
    me = next(name for name in SEVEN[1:] if name not in agreed.numbered_panel(home, 0))
    other = next(name for name in SEVEN[1:] if name in agreed.numbered_panel(home, 0))
    batch = draw.batch_id(agreed.digest, home, 0)
    own, chosen = draw.task_id(batch, 0), sha256(b"chosen")[:16]
    for whom, number, about, task, said in (
        (me, 0, batch, own, "was not drawn"),
        (other, 0, batch, chosen, "not of it"),
        (other, 0, chosen, own, "is not batch"),
        (other, 9, draw.batch_id(agreed.digest, home, 9), own, "no batch 9"),
    ):
        receipt = await lab.deliver(home, whom, "task-offer", offer(lab, agreed, whom, number, about, task))
        assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "agreement_violated"), said
        assert said in receipt.reason


async def check_made_up_batches(lab: Lab, agreed: Agreed) -> None:
    """Nobody has a home search for the number of a batch that it has not made."""
    home, voter = SEVEN[0], SEVEN[1]
    node, at_ms = lab.consortium.nodes[voter], max(agreed.terms.issued_ms, now_ms())
    review = make_review(agreed, voter, 9000, author=home, at_ms=at_ms)
    reviews = [ReviewedTask(review=sign_review(node, review))]
    before = draw.number_of.cache_info()
    for number in range(3):
        body = ReviewDelivery(batch_id=bytes([number]) * 16, chain=node.chain, reviews=reviews).SerializeToString()
        receipt = await lab.deliver(voter, home, "reviews", body)
        assert receipt.status == Receipt.STATUS_REFUSED
        assert "no such batch" in receipt.reason
    assert draw.number_of.cache_info().misses == before.misses


def offer(lab: Lab, agreed: Agreed, whom: str, number: int, batch: bytes, task: bytes) -> bytes:
    record = canonical_json({"x": 1.0, "label": 1})
    passage: dict[str, Any] = {"task_id": task, "record": record}
    passages = [make_passage(CREATE, **passage), make_passage(SEND, to=whom, **passage)]
    made = TaskOffer(batch_id=batch, number=number)
    made.tasks.add(
        id=task, agreement_digest=agreed.digest, home=SEVEN[0], record=record,
        hops=make_history(lab.consortium.nodes[SEVEN[0]], passages),
    )  # fmt: skip
    return made.SerializeToString()


@pytest.mark.invariant("S9")
def test_a_participant_shows_what_it_adds_only_to_terms_that_bind_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 7)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, SEVEN[0], SEVEN[1])
        bound = panel_terms(lab.consortium, issued_ms=NOW_MS, expires_ms=now_ms() + 600_000)
        commitments = list(bound.review.draw_commitments)
        unbound = Terms.FromString(bound.SerializeToString())
        unbound.review.draw_commitments[1] = sha256(b"what the initiator would like it to add")

        async def ask(terms: Terms, sign: bool) -> ProposalAnswer:
            proposal = Proposal(terms=terms.SerializeToString(), sign=sign)
            receipt = await lab.deliver(SEVEN[0], SEVEN[1], "proposal", proposal.SerializeToString())
            return ProposalAnswer.FromString(receipt.body)

        ready = await ask(bound, False)
        assert ready.ready.draw_commitment == commitments[1]
        assert not ready.draw
        refused = await ask(unbound, True)
        assert refused.WhichOneof("answer") == "reject"
        assert not refused.draw
        signed = await ask(bound, True)
        assert draw.commitment(signed.draw) == commitments[1]
        assert (await ask(bound, True)).draw == signed.draw, "the same when it is asked again"
        second = await ask(unbound, True)
        assert second.WhichOneof("answer") == "reject"

    run(main)


def test_the_record_of_another_panel_is_refused_by_who_is_to_keep_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 7)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, SEVEN[0], SEVEN[1])
        terms = panel_terms(lab.consortium, issued_ms=NOW_MS, expires_ms=now_ms() + 600_000)
        data = panel_agreement(lab.consortium, terms)
        await lab.members[SEVEN[1]].up.runtime.agreements.add(data)
        agreed = open_agreement(data, lab.consortium.trust)
        made: CertifiedRecord = certified_by(
            lab.consortium, agreed, agreed.numbered_panel(SEVEN[0], 0), number=0
        )  # fmt: skip
        body = RecordDelivery(records=[made]).SerializeToString()
        receipt = await lab.deliver(SEVEN[0], SEVEN[1], "records", body)
        assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "certificate_invalid")

    run(main)


def test_the_chance_is_part_of_what_was_agreed(agreed: Agreed) -> None:
    with pytest.raises(CertificateInvalid):
        replace(agreed, chance=b"").numbered_panel(SEVEN[0], 0)
    assert replace(agreed, chance=b"y" * 32).numbered_panel(SEVEN[0], 0) != agreed.numbered_panel(SEVEN[0], 0) or (
        replace(agreed, chance=b"y" * 32).numbered_panel(SEVEN[0], 1) != agreed.numbered_panel(SEVEN[0], 1)
    )
