"""The journal of bulk transfers, and databases that were made before it was there."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from comity_node.storage import bulk, schema
from comity_node.storage.bulk import BulkRow
from comity_node.storage.connections import connect_readonly, connect_writer, create

ROW = BulkRow(
    transfer_id=b"t" * 32,
    direction="in",
    organization="a.example",
    dataset="d",
    kind="synthetic",
    purpose="p",
    agreement_digest=b"",
    root=b"r" * 32,
    row_count=3,
    byte_count=1_000_000,
    manifest=b"m",
    state="open",
    stored_chunks=0,
    receipt=b"",
    reason="",
    created_ms=10,
    updated_ms=10,
    expires_ms=100,
    retain_until_ms=None,
)


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    create(tmp_path / "node.db")
    return connect_writer(tmp_path / "node.db", None)


def numbered(number: int, **changes: object) -> BulkRow:
    return replace(ROW, transfer_id=number.to_bytes(32, "big"), **changes)  # type: ignore[arg-type]


def test_a_row_comes_back_as_it_was(connection: sqlite3.Connection) -> None:
    assert bulk.put_bulk(connection, ROW)
    assert not bulk.put_bulk(connection, ROW)
    assert bulk.get_bulk(connection, ROW.transfer_id) == ROW
    assert bulk.get_bulk(connection, b"x" * 32) is None
    assert bulk.find_bulk(connection, "7474") == bulk.find_bulk(connection, "74" * 32) == [ROW]
    assert bulk.find_bulk(connection, "75") == []


def test_what_is_held_is_counted(connection: sqlite3.Connection) -> None:
    here: list[dict[str, object]] = [{}, {"state": "done"}, {"state": "failed"}, {"byte_count": 1}]
    there: list[dict[str, object]] = [{"organization": "b.example"}, {"direction": "out"}]
    for number, changes in enumerate(here + there):
        bulk.put_bulk(connection, numbered(number, **changes))
    used = bulk.usage(connection, "in", "a.example")
    assert used == bulk.Usage(2, 2 * 1_000_001 + 64 * 1024 + 1, 3 * 1_000_001 + 64 * 1024 + 1)
    assert bulk.usage(connection, "out", "") == bulk.Usage(0, 0, 1_000_001)


def test_an_end_is_final_and_drops_the_manifest(connection: sqlite3.Connection) -> None:
    bulk.put_bulk(connection, ROW)
    bulk.set_stored(connection, ROW.transfer_id, 5, 20)
    bulk.note_broken(connection, ROW.transfer_id, "x" * 1000, 30)
    found = bulk.get_bulk(connection, ROW.transfer_id)
    assert found is not None
    assert (found.stored_chunks, found.updated_ms, len(found.reason)) == (5, 30, 500)
    assert bulk.finish_bulk(connection, ROW.transfer_id, b"receipt", 99, 40)
    assert not bulk.finish_bulk(connection, ROW.transfer_id, b"another", None, 40)
    assert bulk.overdue(connection, 98) == []
    assert len(bulk.overdue(connection, 99)) == 1
    assert bulk.end_bulk(connection, ROW.transfer_id, "deleted", "over", 50)
    assert not bulk.end_bulk(connection, ROW.transfer_id, "failed", "again", 60)
    bulk.set_stored(connection, ROW.transfer_id, 9, 70)
    found = bulk.get_bulk(connection, ROW.transfer_id)
    assert found is not None
    assert (found.state, found.manifest, found.receipt, found.stored_chunks) == ("deleted", b"", b"receipt", 5)
    assert bulk.forget_bulk(connection, 50) == 0
    assert bulk.forget_bulk(connection, 51) == 1


@pytest.mark.invariant("S7")
def test_of_one_organizations_failures_only_the_last_are_remembered(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_MAX_PAGE", 5)
    bulk.put_bulk(connection, numbered(1000, organization="b.example"))
    bulk.end_bulk(connection, numbered(1000).transfer_id, "failed", "", 1)
    for number in range(20):
        bulk.put_bulk(connection, numbered(number))
        bulk.end_bulk(connection, numbered(number).transfer_id, "failed", "", number)
    kept = [row for (row,) in connection.execute("SELECT updated_ms FROM bulk WHERE organization = 'a.example'")]
    assert sorted(kept) == [15, 16, 17, 18, 19]
    assert bulk.get_bulk(connection, numbered(1000).transfer_id) is not None


def test_a_database_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    create(path)
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{schema.ADDED[2]} PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = 2")
        old.execute("INSERT INTO meta VALUES ('kept', x'01')")
        old.commit()
    with closing(connect_readonly(path)) as reader:  # an auditor can read it as it is
        assert reader.execute("SELECT value FROM meta").fetchone() == (b"\x01",)
    with closing(connect_writer(path, None)) as writer:
        assert writer.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA_VERSION,)
        assert bulk.put_bulk(writer, ROW)
        assert writer.execute("SELECT value FROM meta").fetchone() == (b"\x01",)
