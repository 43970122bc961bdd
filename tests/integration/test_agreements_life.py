"""The life of an agreement between nodes: people who approve, restarts, spoilers, withdrawal, amendment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.agreement import open_agreement, open_withdrawal, sign_withdrawal
from comity.digest import sha256
from comity.errors import AgreementError, LinkClosed
from comity.v1.agreement_pb2 import (
    AgreementStatusReply,
    AgreementStatusRequest,
    Proposal,
    ProposalAnswer,
    SignedWithdrawal,
    Terms,
)
from comity.v1.task_pb2 import Receipt
from comity_node.policy.loader import loads_policy
from comity_node.protocol import negotiation_promise
from comity_node.runtime import responder
from comity_node.storage import journal, negotiations
from kit.documents import make_agreement, make_terms
from kit.hostile import concluded
from kit.lab import Carried, Lab, now_ms, policy, run, until

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))
SMALL: dict[str, Any] = {"records_per_organization": 2, "batch_records": 2}


async def steps(lab: Lab, name: str, workflow_id: str) -> list[tuple[str, str]]:
    rows = await lab.members[name].up.database.read(lambda c: journal.workflow_steps(c, workflow_id))
    return [(row.organization, row.step) for row in rows]


async def until_step(lab: Lab, name: str, workflow_id: str, step: tuple[str, str]) -> None:
    async def seen() -> bool:
        return step in await steps(lab, name, workflow_id)

    await until(seen, f"{step} at {name}")


async def approve(lab: Lab, name: str, *, yes: bool = True, reason: str = "", count: int = 1) -> None:
    """Answer what a person at `name` is asked, once there are `count` questions."""
    gate = lab.members[name].up.gate

    async def asked() -> bool:
        return len(await gate.approvals.list()) == count

    await until(asked, f"{name} is asked")
    for row in await gate.approvals.list():
        await gate.approvals.decide(row.approval_id.hex(), approve=yes, reason=reason)


def asking(name: str, action: str = "agreement.accept") -> str:
    return policy(name, obligations={action: "approval: {within: 1h}"})


def hold_all(lab: Lab) -> None:
    """No agent does anything, so that agreements stay under way."""
    for member in lab.members.values():
        member.hold()


def spoil(lab: Lab, wanted: Callable[[Carried], bool]) -> list[Carried]:
    """Lose the requests that `wanted` picks; returns those that were."""
    lost: list[Carried] = []

    def before(carried: Carried) -> None:
        if wanted(carried):
            lost.append(carried)
            raise LinkClosed("lost on the way")

    lab.network.before = before
    return lost


def lose_answers(lab: Lab, wanted: Callable[[Carried], bool]) -> None:
    """Lose the answers to requests that `wanted` picks: they were handled."""

    def after(carried: Carried, receipt: Receipt) -> None:
        if wanted(carried):
            raise LinkClosed("the answer was lost")

    lab.network.after = after


def digests(lab: Lab, name: str) -> list[bytes]:
    return [row[0] for row in lab.members[name].rows("SELECT digest FROM agreements")]


@pytest.mark.invariant("S1")
def test_a_person_approves_and_the_negotiation_goes_on_across_restarts_of_both_sides(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.members[BEA].policy = asking(BEA)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **SMALL)
        await until_step(lab, ADA, workflow_id, (BEA, "waiting"))
        await lab.stop(ADA)
        await lab.stop(BEA)
        await lab.start(nursery, ADA, BEA)
        await until_step(lab, ADA, workflow_id, (ADA, "resumed"))
        await approve(lab, BEA)
        await lab.until_done(workflow_id)
        assert len(await lab.members[BEA].up.gate.approvals.list(all_of_them=True)) == 1
        assert (await lab.counts(ADA)) == {"certified": 2}

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
def test_a_person_says_no_and_the_submitter_learns_why(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    lab.members[BEA].policy = asking(BEA)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **SMALL)
        await approve(lab, BEA, yes=False, reason="not before the board has met")

        async def failed() -> bool:
            return (await lab.state(ADA, workflow_id))[0] == "failed"

        await until(failed, "it fails")
        assert "not before the board has met" in (await lab.state(ADA, workflow_id))[1]
        assert not lab.members[BEA].rows("SELECT 1 FROM promises")

    run(main)


def test_an_own_person_approves_what_is_offered(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.members[ADA].policy = asking(ADA, "agreement.offer")
    hold_all(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **SMALL)
        await until_step(lab, ADA, workflow_id, (ADA, "waiting"))
        assert "proposal" not in lab.network.kinds(ADA)
        await approve(lab, ADA, count=2)  # for each of the others
        await until_step(lab, ADA, workflow_id, (ADA, "concluded"))

    run(main)


@pytest.mark.invariant("S1")
def test_limits_over_all_labels_of_terms_decide_what_a_node_accepts_by_itself(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    hold_all(lab)
    terms = {"repair_rounds": 0, "eligible": 2, "faulty": 0, "batch_records": 2, "lease_seconds": 20, "quorum": 2}
    limits = ", ".join(f"{label}: {{min: {value}, max: {value}}}" for label, value in terms.items())
    rule = "id: agreement-accept, effect: allow, action: agreement.accept,"
    limited = f"{rule} when: {{{limits}, distinct_organizations: true, lifetime_seconds: {{max: 7200}}}},"
    lab.members[BEA].policy = policy(BEA).replace(rule, limited)
    assert limited in lab.members[BEA].policy

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        short = await lab.submit(ADA, expires_seconds=7200, **SMALL)
        await until_step(lab, ADA, short, (ADA, "concluded"))
        long = await lab.submit(ADA, expires_seconds=7201, **SMALL)
        await until_step(lab, ADA, long, (BEA, "rejected"))

    run(main)


@pytest.mark.invariant("S1")
def test_a_policy_whose_limits_alone_stand_against_it_counters_with_what_it_would_sign(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    hold_all(lab)
    rule = "id: agreement-accept, effect: allow, action: agreement.accept,"
    limited = f"{rule} when: {{records: {{max: 3}}, min_score: {{min: 0.6}}}},"
    lab.members[BEA].policy = policy(BEA).replace(rule, limited)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, records_per_organization=20, batch_records=2)
        await until_step(lab, ADA, workflow_id, (ADA, "concluded"))
        assert (BEA, "countered") in await steps(lab, ADA, workflow_id)
        (agreed,) = lab.members[ADA].up.runtime.agreements.all()
        assert (agreed.terms.records_per_organization, agreed.terms.review.min_score) == (3, 6_000)
        needy = await lab.submit(ADA, records_per_organization=20, limits={"minimum_records": 4})
        await until_step(lab, ADA, needy, (BEA, "left out"))

    run(main)


@pytest.mark.invariant("S9")
def test_one_that_asks_for_the_impossible_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 4)
    spoiler = lab.names[3]
    lab.members[spoiler].policy = policy(spoiler, obligations={"agreement.accept": "redact: [label]"})

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, participants=[BEA, CYD, spoiler], minimum_participants=3, **SMALL)
        await lab.until_done(workflow_id, ADA, BEA, CYD)
        assert (spoiler, "left out") in await steps(lab, ADA, workflow_id)
        (agreed,) = lab.members[ADA].up.runtime.agreements.all()
        assert sorted(agreed.participants) == [ADA, BEA, CYD]
        assert await lab.counts(ADA) == {"certified": 2}
        assert lab.members[spoiler].up.runtime.agreements.all() == []

    run(main)


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
def test_a_signature_that_is_lost_on_the_way_is_given_again_after_a_restart(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    hold_all(lab)

    def is_signing(carried: Carried) -> bool:
        return carried.receiver == BEA and carried.kind == "proposal" and Proposal.FromString(carried.body).sign

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lose_answers(lab, is_signing)
        workflow_id = await lab.submit(ADA, **SMALL)
        await until_step(lab, ADA, workflow_id, (CYD, "accepted"))

        async def signed() -> bool:
            return len(lab.members[BEA].rows("SELECT 1 FROM promises")) == 1

        await until(signed, "it has signed")
        await lab.stop(ADA)
        await lab.stop(BEA)
        lab.network.after = lambda carried, receipt: None
        await lab.start(nursery, ADA, BEA)
        await until_step(lab, ADA, workflow_id, (ADA, "concluded"))

        async def everywhere() -> bool:
            promised = [lab.members[name].rows("SELECT stage FROM promises") for name in (BEA, CYD)]
            return promised == [[("concluded",)]] * 2 and all(len(digests(lab, name)) == 1 for name in lab.names)

        await until(everywhere, "everybody has it")
        assert len({digests(lab, name)[0] for name in lab.names}) == 1

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("R1")
def test_who_signed_and_never_got_the_agreement_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The initiator is gone for good after it has concluded: another participant has it."""
    monkeypatch.setattr(negotiation_promise, "_FIRST_ASK_MS", 50)
    monkeypatch.setattr(responder, "_LOOK_EVERY_S", 0.05)
    lab = Lab(tmp_path)
    hold_all(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        to_bea = spoil(
            lab,
            lambda carried: (
                (carried.receiver == BEA and carried.kind == "agreement")
                or (carried.sender == BEA and carried.receiver == ADA and carried.kind == "agreement-status")
            ),
        )
        workflow_id = await lab.submit(ADA, **SMALL)

        async def known() -> bool:
            return bool(digests(lab, BEA)) and bool(to_bea)

        await until(known, "it has asked the other one")
        await lab.stop(ADA)
        assert digests(lab, BEA) == digests(lab, CYD)
        assert (await lab.state(BEA, workflow_id))[0] == "running"

    run(main)


@pytest.mark.invariant("S1")
def test_terms_that_were_given_up_are_void_and_their_id_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One signs, another changes its mind: the rest agree under a fresh id; the first signature is worth nothing."""
    monkeypatch.setattr(negotiation_promise, "_FIRST_ASK_MS", 50)
    monkeypatch.setattr(responder, "_LOOK_EVERY_S", 0.05)
    lab = Lab(tmp_path)
    hold_all(lab)

    def is_first_signing(carried: Carried) -> bool:
        proposal = Proposal.FromString(carried.body) if carried.kind == "proposal" else Proposal()
        return proposal.sign and carried.receiver == CYD

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)

        def before(carried: Carried) -> None:
            if is_first_signing(carried):
                lab.members[CYD].up.gate.policy = type(lab.members[CYD].up.gate.policy)(_forbidding(CYD))

        lab.network.before = before
        workflow_id = await lab.submit(ADA, participants=[BEA, CYD], minimum_participants=2, **SMALL)
        await until_step(lab, ADA, workflow_id, (ADA, "concluded"))

        async def runs() -> bool:
            return (await lab.state(ADA, workflow_id))[0] == "running"

        await until(runs, "it runs under the fresh id")
        (agreed,) = lab.members[ADA].up.runtime.agreements.all()
        assert sorted(agreed.participants) == [ADA, BEA]
        assert agreed.terms.id != workflow_id
        wanted = {workflow_id: "released", agreed.terms.id: "concluded"}

        async def told() -> bool:
            return dict(lab.members[BEA].rows("SELECT agreement_id, stage FROM promises")) == wanted

        await until(told, "who signed first knows that it is void")
        assert "agreement.given-up" in [entry["action"] for entry in lab.members[BEA].audited()]
        state = await lab.members[ADA].up.database.read(lambda c: journal.get_workflow(c, workflow_id))
        assert state is not None
        assert state.agreement_digest == agreed.digest
        body = AgreementStatusRequest(digest=bytes(32)).SerializeToString()
        reply = AgreementStatusReply.FromString((await lab.deliver(BEA, ADA, "agreement-status", body)).body)
        assert reply.outcome == AgreementStatusReply.OUTCOME_VOID

    run(main)


def _forbidding(name: str) -> Any:
    return loads_policy(policy(name, forbid=["agreement.accept"])).document


@pytest.mark.invariant("S1")
@pytest.mark.invariant("R1")
def test_after_a_withdrawal_nothing_passes_and_what_is_certified_stays(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **SMALL)
        await lab.until_done(workflow_id)
        (agreed,) = lab.members[ADA].up.runtime.agreements.all()

        async def complete() -> bool:
            return all([await lab.records(name) == 6 for name in lab.names])

        await until(complete, "everybody has everybody's records")
        await lab.stop(CYD)
        await lab.members[BEA].up.runtime.withdrawals.withdraw(agreed.digest, "the study is over")
        await lab.start(nursery, CYD)

        async def ended() -> bool:
            return all(lab.members[name].up.runtime.agreements.is_over(agreed.digest) for name in lab.names)

        await until(ended, "everybody has heard of it")
        for name in lab.names:
            with pytest.raises(AgreementError, match="study is over"):
                lab.members[name].up.runtime.agreements.get(agreed.digest)
            ((statement,),) = lab.members[name].rows("SELECT statement FROM withdrawals")
            assert open_withdrawal(statement, lab.consortium.trust).organization == BEA
            assert "agreement.withdrawal" in [entry["action"] for entry in lab.members[name].audited()]
            assert await lab.records(name) == 6
        await lab.stop(ADA)
        await lab.start(nursery, ADA)
        assert lab.members[ADA].up.runtime.agreements.is_over(agreed.digest)
        with pytest.raises(AgreementError, match="withdrawn from already"):
            await lab.members[ADA].up.runtime.withdrawals.withdraw(agreed.digest, "me too")

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
def test_a_withdrawal_from_what_is_not_concluded_yet_comes_first(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    hold_all(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lost = spoil(lab, lambda carried: carried.kind == "agreement" and carried.receiver == BEA)
        await lab.submit(ADA, **SMALL)

        async def lacking() -> bool:
            return bool(lost) and bool(digests(lab, CYD))

        await until(lacking, "one lacks the agreement")
        digest = digests(lab, CYD)[0]
        await lab.members[BEA].up.runtime.withdrawals.withdraw(digest, "")
        lab.network.before = lambda carried: None

        async def ended() -> bool:
            return all(lab.members[name].up.runtime.agreements.is_over(digest) for name in (ADA, CYD))

        await until(ended, "the others have heard of it")
        await lab.members[BEA].up.runtime.workflows.take(CYD, raw(lab, CYD, digest), ())
        assert lab.members[BEA].up.runtime.agreements.is_over(digest)

    run(main)


def raw(lab: Lab, name: str, digest: bytes) -> bytes:
    ((data,),) = lab.members[name].rows("SELECT agreement FROM agreements WHERE digest = ?", digest)
    open_agreement(data, lab.consortium.trust)
    return bytes(data)


@pytest.mark.invariant("S2")
def test_withdrawals_that_are_none(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 4)
    stranger = lab.names[3]

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA, CYD)
        nodes = lab.consortium.nodes
        now = lab.members[ADA].up.gate.now_ms()
        good = SignedWithdrawal.FromString(sign_withdrawal(nodes[CYD], agreed.digest, "", now))
        borrowed = SignedWithdrawal(envelope=good.envelope, chain=nodes[BEA].chain)
        for body in (
            b"\xff",
            b"",
            sign_withdrawal(nodes[stranger], agreed.digest, "", now),
            sign_withdrawal(nodes[CYD], bytes(32), "", now),
            borrowed.SerializeToString(),
        ):
            receipt = await lab.deliver(CYD, ADA, "withdrawal-notice", body)
            assert receipt.status == Receipt.STATUS_REFUSED
        assert not lab.members[ADA].up.runtime.agreements.is_over(agreed.digest)
        for _ in range(2):
            receipt = await lab.deliver(BEA, ADA, "withdrawal-notice", good.SerializeToString())
            assert receipt.status == Receipt.STATUS_ACCEPTED
        assert lab.members[ADA].up.runtime.agreements.is_over(agreed.digest)
        assert len(lab.members[ADA].rows("SELECT 1 FROM withdrawals")) == 1

    run(main)


@pytest.mark.invariant("S1")
def test_an_amendment_signed_by_all_takes_the_place_of_the_old_terms(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    hold_all(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        old = await concluded(lab, ADA, BEA, CYD)
        workflows = lab.members[BEA].up.runtime.workflows
        workflow_id = await workflows.amend(old.digest, json.dumps({"records_per_organization": 7}).encode())
        await until_step(lab, BEA, workflow_id, (BEA, "concluded"))

        async def replaced() -> bool:
            states = "SELECT state FROM agreements WHERE digest = ?"
            return all(lab.members[name].rows(states, old.digest) == [("replaced",)] for name in lab.names)

        await until(replaced, "the old one is over everywhere")
        for name in lab.names:
            (new,) = lab.members[name].up.runtime.agreements.all()
            assert new.terms.replaces == old.digest
            assert new.terms.records_per_organization == 7
            assert new.terms.initiator == BEA
            assert lab.members[name].up.runtime.agreements.is_over(old.digest)
        with pytest.raises(AgreementError):
            await workflows.amend(old.digest, b'{"repair_rounds": 1}')

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
def test_amendments_that_leave_somebody_out_or_cross_each_other_are_not_signed(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        old = await concluded(lab, ADA, BEA, CYD)

        async def answer(participants: list[str], key: str) -> str:
            terms = Terms.FromString(old.terms.SerializeToString())
            terms.id, terms.replaces = key, old.digest
            del terms.participants[:]
            terms.participants.extend(participants)
            terms.review.eligible = len(participants) - 1
            terms.review.quorum = len(participants) - 1
            body = Proposal(terms=terms.SerializeToString(), sign=True).SerializeToString()
            receipt = await lab.deliver(ADA, BEA, "proposal", body)
            reply = ProposalAnswer.FromString(receipt.body)
            return reply.reject.reason if reply.WhichOneof("answer") == "reject" else "signed"

        assert "all of them" in await answer([ADA, BEA], "x" * 32)
        assert await answer([ADA, BEA, CYD], "y" * 32) == "signed"
        assert "under way" in await answer([ADA, BEA, CYD], "z" * 32)
        with pytest.raises(AgreementError, match="signed already"):
            await lab.members[BEA].up.runtime.workflows.amend(old.digest, b'{"repair_rounds": 3}')

    run(main)


@pytest.mark.invariant("S7")
def test_signatures_of_one_initiator_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiations, "_MAX_OPEN_OF_ONE", 2)
    monkeypatch.setattr(negotiations, "_MAX_OF_ONE", 3)
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)

        async def sign(key: int) -> Receipt:
            fresh = {"issued_ms": now_ms(), "expires_ms": now_ms() + 600_000}
            terms = make_terms(lab.consortium, id=f"{key:032x}", **fresh).SerializeToString()
            return await lab.deliver(ADA, BEA, "proposal", Proposal(terms=terms, sign=True).SerializeToString())

        assert [(await sign(key)).status for key in range(3)] == [Receipt.STATUS_ACCEPTED] * 2 + [Receipt.STATUS_BUSY]
        database = lab.members[BEA].up.database
        await database.transact(lambda c: c.execute("UPDATE promises SET stage = 'released'"))
        assert [(await sign(key)).status for key in (3, 4)] == [Receipt.STATUS_ACCEPTED, Receipt.STATUS_BUSY]

    run(main)


async def ask_to_sign(lab: Lab, terms: Terms) -> ProposalAnswer:
    body = Proposal(terms=terms.SerializeToString(), sign=True).SerializeToString()
    return ProposalAnswer.FromString((await lab.deliver(ADA, BEA, "proposal", body)).body)


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S9")
def test_an_initiator_that_asks_for_a_second_signature_under_one_id_leaves_a_trace(tmp_path: Path) -> None:
    """And an agreement over other terms than were signed here is refused, whoever signed it in this node's name."""
    lab = Lab(tmp_path, 2)
    hold_all(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        fresh: dict[str, Any] = {"issued_ms": now_ms(), "expires_ms": now_ms() + 600_000}
        first, second = (make_terms(lab.consortium, revision=revision, **fresh) for revision in (0, 1))
        signature = (await ask_to_sign(lab, first)).accept
        assert signature
        assert (await ask_to_sign(lab, first)).accept == signature, "asked again, it gives the same one"
        refused = await ask_to_sign(lab, second)
        assert "fresh id" in refused.reject.reason
        receipt = await lab.deliver(ADA, BEA, "agreement", make_agreement(lab.consortium, second))
        assert receipt.status == Receipt.STATUS_REFUSED
        assert "other terms than this node has signed" in receipt.reason
        assert not digests(lab, BEA)
        receipt = await lab.deliver(ADA, BEA, "agreement", make_agreement(lab.consortium, first))
        assert receipt.status == Receipt.STATUS_ACCEPTED
        seen = {
            entry["action"]: (entry["subject"], entry["detail"]["first"])
            for entry in lab.members[BEA].audited()
            if "first" in entry["detail"]
        }
        both = (sha256(second.SerializeToString()).hex(), sha256(first.SerializeToString()).hex())
        assert seen == {"agreement.second-terms": both, "agreement.contradiction": both}

    run(main)


@pytest.mark.invariant("S1")
def test_what_became_of_terms_is_told_and_the_terms_to_participants_alone(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.members[BEA].policy = asking(BEA)
    hold_all(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)

        async def status(sender: str, digest: bytes) -> AgreementStatusReply:
            body = AgreementStatusRequest(digest=digest).SerializeToString()
            return AgreementStatusReply.FromString((await lab.deliver(sender, ADA, "agreement-status", body)).body)

        workflow_id = await lab.submit(ADA, participants=[BEA], minimum_participants=2, **SMALL)
        await until_step(lab, ADA, workflow_id, (BEA, "waiting"))
        ((terms,),) = lab.members[ADA].rows("SELECT terms FROM negotiations")
        assert (await status(BEA, sha256(terms))).outcome == AgreementStatusReply.OUTCOME_OPEN
        assert (await status(BEA, bytes(32))).outcome == AgreementStatusReply.OUTCOME_VOID
        await approve(lab, BEA)
        await until_step(lab, ADA, workflow_id, (ADA, "concluded"))
        told = await status(BEA, sha256(terms))
        assert told.outcome == AgreementStatusReply.OUTCOME_CONCLUDED
        assert open_agreement(told.agreement, lab.consortium.trust).digest == sha256(terms)
        assert await status(CYD, sha256(terms)) == AgreementStatusReply()

    run(main)


def test_a_policy_is_not_asked_again_while_a_person_is_waited_for(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    lab.members[BEA].policy = asking(BEA)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        terms = make_terms(lab.consortium, issued_ms=now_ms(), expires_ms=now_ms() + 600_000)
        body = Proposal(terms=terms.SerializeToString()).SerializeToString()

        async def propose() -> str | None:
            return ProposalAnswer.FromString((await lab.deliver(ADA, BEA, "proposal", body)).body).WhichOneof("answer")

        def decided() -> list[str]:
            log = lab.members[BEA].audited()
            return [one["decision"] for one in log if one["action"] == "agreement.accept" and one["kind"] == "decision"]

        assert [await propose() for _ in range(5)] == ["waiting"] * 5
        assert len(decided()) == 1
        await approve(lab, BEA)
        assert await propose() == "ready"
        assert decided()[1:] == ["allow"]

    run(main)
