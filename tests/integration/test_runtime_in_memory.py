"""The way of a task between five organizations in one process: real trust, policy, database; the network is a call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.provenance import verify_provenance
from comity_node.storage import journal, records
from kit.lab import Agents, Lab, policy, run, until

FIVE: dict[str, Any] = {
    "records_per_organization": 10,
    "batch_records": 5,
    "repair_rounds": 1,
    "minimum_participants": 5,
}


def liar_agents() -> Agents:
    """Make rows that nobody should certify, do not mend them, and refuse everybody else's."""

    def generate(work: Any) -> Any:
        return {"records": [{"x": -5.0, "label": 0} for _ in range(work["count"])]}

    def repair(work: Any) -> Any:
        return {"records": work["records"]}

    def review(work: Any) -> Any:
        spite = {"score": 0, "axes": {"spite": 0}, "feedback": []}
        return {"reviews": [dict(spite) for _ in work["records"]], "validator": "liar"}

    return {"generate": generate, "repair": repair, "review": review}


def laboratory(home: Path) -> Lab:
    """Five organizations: the second asks for a coarser grid than the others propose, the last one lies."""
    lab = Lab(home, 5)
    stricter, liar = lab.members[lab.names[1]], lab.members[lab.names[4]]
    for member in lab.members.values():
        member.policy = policy(member.name, obligations={"agreement.offer": "generalize: {x: 0.5}"})
    stricter.policy = policy(stricter.name, obligations={"agreement.accept": "generalize: {x: 2}"})
    liar.agents = liar_agents()
    return lab


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S9")
def test_five_organizations_agree_generate_review_and_certify(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(lab.names[0], **FIVE)
        await lab.until_done(workflow_id)
        for name in lab.names:
            assert await lab.counts(name) == ({"rejected": 10} if name == lab.names[4] else {"certified": 10})
        await check_records(lab)
        await check_negotiation(lab, workflow_id)

    run(main)
    lab.verify_audit_logs()


async def check_records(lab: Lab) -> None:
    """Everybody gets everybody's certified records, on the strictest grid, with a provenance that verifies offline."""
    for name in lab.names:
        database = lab.members[name].up.database

        async def complete(name: str = name) -> bool:
            return await lab.records(name) == 40

        await until(complete, f"all certified records are with {name}")
        page = await database.read(lambda c: records.list_records(c, limit=100))
        assert lab.names[4] not in {record.author for record in page.records}
        assert all(json.loads(record.record)["x"] % 2 == 0 for record in page.records)
        task_id = page.records[0].task_id
        row = await database.read(lambda c: records.get_record(c, task_id))  # noqa: B023
        assert row is not None
        proof = verify_provenance(row.provenance, lab.consortium.trust)
        assert (proof.record, proof.holder) == (row.record, name)
        assert len(proof.reviews) >= 3


async def check_negotiation(lab: Lab, workflow_id: str) -> None:
    initiator, stricter = lab.names[0], lab.names[1]
    database = lab.members[initiator].up.database
    steps = await database.read(lambda c: journal.workflow_steps(c, workflow_id))
    seen = [(step.organization, step.step) for step in steps]
    assert (stricter, "countered") in seen
    assert (stricter, "accepted") in seen
    assert seen[-1] == (initiator, "concluded")


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R2")
@pytest.mark.invariant("R3")
def test_a_node_that_goes_away_in_the_middle_comes_back_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)
    gone = lab.names[2]

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(lab.names[0], **FIVE)

        async def under_way() -> bool:
            return bool(lab.members[gone].rows("SELECT 1 FROM inbox WHERE reviews IS NOT NULL"))

        await until(under_way, f"{gone} has reviewed something")
        await lab.stop(gone)
        await lab.start(nursery, gone)
        await lab.until_done(workflow_id)
        for name in lab.names[:4]:
            assert await lab.counts(name) == {"certified": 10}
        assert sum((await lab.counts(lab.names[4])).values()) == 10
        assert not lab.members[lab.names[0]].rows("SELECT 1 FROM equivocations")

    run(main)
