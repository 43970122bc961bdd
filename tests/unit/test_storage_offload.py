"""Work in a thread: its result or error comes back, `after` comes first, and nothing interrupts it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from comity.errors import StorageError
from comity_node.storage.database import open_database
from comity_node.storage.offload import Offload, in_thread, inline

OFFLOADS = pytest.mark.parametrize("offload", [in_thread, inline])
LIMITERS = pytest.mark.parametrize("limited", [False, True])


@OFFLOADS
@LIMITERS
def test_result_and_error_come_back_and_after_is_called_before(offload: Offload, limited: bool) -> None:
    async def main() -> None:
        limiter = trio.CapacityLimiter(1) if limited else None
        seen: list[object] = []
        loop = threading.get_ident()

        def after() -> None:
            seen.append(threading.get_ident() == loop)

        assert await offload(lambda: 5, limiter, after) == 5
        assert await offload(threading.get_ident, limiter) != loop or offload is inline
        assert seen == [True]

        def wrong() -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await offload(wrong, limiter, after)
        assert seen == [True, True]

    trio.run(main)


def test_what_runs_is_finished_when_its_task_is_cancelled() -> None:
    async def main() -> None:
        entered, go = trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()
        results: list[int] = []

        def work() -> int:
            token.run_sync_soon(entered.set)
            assert go.wait(30)
            return 7

        async def call() -> None:
            results.append(await in_thread(work, None))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await entered.wait()
            nursery.cancel_scope.cancel()
            go.set()
        assert results == [7]

    trio.run(main)


@pytest.mark.invariant("R2")
def test_a_callable_that_is_alone_and_raises_leaves_nothing(tmp_path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO meta (key, value) VALUES ('half', x'00')")
        raise LookupError("mine")

    def count(connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT count(*) FROM meta").fetchone()[0])

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            before = await database.read(count)
            with pytest.raises(LookupError, match="mine"):
                await database.transact(half)
            assert await database.read(count) == before
            assert await database.transact(count) == before

    trio.run(main)


@pytest.mark.invariant("R1")
def test_when_no_thread_can_be_started_callers_hear_of_it(tmp_path: Path) -> None:
    async def none(
        work: Callable[[], object], limiter: trio.CapacityLimiter | None, /, after: Callable[[], None] | None = None
    ) -> object:
        await trio.lowlevel.checkpoint()
        if after is not None:
            raise RuntimeError("can't start new thread")
        return work()

    async def main() -> None:
        async with open_database(tmp_path / "node.db", offload=none) as database:
            with pytest.raises(StorageError, match="the writer stopped"):
                await database.transact(lambda connection: None)

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(RuntimeError, match="can't start")
