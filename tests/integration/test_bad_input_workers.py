"""A worker that raises, answers nonsense or dies, and a disk that is full: work waits, and nothing is lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.errors import AgentFailed, NoWorker, StorageFull, WorkerLost
from comity.testing import run_skill
from comity_node.demo.agents import make_agent
from comity_node.demo.data import breast_cancer, split, write_split
from comity_node.demo.participants import Hospital
from comity_node.runtime import author, outbox, patience, reviewer
from comity_node.storage import audit
from comity_node.storage.database import Database
from kit.lab import Agents, Lab, now_ms, run, until

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))

Skill = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again after a moment instead of seconds."""
    monkeypatch.setattr(author, "_AGENT_RETRY_S", 0.01)
    monkeypatch.setattr(reviewer, "_AGENT_RETRY_S", 0.01)
    monkeypatch.setattr(patience, "_RETRY_S", 0.05)
    monkeypatch.setattr(outbox, "_FULL_S", 0.05)


def spoil(agents: Agents, skill: str, bad: list[Any]) -> None:
    """Let a skill give each of `bad` first: what is an exception is raised."""
    good, waiting = agents[skill], iter(bad)

    def work(payload: Any) -> Any:
        for wrong in waiting:
            if isinstance(wrong, Exception):
                raise wrong
            return wrong
        return good(payload)

    agents[skill] = work


ROW = {"x": 1.0, "label": 1}
REVIEW = {"score": 9000, "axes": {"range": 9000}, "feedback": []}
RAISED = [AgentFailed("the skill raised ValueError"), NoWorker("nobody offers it"), WorkerLost("it died with it")]


@pytest.mark.invariant("R1")
def test_a_generator_that_fails_costs_a_retry(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    bad: list[Any] = [
        *RAISED,
        None,
        [],
        "text",
        {},
        {"records": None},
        {"records": []},
        {"records": [ROW]},
        {"records": [ROW] * 3},
        {"records": [ROW, 7]},
        {"records": [ROW, {"x": float("nan")}]},
        {"records": [ROW, {"x": "\ud800"}]},
        {"records": [ROW, {"x": 2**60}]},
    ]
    spoil(lab.members[ADA].agents, "generate", list(bad))

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA))
        for name in lab.names:
            assert await lab.counts(name) == {"certified": 4}

    run(main)
    assert lab.members[ADA].calls.count("generate") == len(bad) + 2
    lab.verify_audit_logs()


@pytest.mark.invariant("R1")
def test_a_validator_that_fails_costs_a_retry(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    bad: list[Any] = [
        *RAISED,
        None,
        [],
        {},
        {"reviews": [REVIEW, REVIEW]},
        {"reviews": [REVIEW, REVIEW], "validator": 7},
        {"reviews": [REVIEW, REVIEW], "validator": "x" * 10_000},
        {"reviews": [REVIEW, REVIEW], "validator": "\ud800"},
        {"reviews": [REVIEW], "validator": "v"},
        {"reviews": None, "validator": "v"},
        *(
            {"reviews": [REVIEW, {**REVIEW, **wrong}], "validator": "v"}
            for wrong in (
                {"score": None},
                {"score": 1.5},
                {"score": True},
                {"score": -1},
                {"score": 10_001},
                {"axes": 7},
                {"axes": {"range": "high"}},
                {"axes": {"range": 10_001}},
                {"axes": {"\ud800": 1}},
                {"axes": {str(number): 1 for number in range(100)}},
                {"feedback": "text"},
                {"feedback": ["a"] * 1000},
                {"feedback": ["x" * 10_000]},
                {"feedback": ["\ud800"]},
                {"feedback": [7]},
            )
        ),
        {"reviews": [REVIEW, 7], "validator": "v"},
    ]
    spoil(lab.members[BEA].agents, "review", list(bad))

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA))
        for name in lab.names:
            assert await lab.counts(name) == {"certified": 4}

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("R3")
def test_a_batch_that_the_validator_never_gets_done_does_not_hold_the_others_up(tmp_path: Path) -> None:
    """It is given up when its lease is over: its home has asked others by then."""
    lab = Lab(tmp_path)
    good = lab.members[BEA].agents["review"]

    def review(work: Any) -> Any:
        if work["author"] == ADA:
            raise AgentFailed("these rows crash it")
        return good(work)

    lab.members[BEA].agents["review"] = review

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        # More batches of ada's than are judged at once: all of them fail for as long as they are held.
        workflow_id = await lab.submit(ADA, records_per_organization=12, lease_seconds=1)
        await lab.until_done(workflow_id)
        assert await lab.counts(ADA) == {"undecided": 12}
        assert await lab.counts(CYD) == {"certified": 12}

        async def given_up() -> bool:
            return not lab.members[BEA].rows("SELECT 1 FROM inbox WHERE state = 'held'")

        await until(given_up, "nothing of ada's is held any more")

    run(main)


@pytest.mark.invariant("R5")
def test_an_agreement_that_ends_before_there_is_a_worker_stops_nothing(tmp_path: Path) -> None:
    """Neither the run in which it ends nor any later start."""
    lab = Lab(tmp_path)
    works: Iterator[Exception] = iter(lambda: NoWorker("nobody"), None)
    spoil(lab.members[ADA].agents, "generate", works)  # type: ignore[arg-type]

    async def first(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA)

        async def waiting() -> bool:
            return "generate" in lab.members[ADA].calls

        await until(waiting, "ada has nobody who generates")
        gate = lab.members[ADA].up.gate
        later_ms = gate.now_ms() + 2 * 24 * 3600 * 1000
        gate.now_ms = lambda: later_ms
        await lab.until_done(workflow_id, ADA)
        assert await lab.counts(ADA) == {}
        await lab.stop(ADA)
        await lab.start(nursery, ADA)
        # Messages from just before the start are refused, lest one of them comes again.
        assert (await lab.deliver(BEA, ADA, "cards", b"", now_ms=now_ms() + 5000)).body

    run(first)


@pytest.mark.invariant("S6")
def test_a_validator_whose_model_was_changed_scores_nothing(tmp_path: Path) -> None:
    """The worker says which file it is; the node hears that its agent failed, and keeps the batch."""
    home = tmp_path / "home"
    write_split(split(breast_cancer(), seed=0), {"a": home, **{str(n): tmp_path / str(n) for n in range(4)}}, tmp_path)
    work = {"author": "b", "dataset": "d", "purpose": "p", "min_score": 500, "records": []}
    Hospital(home, home).close()
    model = next(home.rglob("label.onnx"))
    changed = bytearray(model.read_bytes())
    changed[len(changed) // 2] ^= 1
    model.write_bytes(changed)
    agent = make_agent(lambda: Hospital(home, home))
    with pytest.raises(AgentFailed, match=r"label\.onnx") as caught:
        run_skill(agent, "review", work)
    assert "\n" not in str(caught.value)


# -- a full disk -------------------------------------------------------------------------------------------------------


async def fill(database: Database) -> None:
    """Let the database not grow any more: what SQLite says then is what it says on a full disk."""

    def limit(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await database.transact(limit)


async def make_room(database: Database) -> None:
    async def made() -> bool:
        try:
            await database.transact(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
        except StorageFull:  # it shared its transaction with what found the disk full
            return False
        return True

    await until(made, "there is room again")


@pytest.mark.invariant("R1")
@pytest.mark.parametrize("when", ["generate", "review", "cards"])
def test_a_full_disk_stops_the_work_and_nothing_else(
    tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on by itself once there is room, and everything adds up."""
    lab = Lab(tmp_path)
    bea = lab.members[BEA]

    def full() -> bool:
        return any("free disk space" in record.getMessage() for record in caplog.records)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        if when == "cards":
            await fill(bea.up.database)
        else:
            bea.hold()
        workflow_id = await lab.submit(ADA)
        if when != "cards":

            async def begun() -> bool:
                return when in bea.calls

            await until(begun, f"bea is asked to {when}")
            await fill(bea.up.database)
            bea.free.set()

        async def noticed() -> bool:
            return full() or any(one.code == "storage_full" for one in receipts)

        await until(noticed, "bea has no room")
        assert bea.node is not None, "the node is up"
        await make_room(bea.up.database)
        await lab.until_done(workflow_id)
        for name in lab.names:
            assert await lab.counts(name) == {"certified": 4}

            async def spread(name: str = name) -> bool:
                return await lab.records(name) == 12

            await until(spread, f"{name} has everybody's records")

    receipts: list[Any] = []
    lab.network.after = lambda carried, receipt: receipts.append(receipt)
    run(main)
    for name in lab.names:
        audit.verify_file(lab.members[name].file, None)
