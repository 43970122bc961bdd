"""What a member with valid keys may try, and what must not come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.agreement import MAX_RECORDS, parse_terms
from comity.bundle import read_bundle, remove_member
from comity.errors import AgreementError
from comity.trust import TrustStore
from comity_node.storage import journal
from kit.consortium import NOW_MS, consortium, names
from kit.documents import make_terms
from kit.lab import WORKFLOW, Lab, policy, run, until


@pytest.mark.invariant("R1")
def test_a_repair_knows_what_the_reviewers_said(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 3)
    asked: list[list[list[str]]] = []
    for member in lab.members.values():
        mend = member.agents["repair"]

        def generate(work: Any) -> Any:
            return {"records": [{"x": -1.0, "label": 1} for _ in range(work["count"])]}

        def repair(work: Any, mend: Any = mend) -> Any:
            asked.append(work["feedback"])
            return mend(work)

        member.agents = {**member.agents, "generate": generate, "repair": repair}

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(lab.names[0], repair_rounds=1)
        await lab.until_done(workflow_id)
        assert await lab.counts(lab.names[0]) == {"certified": 4}

    run(main)
    assert asked
    assert all(notes == ["x: negative"] for batch in asked for notes in batch)


@pytest.mark.invariant("R3")
def test_who_refuses_is_replaced_by_somebody_who_was_not_asked_yet(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 4)
    refusing = lab.members[lab.names[3]]
    refusing.policy = policy(refusing.name, without=["record.receive"])

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(lab.names[0])
        await lab.until_done(workflow_id, *lab.names[:3])
        for name in lab.names[:3]:
            assert await lab.counts(name) == {"certified": 4}

    run(main)


@pytest.mark.invariant("R3")
@pytest.mark.invariant("S7")
def test_a_silent_member_holds_up_its_own_agreement_and_no_other(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 3)
    ada, bea, cyd = lab.names
    lab.members[cyd].hold()

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        document = {**WORKFLOW, "participants": [ada], "minimum_participants": 2, "records_per_organization": 20}
        document["lease_seconds"] = 3600
        silent = await lab.members[cyd].up.runtime.workflows.submit(json.dumps(document).encode())

        async def stuck() -> bool:
            return (await lab.counts(ada)).get("in_review", 0) >= 8

        await until(stuck, "all slots of that agreement wait")
        honest = await lab.submit(bea, participants=[ada], minimum_participants=2)
        await lab.until_done(honest, ada, bea)
        assert (await lab.state(ada, silent))[0] == "running"

    run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "change",
    [
        {"records_per_organization": MAX_RECORDS + 1},
        {"records_per_organization": 2**32 - 1, "batch_records": 1},
        {"lease_seconds": 3601},
        {"id": "a" * 129},
        {"purpose": "p" * 129},
        {"dataset": "d" * 1_000_000},
    ],
)
def test_terms_that_would_cost_a_node_too_much_are_no_terms(change: dict[str, Any]) -> None:
    lab = consortium(*names(5))
    with pytest.raises(AgreementError):
        parse_terms(make_terms(lab, **change).SerializeToString())


@pytest.mark.invariant("R1")
def test_an_agreement_cannot_take_the_id_of_a_workflow_that_is_there(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 3)
    ada, bea, cyd = lab.names

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        mine = await lab.submit(ada, participants=[bea], minimum_participants=2)
        await lab.until_done(mine, ada, bea)
        thief = lab.members[cyd].up.runtime.workflows
        document = json.dumps({**WORKFLOW, "participants": [ada], "minimum_participants": 2}).encode()
        row = journal.WorkflowRow(mine, document, "negotiating", "", None, 1)
        await lab.members[cyd].up.database.transact(lambda c: journal.put_workflow(c, row))
        await lab.stop(cyd)
        await lab.start(nursery, cyd)

        async def over() -> bool:
            return (await lab.state(cyd, mine))[0] == "failed"

        await until(over, "the theft fails")
        assert thief is not lab.members[cyd].up.runtime.workflows
        assert len(lab.members[ada].up.runtime.agreements.all()) == 1
        assert (await lab.state(ada, mine))[0] == "done"

    run(main)


@pytest.mark.invariant("R5")
def test_a_member_that_has_left_voids_its_agreements_and_stops_no_node(tmp_path: Path) -> None:
    """The bundle without it is how SECURITY.md says to shut a compromised organization out."""
    lab = Lab(tmp_path, 3)
    ada = lab.names[0]

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        lab.members[lab.names[2]].hold()
        workflow_id = await lab.submit(ada)

        async def under_way() -> bool:
            return (await lab.counts(ada)).get("in_review", 0) > 0

        await until(under_way, "tasks are in review")
        await lab.stop(ada)
        raw = remove_member(
            lab.consortium.bundle, lab.names[2], issued_ms=NOW_MS - 1000, expires_ms=NOW_MS + 86_400_000
        )
        lab.consortium = replace(lab.consortium, trust=TrustStore(read_bundle(raw)))
        await lab.start(nursery, ada)
        assert lab.members[ada].up.runtime.agreements.all() == []
        assert set(await lab.counts(ada)) <= {"certified", "undecided"}
        state, reason = await lab.state(ada, workflow_id)
        assert state == "done"
        assert "void" in reason

    run(main)
