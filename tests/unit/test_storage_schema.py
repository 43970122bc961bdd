"""The versions of the database: an old one that was brought up to date is the same as a new one."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from comity.errors import StorageError
from comity_node.storage import schema

#: SHA-256 of the statements of versions that were released: what they have created is out there.
RELEASED = {
    2: "0c093281c037e77230a00adfd520ec8a8fc0e0e06772341d10714c6f65fc66dc",
    3: "0f6bf4bbf9821910deb7008b3d7d8febc2a47f5fc2c07ddd541a170ac81c6e0f",
    4: "17c56da66c9409d0a45dae377b488505c12ad1bb2b368cd540ffe245d67fcfe1",
    5: "1735f84c9af91460013735879c5f234a6a6dc0f7e13338da183d5c171293ffaf",
}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        yield opened


def old(connection: sqlite3.Connection, version: int) -> None:
    """Make the tables of a version."""
    for since, added in schema.ADDED.items():
        if since <= version:
            connection.executescript(added)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {version}")


def made(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """Return what there is: kind, name and statement of each table and index."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return sorted((kind, name, sql) for kind, name, sql in rows)


def version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_the_last_version_is_this_builds() -> None:
    assert list(schema.ADDED) == list(range(2, schema.SCHEMA_VERSION + 1))


@pytest.mark.parametrize("version", schema.ADDED)
def test_an_old_database_becomes_a_new_one(connection: sqlite3.Connection, version: int) -> None:
    old(connection, version)
    connection.execute("INSERT INTO meta VALUES ('kept', x'01')")
    schema.prepare(connection, "node.db")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        schema.prepare(fresh, "node.db")
        assert made(connection) == made(fresh)
        assert version_of(connection) == version_of(fresh) == schema.SCHEMA_VERSION
    assert connection.execute("SELECT value FROM meta").fetchall() == [(b"\x01",)]
    schema.check_version(connection, "node.db")


def test_what_is_under_way_in_an_old_database_stays(connection: sqlite3.Connection) -> None:
    old(connection, 5)
    connection.execute("PRAGMA foreign_keys = ON")
    task, digest = b"t" * 16, b"d" * 32
    rows = {
        "tokens_held": ("ada.example", task, 1, 2, digest, "bea.example", b"held"),
        "tokens_out": ("ada.example", task, 1, 3, digest, "bea.example", "ask", 1, b"out"),
        "journeys": (task, digest, 1, "", b"token", "", "", b"", b"", 0, b"", 7, 7),
        "journey_ways": (task, 3, b"hops"),
    }
    for table, row in rows.items():
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    schema.prepare(connection, "node.db")
    assert {table: connection.execute(f"SELECT * FROM {table}").fetchone() for table in rows} == rows
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute("INSERT INTO tokens_held SELECT * FROM tokens_held")
    connection.execute("DELETE FROM journeys")
    assert connection.execute("SELECT count(*) FROM journey_ways").fetchone() == (0,), "a task goes with its way"


def _rows(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Return what is in each table, but for what SQLite keeps for itself."""
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {
        str(name): sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
        for (name,) in names.fetchall()
    }


def _fill(connection: sqlite3.Connection) -> None:
    """Put a row into each table that takes one, and many under way."""
    connection.execute("PRAGMA foreign_keys = ON")
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    for name in [*names, *names]:  # what a row refers to may come later
        kinds = connection.execute(f"SELECT name, type FROM pragma_table_info('{name}')").fetchall()
        values = [{"TEXT": "x", "BLOB": b"x" * 32, "REAL": 0.5}.get(kind, 1) for _, kind in kinds]
        with suppress(sqlite3.IntegrityError):  # some want more of a value
            connection.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(values))})", values)
    for number in range(300):
        task, digest, body = number.to_bytes(16, "big"), bytes(32), bytes([number % 256]) * (number * 20)
        held = ("ada.example", task, 1, number, digest, "bea.example")
        connection.execute("INSERT INTO tokens_held VALUES (?, ?, ?, ?, ?, ?, ?)", (*held, body))
        connection.execute("INSERT INTO tokens_out VALUES (?, ?, ?, ?, ?, ?, 'ask', ?, ?)", (*held, number % 2, body))
        row = (task, digest, 1, "", b"token", "", "", b"", b"", 0, b"", 7, 7)
        connection.execute(f"INSERT INTO journeys VALUES ({', '.join('?' * len(row))})", row)
        connection.execute("INSERT INTO journey_ways VALUES (?, ?, ?)", (task, number, body))


def test_an_upgrade_that_is_killed_anywhere_changes_nothing_and_the_next_one_ends_it(tmp_path: Path) -> None:
    """The steps of SQLite's machine are counted, and it is stopped after more and more of them."""
    path = tmp_path / "node.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        old(connection, 5)
        _fill(connection)
        before, tables = _rows(connection), made(connection)
    assert len(before) > 20
    assert sum(map(bool, before.values())) > 15, "most tables have rows"
    killed = 0
    for steps in itertools.count(1, 700):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.set_progress_handler(lambda: 1, steps)
            with suppress(sqlite3.OperationalError):
                schema.prepare(connection, "node.db")
                break
        killed += 1
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            assert (_rows(connection), made(connection), version_of(connection)) == (before, tables, 5), steps
    assert killed > 5
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert (_rows(connection), version_of(connection)) == (before, schema.SCHEMA_VERSION)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_database_of_a_later_version_is_refused(connection: sqlite3.Connection) -> None:
    """As 6 is by a build that knows 5: nothing in it is touched."""
    old(connection, schema.SCHEMA_VERSION)
    connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    with pytest.raises(StorageError, match="run the version of comity that wrote it"):
        schema.prepare(connection, "node.db")


@pytest.mark.parametrize("version", RELEASED)
def test_what_a_released_version_created_stays(connection: sqlite3.Connection, version: int) -> None:
    old(connection, version)
    assert hashlib.sha256(repr(made(connection)).encode()).hexdigest() == RELEASED[version]


def test_an_upgrade_that_fails_adds_nothing(connection: sqlite3.Connection) -> None:
    old(connection, 3)
    connection.execute("CREATE TABLE promises (other INTEGER)")  # in the way of one of version 4
    before = made(connection)
    with pytest.raises(sqlite3.OperationalError, match="promises"):
        schema.prepare(connection, "node.db")
    connection.rollback()  # as closing it does
    assert (made(connection), version_of(connection)) == (before, 3)
