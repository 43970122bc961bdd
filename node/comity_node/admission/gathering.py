"""Natural batching: what is asked for while a batch is being worked on is the next batch. Nobody waits for company.

A batch costs one signature or one commit, however many are in it. Under load batches grow by themselves, to what comes
in the time that one takes; one that comes alone is served alone and at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import trio

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Place(Generic[Item, Result]):
    """Somebody who waits, and what for: a result, to work for all that wait, or to work for itself."""

    __slots__ = ("alone", "item", "leads", "result", "task")

    def __init__(self, item: Item) -> None:
        self.item: Final = item
        self.task = trio.lowlevel.current_task()
        self.leads = False
        self.alone = False
        self.result: Result | None = None


class Gathering(Generic[Item, Result]):
    """Has `work` done on many items at once, for tasks that each bring one.

    The first task that comes lets the others run that can run now, and works for all that are there then; when it is
    done, the first that came meanwhile does, and so on: there is no task in the background. What waits is one item of
    each calling task, so whoever bounds the tasks bounds it.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, most: int) -> None:
        """Have `work` done on at most `most` items at once.

        It returns a result for each item, in their order. If it raises it has had no effect, and may be called again.
        """
        self._work = work
        self._most = most
        self._waiting: deque[_Place[Item, Result]] = deque()
        self._busy = False

    async def do(self, item: Item) -> Result:
        """Return the result for `item`.

        A cancelled call whose item is not being worked on is taken back. One that another task works for is finished:
        it returns as if it had not been cancelled, and the cancellation is met at the caller's next checkpoint.

        Raises:
            Exception: what `work` raised for this item alone. When it fails for several together, each of their tasks
                has it done for itself, so that nobody gets another's error.
        """
        place: _Place[Item, Result] = _Place(item)
        self._waiting.append(place)
        if self._busy:
            await self._wait(place)
        else:
            self._busy = place.leads = True
        if place.leads:
            await self._lead()
        if place.alone:
            (place.result,) = await self._work((item,))
        return place.result  # type: ignore[return-value]  # set by now, or an error was raised

    async def _wait(self, place: _Place[Item, Result]) -> None:
        def withdraw(_: object) -> trio.lowlevel.Abort:
            try:
                self._waiting.remove(place)
            except ValueError:  # it is being worked on
                return trio.lowlevel.Abort.FAILED
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(withdraw)

    async def _lead(self) -> None:
        """Work for all that wait; the first of them is the task that runs this."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
        others = batch[1:]
        try:
            results = await self._work([place.item for place in batch])
            for place, result in zip(batch, results, strict=True):
                place.result = result
        except Exception:  # of whatever sort, and raised again below for whose item it is
            if not others:
                raise
            for place in batch:
                place.alone = True
        except BaseException:  # a cancellation, above all: it is this task's, and the others go on without it
            self._waiting.extendleft(reversed(others))
            others = []
            raise
        finally:
            for place in others:
                trio.lowlevel.reschedule(place.task)
            self._hand_over()

    def _hand_over(self) -> None:
        self._busy = bool(self._waiting)
        if self._waiting:
            self._waiting[0].leads = True
            trio.lowlevel.reschedule(self._waiting[0].task)
