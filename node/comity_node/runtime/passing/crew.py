"""Tasks that wait for work, so that none has to be made for each piece of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_task_rescheduled


class Crew:
    """At most so many tasks that do what there is to do, and sleep while there is nothing.

    What there is to do is with whoever has the crew. Whoever adds to it calls one, and who is called takes as much as
    has come by then, in the next round of trio's loop: what comes together is done together.
    """

    __slots__ = ("_idle", "_most", "_nursery", "_size", "_work")

    def __init__(self, most: int, work: Callable[[trio.CancelScope], Awaitable[bool]]) -> None:
        """Have at most `most` tasks do `work`, a piece at a time; between two others have a turn of the loop.

        Args:
            most: tasks at once.
            work: takes a piece of what there is, which may be nothing, does it, and returns whether there is more by
                then. It gets a scope: who cancels that breaks the piece off, and must not once it is done.
        """
        self._most = most
        self._work = work
        self._size = 0
        self._idle: list[Task] = []
        self._nursery: trio.Nursery | None = None

    def begin(self, nursery: trio.Nursery) -> None:
        """Work in `nursery` from now on; who was called before begins."""
        self._nursery = nursery
        self._size = max(1, self._size)
        for _ in range(self._size):
            nursery.start_soon(self._one)

    def call(self) -> None:
        """Say that there is something to do: one more comes, unless all are at work, who will look for it."""
        if self._idle:
            reschedule(self._idle.pop())
        elif self._size < self._most:
            self._size += 1
            if self._nursery is not None:
                self._nursery.start_soon(self._one)

    async def _one(self) -> None:
        task = current_task()

        def leave(_: object) -> Abort:
            self._idle.remove(task)
            return Abort.SUCCEEDED

        try:
            while True:
                with trio.CancelScope() as scope:  # one for many pieces: they are rarely broken off
                    while True:
                        if await self._work(scope):
                            await checkpoint()
                        else:
                            self._idle.append(task)
                            await wait_task_rescheduled(leave)
        finally:
            self._nursery = None  # it is being closed: who is called from now on does not come
