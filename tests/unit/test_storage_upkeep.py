"""Sweeps do all there is to do, in bounded parts; checkpoints do not pile up and the log still verifies."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from comity.digest import sha256
from comity.signing import PrivateKey
from comity_node.runtime import upkeep
from comity_node.runtime.upkeep import Upkeep
from comity_node.storage import audit, journal, records
from comity_node.storage.database import Database, open_database
from comity_node.storage.note import NoteSigner

DAY_MS = 24 * 3600 * 1000
NOW_MS = 20_000 * DAY_MS
KEY = PrivateKey.generate()
SIGNER = NoteSigner("ada.example/node/n1", KEY.public_key, KEY.sign)


def with_upkeep(path: Path, main: Callable[[Database, Upkeep], Awaitable[None]]) -> None:
    async def outer() -> None:
        async with open_database(path / "node.db") as database:
            await main(database, Upkeep(database, SIGNER, lambda: NOW_MS))

    trio.run(outer)


def put_record(connection: sqlite3.Connection, number: int) -> None:
    row = records.CertifiedRecord(
        task_id=number.to_bytes(16, "big"),
        agreement_digest=bytes(32),
        dataset="rows",
        author="ada.example",
        record=b"{}",
        record_digest=sha256(b"{}"),
        score=9000,
        stored_ms=0,
        retain_until_ms=NOW_MS - 1,
        certificate=b"",
        provenance=b"",
    )
    records.put_record(connection, row)


def put_message(connection: sqlite3.Connection, number: int, expires_ms: int) -> journal.OutboxRow:
    key = str(number)
    row = journal.OutboxRow(number.to_bytes(16, "big"), "bea.example", "records", b"x", key, 0, expires_ms)
    journal.enqueue(connection, row)
    return row


@pytest.mark.invariant("S7")
def test_a_sweep_goes_on_while_there_is_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_PER_BATCH", 10)
    monkeypatch.setattr(upkeep, "_BATCHES", 4)

    def fill(connection: sqlite3.Connection) -> None:
        for number in range(55):
            put_record(connection, number)
        for number in range(25):
            journal.mark_done(connection, put_message(connection, number, NOW_MS - 1).message_id)

    async def main(database: Database, kept: Upkeep) -> None:
        async def left() -> int:
            return sum((await database.read(records.count_records)).values())

        await database.transact(fill)
        await kept.sweep()
        assert await left() == 15, "a sweep is bounded"
        await kept.sweep()
        assert await left() == 0
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM outbox").fetchone()[0]) == 0
        entries = await database.read(audit.entries)
        assert [one.entry.kind for one in entries] == ["deletion"] * 55

    with_upkeep(tmp_path, main)
    audit.verify_file(tmp_path / "node.db", None)


@pytest.mark.invariant("R3")
def test_a_sweep_ends_no_message_that_waits(tmp_path: Path) -> None:
    """The outbox does, which tells the owner."""

    async def main(database: Database, kept: Upkeep) -> None:
        await database.transact(lambda c: put_message(c, 1, NOW_MS - 1))
        await kept.sweep()
        assert await database.read(journal.count_open) == {"bea.example": 1}

    with_upkeep(tmp_path, main)


@pytest.mark.invariant("S8")
def test_old_checkpoints_are_thinned_and_the_log_still_verifies(tmp_path: Path) -> None:
    async def main(database: Database, kept: Upkeep) -> None:
        def write(connection: sqlite3.Connection) -> None:
            for number in range(60):
                at_ms = number * DAY_MS // 20
                audit.append(connection, audit.AuditEntry(kind="start"), at_ms)
                audit.checkpoint(connection, SIGNER, at_ms)

        await database.transact(write)
        assert await database.transact(lambda c: audit.thin_checkpoints(c, keep=10, limit=5)) == 5
        assert await database.transact(lambda c: audit.thin_checkpoints(c, keep=10)) == 43
        assert await database.transact(lambda c: audit.thin_checkpoints(c, keep=10)) == 0
        sizes = await database.read(lambda c: c.execute("SELECT size FROM audit_checkpoints ORDER BY size").fetchall())
        assert [size for (size,) in sizes] == [20, 40, *range(51, 61)], "the last of each day, and the newest ten"
        await kept.checkpoint()
        assert len(await database.read(audit.checkpoints)) == 12, "nothing new to sign"

    with_upkeep(tmp_path, main)
    report = audit.verify_file(tmp_path / "node.db", KEY.public_key)
    assert (report.checkpoints, report.signed, report.unsigned) == (12, 60, 0)


def test_a_sweep_thins_checkpoints_and_forgets_what_no_agreement_can_ask_for(tmp_path: Path) -> None:
    async def main(database: Database, kept: Upkeep) -> None:
        old_ms = NOW_MS - 400 * DAY_MS

        def write(connection: sqlite3.Connection) -> None:
            for number in range(1100):
                audit.append(connection, audit.AuditEntry(kind="start"), 0)
                connection.execute("INSERT INTO audit_checkpoints VALUES (?, '', 0)", (number + 1,))
            for home, at_ms in (("bea.example", old_ms), ("cyd.example", NOW_MS)):
                offer = journal.OfferRow(home, bytes(16), 0, "peer", bytes(32), b"offer", at_ms, at_ms)
                journal.put_offer(connection, offer)
                journal.take_tasks(connection, offer, [(bytes(16), bytes(32))])
                journal.finish_offer(connection, offer.digest, b"", at_ms)

        await database.transact(write)
        await kept.sweep()
        kept_homes = await database.read(lambda c: c.execute("SELECT home FROM reviewed").fetchall())
        assert kept_homes == await database.read(lambda c: c.execute("SELECT home FROM inbox").fetchall())
        assert kept_homes == [("cyd.example",)]
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM audit_checkpoints").fetchone()) == (1000,)
        [last] = await database.read(lambda c: audit.entries(c, start=1100))
        assert (last.entry.action, last.entry.detail) == ("journal.forgotten", {"batches": 1, "tasks": 1})

    with_upkeep(tmp_path, main)
