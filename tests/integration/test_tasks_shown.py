"""What a home can say of its tasks: over real runs of three organizations in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.errors import NotFound
from comity.v1 import control_pb2 as pb
from comity_node.service.tasks import TaskService
from comity_node.storage import journeys
from comity_node.storage.packing import pack, unpack
from kit.lab import Lab, honest_agents, run

ADA, BEA = "org00.example", "org01.example"
STATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "x": {"type": "number", "minimum": -1000, "maximum": 1000},
        "label": {"type": "integer", "minimum": 0, "maximum": 1},
    },
}
FLOW: dict[str, Any] = {
    "state": STATE,
    "start": "draft",
    "steps": {
        "draft": {"skill": "draft", "at": "home", "writes": ["x"], "next": "label"},
        "label": {"skill": "label", "at": "others", "reads": ["x"], "writes": ["label"], "next": "end"},
    },
    "record": ["x", "label"],
    "limits": {"seconds": 120},
}
#: A value that nothing but the record has.
SECRET = 123.456


def service(lab: Lab, name: str) -> TaskService:
    up = lab.members[name].up
    return TaskService(lab.members[name].identity, lab.consortium.trust, up.gate, up.runtime, up.database)


def flow_lab(home: Path) -> Lab:
    lab = Lab(home, 3)
    for number, member in enumerate(lab.members.values()):
        member.agents = {
            **honest_agents(number),
            "draft": lambda work: {"state": {"x": SECRET}},
            "label": lambda work: {"state": {"label": 1}},
        }
    return lab


async def run_flow(lab: Lab, nursery: trio.Nursery, **changes: Any) -> str:
    await lab.start(nursery)
    document = {"flow": FLOW, "homes": "initiator", "records_per_organization": 4, "batch_records": 2, **changes}
    workflow_id = await lab.submit(ADA, **document)
    await lab.until_done(workflow_id, ADA)
    return workflow_id


@pytest.mark.invariant("S8")
def test_a_task_of_a_flow_is_shown_with_its_hops_decisions_reviews_and_deliveries(tmp_path: Path) -> None:
    lab = flow_lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        workflow_id = await run_flow(lab, nursery)
        tasks = service(lab, ADA)
        listed = await tasks.list_tasks(pb.ListTasksRequest(workflow_id=workflow_id))
        assert [one.state for one in listed.tasks] == ["certified"] * 4
        assert not listed.more
        one = listed.tasks[0]
        assert (one.workflow_id, one.attempt, one.holder, one.step) == (workflow_id, 1, "", "")
        shown = await tasks.show_task(pb.ShowTaskRequest(task_id=one.task_id[:8]))
        assert shown.task == one
        check_hops(lab, shown)
        check_reviews(shown)
        check_entries(shown)
        assert not shown.record
        assert str(SECRET).encode() not in shown.SerializeToString()
        by_record = await tasks.show_task(pb.ShowTaskRequest(task_id=one.record_task_id, record=True))
        assert by_record.task == one
        assert json.loads(by_record.record) == {"label": 1, "x": SECRET}

    run(main)


def check_hops(lab: Lab, shown: pb.ShowTaskResponse) -> None:
    way = [hop for hop in shown.hops if hop.attempt]
    assert (way[0].role, way[0].organization) == ("label", ADA)
    assert way[1].role == "home"
    assert way[0].to_organization == way[1].organization != ADA
    assert way[1].to_organization == ADA
    assert list(way[0].rules) == ["record-send"]
    assert shown.hops[len(way)].role == "record.create"
    assert all(hop.verified for hop in shown.hops)
    assert not shown.unverified


def check_reviews(shown: pb.ShowTaskResponse) -> None:
    counted = {one.organization for one in shown.reviews if one.counted}
    assert counted == set(shown.certificate.organizations)
    assert {one.organization for one in shown.reviewers} >= counted
    assert all(one.accept and dict(one.axes) == {"range": 9000} for one in shown.reviews)
    assert shown.certificate.score == 9000
    kinds = {(one.kind, one.organization) for one in shown.deliveries}
    assert {organization for kind, organization in kinds if kind == "task-offer"} >= counted
    assert {organization for kind, organization in kinds if kind == "records"} == {BEA, "org02.example"}


def check_entries(shown: pb.ShowTaskResponse) -> None:
    seen = {(entry.kind, entry.action) for entry in shown.entries}
    assert {("decision", "record.send"), ("decision", "record.receive"), ("effect", "task.certified")} <= seen
    assert [entry.index for entry in shown.entries] == sorted(entry.index for entry in shown.entries)
    assert not shown.entries_cut


def test_a_task_whose_retention_is_over_is_shown_with_its_history_and_certificate(tmp_path: Path) -> None:
    lab = flow_lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await run_flow(lab, nursery)
        tasks, up = service(lab, ADA), lab.members[ADA].up
        one = (await tasks.list_tasks(pb.ListTasksRequest())).tasks[0]
        (agreed,) = up.runtime.agreements.all()
        assert await up.database.transact(lambda c: journeys.forget_states(c, agreed.digest, 1 << 60)) == 4
        shown = await tasks.show_task(pb.ShowTaskRequest(task_id=one.task_id, record=True))
        assert (shown.task.state, shown.record) == ("certified", b"")
        assert {hop.verified for hop in shown.hops if hop.attempt} == {True}
        assert "its retention is over" in shown.unverified
        check_reviews(shown)
        check_entries(shown)

    run(main)


def test_a_hop_that_was_changed_in_the_database_is_shown_as_one_that_does_not_verify(tmp_path: Path) -> None:
    lab = flow_lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        await run_flow(lab, nursery)
        tasks, database = service(lab, ADA), lab.members[ADA].up.database
        one = (await tasks.list_tasks(pb.ListTasksRequest())).tasks[0]
        task_id = bytes.fromhex(one.task_id)
        (packed,) = lab.members[ADA].rows("SELECT hops FROM journeys WHERE task_id = ?", task_id)[0]
        hops = list(unpack(packed))
        hops[1] = hops[1].replace(b"record-send", b"record-sent")
        await database.transact(
            lambda c: c.execute("UPDATE journeys SET hops = ? WHERE task_id = ?", (pack(hops), task_id))
        )
        shown = await tasks.show_task(pb.ShowTaskRequest(task_id=one.task_id))
        way = [hop.verified for hop in shown.hops if hop.attempt]
        assert way == [True, False]
        assert shown.unverified

    run(main)


def test_tasks_are_listed_by_state_and_workflow_and_named_by_the_beginning_of_their_ids(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 3)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA)
        await lab.until_done(workflow_id)
        tasks = service(lab, ADA)
        certified = await tasks.list_tasks(pb.ListTasksRequest(workflow_id=workflow_id, state="certified"))
        assert len(certified.tasks) == 4
        assert not (await tasks.list_tasks(pb.ListTasksRequest(state="rejected"))).tasks
        assert not (await tasks.list_tasks(pb.ListTasksRequest(workflow_id="another"))).tasks
        short = await tasks.list_tasks(pb.ListTasksRequest(limit=3))
        assert (len(short.tasks), short.more) == (3, True)
        shown = await tasks.show_task(pb.ShowTaskRequest(task_id=certified.tasks[0].task_id[:7].upper()))
        assert shown.task == certified.tasks[0]
        assert shown.hops[0].role == "record.create"
        assert all(hop.verified for hop in shown.hops)
        for wrong, why in (("12345", "no beginning"), ("zzzzzz", "no beginning"), ("0" * 32, "there is no task")):
            with pytest.raises(NotFound, match=why):
                await tasks.show_task(pb.ShowTaskRequest(task_id=wrong))

    run(main)


def test_a_task_without_a_review_is_completed_and_one_that_is_out_says_who_has_it(tmp_path: Path) -> None:
    lab = flow_lab(tmp_path)

    async def main(nursery: trio.Nursery) -> None:
        workflow_id = await run_flow(lab, nursery, flow={**FLOW, "finish": "none"})
        tasks = service(lab, ADA)
        done = await tasks.list_tasks(pb.ListTasksRequest(workflow_id=workflow_id, state="completed"))
        assert len(done.tasks) == 4
        shown = await tasks.show_task(pb.ShowTaskRequest(task_id=done.tasks[0].task_id, record=True))
        assert (json.loads(shown.record)["x"], shown.HasField("certificate")) == (SECRET, False)
        task_id = bytes.fromhex(done.tasks[0].task_id)
        await lab.members[ADA].up.database.transact(
            lambda c: c.execute("UPDATE journeys SET ending = '', held_by = ? WHERE task_id = ?", (BEA, task_id))
        )
        (leased,) = (await tasks.list_tasks(pb.ListTasksRequest(state="leased"))).tasks
        assert (leased.task_id, leased.holder) == (done.tasks[0].task_id, BEA)

    run(main)
