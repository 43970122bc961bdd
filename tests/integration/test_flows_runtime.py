"""Agreements with a flow, between three organizations in one process: real gates, signatures and databases."""

from __future__ import annotations

import json
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.agreement import parse_terms
from comity.errors import AgreementError, CertificateInvalid, ConfigError, LinkClosed
from comity.evidence import make_evidence
from comity.provenance import verify_provenance
from comity.v1 import flow_pb2 as pb
from comity.v1.agreement_pb2 import Proposal
from comity.v1.task_pb2 import Receipt
from comity_node.admission.token_hops import verify_journey
from comity_node.runtime import batches
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.storage import journeys, records
from kit.documents import agree, make_terms, make_vote
from kit.lab import Agents, Lab, policy, run, until

ADA, BEA, CYD = "org00.example", "org01.example", "org02.example"
STATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "x": {"type": "number", "minimum": -1000, "maximum": 1000},
        "label": {"type": "integer", "minimum": 0, "maximum": 1},
        "note": {"type": "string", "maxLength": 200},
        "turns": {"type": "integer"},
        "done": {"type": "boolean"},
    },
}
SEQUENCE: dict[str, Any] = {
    "state": STATE,
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x"], "next": "label"},
        "label": {"skill": "label", "at": "others", "reads": ["x"], "writes": ["label"], "next": "end"},
    },
    "record": ["x", "label"],
    "limits": {"seconds": 120},
}


def only(flow: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A workflow's document with this flow: records of the initiator alone."""
    document = {"flow": flow, "homes": "initiator", "records_per_organization": 6, "batch_records": 3}
    return {**document, "lease_seconds": 2, **changes}


class World(Lab):
    """Three organizations whose agents do the steps of the flows here, each row as it comes."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, 3)
        for name, member in self.members.items():
            member.agents = {**member.agents, **steps(name)}


def steps(name: str) -> Agents:
    made = iter(range(1_000_000))

    def draft(work: Any) -> Any:
        return {"state": {"x": float(next(made)) + 0.5}}

    def label(work: Any) -> Any:
        return {"state": {"label": int(work["state"]["x"] > 2)}}

    def ask(work: Any) -> Any:
        said = work["state"].get("turns", 0) + 1
        return {"state": {"turns": said, "done": said >= 5}}

    def sift(work: Any) -> Any:
        return {"state": {"label": int(work["state"]["x"]) % 3 and 1}}

    return {"draft": draft, "label": label, "ask": ask, "reply": ask, "sift": sift}


async def journey_states(lab: Lab, name: str) -> dict[str, int]:
    rows = lab.members[name].rows("SELECT ending, count(*) FROM journeys GROUP BY ending")
    return {str(ending): int(count) for ending, count in rows}


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S8")
def test_a_flow_over_two_organizations_makes_certified_records(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **only(SEQUENCE))
        await lab.until_done(workflow_id, ADA)
        assert [(await lab.state(name, workflow_id))[0] for name in (BEA, CYD)] == ["running"] * 2, "more may come"
        assert await journey_states(lab, ADA) == {"done": 6}
        assert await journey_states(lab, BEA) == {}
        assert await lab.counts(ADA) == {"certified": 6}
        await check_ways(lab)
        assert any(peer.known > 0 for peer in lab.members[ADA].up.runtime.router_view().peers), "as of now"

    run(main)
    lab.verify_audit_logs()
    for name in (ADA, BEA, CYD):
        assert not lab.members[name].rows("SELECT 1 FROM tokens_held UNION ALL SELECT 1 FROM tokens_out")


@pytest.mark.invariant("S9")
def test_who_is_suspended_is_given_no_more_tasks_and_those_it_has_come_home(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[BEA].hold()
        lab.members[CYD].hold()
        await lab.submit(ADA, **only(SEQUENCE, records_per_organization=2, batch_records=2, lease_seconds=30))

        async def out() -> bool:
            return len(lab.members[BEA].calls) + len(lab.members[CYD].calls) == 2

        await until(out, "both tasks are at others'")
        before = len(lab.members[BEA].calls)
        agreed = agree(lab.consortium)
        one, other = (make_vote(lab.consortium, agreed, BEA, score) for score in (9000, 100))
        proof = make_evidence(one.envelope, one.chain, other.envelope, other.chain)
        runtime = lab.members[ADA].up.runtime
        assert await runtime.suspensions.found(proof)
        await trio.sleep(0.2)  # who offers a skill is remembered for so long
        (digest,) = (bytes.fromhex(row[0]) for row in lab.members[ADA].rows("SELECT hex(digest) FROM agreements"))
        pacts = runtime.flows.engine._ports.pacts
        assert pacts.offering(digest, "label") == (ADA, CYD)
        for name in (BEA, CYD):
            lab.members[name].free.set()
        await until(partial(_ended, lab, 2), "what was out has come home")
        assert lab.members[BEA].calls.count("label") == before

    run(main)


def test_records_whose_time_is_over_before_they_are_in_a_batch_leave_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart the number of the next batch is how many there are: with a gap it would be one that is taken."""
    lab, to_batch = World(tmp_path), journeys.to_batch
    gone = iter([True])

    def late(connection: sqlite3.Connection, agreement: bytes, *, limit: int) -> Any:
        return [] if next(gone, False) else to_batch(connection, agreement, limit=limit)

    monkeypatch.setattr(journeys, "to_batch", late)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA, **only(SEQUENCE)), ADA)
        (agreed,) = lab.members[ADA].up.runtime.agreements.all()
        formed = {batch for (batch,) in lab.members[ADA].rows("SELECT batch_id FROM tasks")}
        assert formed == {batches.batch_id(agreed, ADA, number) for number in range(len(formed))}

    run(main)


async def _ended(lab: Lab, many: int) -> bool:
    return await journey_states(lab, ADA) == {"done": many}


async def check_ways(lab: Lab) -> None:
    """The history of each way is at home, verifies offline, and is bound to the certified record."""
    up, trust = lab.members[ADA].up, lab.consortium.trust
    now_ms = up.gate.now_ms()
    chains = {identity.key.public_key: identity.chain for identity in lab.consortium.nodes.values()}
    page = await up.database.read(lambda c: records.list_records(c, limit=100))
    for record in page.records:
        task = await up.database.read(lambda c: journeys.journey_of_record(c, record.task_id))  # noqa: B023
        assert task is not None
        way = await up.database.read(lambda c: journeys.way_of(c, task))  # noqa: B023
        hops = verify_journey(way, chains, trust, ADA, now_ms)
        assert [hop.role for hop in hops] == ["label", "home"]
        stored = await up.database.read(lambda c: records.get_record(c, record.task_id))  # noqa: B023
        assert stored is not None
        proof = verify_provenance(stored.provenance, trust)
        digests = await up.database.read(lambda c: journeys.journey_digests(c, [record.task_id]))  # noqa: B023
        assert proof.hops[0].attested["journey"] == digests[record.task_id].hex()
        with pytest.raises(CertificateInvalid):
            verify_journey(way[1:], chains, trust, ADA, now_ms)


DIALOGUE: dict[str, Any] = {
    "state": STATE,
    "start": "talk",
    "steps": {
        "talk": {
            "dialogue": [{"skill": "ask", "at": "home"}, {"skill": "reply", "at": "others"}],
            "reads": ["turns"],
            "writes": ["turns", "done"],
            "turns": 20,
            "until": {"done": True},
            "next": "end",
        }
    },
    "finish": "none",
    "limits": {"seconds": 120},
}
FUNNEL: dict[str, Any] = {
    "state": STATE,
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x"], "next": "sift"},
        "sift": {
            "skill": "sift",
            "at": "others",
            "reads": ["x"],
            "writes": ["label"],
            "next": [{"when": {"label": 0}, "go": "drop"}, {"go": "end"}],
        },
    },
    "finish": "none",
    "limits": {"seconds": 120},
}


def test_a_dialogue_goes_to_and_fro_until_it_is_done(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **only(DIALOGUE))
        await lab.until_done(workflow_id, ADA)
        assert await journey_states(lab, ADA) == {"done": 6}
        said = lab.members[ADA].rows("SELECT state, task_id FROM journeys")
        assert [json.loads(state)["turns"] for state, _ in said] == [5] * 6
        up = lab.members[ADA].up
        chains = {identity.key.public_key: identity.chain for identity in lab.consortium.nodes.values()}
        for _, task in said:
            way = await up.database.read(lambda c: journeys.way_of(c, task))  # noqa: B023
            hops = verify_journey(way, chains, lab.consortium.trust, ADA, up.gate.now_ms())
            assert [hop.role for hop in hops] == ["reply", "home"] * 2
        assert not await lab.counts(ADA)  # finish: none

    run(main)
    lab.verify_audit_logs()


def test_every_home_has_its_own_tasks_and_most_rows_of_a_funnel_end_early(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **only(FUNNEL, homes="all", records_per_organization=9))
        await lab.until_done(workflow_id)
        for name in lab.names:
            ends = await journey_states(lab, name)
            assert set(ends) == {"done", "dropped"}
            assert sum(ends.values()) == 9

    run(main)


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
def test_a_holder_and_a_home_that_are_restarted_in_the_middle_lose_nothing(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (BEA, CYD):
            lab.members[name].hold()
        workflow_id = await lab.submit(ADA, **only(SEQUENCE, records_per_organization=12))

        async def held() -> bool:
            return all(lab.members[name].rows("SELECT 1 FROM tokens_held") for name in (BEA, CYD))

        await until(held, "both others hold tasks")
        await lab.stop(BEA)
        await lab.stop(ADA)
        for name in (BEA, CYD):
            lab.members[name].free.set()
        await lab.start(nursery, ADA, BEA)
        await lab.until_done(workflow_id, ADA)
        assert await journey_states(lab, ADA) == {"done": 12}
        assert await lab.counts(ADA) == {"certified": 12}
        assert {attempt for (attempt,) in lab.members[ADA].rows("SELECT attempt FROM journeys")} == {1}

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("S1")
def test_a_policy_that_says_no_in_the_middle_stops_tasks_at_the_next_border(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[BEA].hold()
        lab.members[CYD].agents.pop("label")
        workflow_id = await lab.submit(ADA, **only(SEQUENCE))

        async def held() -> bool:
            return len(lab.members[BEA].rows("SELECT 1 FROM tokens_held")) == 6

        await until(held, f"{BEA} holds all tasks")
        await lab.change_policy(BEA, policy(BEA, forbid=["record.send"]))
        lab.network.carried.clear()
        lab.members[BEA].free.set()

        async def let_go() -> bool:
            return not lab.members[BEA].rows("SELECT 1 FROM tokens_held UNION ALL SELECT 1 FROM tokens_out")

        await until(let_go, f"{BEA} has let go of what it may not send back")
        assert "tokens" not in lab.network.kinds(BEA)
        denied = [each for each in lab.members[BEA].audited() if each["decision"] == "deny"]
        assert {each["action"] for each in denied} == {"record.send"}
        assert sum(each["detail"]["tokens"] for each in denied) == 6
        assert (await lab.state(ADA, workflow_id))[0] == "running"

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("R3")
def test_a_task_whose_holder_is_gone_is_done_by_somebody_else_once_its_lease_is_over(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[BEA].hold()
        workflow_id = await lab.submit(ADA, **only(FUNNEL, records_per_organization=8))

        async def held() -> bool:
            return bool(lab.members[BEA].rows("SELECT 1 FROM tokens_held"))

        await until(held, f"{BEA} holds a task")
        await lab.stop(BEA)
        await lab.until_done(workflow_id, ADA)
        assert sum((await journey_states(lab, ADA)).values()) == 8
        attempts = {attempt for (attempt,) in lab.members[ADA].rows("SELECT attempt FROM journeys")}
        assert attempts == {1, 2}

    run(main)


def test_a_cancelled_workflow_ends_here_and_at_those_who_hold_its_tasks(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (BEA, CYD):
            lab.members[name].hold()
        workflow_id = await lab.submit(ADA, **only(SEQUENCE, records_per_organization=8))

        async def held() -> bool:
            return sum(len(lab.members[name].rows("SELECT 1 FROM tokens_held")) for name in (BEA, CYD)) == 8

        await until(held, "the others hold all tasks")
        workflows = lab.members[ADA].up.runtime.workflows
        assert await workflows.cancel(workflow_id, "no need") == 8

        async def let_go() -> bool:
            return not any(lab.members[name].rows("SELECT 1 FROM tokens_held") for name in (BEA, CYD))

        await until(let_go, "the others have let go")
        assert await lab.state(ADA, workflow_id) == ("cancelled", "no need")
        with pytest.raises(AgreementError, match="cancelled"):
            await workflows.cancel(workflow_id, "")
        await lab.stop(ADA)
        await lab.start(nursery, ADA)
        assert await journey_states(lab, ADA) == {"cancelled": 8}
        assert await lab.state(ADA, workflow_id) == ("cancelled", "no need")

    run(main)


def test_records_that_wait_for_votes_are_cancelled_too(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        stopped = ("task-offer",)

        def before(carried: Any) -> None:
            if carried.kind in stopped:
                raise LinkClosed("cut")

        lab.network.before = before
        workflow_id = await lab.submit(ADA, **only(SEQUENCE))

        async def in_review() -> bool:
            return (await lab.counts(ADA)).get("in_review") == 6

        await until(in_review, "all records are in review")
        assert await lab.members[ADA].up.runtime.workflows.cancel(workflow_id, "") == 6

        async def over() -> bool:
            return await lab.counts(ADA) == {"cancelled": 6}

        await until(over, "all records are cancelled")

    run(main)


@pytest.mark.invariant("S3")
def test_a_flow_that_the_other_side_cannot_read_is_not_signed(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for flow in (b'{"start":"x"}', b'{"a":1}'):
            terms = make_terms(lab.consortium, flow=flow)
            body = Proposal(terms=terms.SerializeToString()).SerializeToString()
            receipt = await lab.deliver(ADA, BEA, "proposal", body)
            assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, "agreement_violated"), receipt
        for flow in (b'{"b":1,"a":1}', b"[]", b"{", b'{"a":"' + b"x" * 64 * 1024 + b'"}'):
            with pytest.raises(AgreementError, match="flow"):
                parse_terms(make_terms(lab.consortium, flow=flow).SerializeToString())
        for homes in (["nobody.example"], [BEA, ADA], [ADA, ADA]):
            with pytest.raises(AgreementError, match="homes"):
                parse_terms(make_terms(lab.consortium, homes=homes).SerializeToString())

    run(main)


@pytest.mark.invariant("S7")
def test_a_delivery_and_notes_of_more_than_may_be_are_refused_unread(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        one = pb.Token(task_id=bytes(16))
        deliveries = {
            "none": pb.TokenDelivery(),
            "tokens": pb.TokenDelivery(tokens=[one] * 513),
            "chains": pb.TokenDelivery(tokens=[one], signers=[pb.SignerChain()] * 257),
        }
        for name, delivery in deliveries.items():
            receipt = await lab.deliver(BEA, ADA, "tokens", delivery.SerializeToString())
            assert receipt.status == Receipt.STATUS_REFUSED, name
        receipt = await lab.deliver(BEA, ADA, "tokens", pb.TokenDelivery(tokens=[one] * 512).SerializeToString())
        assert receipt.status == Receipt.STATUS_BUSY, "read, and of an agreement that may still come"
        note = pb.TokenNote(kind=pb.TokenNote.KIND_HOLDING, home=ADA, task_id=bytes(16), attempt=1)
        for count, status in ((4_097, Receipt.STATUS_REFUSED), (4_096, Receipt.STATUS_ACCEPTED)):
            notes = pb.TokenNotes(notes=[note] * count)
            assert (await lab.deliver(BEA, ADA, "token-notes", notes.SerializeToString())).status == status
        assert not lab.members[ADA].rows("SELECT 1 FROM tokens_held")

    run(main)


@pytest.mark.invariant("S1")
def test_what_passed_and_waits_is_not_sent_once_the_policy_says_no(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)

        def before(carried: Any) -> None:
            if carried.kind == "tokens":
                raise LinkClosed("cut")

        lab.network.before = before
        await lab.submit(ADA, **only(SEQUENCE))

        async def waits() -> bool:
            return len(lab.members[ADA].rows("SELECT 1 FROM tokens_out WHERE passed = 1")) == 6

        await until(waits, "all tokens have passed and wait")
        await lab.change_policy(ADA, policy(ADA, forbid=["record.send"]))
        lab.network.before = lambda carried: None

        async def stopped() -> bool:
            return not lab.members[ADA].rows("SELECT 1 FROM tokens_out WHERE passed = 1")

        await until(stopped, "nothing that passed waits any longer")
        assert "tokens" not in lab.network.kinds(ADA)
        assert not any(lab.members[name].rows("SELECT 1 FROM tokens_seen") for name in (BEA, CYD))

    run(main)


def test_an_amendment_keeps_the_flow_and_whose_records_are_made(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (BEA, CYD):
            lab.members[name].hold()
        workflow_id = await lab.submit(ADA, **only(SEQUENCE))

        async def begun() -> bool:
            return all([(await lab.state(name, workflow_id))[0] in ("running", "done") for name in (ADA, BEA)])

        await until(begun, "the agreement is concluded")
        runtime = lab.members[ADA].up.runtime
        (agreed,) = runtime.agreements.all()
        with pytest.raises(ConfigError, match=ADA):
            await lab.members[BEA].up.runtime.workflows.amend(agreed.digest, b'{"records_per_organization": 3}')
        second = await runtime.workflows.amend(agreed.digest, b'{"records_per_organization": 3}')

        async def amended() -> bool:
            return (await lab.state(ADA, second))[0] == "running"

        await until(amended, "the amendment is concluded")
        (now,) = runtime.agreements.all()
        assert (now.terms.flow, list(now.terms.homes)) == (agreed.terms.flow, [ADA])
        for name in (BEA, CYD):
            lab.members[name].free.set()
        await lab.until_done(second, ADA)
        ends = lab.members[ADA].rows("SELECT ending, count(*) FROM journeys GROUP BY ending ORDER BY ending")
        assert ends == [("cancelled", 6), ("done", 3)]

    run(main)


@pytest.mark.invariant("R1")
@pytest.mark.parametrize("who", [ADA, BEA])
def test_while_an_agreement_is_suspended_its_tasks_wait_and_then_they_go_on(tmp_path: Path, who: str) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[BEA].hold()
        lab.members[CYD].agents.pop("label")
        workflow_id = await lab.submit(ADA, **only(SEQUENCE))

        async def held() -> bool:
            return len(lab.members[BEA].rows("SELECT 1 FROM tokens_held")) == 6

        await until(held, f"{BEA} holds all tasks")
        before = lab.members[who].policy
        await lab.change_policy(who, policy(who, forbid=["agreement.offer", "agreement.accept"]))
        assert lab.members[who].up.runtime.agreements.suspended()
        lab.members[BEA].free.set()

        async def outgoing() -> bool:
            return len(lab.members[BEA].rows("SELECT 1 FROM tokens_out")) == 6

        await until(outgoing, f"{BEA} has done its step, and keeps what it may not bring now")
        assert await journey_states(lab, ADA) == {"": 6}
        await lab.stop(who)
        await lab.start(nursery, who)
        assert await journey_states(lab, ADA) == {"": 6}, "a restart ends nothing"
        assert len(lab.members[BEA].rows("SELECT 1 FROM tokens_out")) == 6
        await lab.change_policy(who, before)
        await lab.until_done(workflow_id, ADA)
        assert await journey_states(lab, ADA) == {"done": 6}
        assert await lab.counts(ADA) == {"certified": 6}

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("R4")
def test_a_rate_that_is_used_up_lets_tasks_wait_and_does_not_fail_them(tmp_path: Path) -> None:
    lab = World(tmp_path)
    rate = {"record.send": "rate: {records: 2, per: 2s}"}
    lab.members[ADA].policy = policy(ADA, obligations=rate)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, **only({**SEQUENCE, "finish": "none"}, lease_seconds=1))
        await lab.until_done(workflow_id, ADA)
        assert await journey_states(lab, ADA) == {"done": 6}
        assert {attempt for (attempt,) in lab.members[ADA].rows("SELECT attempt FROM journeys")} == {1}
        denied = [each for each in lab.members[ADA].audited() if each["decision"] == "deny"]
        assert 0 < len(denied) <= 20, "who waits is not asked about again and again"

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("R3")
def test_the_lease_of_the_agreement_is_that_of_its_tasks(tmp_path: Path) -> None:
    lab = World(tmp_path)
    lab.passing = PassingLimits(lease_s=600.0)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[BEA].hold()
        workflow_id = await lab.submit(ADA, **only(FUNNEL, lease_seconds=1))

        async def held() -> bool:
            return bool(lab.members[BEA].rows("SELECT 1 FROM tokens_held"))

        await until(held, f"{BEA} holds a task")
        await lab.stop(BEA)
        await lab.until_done(workflow_id, ADA)
        assert sum((await journey_states(lab, ADA)).values()) == 6

    run(main)


def test_what_is_held_of_an_agreement_that_is_withdrawn_is_let_go(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (BEA, CYD):
            lab.members[name].hold()
        workflow_id = await lab.submit(ADA, **only(SEQUENCE))

        async def held() -> bool:
            return sum(len(lab.members[name].rows("SELECT 1 FROM tokens_held")) for name in (BEA, CYD)) == 6

        await until(held, "the others hold all tasks")
        runtime = lab.members[ADA].up.runtime
        (agreed,) = runtime.agreements.all()
        await runtime.withdrawals.withdraw(agreed.digest, "enough")

        async def let_go() -> bool:
            tokens = "SELECT 1 FROM tokens_held UNION ALL SELECT 1 FROM tokens_out"
            return not any(lab.members[name].rows(tokens) for name in lab.names)

        await until(let_go, "nobody has a token any longer, though no agent has come back")
        assert await journey_states(lab, ADA) == {"cancelled": 6}
        for name in lab.names:

            async def done(name: str = name) -> bool:
                return (await lab.state(name, workflow_id))[0] == "done"

            await until(done, f"the workflow is over at {name}")

    run(main)
    lab.verify_audit_logs()
