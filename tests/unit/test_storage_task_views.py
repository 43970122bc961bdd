"""How much of its journal and log a node reads to show tasks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

import pytest

from comity_node.storage import audit, task_views
from comity_node.storage.schema import prepare

TASK = "ab" * 16


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:", isolation_level=None)
    prepare(made, "test")
    yield made
    made.close()


def put_entries(connection: sqlite3.Connection, count: int, *, named: bool) -> None:
    """Write entries, a second apart, that name the task or do not."""
    rows = []
    for index in range(count):
        entry = {"at_ms": 1_000_000 + 1000 * index, "detail": {"task": TASK if named else "0" * 32}, "index": index}
        body = {**entry, "kind": "effect", "v": 1}
        rows.append((index, json.dumps(body, sort_keys=True, separators=(",", ":")).encode(), b""))
    connection.executemany("INSERT INTO audit_entries (position, entry, hash) VALUES (?, ?, ?)", rows)


def put_journeys(connection: sqlite3.Connection, count: int) -> None:
    connection.executemany(
        "INSERT INTO journeys (task_id, agreement_digest, attempt, held_by, checkpoint, ending, reason, state, hops,"
        " heard, record_task, opened_ms, updated_ms) VALUES (?, ?, 1, '', x'', 'dropped', 'unsure', x'', x'', 1, x'',"
        " 1, ?)",
        [(number.to_bytes(16, "big"), bytes(32), number) for number in range(count)],
    )


def test_a_list_has_500_tasks_and_one_more_to_say_that_there_are_more(connection: sqlite3.Connection) -> None:
    put_journeys(connection, 510)
    lines = task_views.list_lines(connection, limit=1_000_000)
    assert len(lines) == 501
    assert [line.updated_ms for line in lines[:2]] == [509, 508]
    assert (lines[0].state, lines[0].reason) == ("dropped", "unsure")
    assert len(task_views.list_lines(connection, agreements=[])) == 0
    assert len(task_views.list_lines(connection, state="dropped", limit=3)) == 3


def test_500_entries_of_a_task_are_shown(connection: sqlite3.Connection) -> None:
    put_entries(connection, 501, named=True)
    entries, cut = task_views.entries_about(connection, {TASK}, (), 0)
    assert len(entries) == 500
    assert cut


def test_100_000_entries_are_searched_from_when_the_task_was_opened(connection: sqlite3.Connection) -> None:
    put_entries(connection, 101_000, named=False)
    assert task_views.entries_about(connection, {TASK}, (), 0) == ([], True)
    assert task_views.entries_about(connection, {TASK}, (), 1_000_000 + 1000 * 1_500) == ([], False)


def test_the_search_begins_a_minute_before_a_time(connection: sqlite3.Connection) -> None:
    put_entries(connection, 200, named=True)
    entries, cut = task_views.entries_about(connection, {TASK}, (), 1_000_000 + 1000 * 100)
    assert [entry.index for entry in entries] == list(range(40, 200))
    assert not cut
    assert isinstance(entries[0], audit.StoredEntry)


def test_all_is_counted_by_its_state(connection: sqlite3.Connection) -> None:
    put_journeys(connection, 3)
    connection.execute("UPDATE journeys SET state = task_id")  # rows of their own: they are counted by no such thing
    connection.execute("UPDATE journeys SET ending = '', held_by = 'bea.example' WHERE updated_ms = 0")
    counted = task_views.count_all(connection)
    assert counted.journeys == {"dropped": 2, "leased": 1}
    assert (counted.tasks, counted.votes, counted.outbox) == ({}, {}, {})
