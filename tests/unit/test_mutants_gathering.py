"""Gathering at the edges: each test here goes red for a line of `admission.gathering` that is a little wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from comity.errors import StorageError
from comity_node.admission.gathering import Gathering


def test_work_that_returns_too_few_results_gives_nobody_none() -> None:
    """Each of those who waited has it done alone."""
    batches: list[int] = []

    async def work(items: Sequence[int]) -> list[int]:
        await trio.lowlevel.checkpoint()
        batches.append(len(items))
        return [2 * item for item in items][: max(1, len(items) - 1)]

    async def main() -> None:
        gathering = Gathering(work, most=8)
        results: dict[int, int] = {}

        async def do(item: int) -> None:
            results[item] = await gathering.do(item)

        async with trio.open_nursery() as nursery:
            for item in range(3):
                nursery.start_soon(do, item)
        assert results == {item: 2 * item for item in range(3)}
        assert batches == [3, 1, 1, 1]

    trio.run(main)


def test_work_that_fails_for_one_alone_is_not_done_again() -> None:
    batches: list[int] = []

    async def work(items: Sequence[int]) -> list[int]:
        await trio.lowlevel.checkpoint()
        batches.append(len(items))
        raise StorageError("no room")

    async def main() -> None:
        with pytest.raises(StorageError, match="no room"):
            await Gathering(work, most=8).do(1)
        assert batches == [1]

    trio.run(main)
