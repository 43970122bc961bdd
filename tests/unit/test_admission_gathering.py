"""Natural batching: nobody waits for company, gets another's result or error, or pays for a task that is cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from comity.errors import StorageError
from comity_node.admission.gathering import Gathering


class Work:
    """Doubles numbers, a batch at a time; each batch waits to be let through, but for the first `free` ones."""

    def __init__(self, free: int = 0) -> None:
        self.batches: list[list[int]] = []
        self.bad: set[int] = set()
        self._free = free
        self._turn = trio.Event()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        if len(self.batches) > self._free:
            turn = self._turn
            await turn.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self.bad.intersection(items):
            raise StorageError(f"no {self.bad.intersection(items)}")
        return [2 * item for item in items]

    def let_through(self) -> None:
        self._turn.set()
        self._turn = trio.Event()


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def outer() -> None:
        with trio.fail_after(10):
            await main()

    trio.run(outer, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_comes_together_is_done_together_and_what_is_alone_alone() -> None:
    async def main() -> None:
        work, results = Work(free=99), dict[int, int]()
        gathering = Gathering(work, most=1024)

        async def do(item: int) -> None:
            results[item] = await gathering.do(item)

        await do(1)
        assert work.batches == [[1]]
        async with trio.open_nursery() as nursery:
            for item in range(2, 60):
                nursery.start_soon(do, item)
        assert results == {item: 2 * item for item in range(1, 60)}
        assert [sorted(batch) for batch in work.batches[1:]] == [list(range(2, 60))]

    run(main)


def test_what_comes_meanwhile_is_the_next_batch() -> None:
    async def main() -> None:
        work, results = Work(), dict[int, int]()
        gathering = Gathering(work, most=4)

        async def do(item: int) -> None:
            results[item] = await gathering.do(item)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(do, 0)
            await trio.testing.wait_all_tasks_blocked()
            for item in range(1, 7):
                nursery.start_soon(do, item)
                await trio.testing.wait_all_tasks_blocked()
            assert work.batches == [[0]]
            for batches in ([[0], [1, 2, 3, 4]], [[0], [1, 2, 3, 4], [5, 6]]):
                work.let_through()
                await trio.testing.wait_all_tasks_blocked()
                assert work.batches == batches
            work.let_through()
        assert results == {item: 2 * item for item in range(7)}
        assert not gathering._busy

    run(main)


def test_an_error_is_only_for_whom_it_is() -> None:
    async def main() -> None:
        work, results, errors = Work(free=99), dict[int, int](), dict[int, str]()
        work.bad = {3, 5}
        gathering = Gathering(work, most=1024)

        async def do(item: int) -> None:
            try:
                results[item] = await gathering.do(item)
            except StorageError as error:
                errors[item] = str(error)

        async with trio.open_nursery() as nursery:
            for item in range(8):
                nursery.start_soon(do, item)
        assert results == {item: 2 * item for item in (0, 1, 2, 4, 6, 7)}
        assert errors == {3: "no {3}", 5: "no {5}"}
        errors.clear()
        await do(3)
        assert errors == {3: "no {3}"}
        await do(9)
        assert results[9] == 18

    run(main)


def test_one_that_is_cancelled_while_it_waits_is_taken_back() -> None:
    async def main() -> None:
        work = Work()
        gathering = Gathering(work, most=1024)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gathering.do, 1)
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as cancelled:
                    cancelled.start_soon(gathering.do, 2)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            nursery.start_soon(gathering.do, 3)
            await trio.testing.wait_all_tasks_blocked()
            work.let_through()
            await trio.testing.wait_all_tasks_blocked()
            work.let_through()
        assert work.batches == [[1], [3]]

    run(main)


def test_when_the_one_who_works_is_cancelled_the_others_go_on_without_it() -> None:
    async def main() -> None:
        work, results = Work(), dict[int, int]()
        gathering = Gathering(work, most=1024)
        scopes = {item: trio.CancelScope() for item in range(4)}

        async def do(item: int) -> None:
            with scopes[item]:
                results[item] = await gathering.do(item)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(do, 0)
            await trio.testing.wait_all_tasks_blocked()
            for item in (1, 2, 3):
                nursery.start_soon(do, item)
                await trio.testing.wait_all_tasks_blocked()
            work.let_through()
            await trio.testing.wait_all_tasks_blocked()
            assert work.batches[1:] == [[1, 2, 3]]
            scopes[3].cancel()  # it is being worked for: it gets its result
            scopes[1].cancel()  # it is the one who works
            await trio.testing.wait_all_tasks_blocked()
            assert work.batches[2:] == [[2, 3]]
            work.let_through()
        assert results == {0: 0, 2: 4, 3: 6}
        assert scopes[1].cancelled_caught

    run(main)


def test_one_that_is_cancelled_when_its_turn_to_work_comes_hands_on() -> None:
    async def main() -> None:
        work, results = Work(), dict[int, int]()
        gathering = Gathering(work, most=1024)
        scope = trio.CancelScope()

        async def do(item: int, own: trio.CancelScope) -> None:
            with own:
                results[item] = await gathering.do(item)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(do, 0, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(do, 1, scope)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(do, 2, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            work.let_through()
            while not gathering._waiting[0].leads:
                await trio.lowlevel.checkpoint()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            work.let_through()
        assert results == {0: 0, 2: 4}
        assert not gathering._busy

    run(main)


def test_a_mistake_in_the_work_reaches_each_caller_and_blocks_nobody() -> None:
    async def main() -> None:
        async def wrong(items: Sequence[int]) -> list[int]:
            await trio.lowlevel.checkpoint()
            raise LookupError(str(len(items)))

        gathering = Gathering(wrong, most=1024)
        raised: list[str] = []

        async def do(item: int) -> None:
            with pytest.raises(LookupError) as caught:
                await gathering.do(item)
            raised.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            for item in range(3):
                nursery.start_soon(do, item)
        assert raised == ["1", "1", "1"], "each was done once more, alone"

    run(main)


def test_a_mistake_about_one_item_is_not_raised_to_another() -> None:
    async def main() -> None:
        async def work(items: Sequence[int]) -> list[int]:
            await trio.lowlevel.checkpoint()
            return [10 // item for item in items]

        gathering = Gathering(work, most=1024)
        results: dict[int, int | str] = {}

        async def do(item: int) -> None:
            try:
                results[item] = await gathering.do(item)
            except ZeroDivisionError as error:
                results[item] = type(error).__name__

        async with trio.open_nursery() as nursery:
            for item in (2, 0, 5):
                nursery.start_soon(do, item)
        assert results == {2: 5, 0: "ZeroDivisionError", 5: 2}

    run(main)
