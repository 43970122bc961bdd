"""What is under way when a policy changes, or an agreement ends: it stops at once, and everything else goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from comity.envelope import open_document
from comity.errors import AgreementStopped
from comity.trust import TrustStore
from comity.v1.task_pb2 import RecordDelivery, Review, ReviewDelivery, TaskOffer
from comity_node.runtime import kinds
from comity_node.storage import journal
from kit.documents import PURPOSE
from kit.lab import Carried, Lab, policy, run, until

#: What the user is promised: a purpose that is withdrawn stops within seconds.
SECONDS = 5
OTHER = "another-purpose"
LONG: dict[str, Any] = {"records_per_organization": 20, "batch_records": 2, "lease_seconds": 600}


def without_purpose(organization: str, purpose: str = PURPOSE, action: str = "*") -> str:
    rule = f"  - {{id: withdrawn, effect: forbid, action: '{action}', purpose: [{purpose}]}}"
    return f"{policy(organization)}\n{rule}"


def agreement_of(carried: Carried) -> bytes:
    """The agreement that a message is under, empty if it is none of records."""
    if carried.kind == kinds.OFFER:
        return bytes(TaskOffer.FromString(carried.body).tasks[0].agreement_digest)
    if carried.kind == kinds.RECORDS:
        return bytes(RecordDelivery.FromString(carried.body).records[0].task.agreement_digest)
    if carried.kind == kinds.REVIEWS:
        envelope = ReviewDelivery.FromString(carried.body).reviews[0].review
        return bytes(Review.FromString(open_document(envelope, "review").body).agreement_digest)
    return b""


async def digest_of(lab: Lab, name: str, workflow: str) -> bytes:
    async def agreed() -> bool:
        row = await lab.members[name].up.database.read(lambda c: journal.get_workflow(c, workflow))
        return row is not None and row.agreement_digest is not None

    await until(agreed, "it is agreed")
    row = await lab.members[name].up.database.read(lambda c: journal.get_workflow(c, workflow))
    assert row is not None
    assert row.agreement_digest is not None
    return row.agreement_digest


def states(lab: Lab, name: str, digest: bytes) -> dict[str, int]:
    sql = "SELECT state, count(*) FROM tasks WHERE agreement_digest = ? GROUP BY state"
    return dict(lab.members[name].rows(sql, digest))


def actions(lab: Lab, name: str) -> list[str]:
    return [entry["action"] for entry in lab.members[name].audited()]


async def two_workflows_under_way(lab: Lab, nursery: trio.Nursery) -> tuple[bytes, bytes, str]:
    """Two workflows of the first member; the second one's agents hold what they are asked: nothing gets a quorum."""
    home, slow = lab.names[0], lab.names[1]
    await lab.start(nursery)
    lab.members[slow].hold()
    withdrawn = await digest_of(lab, home, await lab.submit(home, **LONG))
    other_workflow = await lab.submit(home, purpose=OTHER, **LONG)
    other = await digest_of(lab, home, other_workflow)

    async def held() -> bool:
        found = lab.members[slow].rows("SELECT DISTINCT agreement_digest FROM inbox WHERE state = 'held'")
        return {digest for (digest,) in found} == {withdrawn, other}

    await until(held, "both are in custody, unjudged")
    return withdrawn, other, other_workflow


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S8")
def test_a_purpose_withdrawn_in_flight_stops_within_seconds_and_everything_else_goes_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    home, slow, _ = lab.names

    async def main(nursery: trio.Nursery) -> None:
        withdrawn, other, other_workflow = await two_workflows_under_way(lab, nursery)
        with trio.fail_after(SECONDS):
            await lab.change_policy(home, without_purpose(home))
        begun = len(lab.network.carried)
        assert not {"in_review", "in_repair"} & set(states(lab, home, withdrawn))
        assert states(lab, home, withdrawn)["refused"]
        (reason,) = {row[0] for row in lab.members[home].rows("SELECT reason FROM tasks WHERE state = 'refused'")}
        assert "withdrawn" in reason
        assert not lab.members[home].rows(
            "SELECT 1 FROM inbox WHERE state = 'held' AND agreement_digest = ?", withdrawn
        )
        refused: list[str] = []
        lab.network.after = lambda carried, receipt: refused.append(receipt.code) if receipt.code else None
        lab.members[slow].free.set()
        await lab.until_done(other_workflow)
        assert states(lab, home, other) == {"certified": 20}, "what is for another purpose goes on"
        left = [one for one in lab.network.carried[begun:] if one.sender == home]
        assert {agreement_of(one) for one in left} <= {b"", other}, "nothing of the purpose has left"
        assert "agreement_stopped" in refused, "votes and offers of the purpose are not taken in"
        assert not lab.members[home].rows("SELECT 1 FROM records WHERE agreement_digest = ?", withdrawn)
        said = actions(lab, home)
        assert said.count("agreement.suspended") == 1

    run(main)
    lab.verify_audit_logs()


def test_a_later_policy_lets_a_suspended_agreement_go_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    home, slow, _ = lab.names

    async def main(nursery: trio.Nursery) -> None:
        withdrawn, _, _ = await two_workflows_under_way(lab, nursery)
        await lab.change_policy(home, without_purpose(home))
        refused = states(lab, home, withdrawn)["refused"]
        lab.members[slow].free.set()
        with pytest.raises(AgreementStopped, match="suspended"):
            lab.members[home].up.runtime.agreements.get(withdrawn)
        await lab.stop(home)
        await lab.start(nursery, home)
        assert withdrawn in lab.members[home].up.runtime.agreements.suspended(), "a restart changes nothing"
        await lab.change_policy(home, policy(home))
        workflow = lab.members[home].rows("SELECT workflow_id FROM workflows WHERE agreement_digest = ?", withdrawn)
        await lab.until_done(workflow[0][0], home)
        assert states(lab, home, withdrawn) == {"refused": refused, "certified": 20 - refused}
        assert actions(lab, home).count("agreement.resumed") == 1

    run(main)


@pytest.mark.invariant("S1")
def test_what_is_in_custody_is_given_back_unjudged_when_it_may_not_be_taken_in_any_more(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    slow = lab.names[1]

    async def main(nursery: trio.Nursery) -> None:
        withdrawn, other, _ = await two_workflows_under_way(lab, nursery)
        await lab.change_policy(slow, without_purpose(slow, action="record.receive"))
        lab.members[slow].free.set()
        sql = "SELECT count(*) FROM inbox WHERE agreement_digest = ? AND state = 'held'"

        async def given_back() -> bool:
            return lab.members[slow].rows(sql, withdrawn) == [(0,)] and lab.members[slow].rows(sql, other) == [(0,)]

        await until(given_back, "nothing is held any more")
        answers = lab.members[slow].rows("SELECT agreement_digest FROM inbox WHERE reviews != x'' AND state = 'done'")
        assert {digest for (digest,) in answers} == {other}, "answered is what may be taken in, and nothing else"
        assert "offer.given-back" in actions(lab, slow)
        assert not lab.members[slow].up.runtime.agreements.suspended(), "the agreement itself is carried still"

    run(main)


@pytest.mark.invariant("S1")
def test_a_message_that_waits_is_dropped_when_its_purpose_is_withdrawn(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    home, away, _ = lab.names

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[home].hold()
        withdrawn = await digest_of(lab, home, await lab.submit(home, **LONG))
        other = await digest_of(lab, home, await lab.submit(home, purpose=OTHER, **LONG))

        async def known() -> bool:
            agreements = lab.members[away].up.runtime.agreements
            return agreements.find(withdrawn) is not None and agreements.find(other) is not None

        await until(known, "it knows of both")
        await lab.stop(away)
        lab.members[home].free.set()
        waiting = (
            "SELECT body FROM outbox WHERE organization = ? AND kind = 'task-offer' AND state IN ('pending', 'sent')"
        )

        def waits() -> set[bytes]:
            found = lab.members[home].rows(waiting, away)
            return {bytes(TaskOffer.FromString(body).tasks[0].agreement_digest) for (body,) in found}

        async def both() -> bool:
            return waits() == {withdrawn, other}

        await until(both, "offers of both wait")
        await lab.change_policy(home, without_purpose(home, action="record.send"))

        async def dropped_all() -> bool:
            return waits() == {other}

        with trio.fail_after(SECONDS):  # nobody has to come back for it
            await until(dropped_all, "what was decided on before the change is dropped, too")
        dropped = [entry for entry in lab.members[home].audited() if entry["action"] == "message.dropped"]
        assert dropped
        assert {entry["detail"]["kind"] for entry in dropped} == {"task-offer"}
        begun = len(lab.network.carried)
        await lab.start(nursery, away)

        async def arrived() -> bool:
            came = [one for one in lab.network.carried[begun:] if (one.sender, one.receiver) == (home, away)]
            return any(one.kind == kinds.OFFER and agreement_of(one) == other for one in came)

        await until(arrived, "the other offers get there")
        left = [one for one in lab.network.carried[begun:] if (one.sender, one.kind) == (home, kinds.OFFER)]
        assert {agreement_of(one) for one in left} == {other}

    run(main)


def test_a_message_on_its_way_is_called_back(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    home, slow, _ = lab.names

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        hanging, gone = trio.Event(), trio.Event()
        receive = lab.members[slow].up.runtime.messenger.receive

        async def hang(sender: Any, payload: bytes) -> bytes:
            if lab.network.carried[-1].kind == kinds.OFFER and sender.organization == home:
                hanging.set()
                try:
                    await trio.sleep_forever()
                finally:
                    gone.set()
            return await receive(sender, payload)

        lab.members[slow].up.runtime.messenger.receive = hang  # type: ignore[method-assign, assignment]
        await lab.submit(home, **LONG)
        await hanging.wait()
        with trio.fail_after(SECONDS):
            await lab.change_policy(home, without_purpose(home))
            await gone.wait()
        assert not lab.members[home].rows(
            "SELECT 1 FROM outbox WHERE kind = 'task-offer' AND state IN ('pending', 'sent')"
        )

    run(main)


@pytest.mark.invariant("S8")
def test_an_agreement_that_is_ended_stops_for_good(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    home, slow, _ = lab.names

    async def main(nursery: trio.Nursery) -> None:
        ended, other, other_workflow = await two_workflows_under_way(lab, nursery)
        agreements = lab.members[slow].up.runtime.agreements
        assert await agreements.end(ended, "withdrawn", "we have changed our minds")
        assert not await agreements.end(ended, "withdrawn", "once more")
        assert not lab.members[slow].rows("SELECT 1 FROM inbox WHERE state = 'held' AND agreement_digest = ?", ended)
        with pytest.raises(AgreementStopped, match="changed our minds"):
            agreements.get(ended)
        await lab.change_policy(slow, policy(slow, obligations={"agreement.offer": "generalize: {x: 0.5}"}))
        await lab.stop(slow)
        await lab.start(nursery, slow)
        agreements = lab.members[slow].up.runtime.agreements
        with pytest.raises(AgreementStopped):
            agreements.get(ended)
        with pytest.raises(AgreementStopped):
            await agreements.add(lab.members[home].up.runtime.agreements.raw(ended))
        assert agreements.get(other).terms.purpose == OTHER
        assert actions(lab, slow).count("agreement.withdrawn") == 1
        lab.members[slow].free.set()
        await lab.until_done(other_workflow, home)

    run(main)


@pytest.mark.invariant("S2")
def test_what_is_of_a_member_that_left_ends_and_nothing_is_sent_to_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    bundle = lab.consortium.trust.bundle
    lab.consortium = replace(lab.consortium, trust=TrustStore(bundle))
    home, slow, gone = lab.names
    members = {name: roots for name, roots in bundle.members.items() if name != gone}
    later = replace(bundle, epoch=bundle.epoch + 1, digest=b"2" * 32, members=members)

    async def main(nursery: trio.Nursery) -> None:
        first, other, _ = await two_workflows_under_way(lab, nursery)
        await lab.stop(gone)
        lab.consortium.trust.replace(later)
        with trio.fail_after(SECONDS):
            await lab.members[home].up.runtime.bundle_changed()
        begun = len(lab.network.carried)
        for digest in (first, other):
            assert set(states(lab, home, digest)) == {"undecided"}
            with pytest.raises(AgreementStopped):
                lab.members[home].up.runtime.agreements.get(digest)
        assert not lab.members[home].rows(
            "SELECT 1 FROM outbox WHERE state IN ('pending', 'sent') AND organization = ?", gone
        )
        assert actions(lab, home).count("agreement.void") == 2
        assert gone not in {card.organization for card in lab.members[home].up.runtime.directory.cards()}
        await lab.start(nursery, gone)
        lab.members[slow].free.set()
        await wait_all_tasks_blocked(0.2)
        assert not [one for one in lab.network.carried[begun:] if one.sender == home and agreement_of(one)]

    run(main)


def test_terms_that_a_stricter_policy_would_not_accept_are_suspended(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    home, slow, _ = lab.names

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        digest = await digest_of(lab, home, await lab.submit(home, **LONG))
        agreements = lab.members[slow].up.runtime.agreements

        async def known() -> bool:
            return agreements.find(digest) is not None

        await until(known, "it has come")
        await lab.change_policy(slow, policy(slow, obligations={"agreement.accept": "generalize: {x: 2}"}))
        assert "asks for more than was agreed" in agreements.suspended()[digest]
        await lab.change_policy(slow, policy(slow))
        assert not agreements.suspended()

    run(main)


def test_nothing_is_judged_while_nothing_can_be_signed(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    slow = lab.names[1]

    async def main(nursery: trio.Nursery) -> None:
        digest, _, _ = await two_workflows_under_way(lab, nursery)
        agreements = lab.members[slow].up.runtime.agreements
        agreements.halt("the certificate has expired")
        lab.members[slow].free.set()
        await wait_all_tasks_blocked(0.2)
        held = lab.members[slow].rows(
            "SELECT count(*) FROM inbox WHERE state = 'held' AND agreement_digest = ?", digest
        )
        assert held[0][0] > 0, "nothing is given back either"
        assert kinds.REVIEWS not in lab.network.kinds(slow)
        agreements.halt("")

        async def judged() -> bool:
            return kinds.REVIEWS in lab.network.kinds(slow)

        await until(judged, "it goes on when it can sign again")

    run(main)
