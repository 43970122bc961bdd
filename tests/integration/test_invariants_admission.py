"""Three organizations at work: what crosses a boundary, and what had to be on disk before it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from comity.digest import sha256
from comity.v1.task_pb2 import Receipt, RecordDelivery, ReviewDelivery, TaskOffer
from comity_node.storage import journal
from kit.lab import Carried, Lab, Member, policy, run, until

ADA, BEA, CYD = "org00.example", "org01.example", "org02.example"


def decisions(member: Member, action: str, decision: str) -> list[dict[str, Any]]:
    return [
        entry
        for entry in member.audited()
        if (entry["kind"], entry["action"], entry["decision"]) == ("decision", action, decision)
    ]


def allowed(member: Member, action: str, peer: str) -> set[str]:
    """Subjects that the member's log says may cross to or from `peer`."""
    return {entry["subject"] for entry in decisions(member, action, "allow") if entry["peer"] == peer}


class Watch:
    """Looks into the databases' files at the moment a request is on the wire, and when it was answered."""

    def __init__(self, lab: Lab) -> None:
        self.members = lab.members
        self.seen: dict[str, int] = {}
        lab.network.before, lab.network.after = self.before, self.after

    def before(self, carried: Carried) -> None:
        sender = self.members[carried.sender]
        if (action := _ACTIONS.get(carried.kind)) is not None:
            missing = set(_subjects(carried)) - allowed(sender, action, carried.receiver)
            assert not missing, f"{carried.kind} left {carried.sender} before its decision was on disk"
        self.seen[carried.kind] = self.seen.get(carried.kind, 0) + 1

    def after(self, carried: Carried, receipt: Receipt) -> None:
        receiver = self.members[carried.receiver]
        if receipt.status != Receipt.STATUS_ACCEPTED:
            return
        for action in _ANSWERS.get(carried.kind, ()):
            if carried.kind in ("task-offer", "records"):
                missing = set(_subjects(carried)) - allowed(receiver, action, carried.sender)
                assert not missing, f"{carried.receiver} took a {carried.kind} without a decision"
            else:
                assert decisions(receiver, action, "allow"), f"{carried.receiver} answered a {carried.kind}"
        if carried.kind == "task-offer":
            batch = TaskOffer.FromString(carried.body).batch_id
            assert receiver.rows("SELECT 1 FROM inbox WHERE batch_id = ?", batch), "custody before it was on disk"
        elif carried.kind == "records":
            for certified in RecordDelivery.FromString(carried.body).records:
                assert receiver.rows("SELECT 1 FROM records WHERE task_id = ?", certified.task.id)
        elif carried.kind == "reviews":
            votes = {bytes(row[0]) for row in receiver.rows("SELECT review FROM votes")}
            assert {one.review for one in ReviewDelivery.FromString(carried.body).reviews} <= votes
        elif carried.kind == "agreement":
            assert receiver.rows("SELECT 1 FROM agreements WHERE agreement = ?", carried.body)


_ACTIONS = {
    "proposal": "agreement.offer",
    "task-offer": "record.send",
    "reviews": "review.send",
    "records": "record.release",
}
_ANSWERS = {
    "cards": ("agent.discover",),
    "peers": ("agent.discover",),
    "proposal": ("agreement.accept",),
    "task-offer": ("record.receive",),
    "reviews": ("review.receive",),
    "records": ("record.accept",),
}


def _subjects(carried: Carried) -> list[str]:
    """What the sender's decisions have to be about."""
    if carried.kind == "task-offer":
        return [sha256(task.record).hex() for task in TaskOffer.FromString(carried.body).tasks]
    if carried.kind == "records":
        return [sha256(one.task.record).hex() for one in RecordDelivery.FromString(carried.body).records]
    if carried.kind == "reviews":
        batch = ReviewDelivery.FromString(carried.body).batch_id
        return [journal.offer_digest(carried.receiver, batch, 0).hex()]
    return []


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S8")
@pytest.mark.invariant("R1")
def test_every_crossing_was_decided_on_by_both_sides_and_is_on_disk_first(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    watch = Watch(lab)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA))
        for name in lab.names:
            assert await lab.counts(name) == {"certified": 4}

            async def spread(name: str = name) -> bool:
                return await lab.records(name) == 12

            await until(spread, f"{name} has everybody's records")

    run(main)
    assert set(watch.seen) >= {*_ACTIONS, "cards", "agreement"}
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S3")
@pytest.mark.parametrize("forbidden", [False, True], ids=["no rule allows it", "a rule forbids it"])
def test_without_an_allow_of_the_senders_policy_nothing_reaches_the_wire(tmp_path: Path, forbidden: bool) -> None:
    lab = Lab(tmp_path)
    change = {"forbid" if forbidden else "without": ["record.send"]}
    lab.members[ADA].policy = policy(ADA, **change)  # type: ignore[arg-type]

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA))
        assert await lab.counts(ADA) == {"refused": 4}
        assert await lab.counts(BEA) == {"certified": 4}

    run(main)
    assert "task-offer" not in lab.network.kinds(ADA)
    assert "task-offer" in lab.network.kinds(BEA)
    ada = lab.members[ADA]
    refused = decisions(ada, "record.send", "deny")
    assert {entry["peer"] for entry in refused} == {BEA, CYD}
    assert len({entry["subject"] for entry in refused}) == 4
    rules = ["no-record-send"] if forbidden else []
    assert all(entry["rules"] == rules for entry in refused)
    ended = [entry for entry in ada.audited() if entry["action"] == "task.refused"]
    assert [(entry["decision"], entry["rules"]) for entry in ended] == [("deny", rules)] * 4
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("action", "kind"),
    [("agreement.offer", "proposal"), ("review.send", "reviews"), ("record.release", "records")],
)
def test_no_other_kind_leaves_without_an_allow_either(tmp_path: Path, action: str, kind: str) -> None:
    lab = Lab(tmp_path)
    lab.members[ADA].policy = policy(ADA, without=[action])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, lease_seconds=1)
        if action == "agreement.offer":

            async def failed() -> bool:
                return (await lab.state(ADA, workflow_id))[0] == "failed"

            await until(failed, "the workflow fails")
        else:
            await lab.until_done(workflow_id)
            assert await lab.counts(ADA) == {"certified": 4}

    run(main)
    assert kind not in lab.network.kinds(ADA)
    assert decisions(lab.members[ADA], action, "deny")
    assert not decisions(lab.members[ADA], action, "allow")


@pytest.mark.invariant("S1")
def test_cards_are_shown_only_to_whom_the_policy_lets_see_them(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.members[ADA].policy = policy(ADA, without=["agent.discover"])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        receipt = await lab.deliver(BEA, ADA, "cards", b"")
        assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "policy_denied")
        assert not receipt.body
        assert (await lab.deliver(BEA, ADA, "peers", b"")).code == "policy_denied"
        shown = await lab.deliver(ADA, BEA, "cards", b"")
        assert shown.status == Receipt.STATUS_ACCEPTED
        assert shown.body

    run(main)


@pytest.mark.invariant("S1")
def test_the_receivers_policy_refuses_and_its_rule_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.members[BEA].policy = policy(BEA, forbid=["record.receive"])
    receipts: list[Receipt] = []

    def after(carried: Carried, receipt: Receipt) -> None:
        if (carried.kind, carried.receiver) == ("task-offer", BEA):
            receipts.append(receipt)

    lab.network.after = after

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA)
        await lab.until_done(workflow_id)
        assert await lab.counts(ADA) == {"refused": 4}, "two votes are needed, and one of two reviewers refuses"
        assert await lab.counts(BEA) == {"certified": 4}
        reasons = await lab.members[ADA].up.database.read(lambda c: journal.count_tasks_by_reason(c, "refused"))
        assert reasons == {f"policy of {BEA}": 4}

    run(main)
    assert {(one.status, one.code, tuple(one.rules)) for one in receipts} == {
        (Receipt.STATUS_REFUSED, "policy_denied", ("no-record-receive",))
    }
    bea = lab.members[BEA]
    assert decisions(bea, "record.receive", "deny")
    assert not bea.rows("SELECT 1 FROM inbox"), "nothing was taken"
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(("action", "table"), [("review.receive", "votes"), ("record.accept", "records")])
def test_what_the_receivers_policy_refuses_is_not_kept(tmp_path: Path, action: str, table: str) -> None:
    lab = Lab(tmp_path)
    lab.members[BEA].policy = policy(BEA, forbid=[action])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, lease_seconds=1)
        await lab.until_done(workflow_id)
        decided = {"undecided": 4} if action == "review.receive" else {"certified": 4}
        assert await lab.counts(BEA) == decided

        async def answered() -> bool:
            return bool(decisions(lab.members[BEA], action, "deny"))

        await until(answered, f"{BEA} refuses")

    run(main)
    own = lab.members[BEA].rows(
        f"SELECT 1 FROM {table}" + (" WHERE author != ?" if table == "records" else ""),
        *([BEA] if table == "records" else []),
    )
    assert not own
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
def test_a_participant_whose_policy_does_not_accept_signs_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.members[CYD].policy = policy(CYD, without=["agreement.accept"])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA)

        async def failed() -> bool:
            return (await lab.state(ADA, workflow_id))[0] == "failed"

        await until(failed, "three were needed")
        assert CYD in (await lab.state(ADA, workflow_id))[1]
        without = await lab.submit(ADA, minimum_participants=2)
        await lab.until_done(without, ADA, BEA)

    run(main)
    assert not lab.members[CYD].rows("SELECT 1 FROM agreements")
    assert not lab.members[CYD].rows("SELECT 1 FROM inbox")
    (agreement,) = lab.members[ADA].rows("SELECT agreement FROM agreements")
    assert CYD.encode() not in agreement[0]


@pytest.mark.invariant("S1")
def test_a_refused_peer_is_not_told_what_would_have_let_it_pass(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    ada, bea = lab.members.values()
    bea.policy = policy(bea.name, without=["checkpoint.cosign"]) + (
        "\n  - {id: only-hope, effect: allow, action: checkpoint.cosign, from: {organization: hope.example},"
        " when: {reliability: {min: 0.83}}}\n"
    )

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        receipt = await lab.deliver(ada.name, bea.name, "checkpoint", b"old 0")
        assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "policy_denied")
        assert receipt.reason == f"no rule allows checkpoint.cosign from {ada.name}"

    run(main)
    (asked,) = [one for one in bea.audited() if one["action"] == "checkpoint.cosign"]
    assert "nearest: only-hope" in asked["detail"]["reason"], "the own log has all of it"
