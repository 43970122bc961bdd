from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from comity.errors import StorageError, StorageFull
from comity_node.storage import schema
from comity_node.storage.connections import connect_readonly
from comity_node.storage.database import Database, inline, open_database


def put(key: str, value: bytes = b"v") -> Callable[[sqlite3.Connection], str]:
    def function(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (key, value))
        return key

    return function


def keys(connection: sqlite3.Connection) -> list[str]:
    return [key for (key,) in connection.execute("SELECT key FROM meta ORDER BY key")]


def stored_keys(path: Path) -> list[str]:
    connection = connect_readonly(path)
    try:
        return keys(connection)
    finally:
        connection.close()


class Gate:
    """A callable that holds the writer until it is opened."""

    def __init__(self, then: Callable[[sqlite3.Connection], object] = lambda connection: None) -> None:
        self.entered = trio.Event()
        self._open = threading.Event()
        self._then = then
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, connection: sqlite3.Connection) -> object:
        self._token.run_sync_soon(self.entered.set)
        assert self._open.wait(30)
        return self._then(connection)

    def open(self) -> None:
        self._open.set()


@pytest.mark.invariant("R1")
def test_what_is_acknowledged_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "node.db"

    async def main() -> None:
        async with open_database(path) as database:
            assert await database.transact(put("a")) == "a"
            # Another connection sees only what is committed.
            assert stored_keys(path) == ["a"]
            assert await database.read(keys) == ["a"]

    trio.run(main)
    assert stored_keys(path) == ["a"]


@pytest.mark.invariant("R1")
def test_commits_are_synchronous(tmp_path: Path) -> None:
    def pragmas(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "trusted_schema")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            assert await database.transact(pragmas) == ["wal", 2, 1, 1, 0]

    trio.run(main)


def test_queued_callables_share_one_commit(tmp_path: Path) -> None:
    statements: list[str] = []

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database, trio.open_nursery() as nursery:
            await database.transact(lambda connection: connection.set_trace_callback(statements.append))
            statements.clear()
            gate = Gate()
            nursery.start_soon(database.transact, gate)
            await gate.entered.wait()
            for number in range(50):
                nursery.start_soon(database.transact, put(f"{number:02}"))
            await trio.testing.wait_all_tasks_blocked()
            assert database.queued == 50
            gate.open()

    trio.run(main)
    assert statements.count("COMMIT") == 2
    assert len(stored_keys(tmp_path / "node.db")) == 50


def test_one_that_raises_is_rolled_back_alone(tmp_path: Path) -> None:
    def wrong(connection: sqlite3.Connection) -> None:
        put("wrong")(connection)
        raise LookupError("mine")

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database, trio.open_nursery() as nursery:

            async def fails() -> None:
                with pytest.raises(LookupError, match="mine"):
                    await database.transact(wrong)

            gate = Gate()
            nursery.start_soon(database.transact, gate)
            await gate.entered.wait()
            nursery.start_soon(database.transact, put("before"))
            nursery.start_soon(fails)
            nursery.start_soon(database.transact, put("after"))
            await trio.testing.wait_all_tasks_blocked()
            gate.open()

    trio.run(main)
    assert stored_keys(tmp_path / "node.db") == ["after", "before"]


def test_a_broken_constraint_is_a_storage_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            await database.transact(put("a"))
            with pytest.raises(StorageError, match="UNIQUE"):
                await database.transact(put("a"))
            await database.transact(put("b"))

    trio.run(main)


def test_a_callable_may_not_end_the_transaction(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            with pytest.raises(StorageError, match="ended by a callable"):
                await database.transact(lambda connection: connection.rollback())
            assert await database.transact(put("a")) == "a"

    trio.run(main)


@pytest.mark.invariant("R4")
def test_callers_wait_for_a_place_in_the_queue(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database.open(tmp_path / "node.db", queue_limit=3)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(database.transact, put(str(number)))
            await trio.testing.wait_all_tasks_blocked()
            assert database.queued == 3
            nursery.start_soon(database.run)
            with trio.fail_after(30):
                while len(await database.read(keys)) < 10:
                    await trio.testing.wait_all_tasks_blocked()
            database.close()

    trio.run(main)


def test_a_cancelled_call_that_is_queued_has_no_effect(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db", queue_limit=1) as database, trio.open_nursery() as nursery:
            gate = Gate()
            nursery.start_soon(database.transact, gate)
            await gate.entered.wait()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as cancelled:
                    cancelled.start_soon(database.transact, put("queued"))
                    cancelled.start_soon(database.transact, put("waits for a place"))
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            assert database.queued == 0
            nursery.start_soon(database.transact, put("later"))
            gate.open()

    trio.run(main)
    assert stored_keys(tmp_path / "node.db") == ["later"]


def test_a_cancelled_call_that_is_being_committed_returns_its_result(tmp_path: Path) -> None:
    results: list[object] = []

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database, trio.open_nursery() as nursery:
            gate = Gate(put("taken"))

            async def call() -> None:
                results.append(await database.transact(gate))
                await trio.lowlevel.checkpoint()
                results.append("not reached")

            with trio.CancelScope() as scope:
                nursery.start_soon(gate.entered.wait)
                async with trio.open_nursery() as cancelled:
                    cancelled.start_soon(call)
                    await gate.entered.wait()
                    scope.cancel()
                    gate.open()

    trio.run(main)
    assert results == ["taken"]
    assert stored_keys(tmp_path / "node.db") == ["taken"]


@pytest.mark.invariant("R5")
def test_closing_drains(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database.open(tmp_path / "node.db")
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(database.transact, put(str(number)))
            await trio.testing.wait_all_tasks_blocked()
            await nursery.start(database.run)
            database.close()
        with pytest.raises(StorageError, match="closed"):
            await database.transact(put("late"))
        with pytest.raises(StorageError, match="closed"):
            await database.read(keys)

    trio.run(main)
    assert len(stored_keys(tmp_path / "node.db")) == 5


def test_closing_without_a_writer_refuses_what_waits(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database.open(tmp_path / "node.db", queue_limit=1)

        async def call(key: str) -> None:
            with pytest.raises(StorageError, match="closed"):
                await database.transact(put(key))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "queued")
            nursery.start_soon(call, "waits for a place")
            await trio.testing.wait_all_tasks_blocked()
            database.close()
        await database.run()

    trio.run(main)
    assert stored_keys(tmp_path / "node.db") == []


@pytest.mark.invariant("R5")
def test_a_cancelled_writer_drains_what_is_shielded(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database.open(tmp_path / "node.db")

        async def last_words() -> None:
            with trio.CancelScope(shield=True):
                await database.transact(put("last words"))

        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            gate = Gate()
            nursery.start_soon(database.transact, gate)
            await gate.entered.wait()
            nursery.start_soon(last_words)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            gate.open()

    trio.run(main)
    assert stored_keys(tmp_path / "node.db") == ["last words"]


@pytest.mark.invariant("R5")
def test_a_cancelled_block_has_its_last_words(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:
            async with open_database(tmp_path / "node.db") as database:
                try:
                    await database.transact(put("first"))
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                finally:
                    with trio.CancelScope(shield=True):
                        await database.transact(put("last words"))
        assert scope.cancelled_caught

    trio.run(main)
    assert stored_keys(tmp_path / "node.db") == ["first", "last words"]


def test_an_error_of_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            await database.transact(put("a"))
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        trio.run(main)
    assert stored_keys(tmp_path / "node.db") == ["a"]


@pytest.mark.invariant("R5")
def test_a_call_that_races_with_the_end_is_done_or_refused(tmp_path: Path) -> None:
    done: list[str] = []

    async def main(path: Path) -> None:
        database = Database.open(path, offload=inline)

        async def call(key: str) -> None:
            with trio.CancelScope(shield=True), trio.fail_after(5), suppress(StorageError):
                done.append(await database.transact(put(key)))

        async with trio.open_nursery() as nursery:
            await nursery.start(database.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(call, "a")
            nursery.start_soon(call, "b")
            await trio.lowlevel.checkpoint()
            # Both calls and the cancelled writer wake in one step, in an order that trio makes up.
            nursery.cancel_scope.cancel()

    for number in range(30):
        done.clear()
        path = tmp_path / f"{number}.db"
        trio.run(main, path)
        assert stored_keys(path) == sorted(done)


def test_a_full_disk_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "node.db"
        async with open_database(path, max_bytes=500_000) as database, trio.open_nursery() as nursery:
            errors: list[StorageFull] = []

            async def large(key: str) -> None:
                try:
                    await database.transact(put(key, bytes(90_000)))
                except StorageFull as error:
                    errors.append(error)

            await database.transact(put("kept"))
            gate = Gate()
            nursery.start_soon(database.transact, gate)
            await gate.entered.wait()
            for number in range(8):
                nursery.start_soon(large, str(number))
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(30):
                while len(errors) + len(await database.read(keys)) < 9:
                    await trio.testing.wait_all_tasks_blocked()
            assert errors
            assert "free disk space" in errors[0].diagnostics()
            stored = await database.read(keys)
            assert "kept" in stored
            await database.transact(
                lambda connection: connection.execute("DELETE FROM meta WHERE key != 'kept'").rowcount
            )
            await database.transact(put("small again", bytes(90_000)))
            assert await database.read(keys) == ["kept", "small again"]

    trio.run(main)


def test_reads_cannot_write(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            with pytest.raises(StorageError, match="read-only"):
                await database.read(put("a"))
            assert await database.read(keys) == []

    trio.run(main)


def test_a_read_sees_one_snapshot(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            token = trio.lowlevel.current_trio_token()

            def twice(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
                first = keys(connection)
                trio.from_thread.run(database.transact, put("meanwhile"), trio_token=token)
                return first, keys(connection)

            assert await database.read(twice) == ([], [])
            assert await database.read(keys) == ["meanwhile"]

    trio.run(main)


def test_inline_work_does_not_move_a_virtual_clock(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "node.db", offload=inline) as database:
            before = trio.current_time()
            with trio.fail_after(1):
                for number in range(20):
                    await database.transact(put(str(number)))
                assert len(await database.read(keys)) == 20
            assert trio.current_time() == before

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_file_is_the_nodes_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    database = Database.open(path)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    with pytest.raises(StorageError, match="in use"):
        Database.open(path)
    database.close()
    path.chmod(0o644)
    Database.open(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}", "schema version"),
        ("PRAGMA application_id = 1", "another application"),
    ],
)
def test_unknown_databases_are_refused(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "node.db"
    Database.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(change)
    connection.close()
    with pytest.raises(StorageError, match=message):
        Database.open(path)
    with pytest.raises(StorageError, match=message):
        connect_readonly(path)


def test_garbage_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="no SQLite database"):
        Database.open(path)
    assert path.read_bytes() == b"no database" * 1000


def test_a_corrupt_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.db"

    async def main() -> None:
        async with open_database(path) as database:
            for number in range(200):
                await database.transact(put(f"{number:03}", bytes(1000)))

    trio.run(main)
    data = bytearray(path.read_bytes())
    root = _root_page(path, "meta")
    data[(root - 1) * 4096 : (root - 1) * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(StorageError, match="corrupt"):
        Database.open(path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot create"):
        Database.open(tmp_path / "missing" / "node.db")
    with pytest.raises(StorageError, match="no database at"):
        connect_readonly(tmp_path / "node.db")


def _root_page(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0])
    finally:
        connection.close()
