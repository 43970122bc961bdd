"""The tasks that work on the calls of one peer and class, at most so many at once.

A task costs more than a small call, so tasks stay: each works on what waits until nothing does. Before it starts on
a call while others wait it wakes a further one, so calls that block are worked on side by side, and calls that do
not are worked on one after the other by one task, with no switch between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

import trio
from outcome import Value

from comity_node.links.activity import Activity
from comity_node.transport.budget import Budget

#: Calls that one task works on before others of the node get their turn.
_TURN = 64
#: Tasks that stay when nothing has come for a while.
_KEPT = 2


class Job(ABC):
    """One call of a peer, from its arrival to its end."""

    __slots__ = ("deadline", "scope", "size")

    def __init__(self, size: int, deadline: float) -> None:
        self.size, self.deadline = size, deadline
        #: What ends the work on it, while there is any.
        self.scope: trio.CancelScope | None = None

    @abstractmethod
    async def work(self) -> None:
        """Work on it, and answer it."""


class HandlerPool:
    """Works on the calls of one peer and class, over however many streams they come."""

    def __init__(self, activity: Activity, nursery: trio.Nursery, budget: Budget, *, size: int) -> None:
        """Make a pool.

        Args:
            activity: counts calls that wait or are worked on.
            nursery: where the tasks live: a call that was begun is finished even if its stream goes away.
            budget: what the payloads are charged to; whoever calls `take` has charged them, the pool gives them back.
            size: calls that are worked on at once.
        """
        #: Payloads of the calls that wait or are worked on.
        self.bytes = 0
        #: How many they are.
        self.serving = 0
        #: Streams on which they come. Without any, no task waits for more.
        self.streams = 0
        self.budget = budget
        self._activity, self._nursery, self._size = activity, nursery, size
        self._line: OrderedDict[Job, None] = OrderedDict()
        self._idle: list[trio.lowlevel.Task] = []
        self._tasks = 0
        self._least_idle = 0
        #: A task is on its way to the line.
        self._waking = False

    @property
    def waiting(self) -> int:
        """Calls on which nobody works yet."""
        return len(self._line)

    @property
    def tasks(self) -> int:
        """Tasks that are there, idle ones too."""
        return self._tasks

    def take(self, job: Job) -> None:
        """Let a call wait for its turn; call `start` when a batch of them is in."""
        self.bytes += job.size
        self.serving += 1
        self._activity.count += 1
        self._line[job] = None

    def start(self) -> None:
        """See to it that somebody works on what waits."""
        if not self._line or self._waking:
            return
        if self._idle:
            self._waking = True
            trio.lowlevel.reschedule(self._idle.pop(), Value(True))
            self._least_idle = min(self._least_idle, len(self._idle))
        elif self._tasks < self._size:
            self._waking = True
            self._tasks += 1
            self._nursery.start_soon(self._task)

    def drop(self, job: Job) -> None:
        """Nobody waits for this call any more: do not begin, or stop."""
        if job in self._line:
            del self._line[job]
            self._done(job)
        elif job.scope is not None:
            job.scope.cancel()

    def forget(self, job: Job) -> None:
        """Nobody waits for this call any more: do not begin; but finish what was begun."""
        if job in self._line:
            self.drop(job)

    def begin(self) -> None:
        """One more stream brings calls."""
        self.streams += 1

    def end(self) -> None:
        """One stream less brings calls."""
        self.streams -= 1
        if not self.streams:
            self._least_idle = len(self._idle)
            self.trim(0)

    def trim(self, kept: int = _KEPT) -> None:
        """Let the tasks go that had nothing to do since the last time, but for a few."""
        spare = min(self._least_idle, len(self._idle)) - kept
        for _ in range(spare):
            self._tasks -= 1
            trio.lowlevel.reschedule(self._idle.pop(), Value(False))
        self._least_idle = len(self._idle)

    async def _task(self) -> None:
        self._waking = False
        try:
            while await self._work_until_cancelled():
                pass
        except BaseException:  # whatever ends the task, it is counted no more; raised again
            self._tasks -= 1
            raise

    async def _work_until_cancelled(self) -> bool:
        """Work until the scope has been used to stop a call. Returns False when the task is to go."""
        turns = 0
        with trio.CancelScope() as scope:
            while not scope.cancel_called:
                if not self._line:
                    if not self.streams:
                        self._tasks -= 1
                        return False
                    if not await self._park():
                        return False
                    turns = 0
                    continue
                turns += 1
                if turns % _TURN == 0:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    continue
                job, _ = self._line.popitem(last=False)
                if self._line and not self._waking:
                    self.start()
                job.scope = scope
                try:
                    await job.work()
                finally:
                    job.scope = None
                    self._done(job)
        return True

    async def _park(self) -> bool:
        task = trio.lowlevel.current_task()
        self._idle.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        goes_on: bool = await trio.lowlevel.wait_task_rescheduled(abort)
        self._waking = False
        return goes_on

    def _done(self, job: Job) -> None:
        self.bytes -= job.size
        self.budget.give(job.size)
        self.serving -= 1
        self._activity.end()
