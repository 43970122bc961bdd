from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from comity_node.storage import journal, packing, schema
from comity_node.storage.database import Database, inline

STEPS = st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30)


@pytest.mark.invariant("R2")
@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_a_shared_commit_is_as_if_each_had_its_own(steps: list[tuple[int, bool]]) -> None:
    """Callables that raise leave nothing behind, the others see what came before them, in the order of their calls."""
    outcomes: dict[int, object] = {}

    def change(key: int, fails: bool) -> Callable[[sqlite3.Connection], int]:
        def function(connection: sqlite3.Connection) -> int:
            number = journal.get_number(connection, str(key)) + 1
            journal.raise_number(connection, str(key), number)
            if fails:
                raise LookupError(str(number))
            return number

        return function

    async def main(path: Path) -> dict[int, int]:
        database = Database.open(path, offload=inline)

        async def call(position: int, key: int, fails: bool) -> None:
            try:
                outcomes[position] = await database.transact(change(key, fails))
            except LookupError as error:
                outcomes[position] = str(error)

        async with trio.open_nursery() as nursery:
            # One at a time, so that they queue in this order; the writer starts when all of them wait.
            for position, (key, fails) in enumerate(steps):
                nursery.start_soon(call, position, key, fails)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(database.run)
            await trio.testing.wait_all_tasks_blocked()
            state = await database.read(lambda c: {key: journal.get_number(c, str(key)) for key in range(5)})
            database.close()
        return state

    with tempfile.TemporaryDirectory() as directory:
        state = trio.run(main, Path(directory) / "node.db")
    model = dict.fromkeys(range(5), 0)
    for position, (key, fails) in enumerate(steps):
        assert outcomes[position] == (str(model[key] + 1) if fails else model[key] + 1)
        model[key] += not fails
    assert state == model


@pytest.mark.invariant("S1")
@settings(deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 500),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 10)), max_size=60),
)
def test_no_window_has_more_than_its_rate(records: int, per_ms: int, steps: list[tuple[int, int]]) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        schema.prepare(connection, "memory")
        now_ms, granted = 1_000_000, []
        for pause, amount in steps:
            now_ms += pause
            if journal.reserve(connection, "rule", records, per_ms, amount, now_ms):
                granted.append((now_ms, amount))
        for start, _ in granted:
            assert sum(amount for at, amount in granted if start <= at < start + per_ms) <= records
        stored = connection.execute("SELECT count(*) FROM rate_buckets").fetchone()[0]
        assert stored <= 130
        # A step longer than the window, all of it is free again.
        assert journal.reserve(connection, "rule", records, per_ms, records, now_ms + per_ms + max(1, per_ms // 64))
    finally:
        connection.close()


@given(st.lists(st.binary(max_size=20)), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_lists_come_back(items: list[bytes], texts: list[str]) -> None:
    assert packing.unpack(packing.pack(items)) == tuple(items)
    assert packing.unpack_text(packing.pack_text(texts)) == tuple(texts)
