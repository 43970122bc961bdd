"""Who contradicts itself is proven to have, told of, and not asked for a while; who is accused without proof is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from comity.agreement import parse_terms
from comity.certificate import CheckedReview
from comity.commitment import commit
from comity.envelope import open_document
from comity.errors import CertificateInvalid, ComityError, EnvelopeError
from comity.evidence import MAX_EVIDENCE, Proven, make_evidence, verify_evidence
from comity.signing import peer_id_bytes
from comity.v1.agreement_pb2 import Agreement
from comity.v1.task_pb2 import Evidence, Receipt, Review, ReviewDelivery, ReviewedTask
from comity_node.cli.audit_common import entries_of
from comity_node.cli.audit_show import _Evidence, _signed
from comity_node.discovery.news import News, topic
from comity_node.runtime.suspensions import Suspensions
from comity_node.storage import evidence, journal
from comity_node.storage.reliability import FLOOR
from comity_node.transport.memory import MemoryNetwork
from kit.consortium import NOW_MS, Consortium, consortium, names
from kit.documents import agree, make_review, make_vote, sign_review
from kit.gossiping import Gossiper, link_all
from kit.lab import Lab, now_ms, policy, run, until

FIVE = names(5)
ADA, BEA, CYD, DAN, EVE = FIVE


@pytest.fixture(scope="module")
def lab() -> Consortium:
    return consortium(*FIVE)


def proof(
    lab: Consortium, name: str = EVE, first: int = 9000, second: int = 100, *, first_also: bool = False, **changes: Any
) -> bytes:
    """Two votes; what `changes` says is said of the second, or of both."""
    agreed = agree(lab)
    one = make_vote(lab, agreed, name, first, **(changes if first_also else {}))
    other = make_vote(lab, agreed, name, second, **changes)
    return of(one, other)


def of(one: CheckedReview, other: CheckedReview) -> bytes:
    return make_evidence(one.envelope, one.chain, other.envelope, other.chain)


# -- what is evidence, offline -----------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_two_different_votes_prove_that_their_signer_lied(lab: Consortium) -> None:
    proven = verify_evidence(proof(lab), lab.trust)
    assert (proven.organization, proven.kind) == (EVE, "votes")
    agreed = agree(lab)
    one, other = make_vote(lab, agreed, EVE, 9000), make_vote(lab, agreed, EVE, 100)
    assert of(one, other) == of(other, one), "one evidence, whoever found it"
    assert verify_evidence(proof(lab, first=9000, second=9001), lab.trust).subject == proven.subject


@pytest.mark.invariant("S9")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"second": 9000}, "say the same"),
        ({"record_digest": b"r" * 32}, "different things"),
        ({"task_id": b"t" * 16}, "different things"),
        ({"revision": 1}, "different things"),
        ({"agreement_digest": b"a" * 32}, "different things"),
        ({"bundle_epoch": 7}, "different things"),
        ({"author": BEA}, "different things"),
    ],
)
def test_what_an_honest_reviewer_may_sign_is_no_evidence(lab: Consortium, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CertificateInvalid, match=said):
        verify_evidence(proof(lab, **changes), lab.trust)


def forgeries(lab: Consortium) -> dict[str, bytes]:
    """What liars make up against bea, of its honest vote and of their own keys."""
    agreed = agree(lab)
    honest = make_vote(lab, agreed, BEA, 9000)
    liar = lab.nodes[EVE]
    lie = sign_review(liar, make_review(agreed, BEA, 100))
    elsewhere = consortium(*FIVE, name="elsewhere").nodes[BEA]
    strange = sign_review(elsewhere, make_review(agreed, BEA, 100))
    theirs = make_vote(lab, agreed, EVE, 100)
    changed = bytearray(honest.envelope)
    changed[-70] ^= 1
    later = make_vote(lab, agreed, BEA, 9000, at_ms=NOW_MS + 2000)
    return {
        "the liar's key, bea's name, the liar's chain": make_evidence(honest.envelope, honest.chain, lie, liar.chain),
        "the liar's key, bea's chain": make_evidence(honest.envelope, honest.chain, lie, honest.chain),
        "bea's name in another consortium": make_evidence(honest.envelope, honest.chain, strange, elsewhere.chain),
        "the votes of two": of(honest, theirs),
        "one vote twice": of(honest, honest),
        "the same vote signed again": of(honest, later),
        "a changed vote": make_evidence(honest.envelope, honest.chain, bytes(changed), honest.chain),
        "a repaired record": of(honest, make_vote(lab, agreed, BEA, 100, revision=1)),
        "nothing": Evidence().SerializeToString(),
        "one document": Evidence(first=honest.envelope, first_chain=honest.chain).SerializeToString(),
        "no evidence at all": b"\xff" * 40,
        "too much": b"\x0a" + b"\x00" * MAX_EVIDENCE,
    }


@pytest.mark.invariant("S9")
def test_a_forged_proof_proves_nothing(lab: Consortium) -> None:
    for what, raw in forgeries(lab).items():
        with pytest.raises(ComityError):
            raise AssertionError(f"{what}: {verify_evidence(raw, lab.trust)}")


@pytest.mark.invariant("S9")
def test_commitments_and_what_opens_them_are_evidence_too(lab: Consortium) -> None:
    agreed, node = agree(lab), lab.nodes[EVE]
    batch, nonce = b"b" * 16, b"n" * 32

    def review(score: int) -> Review:
        return make_review(agreed, EVE, score, nonce=nonce, commitments=b"s" * 32)

    high = commit(node, [review(9000)], nonce, batch=batch, at_ms=NOW_MS)
    low = commit(node, [review(100)], nonce, batch=batch, at_ms=NOW_MS)
    again = commit(node, [review(9000)], nonce, batch=batch, at_ms=NOW_MS + 5)
    two = verify_evidence(make_evidence(high.envelope, high.chain, low.envelope, low.chain), lab.trust)
    assert (two.organization, two.kind) == (EVE, "commitments")
    with pytest.raises(CertificateInvalid, match="say the same"):
        verify_evidence(make_evidence(high.envelope, high.chain, again.envelope, again.chain), lab.trust)
    shown = sign_review(node, review(100))
    opened = verify_evidence(make_evidence(shown, node.chain, high.envelope, high.chain), lab.trust)
    assert (opened.organization, opened.kind) == (EVE, "opening")
    with pytest.raises(CertificateInvalid, match="what was committed to"):
        verify_evidence(make_evidence(shown, node.chain, low.envelope, low.chain), lab.trust)
    elsewhere = commit(node, [make_review(agreed, EVE, 9000, task_id=b"x" * 16)], nonce, batch=batch, at_ms=NOW_MS)
    with pytest.raises(CertificateInvalid, match="nothing about the task"):
        verify_evidence(make_evidence(shown, node.chain, elsewhere.envelope, elsewhere.chain), lab.trust)
    assert open_document(high.envelope, "commitment").signer == node.key.public_key


# -- what a node does about it -----------------------------------------------------------------------------------------


@pytest.mark.invariant("S9")
def test_who_votes_twice_is_suspended_and_the_others_go_on(tmp_path: Path) -> None:
    """Eve's second vote on the same record comes while ada's tasks are open: ada asks eve nothing more."""
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        first = await lab.submit(ADA, records_per_organization=1, batch_records=1)
        await lab.until_done(first, ADA)
        ada = lab.members[ADA]

        async def voted() -> bool:
            return bool(ada.rows("SELECT 1 FROM votes WHERE organization = ?", EVE))

        if not await voted():  # it was not asked: it votes all the same, and counts
            await vote(lab, EVE, 9000)
        await vote(lab, EVE, 100)
        assert ada.up.runtime.suspensions.now() == {EVE}
        (warning,) = ada.up.runtime.suspensions.warnings()
        assert EVE in warning
        known = await ada.up.database.read(lambda c: journal.list_reliability(c, now_ms()))
        worth = {(one.organization, one.role): one.reliability for one in known}
        assert worth[(EVE, "reviewer")] <= FLOOR
        assert worth[(EVE, "generator")] <= FLOOR
        assert all(value >= 0.5 for (name, _), value in worth.items() if name != EVE)
        lab.network.carried.clear()
        await lab.stop(ADA)
        await lab.start(nursery, ADA)
        assert lab.members[ADA].up.runtime.suspensions.now() == {EVE}, "it is on disk"
        second = await lab.submit(ADA, records_per_organization=4, batch_records=1, minimum_participants=4)
        await lab.until_done(second, ADA)
        assert await lab.counts(ADA) == {"certified": 5}
        asked = {one.receiver for one in lab.network.carried if (one.sender, one.kind) == (ADA, "task-offer")}
        assert asked == {BEA, CYD, DAN}
        later = now_ms() + 31 * 24 * 3600 * 1000
        assert not await lab.members[ADA].up.database.read(lambda c: evidence.suspended(c, later)), "it ends"

    run(main)
    lab.verify_audit_logs()
    check_shown(lab)


def check_shown(lab: Lab) -> None:
    """What `comity audit evidence` shows: both reviews, and the proof that anybody can check."""
    path = lab.members[ADA].file
    (found,) = [each for each in entries_of(path) if each.entry.action == "equivocation.votes"]
    signed = _signed(path, found)
    assert verify_evidence(signed["proof.review"], lab.consortium.trust).organization == EVE
    assert {signed["first.review"], signed["second.review"]} == {
        Evidence.FromString(signed["proof.review"]).first,
        Evidence.FromString(signed["proof.review"]).second,
    }
    assert "suspended" in str(_Evidence(found, signed))


async def vote(lab: Lab, name: str, score: int) -> Receipt:
    """A vote of `name` on ada's record, past its own node."""
    ((task_id, batch, digest, agreement),) = lab.members[ADA].rows(
        "SELECT task_id, batch_id, record_digest, agreement_digest FROM tasks ORDER BY updated_ms LIMIT 1"
    )
    agreed = lab.members[ADA].up.runtime.agreements.find(agreement)
    assert agreed is not None
    at_ms = max(agreed.terms.issued_ms, now_ms())
    review = make_review(agreed, name, score, task_id=task_id, record_digest=digest, author=ADA, at_ms=at_ms)
    node = lab.consortium.nodes[name]
    body = ReviewDelivery(
        batch_id=batch, chain=node.chain, reviews=[ReviewedTask(review=sign_review(node, review))]
    ).SerializeToString()
    return await lab.deliver(name, ADA, "reviews", body)


@pytest.mark.invariant("S9")
def test_where_too_many_are_suspended_the_records_end_and_it_is_said_why(tmp_path: Path) -> None:
    """Four may review, three have to: two liars, more than f, leave too few. Nothing waits for ever."""
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        ada = lab.members[ADA]
        ada.hold()
        workflow = {"records_per_organization": 2, "batch_records": 2, "minimum_participants": 5}
        workflow_id = await lab.submit(ADA, **workflow)

        async def begun() -> bool:
            return bool(ada.calls)

        await until(begun, "the agreement runs")
        for liar in (DAN, EVE):
            assert await ada.up.runtime.suspensions.found(proof(lab.consortium, liar))
        ada.free.set()
        await lab.until_done(workflow_id)
        rows = lab.members[ADA].rows("SELECT state, reason FROM tasks")
        assert [state for state, _ in rows] == ["refused"] * 2
        assert all(f"suspended: {DAN}, {EVE}" in reason for _, reason in rows), rows
        assert len(lab.members[ADA].up.runtime.suspensions.warnings()) == 2

    run(main)


@pytest.mark.invariant("S9")
def test_who_is_suspended_is_offered_no_new_agreement_and_gets_none_signed(tmp_path: Path) -> None:
    """By the initiator that knows of the lie, and by a participant that does; with whoever is left they go on."""
    lab = Lab(tmp_path, 5)
    workflow = {"records_per_organization": 1, "batch_records": 1, "minimum_participants": 4}

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (ADA, BEA):
            assert await lab.members[name].up.runtime.suspensions.found(proof(lab.consortium, EVE))
        first = await lab.submit(ADA, **workflow)
        await lab.until_done(first, ADA)
        assert {one.sender for one in lab.network.carried if (one.receiver, one.kind) == (EVE, "proposal")} == set()
        with pytest.raises(AssertionError, match="suspended here: comity audit evidence"):
            await lab.until_done(await lab.submit(ADA, **{**workflow, "minimum_participants": 5}), ADA)
        second = await lab.submit(EVE, **{**workflow, "minimum_participants": 3})
        await lab.until_done(second, EVE)  # without those who know
        (terms,) = [parse_terms(Agreement.FromString(raw).terms).terms for raw in agreements_of(lab, EVE)]
        assert list(terms.participants) == [CYD, DAN, EVE]

    run(main)


@pytest.mark.invariant("S9")
def test_who_is_suspended_after_it_has_signed_gets_no_agreement_either(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 3)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        runtime = lab.members[ADA].up.runtime

        def suspended() -> set[str]:
            asked = [one for one in lab.network.carried if (one.receiver, one.kind) == (CYD, "proposal")]
            return {CYD} if len(asked) == 2 else set()  # whether it would sign, and to sign

        runtime.workflows._negotiator._suspended = suspended
        with pytest.raises(AssertionError, match=f"not signed: {CYD}: it has contradicted itself"):
            await lab.until_done(await lab.submit(ADA, records_per_organization=1, batch_records=1), ADA)
        assert agreements_of(lab, ADA) == []

    run(main)


def test_what_a_node_knows_against_itself_is_for_others_to_judge(tmp_path: Path) -> None:
    """As after one was put back from a backup: it is said in its status, and who does not know of it goes on."""
    lab = Lab(tmp_path, 3)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        runtime = lab.members[ADA].up.runtime
        assert await runtime.suspensions.found(proof(lab.consortium, ADA))
        assert ADA in " ".join(runtime.suspensions.warnings())
        for initiator in (ADA, BEA):
            await lab.until_done(await lab.submit(initiator, records_per_organization=1, batch_records=1), initiator)

    run(main)


def agreements_of(lab: Lab, initiator: str) -> list[bytes]:
    return [
        raw for (raw,) in lab.members[initiator].rows("SELECT agreement FROM agreements WHERE initiator = ?", initiator)
    ]


@pytest.mark.invariant("S9")
def test_an_accusation_without_proof_does_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA)
        suspensions = lab.members[ADA].up.runtime.suspensions
        for what, raw in forgeries(lab.consortium).items():
            assert not await suspensions.found(raw), what
        assert suspensions.now() == frozenset()
        assert suspensions.warnings() == []
        assert not lab.members[ADA].rows("SELECT 1 FROM evidence")
        assert await suspensions.told() == ()

    run(main)


@pytest.mark.invariant("S9")
def test_a_suspension_ends_however_often_the_same_evidence_is_told(tmp_path: Path) -> None:
    """Who goes on to tell of an old lie, or starts this node anew, has nobody suspended for longer."""
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA)
        runtime = lab.members[ADA].up.runtime
        at_ms = [NOW_MS]
        suspensions = Suspensions(
            trust=lab.consortium.trust, database=lab.members[ADA].up.database, now_ms=lambda: at_ms[0],
            suspension_ms=1000, gate=runtime.suspensions._gate,
        )  # fmt: skip
        raw = proof(lab.consortium)
        proven = verify_evidence(raw, lab.consortium.trust)
        assert await suspensions.found(raw)
        assert suspensions.now() == {EVE}
        at_ms[0] += 1000
        assert suspensions.now() == frozenset()
        suspensions.heard(proven)
        assert suspensions.now() == frozenset(), "it has been suspended for this"
        again = Suspensions(
            trust=lab.consortium.trust, database=lab.members[ADA].up.database, now_ms=lambda: at_ms[0],
            suspension_ms=1000, gate=runtime.suspensions._gate,
        )  # fmt: skip
        await again.load()
        again.heard(proven)
        assert again.now() == frozenset()
        again.heard(verify_evidence(proof(lab.consortium, record_digest=b"r" * 32, first_also=True), again._trust))
        assert again.now() == {EVE}, "another lie is another suspension"

    run(main)


@pytest.mark.invariant("S7")
def test_of_one_liar_one_evidence_is_told(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)
    lab.members[ADA].policy = (
        policy(ADA) + '\n  - {id: tell, effect: allow, action: news.send, to: {organization: "*"}}'
    )

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA)
        suspensions = lab.members[ADA].up.runtime.suspensions
        proofs = [proof(lab.consortium, record_digest=bytes([n]) * 32, first_also=True) for n in range(3)]
        for raw in (*proofs, proof(lab.consortium, BEA)):
            assert await suspensions.found(raw)
        told = [verify_evidence(raw, lab.consortium.trust).organization for raw in await suspensions.told()]
        assert sorted(told) == sorted([EVE, BEA])

    run(main)


@pytest.mark.invariant("S7")
def test_evidence_against_one_organization_is_bounded_and_the_newest_stays(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA)
        database = lab.members[ADA].up.database
        for number in range(64 + 5):
            proven = Proven(EVE, "votes", number.to_bytes(32, "big"), number, b"proof")
            at_ms = 1000 + number
            assert await database.transact(lambda c: evidence.add_evidence(c, proven, at_ms, 10))  # noqa: B023
        rows = await database.read(evidence.list_evidence)
        assert len(rows) == 64
        assert rows[0].known_ms == 1000 + 64 + 4
        again = Proven(EVE, "votes", rows[0].subject, 1, b"proof")
        assert not await database.transact(lambda c: evidence.add_evidence(c, again, 9999, 10))
        suspensions = lab.members[ADA].up.runtime.suspensions
        for number in range(200):
            suspensions.heard(Proven(EVE, "votes", bytes([number]) * 32, 1, b"proof"))
        assert len(suspensions._unwritten) == 1, "one is enough while it is suspended"
        for number in range(200):
            suspensions.heard(Proven(f"org{number}.example", "votes", b"s" * 32, 1, b"proof"))
        assert len(suspensions._unwritten) == 64

    run(main)


@pytest.mark.invariant("S1")
def test_evidence_is_told_only_if_every_member_may_hear_it(tmp_path: Path) -> None:
    for allowed in (False, True):
        home = tmp_path / str(allowed)
        home.mkdir()
        lab = Lab(home, 5)
        more = '\n  - {id: tell, effect: allow, action: news.send, to: {organization: "*"}}'
        lab.members[ADA].policy = policy(ADA) + (more if allowed else "")

        async def main(nursery: trio.Nursery) -> None:
            await lab.start(nursery, ADA)  # noqa: B023
            suspensions = lab.members[ADA].up.runtime.suspensions  # noqa: B023
            raw = proof(lab.consortium)  # noqa: B023
            assert await suspensions.found(raw)
            assert list(await suspensions.told()) == ([raw] if allowed else [])  # noqa: B023

        run(main)


# -- how it spreads ----------------------------------------------------------------------------------------------------


class Hearer:
    """A node of the consortium that takes part in the news."""

    def __init__(self, network: MemoryNetwork, lab: Consortium, name: str, own: Sequence[bytes] = ()) -> None:
        node = lab.nodes[name]
        self.gossiper = Gossiper(network, node.key)
        self.heard: list[Proven] = []
        self.own = own
        self.key = node.key

        async def nothing() -> Sequence[bytes]:
            await trio.lowlevel.checkpoint()
            return ()

        async def known() -> Sequence[bytes]:
            await trio.lowlevel.checkpoint()
            return self.own

        import random

        self.news = News(
            self.gossiper.pubsub, node, lab.trust, now_ms=lambda: NOW_MS + int(trio.current_time() * 1000),
            random=random.Random(name), own_cards=nothing, own_evidence=known, on_evidence=self.heard.append,
            on_revoked=lambda _: None,
        )  # fmt: skip


@pytest.mark.invariant("S9")
def test_evidence_reaches_all_members_and_forgeries_reach_nobody(lab: Consortium) -> None:
    raw = proof(lab)
    name = topic(lab.trust.bundle.consortium, "evidence")

    async def main() -> None:
        network = MemoryNetwork()
        hearers = [Hearer(network, lab, each, (raw,) if each == ADA else ()) for each in FIVE]
        async with trio.open_nursery() as nursery:
            for one in hearers:
                await one.gossiper.start(nursery)
                await nursery.start(one.news.run)
            link_all([one.gossiper for one in hearers])
            await trio.sleep(1500)
            for one in hearers[1:]:
                assert [proven.organization for proven in one.heard[:1]] == [EVE]
                assert {proven.raw for proven in one.heard} == {raw}
            liar = hearers[4]
            for forged in forgeries(lab).values():
                if 0 < len(forged) < 60_000:
                    await liar.gossiper.pubsub.publish(name, forged)
            await trio.sleep(60)
            assert {proven.raw for one in hearers[:4] for proven in one.heard} == {raw}
            score = hearers[1].gossiper.pubsub.router.score(peer_id_bytes(liar.key.public_key), 0)
            assert hearers[1].news.counts["evidence.refused"] > 0
            assert score < 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_evidence_that_is_no_document_is_refused(lab: Consortium) -> None:
    with pytest.raises((CertificateInvalid, EnvelopeError)):
        verify_evidence(Evidence(first=b"x", second=b"y").SerializeToString(), lab.trust)
