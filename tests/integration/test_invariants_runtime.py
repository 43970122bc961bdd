"""The runtime under what usually does not happen: late votes, dead reviewers, messages that come twice, liars."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from comity.provenance import verify_provenance
from comity.v1.task_pb2 import Receipt
from comity_node.runtime.score import mean
from comity_node.storage import journal
from kit.consortium import attested
from kit.lab import PATIENCE_S, Agents, Carried, Lab, now_ms, run, until

ADA, BEA, CYD = (f"org{number:02}.example" for number in range(3))


@pytest.mark.invariant("R1")
def test_votes_that_come_while_others_are_counted_are_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path)
    ada = lab.members[ADA]
    read, delayed = journal.batch_votes, set()

    async def let_them_vote(batch: bytes) -> None:
        for name in (BEA, CYD):
            lab.members[name].free.set()
        sql = "SELECT count(*) FROM votes JOIN tasks USING (task_id) WHERE batch_id = ?"

        async def arrived() -> bool:
            return bool(ada.rows(sql, batch)[0][0] == 4)

        await until(arrived, "both have voted on both records")

    def slow(connection: sqlite3.Connection, batch: bytes, revision: int) -> Any:
        """Read the votes of ada's batch, and come back only when all have arrived since."""
        votes = read(connection, batch, revision)
        file = connection.execute("PRAGMA database_list").fetchone()[2]
        if Path(file) == ada.file.resolve() and batch not in delayed:
            delayed.add(batch)
            trio.from_thread.run(let_them_vote, batch)
        return votes

    monkeypatch.setattr(journal, "batch_votes", slow)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        for name in (BEA, CYD):
            lab.members[name].hold()
        await lab.until_done(await lab.submit(ADA), ADA)
        assert await lab.counts(ADA) == {"certified": 4}

    run(main)
    assert len(delayed) == 2


@pytest.mark.invariant("R3")
@pytest.mark.invariant("R2")
def test_a_reviewer_that_holds_a_batch_past_its_lease_is_replaced_and_its_late_vote_changes_nothing(
    tmp_path: Path,
) -> None:
    """Six reviewers, five are asked, four votes are needed: two that sleep are one too many."""
    lab = Lab(tmp_path, 7)
    asleep: list[str] = []

    def before(carried: Carried) -> None:
        if (carried.sender, carried.kind) == (ADA, "task-offer") and len(asleep) < 2:
            asleep.append(carried.receiver)
            lab.members[carried.receiver].hold()

    lab.network.before = before

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA, records_per_organization=2, lease_seconds=2)
        await lab.until_done(workflow_id, ADA)
        assert await lab.counts(ADA) == {"certified": 2}
        states = dict(lab.members[ADA].rows("SELECT organization, state FROM assignments"))
        assert {states[name] for name in asleep} == {"expired"}
        assert sum(state == "voted" for state in states.values()) == 4
        certificates = lab.members[ADA].rows("SELECT certificate FROM records WHERE author = ?", ADA)
        for name in asleep:
            lab.members[name].free.set()

        async def all_voted() -> bool:
            rows = lab.members[ADA].rows("SELECT state, count(*) FROM assignments GROUP BY state")
            return dict(rows) == {"voted": 6}

        await until(all_voted, "the sleepers vote")
        assert await lab.counts(ADA) == {"certified": 2}
        assert lab.members[ADA].rows("SELECT certificate FROM records WHERE author = ?", ADA) == certificates

    run(main)
    lab.verify_audit_logs()


@pytest.mark.invariant("R2")
@pytest.mark.invariant("S5")
def test_everything_delivered_twice_is_as_if_delivered_once(tmp_path: Path) -> None:
    """The same content in a new envelope counts once; the same envelope is refused."""
    lab = Lab(tmp_path)
    again: list[Carried] = []
    lab.network.after = lambda carried, receipt: again.append(carried)

    def state() -> dict[str, Any]:
        tables = ("votes", "records", "inbox", "agreements", "equivocations", "reliability")
        return {
            name: {table: sorted(map(repr, lab.members[name].rows(f"SELECT * FROM {table}"))) for table in tables}
            for name in lab.names
        }

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA))
        for name in lab.names:

            async def spread(name: str = name) -> bool:
                return await lab.records(name) == 12

            await until(spread, f"{name} has everybody's records")

        async def quiet() -> bool:
            waiting = [await member.up.database.read(journal.count_open) for member in lab.members.values()]
            return not any(waiting)

        await until(quiet, "nothing is left to deliver")
        before = state()
        said = [one for one in again if one.kind in ("task-offer", "reviews", "records", "agreement")]
        assert len(said) > 30
        for one in said:
            receiver = lab.members[one.receiver].up
            refused = receiver.runtime.messenger.counters().get("refused.replayed", 0)
            with pytest.raises(Exception, match="was admitted before"):
                await receiver.runtime.messenger.receive(attested(lab.consortium.nodes[one.sender]), one.payload)
            assert receiver.runtime.messenger.counters()["refused.replayed"] == refused + 1
            assert (await lab.deliver(one.sender, one.receiver, one.kind, one.body)).status == Receipt.STATUS_ACCEPTED
        await until(quiet, "nothing is left to deliver")
        assert state() == before

    run(main)
    lab.verify_audit_logs()


def liar(agents: Agents) -> Agents:
    """Makes rows that no honest reviewer passes, refuses what is good and passes what is bad."""

    def generate(work: Any) -> Any:
        return {"records": [{"x": -1.0 - number, "label": 0} for number in range(work["count"])]}

    def review(work: Any) -> Any:
        scores = [0 if one["x"] >= 0 else 10_000 for one in work["records"]]
        return {"reviews": [{"score": score, "axes": {}, "feedback": []} for score in scores], "validator": "liar"}

    return {**agents, "generate": generate, "review": review}


@pytest.mark.invariant("S9")
def test_one_liar_of_four_reviewers_certifies_nothing_and_harms_nobodys_name(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 5)
    bad = lab.names[4]
    honest = lab.names[:4]
    lab.members[bad].agents = liar(lab.members[bad].agents)

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        await lab.until_done(await lab.submit(ADA, records_per_organization=16))
        assert await lab.counts(bad) == {"rejected": 16}
        for name in honest:
            assert await lab.counts(name) == {"certified": 16}

        async def judged() -> bool:
            open_ones = "SELECT 1 FROM assignments WHERE state NOT IN ('voted', 'refused', 'expired')"
            return not any(lab.members[name].rows(open_ones) for name in lab.names)

        await until(judged, "the last votes are in")
        asked = "SELECT 1 FROM assignments WHERE organization = ?"
        met = {name for name in honest if lab.members[name].rows(asked, bad)}
        assert met, "a quorum is asked, of whom it is one or not"
        for name in honest:
            known = await lab.members[name].up.database.read(lambda c: journal.list_reliability(c, now_ms()))
            reviewers = {one.organization: mean(one.agreed, one.disagreed) for one in known if one.role == "reviewer"}
            assert name not in met or reviewers[bad] < 0.3
            assert all(reviewers[other] > 0.8 for other in honest if other in reviewers and other != name)

    run(main)
    for name in lab.names:
        rows = lab.members[name].rows("SELECT record, author FROM records")
        assert all(json.loads(record)["x"] >= 0 for record, _ in rows)
        assert bad not in {author for _, author in rows}


@pytest.mark.invariant("R1")
@pytest.mark.invariant("R5")
def test_a_node_that_stops_between_any_two_steps_goes_on_where_it_was(tmp_path: Path) -> None:
    """Stopped when it is about to send its first offer, its first reviews and its first records."""
    lab = Lab(tmp_path)
    stops = {"task-offer", "reviews", "records"}
    reached = trio.Semaphore(0)

    def before(carried: Carried) -> None:
        if carried.sender == BEA and carried.kind in stops:
            stops.remove(carried.kind)
            reached.release()

    lab.network.before = before

    async def main(nursery: trio.Nursery) -> None:
        await lab.start(nursery)
        workflow_id = await lab.submit(ADA)
        for _ in range(3):
            with trio.fail_after(PATIENCE_S):
                await reached.acquire()
            await lab.stop(BEA)
            await lab.start(nursery, BEA)
        await lab.until_done(workflow_id)
        for name in lab.names:
            assert await lab.counts(name) == {"certified": 4}

            async def spread(name: str = name) -> bool:
                return await lab.records(name) == 12

            await until(spread, f"{name} has everybody's records")

    run(main)
    for member in lab.members.values():
        assert not member.rows("SELECT 1 FROM equivocations"), "nothing was signed twice"
        for (provenance,) in member.rows("SELECT provenance FROM records"):
            verify_provenance(provenance, lab.consortium.trust)
    lab.verify_audit_logs()
