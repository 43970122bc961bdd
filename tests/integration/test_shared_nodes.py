"""Two nodes of one organization share the tokens of flows: real gates, signatures and databases in one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.agreement import open_agreement
from comity.errors import AgreementError
from comity.v1.agreement_pb2 import Agreement, AgreementStatusReply
from comity.v1.task_pb2 import Receipt, Task, TaskOffer
from kit.documents import make_agreement, make_terms
from kit.lab import Carried, policy, run, until
from kit.two_nodes import TwoNodes

ADA, BEA, CYD, DAN = "org00.example", "org01.example", "org02.example", "org03.example"
WE = (ADA, BEA, CYD)
STATE: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "label": {"type": "integer", "minimum": 0, "maximum": 1}},
}
FLOW: dict[str, Any] = {
    "state": STATE,
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x"], "next": "label"},
        "label": {"skill": "label", "at": [BEA], "reads": ["x"], "writes": ["label"], "next": "end"},
    },
    "record": ["x", "label"],
    "finish": "none",
    "limits": {"seconds": 120},
}
BROUGHT = "agreement-brought"


def agents() -> dict[str, Any]:
    made = iter(range(1_000_000))

    def draft(work: Any) -> Any:
        return {"state": {"x": float(next(made)) + 0.5}}

    def label(work: Any) -> Any:
        return {"state": {"label": int(work["state"]["x"] > 2)}}

    return {"draft": draft, "label": label}


class World(TwoNodes):
    """ADA is home, CYD takes part, and BEA has two nodes: the first signs."""

    def __init__(self, home: Path, *, count: int = 3) -> None:
        super().__init__(home, BEA, {}, count=count)
        for member in self.members.values():
            member.agents = {**self.members[ADA].agents, **agents()}
        self.nodes = (self.members[BEA], self.members[self.second])

    async def begin(self, nursery: trio.Nursery, records: int = 8, **changes: Any) -> str:
        await self.start(nursery, *self.members)
        document = {"flow": FLOW, "homes": "initiator", "records_per_organization": records, "lease_seconds": 2}
        return await self.submit(ADA, **{**document, "minimum_participants": 2, **changes})

    def held(self) -> list[int]:
        """How many tokens each of the two nodes has in custody."""
        return [len(member.rows("SELECT 1 FROM tokens_held")) for member in self.nodes]

    def endings(self) -> dict[str, int]:
        rows = self.members[ADA].rows("SELECT ending, count(*) FROM journeys GROUP BY ending")
        return {str(ending): int(count) for ending, count in rows}

    def done_at(self, skill: str = "label") -> list[int]:
        return [member.calls.count(skill) for member in self.nodes]

    async def until_held(self, total: int) -> None:
        async def both() -> bool:
            held = self.held()
            return all(held) and sum(held) == total

        await until(both, "both nodes have tokens")

    async def until_let_go(self) -> None:
        async def nothing() -> bool:
            return self.held() == [0, 0]

        await until(nothing, "neither node has a token any more")

    def digest(self) -> bytes:
        ((digest,),) = self.members[ADA].rows("SELECT digest FROM agreements")
        return bytes(digest)


@pytest.mark.invariant("S1")
@pytest.mark.invariant("R2")
def test_two_nodes_share_the_tokens_and_one_of_them_signs_and_judges(tmp_path: Path) -> None:
    lab = World(tmp_path)
    flow = {**FLOW, "finish": "certify"}

    async def main(nursery: trio.Nursery) -> None:
        workflow_id = await lab.begin(nursery, flow=flow, homes="all", batch_records=4, minimum_participants=3)
        await lab.until_done(workflow_id, ADA, BEA, CYD)
        assert lab.endings() == {"done": 8}
        first, second = lab.done_at()
        assert min(first, second) > 0, "both have worked"
        assert first + second == 3 * 8, "every task of every home was labelled, once"
        assert lab.done_at("draft") == [8, 0], "the node that signed has the tasks of its organization, and all of them"
        judged, not_judged = lab.done_at("review")
        assert (judged > 0, not_judged) == (True, 0), "and judges"
        second_node = lab.members[lab.second]
        assert not second_node.rows("SELECT 1 FROM journeys UNION ALL SELECT 1 FROM records")
        assert lab.held() == [0, 0]
        assert lab.network.kinds(ADA).count(BROUGHT) == 1, "brought once"

        digest = lab.digest()
        offer = TaskOffer(batch_id=bytes(16), tasks=[Task(agreement_digest=digest)]).SerializeToString()
        assert (await lab.deliver(ADA, lab.second, "task-offer", offer)).status == Receipt.STATUS_BUSY
        await lab.stop(lab.second)
        await lab.start(nursery, lab.second)
        assert second_node.up.runtime.agreements.shared == {digest}, "after a restart, too"
        assert not second_node.rows("SELECT 1 FROM journeys")

    run(main)
    for member in lab.members.values():
        assert not member.rows("SELECT 1 FROM tokens_held UNION ALL SELECT 1 FROM tokens_out")
    lab.verify_audit_logs()


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("goes", [0, 1])
def test_a_node_that_goes_away_in_the_middle_leaves_its_tasks_to_the_other(tmp_path: Path, goes: int) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        for member in lab.nodes:
            member.hold()
        await lab.begin(nursery)
        await lab.until_held(8)
        await lab.stop([BEA, lab.second][goes])
        stays = lab.nodes[1 - goes]
        stays.free.set()

        async def over() -> bool:
            return lab.endings() == {"done": 8}

        await until(over, "all tasks are done at the node that is left")
        assert stays.calls.count("label") == 8

    run(main)


@pytest.mark.invariant("R2")
def test_what_got_no_answer_of_a_node_that_is_gone_is_done_by_the_other_and_counts_once(tmp_path: Path) -> None:
    """The node that is cut off took its tokens and works on them as well: both ends come home."""
    lab = World(tmp_path)
    first = lab.peer_id(BEA)

    async def main(nursery: trio.Nursery) -> None:
        for member in lab.nodes:
            member.hold()

        def after(carried: Carried, receipt: Receipt) -> None:
            if carried.kind == "tokens" and carried.sender == ADA and lab.held()[0]:
                lab.cut.add(first)

        lab.network.after = after
        await lab.begin(nursery, lease_seconds=60)

        async def all_here() -> bool:
            return lab.held()[1] == 8 and lab.held()[0] > 0

        await until(all_here, "the other node has all of them")
        twice = lab.held()[0]
        for member in lab.nodes:
            member.free.set()

        async def over() -> bool:
            return lab.endings() == {"done": 8} and lab.held() == [0, 0]

        await until(over, "all are done, and both have let go")
        await until(partial(_said, lab, 8 + twice), "both ends have come home")
        assert lab.endings() == {"done": 8}
        assert sum(lab.done_at()) == 8 + twice

    run(main)


async def _said(lab: World, many: int) -> bool:
    return sum(lab.done_at()) == many and not any(one.rows("SELECT 1 FROM tokens_out") for one in lab.nodes)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_cancellation_and_a_deadline_reach_the_holders_at_both_nodes(tmp_path: Path, how: str) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        for member in lab.nodes:
            member.hold()
        flow = {**FLOW, "limits": {"seconds": 120 if how == "cancelled" else 3}}
        workflow_id = await lab.begin(nursery, flow=flow, lease_seconds=60)
        await lab.until_held(8)
        if how == "cancelled":
            assert await lab.members[ADA].up.runtime.workflows.cancel(workflow_id, "no longer wanted") == 8
        await lab.until_let_go()

        async def over() -> bool:
            return lab.endings() == {how: 8}

        await until(over, "all tasks have ended")

    run(main)


@pytest.mark.invariant("R3")
def test_both_nodes_renew_the_leases_of_what_they_have(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        for member in lab.nodes:
            member.hold()
        await lab.begin(nursery, lease_seconds=1)
        await lab.until_held(8)
        heard: list[str] = []
        lab.network.after = lambda carried, receipt: heard.append(carried.kind + carried.sender)

        async def renewed() -> bool:
            return heard.count("token-notes" + BEA) >= 12  # each tells every quarter of a lease: 1.5 s at least

        await until(renewed, "the holders have told the home often")
        assert lab.members[ADA].up.runtime.flows.engine.counts.taken_over == 0
        for member in lab.nodes:
            member.free.set()

        async def over() -> bool:
            return lab.endings() == {"done": 8}

        await until(over, "all tasks are done")
        assert sum(lab.done_at()) == 8

    run(main)


@pytest.mark.invariant("S1")
def test_a_node_whose_policy_does_not_carry_the_agreement_takes_no_tokens(tmp_path: Path) -> None:
    lab = World(tmp_path)
    lab.members[lab.second].policy = policy(BEA, forbid=["agreement.accept"])

    async def main(nursery: trio.Nursery) -> None:
        workflow_id = await lab.begin(nursery)
        await lab.until_done(workflow_id, ADA)
        assert lab.endings() == {"done": 8}
        assert lab.done_at() == [8, 0]
        second = lab.members[lab.second]
        assert second.up.runtime.agreements.suspended().keys() == {lab.digest()}, "it was brought, and is suspended"
        assert not second.rows("SELECT 1 FROM tokens_held UNION ALL SELECT 1 FROM tokens_seen")

    run(main)


def _brought(data: bytes) -> bytes:
    outcome = AgreementStatusReply.OUTCOME_CONCLUDED
    return AgreementStatusReply(outcome=outcome, agreement=data).SerializeToString()


@pytest.mark.invariant("S2")
@pytest.mark.invariant("S7")
def test_only_who_takes_part_brings_an_agreement_and_a_forged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = World(tmp_path, count=4)
    verified: list[bytes] = []

    def count(data: bytes, trust: Any) -> Any:
        verified.append(data)
        return open_agreement(data, trust)

    monkeypatch.setattr("comity_node.runtime.agreements.open_agreement", count)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery, *lab.members)
        flow = b'{"anything":1}'  # what a node cannot read it does not run, and keeps all the same
        terms = make_terms(lab.consortium, WE, flow=flow)
        good = make_agreement(lab.consortium, terms)

        async def bring(sender: str, data: bytes) -> Receipt:
            return await lab.deliver(sender, lab.second, BROUGHT, _brought(data))

        receipt = await bring(DAN, good)
        assert (receipt.status, receipt.code) == (Receipt.STATUS_REFUSED, AgreementError.code)
        without = make_agreement(lab.consortium, make_terms(lab.consortium, [ADA, CYD], flow=flow))
        assert (await bring(CYD, without)).status == Receipt.STATUS_REFUSED
        no_flow = make_agreement(lab.consortium, make_terms(lab.consortium, WE))
        assert (await bring(CYD, no_flow)).status == Receipt.STATUS_REFUSED
        other = make_agreement(lab.consortium, make_terms(lab.consortium, WE, flow=flow, dataset="others"))
        assert (await bring(CYD, other)).status == Receipt.STATUS_REFUSED
        assert not verified, "no signature was looked at"

        forged = Agreement.FromString(good)
        forged.terms = make_terms(lab.consortium, WE, flow=flow, records_per_organization=7).SerializeToString()
        for _ in range(16):
            assert (await bring(CYD, forged.SerializeToString())).status == Receipt.STATUS_REFUSED
        assert (await bring(CYD, forged.SerializeToString())).status == Receipt.STATUS_BUSY, "too many"
        assert 1 <= len(verified) <= 16
        second = lab.members[lab.second]
        assert not second.rows("SELECT 1 FROM agreements UNION ALL SELECT 1 FROM workflows")
        assert not second.up.runtime.agreements.shared

        assert (await bring(ADA, good)).status == Receipt.STATUS_ACCEPTED
        before = len(verified)
        assert (await bring(CYD, good)).status == Receipt.STATUS_ACCEPTED
        assert len(verified) == before, "what is known is not verified again"
        assert len(second.rows("SELECT 1 FROM agreements")) == 1

    run(main)


def test_a_node_that_was_brought_an_agreement_hears_that_it_was_withdrawn_from(tmp_path: Path) -> None:
    lab = World(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        workflow_id = await lab.begin(nursery)
        await lab.until_done(workflow_id, ADA)
        digest = lab.digest()
        second = lab.members[lab.second].up.runtime
        assert not second.agreements.is_over(digest)
        await lab.members[BEA].up.runtime.withdrawals.withdraw(digest, "enough")

        async def known() -> bool:
            return lab.members[ADA].up.runtime.agreements.is_over(digest)

        await until(known, "the home has heard of it")
        await second.sharing.look()
        assert second.agreements.is_over(digest)

    run(main)
