"""How the home supervises what is out: leases that run out, stragglers, deadlines.

Invariant
  R3  somebody who is slow or gone delays only the tasks that are there, and only until their lease ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import trio

from comity_node.runtime.passing.ports import End, Note
from comity_node.runtime.passing.returns import Returns
from comity_node.runtime.passing.sending import parked
from comity_node.runtime.passing.task import Task
from comity_node.runtime.passing.visit import Visit

_TICK_S = 1.0
_LOOK_AT_ONCE = 1024


class Leases(Returns):
    """Sends out again what is over its lease, and hedges what takes too long."""

    def holding(self, notes: Iterable[Note], sender: str) -> None:
        """Renew the leases of tasks that a holder says are there."""
        now_s = trio.current_time()
        for note in notes:
            task = self._tasks.get(note.task_id)
            if task is not None and (out := task.outs.get(note.attempt)) is not None:
                if out[0] == sender or task.pact.onward:
                    task.lease_s = now_s + self._lease_of(task)

    def _waits_here(self, task: Task) -> bool:
        """Whether all that is out of a task has not left yet: nobody else has it, so no lease of anybody is over."""
        parcels = [self._lanes.get(replace(task.token, attempt=attempt).key) for attempt in task.outs]
        return all(parcel is not None and not parcel.sent for parcel in parcels)

    async def _watch(self) -> None:
        while True:
            if not self._taken:
                await self._some.wait()
            await trio.sleep(min(_TICK_S, self._limits.lease_s / 8))
            await self._look()

    async def _look(self) -> None:
        """End what is over its deadline, send out again what is over its lease, and hedge what takes too long."""
        now_ms, now_s = self._now_ms(), trio.current_time()
        hedges = self._limits.hedge_share * len(self._tasks)
        late: list[Task] = []
        for number, task in enumerate(list(self._tasks.values())):
            if number % _LOOK_AT_ONCE == _LOOK_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            if task.busy or task.over:
                continue
            if task.token.deadline_ms <= now_ms:
                self._close(task, End.EXPIRED, "its deadline is over")
            elif task.outs:
                if len(task.outs) > 1:
                    hedges -= 1
                if task.lease_s <= now_s and self._waits_here(task):
                    task.lease_s = now_s + self._lease_of(task)
                elif task.lease_s <= now_s:
                    self._lease_over(task)
                elif len(task.outs) == 1 and self._is_straggler(task, now_s):
                    late.append(task)
        for task in late[: max(0, int(hedges))]:
            if not task.over and not task.busy and len(task.outs) == 1:
                self._hedge(task)
        self._forgive()
        self._unpark()

    def _lease_over(self, task: Task) -> None:
        outs = list(task.outs.items())
        self.taken_over += 1
        for attempt, (to, skill, since_s) in outs:
            self._routing.answered(to, skill, trio.current_time() - since_s, good=False)
            self._withdraw(replace(task.token, attempt=attempt))
            task.refused[to] = False
            task.why = f"the lease of {to} ran out"
        task.outs.clear()
        if task.visit is None:
            self._again(task, anew=True)

    def _is_straggler(self, task: Task, now_s: float) -> bool:
        ((_, skill, since_s),) = task.outs.values()
        age_s = now_s - since_s
        if age_s <= self._limits.hedge_least_s or not task.pact.flow.hedged:
            return False
        # Whoever gets the task may do further steps, too: so all of them have to bear it.
        return self._times.is_far_above((task.pact.agreement, skill), age_s, now_s, self._limits.hedge_factor)

    def _hedge(self, task: Task) -> None:
        """Have a second one do what takes the first too long."""
        token, now_s = task.token, trio.current_time()
        cursor = task.cursor
        base = replace(token, attempt=token.attempt + 1, sequence=token.sequence - 1)
        visit = Visit(base, task.pact, cursor, self._codec.state(token), now_s, task)
        if (visit.step.leased and visit.step.leased in cursor.leases) or token.attempt >= self._limits.attempts:
            return
        without = {*task.refused, *(out[0] for out in task.outs.values()), self._me}
        to = self._ways.choose(task.pact, cursor, visit.step, self._me, without)
        if to is not None:
            self.hedged += 1
            self._send(task, visit, to)

    def _forgive(self) -> None:
        """Let tasks that nobody takes now be offered again to who did not refuse them for good."""
        for key in [key for key in self._parked if key[-1]]:
            for visit in self._parked.pop(key):
                if (task := parked(visit)) is None:
                    continue
                candidates = self._ways.candidates(task.pact, visit.cursor, visit.step, self._me)
                if candidates and all(task.refused.get(each) for each in candidates):
                    self._close(task, End.FAILED, f"nobody takes it: {task.why}")
                    continue
                if all(each in task.refused for each in candidates):
                    task.refused = {each: for_good for each, for_good in task.refused.items() if for_good}
                self._route(task)
