from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest

from comity.digest import sha256
from comity.errors import CertificateInvalid
from comity_node.storage import records, schema
from comity_node.storage.records import CertifiedRecord, StoredRecord

TERMS = sha256(b"terms")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(connection, "memory")
    yield connection
    connection.close()


def delete_expired(connection: sqlite3.Connection, now_ms: int) -> list[records.StoredRecord]:
    """What upkeep does, without its audit entries."""
    expired = records.expired_records(connection, now_ms)
    records.delete_records(connection, expired)
    return expired


def record(number: int, author: str = "mercy.example", retain_until_ms: int | None = None) -> CertifiedRecord:
    data = b'{"row":%d}' % number
    return CertifiedRecord(
        task_id=number.to_bytes(16, "big"),
        agreement_digest=TERMS,
        dataset="tumours",
        author=author,
        record=data,
        record_digest=sha256(data),
        score=9000,
        stored_ms=number,
        retain_until_ms=retain_until_ms,
        certificate=b"certificate",
        provenance=b"{}",
    )


def light(full: CertifiedRecord) -> StoredRecord:
    fields = asdict(full)
    del fields["certificate"], fields["provenance"]
    return StoredRecord(**fields)


@pytest.mark.invariant("R2")
def test_a_record_is_stored_once(connection: sqlite3.Connection) -> None:
    assert records.put_record(connection, record(1))
    assert not records.put_record(connection, replace(record(1), certificate=b"of other votes"))
    assert records.get_record(connection, record(1).task_id) == record(1)
    assert records.get_record(connection, bytes(16)) is None


@pytest.mark.invariant("S9")
def test_two_certified_records_of_one_task_are_reported(connection: sqlite3.Connection) -> None:
    records.put_record(connection, record(1))
    with pytest.raises(CertificateInvalid, match="and now"):
        records.put_record(connection, replace(record(1), record_digest=sha256(b"other")))
    assert records.get_record(connection, record(1).task_id) == record(1)


@pytest.mark.invariant("S9")
def test_nobody_can_take_the_place_of_anothers_record(connection: sqlite3.Connection) -> None:
    """A task's id is no secret: whoever reviews the task can use it for one of its own."""
    mine = record(1)
    theirs = replace(record(1, "hope.example", retain_until_ms=5), record_digest=sha256(b"theirs"))
    assert records.put_record(connection, theirs)
    assert records.put_record(connection, mine)
    wanted = [mine.task_id, record(2).task_id]
    assert records.stored_digests(connection, mine.author, wanted) == {mine.task_id: mine.record_digest}
    assert records.stored_digests(connection, "hope.example", wanted) == {mine.task_id: theirs.record_digest}
    assert records.get_record(connection, mine.task_id) == theirs
    assert records.get_record(connection, mine.task_id, mine.author) == mine
    assert records.get_record(connection, mine.task_id, "other.example") is None
    assert delete_expired(connection, 5) == [light(theirs)]
    assert records.get_record(connection, mine.task_id) == mine


def test_pages_follow_each_other(connection: sqlite3.Connection) -> None:
    stored = [record(number, f"org{number % 2}.example") for number in range(7)]
    for row in stored:
        records.put_record(connection, row)
    seen: list[StoredRecord] = []
    cursor: int | None = 0
    while cursor is not None:
        page = records.list_records(connection, cursor=cursor, limit=3)
        assert len(page.records) <= 3
        seen += page.records
        cursor = page.cursor
    assert seen == [light(row) for row in stored]
    odd = records.list_records(connection, author="org1.example", dataset="tumours", agreement_digest=TERMS)
    assert odd.records == tuple(light(row) for row in stored[1::2])
    assert odd.cursor is None
    assert records.list_records(connection, dataset="other").records == ()
    assert records.count_records(connection) == {"org0.example": 4, "org1.example": 3}
    assert records.count_records(connection, dataset="other") == {}


def test_expired_records_go_and_are_named(connection: sqlite3.Connection) -> None:
    for row in (record(1, retain_until_ms=10), record(2, retain_until_ms=20), record(3)):
        records.put_record(connection, row)
    assert delete_expired(connection, 9) == []
    assert delete_expired(connection, 10) == [light(record(1, retain_until_ms=10))]
    assert [row.task_id for row in records.list_records(connection).records] == [record(2).task_id, record(3).task_id]
    assert delete_expired(connection, 100) == [light(record(2, retain_until_ms=20))]


def test_a_cursor_is_good_across_deletions(connection: sqlite3.Connection) -> None:
    for number in range(4):
        records.put_record(connection, record(number, retain_until_ms=number))
    page = records.list_records(connection, limit=2)
    assert page.cursor is not None
    delete_expired(connection, 3)
    records.put_record(connection, record(9))
    assert records.list_records(connection, cursor=page.cursor).records == (light(record(9)),)
