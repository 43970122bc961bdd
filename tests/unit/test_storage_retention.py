"""What may not be kept any longer is gone: from the tables, from the file and from the write-ahead log; and logged."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from comity.digest import sha256
from comity.signing import PrivateKey
from comity.v1.agreement_pb2 import Obligations as TermsObligations
from comity_node.policy.lattice import Obligations
from comity_node.protocol.token import Token
from comity_node.runtime.certify import keep_until
from comity_node.runtime.upkeep import Upkeep
from comity_node.storage import audit, journal, journeys, records, retention
from comity_node.storage.connections import connect_readonly
from comity_node.storage.database import Database, open_database
from comity_node.storage.note import NoteSigner
from kit.consortium import consortium, names
from kit.documents import make_agreement, make_terms

NOW_MS = 1_000_000_000_000
KEY = PrivateKey.generate()
SIGNER = NoteSigner("ada.example/node/n1", KEY.public_key, KEY.sign)
AGREEMENT = sha256(b"an agreement")


def secret(number: int) -> bytes:
    """Bytes that stand nowhere else in a database, and fill more than a page."""
    return b"".join(sha256(f"secret {number} {part}".encode()) for part in range(300))


def put_record(connection: sqlite3.Connection, number: int, until_ms: int | None) -> None:
    row = records.CertifiedRecord(
        task_id=number.to_bytes(16, "big"),
        agreement_digest=AGREEMENT,
        dataset="rows",
        author="ada.example",
        record=secret(number),
        record_digest=sha256(secret(number)),
        score=9000,
        stored_ms=0,
        retain_until_ms=until_ms,
        certificate=b"",
        provenance=secret(number + 1000),
    )
    assert records.put_record(connection, row)


def put_offer(connection: sqlite3.Connection, number: int, until_ms: int | None) -> bytes:
    row = journal.OfferRow(
        home="bea.example",
        batch_id=number.to_bytes(16, "big"),
        revision=0,
        peer_id="peer",
        agreement_digest=AGREEMENT,
        offer=secret(number),
        received_ms=0,
        lease_until_ms=NOW_MS,
    )
    assert journal.put_offer(connection, row)
    if until_ms is not None:
        retention.keep_offer_until(connection, row.digest, until_ms)
    return row.digest


def with_database(path: Path, main: Callable[[Database, Upkeep], Awaitable[None]]) -> None:
    async def outer() -> None:
        async with open_database(path / "node.db") as database:
            await main(database, Upkeep(database, SIGNER, lambda: NOW_MS))

    trio.run(outer)


def on_disk(path: Path, data: bytes) -> bool:
    """Whether a piece of `data` (of a third of a page) stands in a file of the database."""
    files = b"".join(file.read_bytes() for file in path.glob("node.db*") if file.suffix != ".lock")
    return any(data[at : at + 32] in files for at in range(0, len(data), 32))


@pytest.mark.invariant("S8")
def test_the_bytes_of_a_record_whose_time_is_over_are_in_no_file(tmp_path: Path) -> None:
    async def main(database: Database, upkeep: Upkeep) -> None:
        for number in range(20):
            await database.transact(partial(put_record, number=number, until_ms=NOW_MS - number))
        await database.transact(lambda c: put_record(c, 50, None))
        await database.transact(lambda c: put_record(c, 51, NOW_MS + 1))
        assert all(on_disk(tmp_path, secret(number)) for number in (*range(20), 50, 51))
        await upkeep.sweep()
        for number in range(20):
            assert not on_disk(tmp_path, secret(number)), number
            assert not on_disk(tmp_path, secret(number + 1000)), "the proof has the record in it"
        assert on_disk(tmp_path, secret(50))
        assert on_disk(tmp_path, secret(51))
        logged = [one.entry for one in await database.read(audit.entries)]
        assert {one.subject for one in logged} == {sha256(secret(number)) for number in range(20)}
        assert {(one.kind, one.action, one.peer, one.agreement, one.detail["reason"]) for one in logged} == {
            ("deletion", "record.retention", "ada.example", AGREEMENT, "its retention is over")
        }

    with_database(tmp_path, main)


@pytest.mark.invariant("S8")
def test_the_bytes_of_a_batch_in_custody_whose_time_is_over_are_in_no_file(tmp_path: Path) -> None:
    digests: dict[int, bytes] = {}

    async def main(database: Database, upkeep: Upkeep) -> None:
        for number, until_ms in ((1, NOW_MS), (2, NOW_MS + 1), (3, None), (4, NOW_MS - 5)):
            digests[number] = await database.transact(partial(put_offer, number=number, until_ms=until_ms))
        await database.transact(lambda c: journal.finish_offer(c, digests[4], b"reviews", NOW_MS))
        assert all(on_disk(tmp_path, secret(number)) for number in (1, 2, 3))
        await upkeep.sweep()
        assert [on_disk(tmp_path, secret(number)) for number in (1, 2, 3, 4)] == [False, True, True, False]
        held = [one.digest for one in await database.read(journal.held_offers)]
        assert sorted(held) == sorted((digests[2], digests[3]))
        answered = await database.read(lambda c: journal.get_offer(c, digests[4]))
        assert answered is not None
        assert answered.reviews == b"reviews"
        logged = [one.entry for one in await database.read(audit.entries)]
        assert [(one.kind, one.action, one.peer, one.subject, one.agreement) for one in logged] == [
            ("deletion", "offer.retention", "bea.example", digests[1], AGREEMENT)
        ]
        again = await database.read(lambda c: retention.expired_offers(c, NOW_MS))
        assert again == []

    with_database(tmp_path, main)


@pytest.mark.invariant("S8")
def test_what_a_task_of_a_flow_ended_with_is_gone_when_its_agreement_says_so(tmp_path: Path) -> None:
    lab = consortium(*names(3))
    day_s = 24 * 3600
    obligations = {
        "retained": TermsObligations(onward="never", retain_seconds=day_s),
        "expired": TermsObligations(onward="never", expire_ms=NOW_MS),
        "kept": TermsObligations(onward="never"),
    }
    digests: dict[str, bytes] = {}

    def put(connection: sqlite3.Connection, name: str) -> None:
        terms = make_terms(lab, obligations=obligations[name])
        digest = digests[name] = sha256(terms.SerializeToString())
        journal.put_agreement(
            connection,
            journal.AgreementRow(
                digest, make_agreement(lab, terms), lab.names[0], terms.purpose, terms.dataset, NOW_MS, "active", 0
            ),
        )
        ends = {1: NOW_MS - day_s * 1000, 2: NOW_MS - day_s * 1000 + 1, 3: 0, 4: 0}
        tasks = {each: sha256(f"{name} {each}".encode())[:16] for each in ends}
        for task in tasks.values():
            token = Token(task, digest, "ada.example", "peer", 1, 0, b"{}", b"{}", (), NOW_MS * 2)
            journeys.open_journeys(connection, [token], 0)
        rows = [
            journeys.EndRow(tasks[each], digest, "done", secret(each + sorted(obligations).index(name) * 10), (b"hop",),
                            1, "", at_ms)
            for each, at_ms in ends.items() if each != 4
        ]  # fmt: skip
        journeys.end(connection, rows)
        journeys.heard(connection, [tasks[1], tasks[2]])  # the third has not been told

    async def main(database: Database, upkeep: Upkeep) -> None:
        for name in obligations:
            await database.transact(partial(put, name=name))
        await upkeep.sweep()
        left = {}
        for name, digest in digests.items():
            rows = await database.read(partial(journeys.list_journeys, agreement=digest))
            found = {sha256(f"{name} {each}".encode())[:16]: each for each in (1, 2, 3, 4)}
            left[name] = sorted(found[row.task_id] for row in rows if row.state)
            assert sorted(row.hops for row in rows) == [(), (b"hop",), (b"hop",), (b"hop",)], "its history stays"
        assert left == {"retained": [2, 3], "expired": [3], "kept": [1, 2, 3]}
        place = sorted(obligations)
        gone = [
            secret(1 + place.index("retained") * 10),
            *(secret(each + place.index("expired") * 10) for each in (1, 2)),
        ]
        assert not any(on_disk(tmp_path, one) for one in gone)
        logged = [one.entry for one in await database.read(audit.entries)]
        assert {(one.action, one.agreement, one.detail["tasks"]) for one in logged} == {
            ("journey.retention", digests["retained"], 1), ("journey.retention", digests["expired"], 2),
        }  # fmt: skip
        waiting = await database.read(partial(journeys.to_batch, agreement=digests["expired"], limit=10))
        assert len(waiting) == await database.read(partial(journeys.count_to_batch, agreement=digests["expired"])) == 1

    with_database(tmp_path, main)


@pytest.mark.invariant("S8")
def test_a_deletion_that_was_interrupted_before_the_log_was_folded_is_finished_by_the_next_run(tmp_path: Path) -> None:
    async def main(database: Database, _: Upkeep) -> None:
        await database.transact(lambda c: put_record(c, 1, NOW_MS - 1))
        holding, let_go = trio.Event(), trio.Event()

        def hold(connection: sqlite3.Connection) -> None:
            """Look at an old state: the write-ahead log cannot be emptied meanwhile."""
            connection.execute("SELECT count(*) FROM records").fetchone()
            trio.from_thread.run_sync(holding.set)
            trio.from_thread.run(let_go.wait)

        interrupted = Upkeep(database, SIGNER, lambda: NOW_MS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.read, hold)
            await holding.wait()
            await interrupted.sweep()
            assert not await database.fold()
            let_go.set()
        # Another run of the node on the same file: its first sweep deletes nothing, and folds all the same.
        await Upkeep(database, SIGNER, lambda: NOW_MS).sweep()
        assert not on_disk(tmp_path, secret(1))

    with_database(tmp_path, main)


def test_folding_loses_nothing_and_leaves_an_empty_log(tmp_path: Path) -> None:
    async def main(database: Database, _: Upkeep) -> None:
        await database.transact(lambda c: put_record(c, 1, None))
        async with trio.open_nursery() as nursery:
            for number in range(2, 20):
                nursery.start_soon(database.transact, partial(put_record, number=number, until_ms=None))
                nursery.start_soon(database.fold)
        assert await database.fold()
        assert (tmp_path / "node.db-wal").stat().st_size == 0
        connection = connect_readonly(tmp_path / "node.db")
        assert connection.execute("SELECT count(*) FROM records").fetchone()[0] == 19
        connection.close()

    with_database(tmp_path, main)


def test_of_two_times_the_earlier_one_counts(tmp_path: Path) -> None:
    assert keep_until(Obligations(), 1000) is None
    assert keep_until(Obligations(retain_ms=500), 1000) == 1500
    assert keep_until(Obligations(expire_ms=1200), 1000) == 1200
    assert keep_until(Obligations(retain_ms=500, expire_ms=1200), 1000) == 1200
    assert keep_until(Obligations(retain_ms=100, expire_ms=1200), 1000) == 1100

    async def main(database: Database, _: Upkeep) -> None:
        def write(connection: sqlite3.Connection) -> None:
            for until_ms in (50, 20, 30):
                retention.keep_offer_until(connection, AGREEMENT, until_ms)

        await database.transact(write)
        assert await database.read(lambda c: retention.expired_offers(c, 19)) == []
        (gone,) = await database.read(lambda c: retention.expired_offers(c, 20))
        assert (gone.digest, gone.held) == (AGREEMENT, False)

    with_database(tmp_path, main)


def _way(connection: sqlite3.Connection, digest: bytes, number: int, state: str) -> tuple[bytes, bytes]:
    """A task that was over a minute ago, and the record made of it, which is in a state of its review."""
    task, record_task = bytes([1, number]) * 8, bytes([2, number]) * 8
    token = Token(task, digest, "ada.example", "peer", 1, 0, b"{}", b"{}", (), NOW_MS * 2)
    journeys.open_journeys(connection, [token], 0)
    journeys.end(connection, [journeys.EndRow(task, digest, "done", secret(number), (b"hop",), 1, "", NOW_MS - 60_000)])
    journeys.heard(connection, [task])
    record = secret(number + 100)
    row = journal.TaskRow(record_task, digest, "w", digest[:16], number, 0, state, record, sha256(record))
    journal.put_tasks(connection, [row])
    journeys.batched(connection, [(task, record_task)])
    return task, record_task


@pytest.mark.invariant("S8")
def test_the_record_of_a_task_goes_with_it_and_neither_while_it_is_judged(tmp_path: Path) -> None:
    lab = consortium(*names(3))
    terms = make_terms(lab, obligations=TermsObligations(onward="never", retain_seconds=60))
    digest, made = sha256(terms.SerializeToString()), make_agreement(lab, terms)
    states = ["certified", "rejected", "in_review", "cancelled"]

    def put(connection: sqlite3.Connection) -> dict[str, tuple[bytes, bytes]]:
        journal.put_agreement(
            connection,
            journal.AgreementRow(digest, made, lab.names[0], terms.purpose, terms.dataset, NOW_MS, "active", 0),
        )
        return {state: _way(connection, digest, number, state) for number, state in enumerate(states)}

    def kept(connection: sqlite3.Connection, tasks: tuple[bytes, bytes]) -> list[bool]:
        journey, record = journeys.get_journey(connection, tasks[0]), journal.get_task(connection, tasks[1])
        assert journey is not None
        assert record is not None
        assert record.record_digest
        return [bool(journey.state), bool(record.record)]

    async def main(database: Database, upkeep: Upkeep) -> None:
        ways = await database.transact(put)
        await upkeep.sweep()
        for state, tasks in ways.items():
            expected = [state == "in_review"] * 2
            assert await database.read(partial(kept, tasks=tasks)) == expected, state
            number = states.index(state)
            assert [on_disk(tmp_path, secret(each)) for each in (number, number + 100)] == expected

    with_database(tmp_path, main)


def test_what_is_to_be_forgotten_is_found_without_looking_at_what_is_gone(tmp_path: Path) -> None:
    """A home has hundreds of thousands of tasks that are over; a sweep holds the database up, and comes each minute."""

    def plans(connection: sqlite3.Connection) -> list[str]:
        asked: list[str] = []
        connection.set_trace_callback(asked.append)
        journeys.forget_states(connection, bytes(32), 1)
        journeys.agreements_of(connection)
        connection.set_trace_callback(None)
        reads = [each for each in asked if each.startswith("SELECT")]
        return [" ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {each}")) for each in reads]

    async def main(database: Database, _: Upkeep) -> None:
        states, agreements = await database.transact(plans)
        assert "INDEX journeys_with_state (agreement_digest=? AND updated_ms<?)" in states
        assert "INDEX journeys_with_state (agreement_digest=?)" in agreements
        assert "SCAN journeys" not in states + agreements

    with_database(tmp_path, main)
