"""Agreements under attack and in trouble: full disks, forged evidence, two things at the same moment."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from comity.agreement import sign_withdrawal
from comity.errors import AgreementError, ConfigError, StorageFull
from comity.trust import TrustStore
from comity.v1.agreement_pb2 import Proposal, ProposalAnswer, Terms
from comity.v1.task_pb2 import Receipt
from comity_node.policy.loader import loads_policy
from comity_node.protocol import negotiation_promise
from comity_node.runtime import responder
from comity_node.runtime.core import Runtime
from comity_node.runtime.withdrawals import Withdrawals
from comity_node.storage import journal, negotiations
from comity_node.storage.database import open_database
from comity_node.storage.negotiations import PromiseRow
from kit.documents import make_agreement, make_terms
from kit.hostile import concluded
from kit.lab import Carried, Lab, now_ms, policy, run, until

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))


def fresh() -> dict[str, Any]:
    """Dates of terms that are in force now."""
    return {"issued_ms": now_ms(), "expires_ms": now_ms() + 600_000}


async def ask_to_sign(lab: Lab, terms: Terms, to: str = BEA) -> ProposalAnswer:
    body = Proposal(terms=terms.SerializeToString(), sign=True).SerializeToString()
    return ProposalAnswer.FromString((await lab.deliver(terms.initiator, to, "proposal", body)).body)


@pytest.mark.invariant("R4")
def test_a_full_disk_while_it_asks_what_became_of_a_signature_does_not_end_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiation_promise, "_FIRST_ASK_MS", 10)
    monkeypatch.setattr(responder, "_LOOK_EVERY_S", 0.05)
    lab = Lab(tmp_path, 2)
    refused: list[PromiseRow] = []
    save = negotiations.save_promise

    def full_once(connection: sqlite3.Connection, row: PromiseRow) -> None:
        if not refused:
            refused.append(row)
            raise StorageFull("the disk is full")
        save(connection, row)

    monkeypatch.setattr(negotiations, "save_promise", full_once)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        assert (await ask_to_sign(lab, make_terms(lab.consortium, **fresh()))).accept

        async def asked() -> bool:
            return "agreement-status" in lab.network.kinds(BEA)

        await until(asked, "it asks once there is room")
        assert refused

    run(main)


@pytest.mark.invariant("S9")
def test_of_two_amendments_that_come_in_the_same_moment_one_is_signed(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        old = await concluded(lab, ADA, BEA, CYD)
        answers: list[str | None] = []

        async def propose(key: str) -> None:
            terms = make_terms(lab.consortium, id=key, replaces=old.digest, **fresh())
            answers.append((await ask_to_sign(lab, terms)).WhichOneof("answer"))

        async with trio.open_nursery() as both:
            for key in ("y" * 32, "z" * 32):
                both.start_soon(propose, key)
        assert sorted(map(str, answers)) == ["accept", "reject"]
        assert len(lab.members[BEA].rows("SELECT 1 FROM promises")) == 1

    run(main)


@pytest.mark.invariant("S9")
def test_an_amendment_is_not_concluded_by_who_has_signed_another_one_meanwhile(tmp_path: Path) -> None:
    """BEA signs what ADA proposes while it looks for participants of its own amendment."""
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        old = await concluded(lab, ADA, BEA, CYD)
        workflows = lab.members[BEA].up.runtime.workflows
        gathered, gather = trio.Event(), workflows._gather

        async def slowly(spec: Any) -> Any:
            await gathered.wait()
            return await gather(spec)

        workflows._gather = slowly  # type: ignore[method-assign]
        workflow_id = await workflows.amend(old.digest, b'{"repair_rounds": 3}')
        terms = make_terms(lab.consortium, id="y" * 32, replaces=old.digest, **fresh())
        assert (await ask_to_sign(lab, terms)).accept
        for name in (ADA, CYD):  # they lie: they would sign both
            lab.members[name].up.runtime.responder._check_amendment = _anything  # type: ignore[method-assign]
        gathered.set()

        async def over() -> bool:
            return (await lab.state(BEA, workflow_id))[0] != "negotiating"

        await until(over, "its own amendment has come to an end")
        state, reason = await lab.state(BEA, workflow_id)
        assert state == "failed"
        assert "signed already" in reason
        assert not lab.members[BEA].up.runtime.agreements.is_over(old.digest)

    run(main)


async def _anything(agreed: Any) -> None:
    """Find nothing wrong with it."""


@pytest.mark.invariant("R1")
def test_an_agreement_that_comes_with_a_withdrawal_that_is_none_begins_all_the_same(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        old = await concluded(lab, ADA, BEA, CYD)
        terms = make_terms(lab.consortium, id="y" * 32, replaces=old.digest, **fresh())
        elsewhere = sign_withdrawal(lab.consortium.nodes[CYD], bytes(32), "", now_ms())
        node = lab.members[BEA].up.runtime
        await node.workflows.take(CYD, make_agreement(lab.consortium, terms), [b"\xff", elsewhere])
        assert (await lab.state(BEA, terms.id))[0] == "running"
        assert node.agreements.is_over(old.digest), "what it takes the place of has ended"

    run(main)


@pytest.mark.invariant("S8")
def test_a_contradiction_that_nobody_signed_leaves_no_evidence_and_a_true_one_leaves_it_once(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[BEA].hold()
        first, second, third = (make_terms(lab.consortium, revision=number, **fresh()) for number in range(3))
        assert (await ask_to_sign(lab, first)).accept
        forged = make_agreement(lab.consortium, second, signers=[CYD])
        receipt = await lab.deliver(CYD, BEA, "agreement", forged)
        assert receipt.status == Receipt.STATUS_REFUSED
        assert "agreement.contradiction" not in actions(lab)
        for terms in (second, second, third):
            receipt = await lab.deliver(CYD, BEA, "agreement", make_agreement(lab.consortium, terms))
            assert "other terms than this node has signed" in receipt.reason
            assert "fresh id" in (await ask_to_sign(lab, terms)).reject.reason
        assert actions(lab).count("agreement.contradiction") == 1
        assert actions(lab).count("agreement.second-terms") == 1

    def actions(lab: Lab) -> list[str]:
        return [entry["action"] for entry in lab.members[BEA].audited()]

    run(main)


@pytest.mark.invariant("S1")
def test_what_ends_while_others_are_suspended_stays_over_after_a_restart(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        first, second = [await concluded(lab, ADA, BEA, id=f"{number:032x}") for number in range(2)]
        agreements = lab.members[BEA].up.runtime.agreements
        agreements.judge = lambda agreed: "not now"
        agreements.look_again()
        async with trio.open_nursery() as both:
            both.start_soon(agreements.settle)
            both.start_soon(agreements.end, second.digest, "replaced", "by another one")
        assert agreements.is_over(second.digest)
        rows = dict(lab.members[BEA].rows("SELECT digest, state FROM agreements"))
        assert rows == {first.digest: "suspended", second.digest: "replaced"}

    run(main)


@pytest.mark.invariant("S1")
def test_what_was_withdrawn_from_before_a_crash_is_over_before_anybody_is_served(tmp_path: Path) -> None:
    """The statement is on disk, its effect is not: the node died in between."""
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA)
        node = lab.members[BEA].up
        statement = sign_withdrawal(lab.consortium.nodes[ADA], agreed.digest, "done", now_ms())
        row = negotiations.WithdrawalRow(agreed.digest, ADA, statement, "done", now_ms(), now_ms())
        await node.database.transact(lambda c: negotiations.put_withdrawal(c, row))
        await lab.stop(BEA)
        async with open_database(lab.members[BEA].file) as database:
            runtime = Runtime(
                lab._surroundings(lab.members[BEA], await lab._gate(lab.members[BEA], database), database)
            )
            await runtime.load()
            assert runtime.agreements.is_over(agreed.digest)

    run(main)


@pytest.mark.invariant("S1")
def test_no_message_leaves_while_the_end_of_its_agreement_is_written_down(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA)
        runtime = lab.members[ADA].up.runtime
        before = runtime.outbox._censor.version

        async def full(*_: object) -> None:
            assert runtime.outbox._censor.version > before, "what waits is looked at again from now on"
            raise StorageFull("the disk is full")

        runtime.agreements._close = full  # type: ignore[method-assign, assignment]
        with pytest.raises(StorageFull):
            await runtime.agreements.end(agreed.digest, "withdrawn", "")

    run(main)


@pytest.mark.invariant("S1")
def test_what_the_own_policy_lets_be_offered_no_more_is_neither_proposed_nor_signed(tmp_path: Path) -> None:
    """The policy changes while the others are asked: what has left has left, and nothing follows."""
    lab = Lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for member in lab.members.values():
            member.hold()
        later = loads_policy(policy(ADA, forbid=["agreement.offer"]))
        sent: list[bool] = []

        def after(carried: Carried, receipt: Receipt) -> None:
            if carried.kind == "proposal":
                sent.append(Proposal.FromString(carried.body).sign)
                lab.members[ADA].up.gate.policy = later

        lab.network.after = after
        workflow_id = await lab.submit(ADA)

        async def failed() -> bool:
            return (await lab.state(ADA, workflow_id))[0] == "failed"

        await until(failed, "it is given up")
        assert True not in sent, "nobody is asked to sign"
        assert "own policy" in (await lab.state(ADA, workflow_id))[1]
        denied = [each for each in lab.members[ADA].audited() if each["decision"] == "deny"]
        assert {each["action"] for each in denied} == {"agreement.offer"}

    run(main)


@pytest.mark.invariant("S1")
def test_an_initiator_does_not_sign_last_what_its_policy_carries_no_more(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[ADA].hold()
        lab.members[BEA].hold()
        later = loads_policy(policy(ADA, forbid=["agreement.offer"]))

        def after(carried: Carried, receipt: Receipt) -> None:
            if carried.kind == "proposal" and Proposal.FromString(carried.body).sign:
                lab.members[ADA].up.gate.policy = later

        lab.network.after = after
        workflow_id = await lab.submit(ADA)

        async def failed() -> bool:
            return (await lab.state(ADA, workflow_id))[0] == "failed"

        await until(failed, "it is given up")
        assert "not signed" in (await lab.state(ADA, workflow_id))[1]
        assert not lab.members[ADA].rows("SELECT 1 FROM agreements")

    run(main)


@pytest.mark.invariant("R4")
def test_a_full_disk_here_is_not_taken_for_a_no_of_the_others(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        gate, full = lab.members[ADA].up.gate, 3
        keep = gate._keep_high_water

        async def keep_high_water() -> None:
            nonlocal full
            if full and "proposal" in lab.network.kinds(ADA):
                full -= 1
                raise StorageFull("the disk is full")
            await keep()

        gate._keep_high_water = keep_high_water  # type: ignore[method-assign]
        await lab.until_done(await lab.submit(ADA, records_per_organization=2))
        assert not full

    run(main)


@pytest.mark.invariant("S2")
def test_an_agreement_with_somebody_who_has_left_is_not_taken(tmp_path: Path) -> None:
    """It was signed in time, and comes late; or the bundle changes in the moment in which it is written down."""
    lab = Lab(tmp_path)
    bundle = lab.consortium.trust.bundle
    lab.consortium = replace(lab.consortium, trust=TrustStore(bundle))
    members = {name: roots for name, roots in bundle.members.items() if name != CYD}
    later = replace(
        bundle, epoch=bundle.epoch + 1, digest=b"2" * 32, members=members, history=(bundle,), issued_ms=now_ms()
    )

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA, BEA)
        agreements = lab.members[BEA].up.runtime.agreements
        terms = [make_terms(lab.consortium, id=f"{number:032x}", **fresh()) for number in range(2)]
        put = journal.put_agreement

        def put_and_change(connection: sqlite3.Connection, row: journal.AgreementRow) -> bool:
            lab.consortium.trust.replace(later)
            return put(connection, row)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "put_agreement", put_and_change)
            agreed = await agreements.add(make_agreement(lab.consortium, terms[0]))
        assert agreements.is_over(agreed.digest)
        with pytest.raises(AgreementError, match="left the consortium"):
            await agreements.add(make_agreement(lab.consortium, terms[1]))

    run(main)


def test_what_was_proposed_under_the_epoch_before_can_still_be_signed(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    bundle = lab.consortium.trust.bundle
    lab.consortium = replace(lab.consortium, trust=TrustStore(bundle))
    later = replace(bundle, epoch=bundle.epoch + 1, digest=b"2" * 32, history=(bundle,), issued_ms=now_ms())

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        terms = [make_terms(lab.consortium, id=f"{epoch:032x}", bundle_epoch=epoch, **fresh()) for epoch in range(4)]
        lab.consortium.trust.replace(later)
        answers = [await ask_to_sign(lab, each) for each in terms]
        assert [answer.WhichOneof("answer") for answer in answers] == ["reject", "accept", "accept", "reject"]
        assert "this node's trust bundle is of epoch 2" in answers[3].reject.reason

    run(main)


@pytest.mark.invariant("R2")
def test_a_workflow_that_is_submitted_while_the_node_recovers_is_negotiated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, 2)
    recovered = trio.Event()
    recover = Withdrawals.recover

    async def slowly(self: Withdrawals) -> None:
        await recovered.wait()
        await recover(self)

    monkeypatch.setattr(Withdrawals, "recover", slowly)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for member in lab.members.values():
            member.hold()
        node = lab.members[ADA].up
        at_work: list[str] = []
        negotiate = node.runtime.workflows._negotiate

        async def noted(workflow_id: str, spec: Any) -> None:
            at_work.append(workflow_id)
            await negotiate(workflow_id, spec)

        node.runtime.workflows._negotiate = noted  # type: ignore[method-assign]
        workflow_id = await lab.submit(ADA)
        recovered.set()

        async def runs() -> bool:
            return (await lab.state(ADA, workflow_id))[0] == "running"

        await until(runs, "it is agreed on")
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert at_work == [workflow_id]

    run(main)


@pytest.mark.invariant("R5")
def test_what_is_submitted_in_the_moment_of_the_shutdown_is_for_the_next_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for member in lab.members.values():
            member.hold()
        workflows = lab.members[ADA].up.runtime.workflows
        transact = workflows._database.transact

        async def and_stop(write: Any) -> Any:
            done = await transact(write)
            workflows._nursery = None
            return done

        workflows._database.transact = and_stop  # type: ignore[method-assign, assignment]
        workflow_id = await lab.submit(ADA)
        await lab.stop(ADA)
        await lab.start(nursery, ADA)

        async def runs() -> bool:
            return (await lab.state(ADA, workflow_id))[0] == "running"

        await until(runs, "the next run negotiates it")

    run(main)


@pytest.mark.invariant("R5")
def test_a_workflow_that_cannot_be_read_any_more_fails_and_the_node_starts(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, ADA)
        row = journal.WorkflowRow("w" * 32, b'{"words": "of an earlier version"}', "negotiating", "", None, now_ms())
        await lab.members[ADA].up.database.transact(lambda c: journal.put_workflow(c, row))
        await lab.stop(ADA)
        await lab.start(nursery, ADA)

        async def failed() -> bool:
            return (await lab.state(ADA, row.workflow_id)) == ("failed", "unknown key 'words' in the workflow")

        await until(failed, "it says why")

    run(main)


@pytest.mark.invariant("R4")
def test_a_disk_that_is_full_while_the_own_policy_is_asked_does_not_fail_the_workflow(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        gate, full = lab.members[ADA].up.gate, 1
        demand = gate.demand

        async def demanded(question: Any) -> Any:
            nonlocal full
            if full and question.request.action == "agreement.offer":
                full -= 1
                raise StorageFull("the disk is full")
            return await demand(question)

        gate.demand = demanded  # type: ignore[method-assign]
        await lab.until_done(await lab.submit(ADA, records_per_organization=2))
        assert not full

    run(main)


def test_a_workflow_that_names_nobody_else_is_not_for_everybody(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        with pytest.raises(ConfigError, match="names nobody but"):
            await lab.submit(ADA, participants=[ADA])

    run(main)


@pytest.mark.invariant("S1")
def test_a_withdrawal_that_was_cut_short_is_done_when_it_is_asked_for_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        agreed = await concluded(lab, ADA, BEA)
        runtime = lab.members[ADA].up.runtime
        close = runtime.agreements._close

        async def full(*_: object) -> None:
            raise StorageFull("the disk is full")

        runtime.agreements._close = full  # type: ignore[method-assign, assignment]
        with pytest.raises(StorageFull):
            await runtime.withdrawals.withdraw(agreed.digest, "")
        runtime.agreements._close = close  # type: ignore[method-assign]
        with pytest.raises(AgreementError, match="withdrawn from already"):
            await runtime.withdrawals.withdraw(agreed.digest, "")
        assert lab.members[ADA].rows("SELECT state FROM agreements") == [("withdrawn",)]

    run(main)
