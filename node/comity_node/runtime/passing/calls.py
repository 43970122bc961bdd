"""Agents' calls: a few at a time, fairly, and never for somebody who no longer wants the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import trio

from comity.errors import AgentError, Busy, NoWorker
from comity_node.protocol.flow import Outcome, advance, answers_of, batch_of, failed, work_of
from comity_node.runtime.passing.bell import Bell
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import Quick, Workers
from comity_node.runtime.passing.queue import FairQueue
from comity_node.runtime.passing.race import Race
from comity_node.runtime.passing.visit import Call, Visit
from comity_node.runtime.seams import Knowing
from comity_node.tracing import Subject

#: How many visits agents are given before others have a turn of the loop.
_SLICE = 64
#: Only of more waiting visits than so many it is looked whether they are wanted still.
_SWEEP_FROM = 1024


class Worked(Protocol):
    """Who is told what came of a visit's step."""

    def worked(self, visit: Visit, outcome: Outcome) -> None:
        """Hear how the task goes on."""

    def unable(self, visit: Visit, reason: str) -> None:
        """Hear that nobody here does the step."""


class Calls:
    """Has own agents do what waits in a fair queue."""

    def __init__(
        self, me: str, workers: Workers, limits: PassingLimits, now_ms: Callable[[], int], worked: Worked
    ) -> None:
        """Call `workers` of organization `me`, and tell `worked` what came of it."""
        self._me = me
        self._workers = workers
        self._quick = workers if isinstance(workers, Quick) else None
        self._knowing = workers if isinstance(workers, Knowing) else None
        self._limits = limits
        self._now_ms = now_ms
        self._worked = worked
        self._queue: FairQueue[Visit] = FairQueue()
        self._sweep_at = _SWEEP_FROM
        self._bell = Bell()
        self._running = 0
        self._race = Race(limits, self._begin, self._end)

    def __len__(self) -> int:
        """Return how many visits wait; dead ones may be among them."""
        return len(self._queue)

    @property
    def hedged(self) -> int:
        """How many calls were made twice so far."""
        return self._race.hedged

    @property
    def running(self) -> int:
        """How many calls are under way."""
        return self._running

    def put(self, visit: Visit) -> None:
        """Have a visit's step done when it is its turn."""
        step = visit.step
        if len(self._queue) >= self._sweep_at:
            # A home that sends and cancels has nothing in custody, and would fill the queue all the same.
            self._queue.keep(lambda each: not each.dead)
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._queue))
        self._queue.put((visit.token.home, visit.token.agreement), (step.name, step.skill), visit, step.rows)
        self._bell.ring()

    async def run(self) -> None:
        """Call until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._bell.wait()
                done = 0
                while self._running < self._limits.window and (batch := self._queue.take()):
                    batch = [visit for visit in batch if not visit.dead]
                    if not batch:
                        continue
                    if self._quick is None:
                        self._running += 1
                        nursery.start_soon(self._call, batch)
                    else:
                        self._call_now(self._quick, batch)
                    if (done := done + len(batch)) >= _SLICE:
                        done = 0
                        await trio.lowlevel.checkpoint()

    def _call_now(self, quick: Quick, batch: list[Visit]) -> None:
        step = batch[0].step
        try:
            output = quick.call_now(step.skill, _input(batch))
        except NoWorker as error:
            self._unable(batch, str(error))
        except AgentError as error:
            self._failed(batch, str(error))
        else:
            self._answered(batch, output)

    async def _call(self, batch: list[Visit]) -> None:
        call = Call(len(batch))
        for visit in batch:
            visit.call = call
        left_s = (max(visit.token.deadline_ms for visit in batch) - self._now_ms()) / 1000
        try:
            with call.scope:
                by_s = trio.current_time() + max(0.001, min(left_s, self._limits.agent_s))
                step = batch[0].step
                output = await self._race.run(
                    (step.skill, len(batch)),
                    lambda: self._ask(batch, max(0.001, by_s - trio.current_time())),
                    twice=step.hedge and not step.leased,
                )
                self._answered(batch, output)
        except NoWorker as error:
            self._unable(batch, str(error))
        except Busy as error:
            await self._again(call, batch, error.retry_after_ms / 1000)
        except AgentError as error:
            self._failed(batch, str(error))
        finally:
            self._end()

    def _begin(self) -> bool:
        """Take a place for a second call, unless all are taken or somebody waits for one."""
        if self._running >= self._limits.window or self._queue:
            return False
        self._running += 1
        return True

    def _end(self) -> None:
        self._running -= 1
        self._bell.ring()

    async def _ask(self, batch: list[Visit], deadline_s: float) -> Any:  # noqa: ANN401  (JSON)
        skill = batch[0].step.skill
        if self._knowing is None:
            return await self._workers.call(skill, _input(batch), deadline_s=deadline_s)
        tokens = [visit.token for visit in batch]
        subjects = [Subject(token.task_id, token.agreement, token.attempt) for token in tokens]
        return await self._knowing.call_for(subjects, skill, _input(batch), deadline_s=deadline_s)

    def _answered(self, batch: list[Visit], output: Any) -> None:  # noqa: ANN401  (JSON)
        now_ms = self._now_ms()
        for visit, answer in zip(batch, answers_of(batch[0].step, output, len(batch)), strict=True):
            visit.call = None
            if not visit.dead:
                outcome = advance(visit.pact.flow, visit.cursor, visit.state, answer, now_ms, by=self._me)
                self._worked.worked(visit, outcome)

    def _failed(self, batch: list[Visit], reason: str) -> None:
        now_ms = self._now_ms()
        for visit in batch:
            visit.call = None
            if not visit.dead:
                self._worked.worked(visit, failed(visit.pact.flow, visit.cursor, visit.state, reason, now_ms))

    def _unable(self, batch: list[Visit], reason: str) -> None:
        for visit in batch:
            visit.call = None
            if not visit.dead:
                self._worked.unable(visit, reason)

    async def _again(self, call: Call, batch: list[Visit], after_s: float) -> None:
        """Put a batch back once the agents have room; until then it keeps its place among the calls."""
        call.scope = trio.CancelScope()
        with call.scope:
            await trio.sleep(min(after_s, self._limits.backoff_most_s))
        for visit in batch:
            visit.call = None
            if not visit.dead:
                self.put(visit)


def _input(batch: list[Visit]) -> Any:  # noqa: ANN401  (JSON)
    return batch_of(batch[0].step, [work_of(visit.pact.flow, visit.cursor, visit.state) for visit in batch])
