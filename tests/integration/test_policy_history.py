"""What a workflow between three organizations leaves in the audit log can be asked again, and explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from comity_node.admission.archive import Archive
from comity_node.admission.retrospect import Historian, Questions, Retrospect
from comity_node.policy.asked import asked
from comity_node.policy.diff import Change, compare
from comity_node.policy.loader import loads_policy
from comity_node.storage.connections import connect_readonly
from kit.lab import Lab, run, until
from kit.lab import policy as lab_policy

THREE: dict[str, Any] = {
    "records_per_organization": 4,
    "batch_records": 2,
    "repair_rounds": 1,
    "minimum_participants": 3,
}


def finished(home: Path) -> Lab:
    lab = Lab(home, 3)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(lab.names[0], **THREE))

        async def complete() -> bool:
            return all([await lab.records(name) > 0 for name in lab.names])

        await until(complete, "everybody has certified records")

    run(main)
    return lab


def test_a_real_log_answers_for_itself(tmp_path: Path) -> None:
    lab = finished(tmp_path)
    home = lab.members[lab.names[0]]
    policy = loads_policy(home.policy)
    connection = connect_readonly(home.file)
    try:
        archive, questions = Archive(connection), Questions(policy)
        same = compare(policy, policy, questions.of(archive.decisions()))
        assert same.asked > 20
        assert (questions.lost, same.drifted) == (0, 0), "every decision can be asked again, and is made again"
        assert same.changes == {Change.SAME: same.asked}
        assert 4 <= same.distinct < same.asked

        closed = loads_policy(lab_policy(home.name, forbid=["record.send"]))
        narrowed = compare(policy, closed, Questions(policy).of(archive.decisions()))
        assert not narrowed.fails("widen")
        sent = sum(count for (change, *_), count in narrowed.groups.items() if change is Change.NARROWED)
        assert {action for _, action, *_ in narrowed.groups} == {"record.send"}
        assert sent == narrowed.changes[Change.NARROWED] >= 8, "each of four records went to two reviewers"
        assert compare(closed, policy, Questions(closed).of(archive.decisions())).fails("widen")

        (task_id,) = connection.execute("SELECT task_id FROM tasks LIMIT 1").fetchone()
        decided = list(Historian(connection, policy).task(bytes(task_id)))
        check_life_of(decided, set(lab.names[1:]))
    finally:
        connection.close()
    check_at_a_reviewer(lab, bytes(task_id))
    check_what_was_asked(lab)


def check_what_was_asked(lab: Lab) -> None:
    """Requests state what the linter's table says that they do, and no more."""
    actions = set()
    for name in lab.names:
        connection = connect_readonly(lab.members[name].file)
        try:
            for recorded in Archive(connection).decisions():
                request = recorded.request
                assert request is not None
                asks = asked(request.action)
                actions.add(request.action)
                assert not request.kind or request.kind in asks.kinds, request
                assert not request.role or request.role in asks.roles, request
                assert not (request.purpose or request.dataset) or asks.data, request
                assert not request.fields or asks.fields, request
                assert request.labels.keys() <= asks.labels, request
        finally:
            connection.close()
    assert actions >= {"agent.discover", "agreement.accept", "record.send", "record.receive", "review.send"}


def check_at_a_reviewer(lab: Lab, task_id: bytes) -> None:
    """The same task, as one sees it that took its record to review: by its own policy, in its own log."""
    reviewer = lab.members[lab.names[1]]
    connection = connect_readonly(reviewer.file)
    try:
        decided = list(Historian(connection, loads_policy(reviewer.policy)).task(task_id))
    finally:
        connection.close()
    actions = {each.recorded.entry.entry.action for each in decided}
    assert "record.receive" in actions
    assert {each.recorded.entry.entry.peer for each in decided} == {lab.names[0]}


def check_life_of(decided: list[Retrospect], others: set[str]) -> None:
    """A task's record is offered to each reviewer, and released to each once it is certified."""
    actions = [each.recorded.entry.entry.action for each in decided]
    assert "record.send" in actions
    assert {each.recorded.entry.entry.peer for each in decided} <= others
    assert [each.recorded.entry.index for each in decided] == sorted(each.recorded.entry.index for each in decided)
    for each in decided:
        assert each.explanation is not None
        assert each.explanation.decision.allowed is (each.recorded.entry.entry.decision == "allow")
        assert not each.by_today
