"""Agents' calls: a few at a time, fairly, and never for somebody who no longer wants the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import trio

from comity.errors import AgentError, Busy, NoWorker
from comity_node.protocol.flow import Outcome, advance, answers_of, batch_of, failed, work_of
from comity_node.protocol.load import Loads
from comity_node.runtime.passing.crew import Crew
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
        self._crew = Crew(limits.window if self._quick is None else 1, self._work)
        self._running = 0
        self._loads = Loads()
        self._overdue: list[Call] = []
        self._race = Race(limits, self._again)

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

    def wait_s(self) -> float:
        """Return in how many seconds a visit that comes now would have been worked on, as far as can be told."""
        if self._quick is not None:
            return 0.0
        return self._loads.wait_s(trio.current_time(), len(self._queue), self._limits.window)

    def patience_s(self) -> float:
        """Return for how many seconds a visit may be here at least, even if agents seem to stand still."""
        return max(self._loads.patience_s(), self._limits.call_hedge_least_s)

    def overdue(self) -> dict[str, float]:
        """Return the skills at which agents seem to stand still, and for how many seconds a visit may be here then."""
        found = self._loads.overdue(trio.current_time())
        return {skill: max(after_s, self._limits.call_hedge_least_s) for skill, after_s in found.items()}

    def put(self, visit: Visit) -> None:
        """Have a visit's step done when it is its turn."""
        step = visit.step
        if len(self._queue) >= self._sweep_at:
            # A home that sends and cancels has nothing in custody, and would fill the queue all the same.
            self._queue.keep(lambda each: not each.dead)
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._queue))
        if self._queue.put((visit.token.home, visit.token.agreement), (step.name, step.skill), visit, step.rows):
            self._crew.call()

    async def run(self) -> None:
        """Call until cancelled."""
        async with trio.open_nursery() as nursery:
            self._crew.begin(nursery)
            await self._race.run()

    async def _work(self, scope: trio.CancelScope) -> bool:
        if self._quick is not None:
            self._work_now(self._quick)
        elif self._overdue:
            call = self._overdue.pop()
            if call.tries and call.error is None:  # the first is still at it
                await self._try(call, scope, trio.current_time())
            else:
                self._race.spared()
        elif batch := self._next():
            await self._call(batch, scope)
        return bool(self._queue or self._overdue)

    def _next(self) -> list[Visit]:
        while batch := self._queue.take():
            if batch := [visit for visit in batch if not visit.dead]:
                break
        return batch

    def _work_now(self, quick: Quick) -> None:
        done = 0
        while done < _SLICE and (batch := self._next()):
            self._call_now(quick, batch)
            done += len(batch)

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

    async def _call(self, batch: list[Visit], scope: trio.CancelScope) -> None:
        now_s = trio.current_time()
        left_s = (max(visit.token.deadline_ms for visit in batch) - self._now_ms()) / 1000
        call = Call(batch, now_s, now_s + min(left_s, self._limits.agent_s))
        self._race.begins(call)
        await self._try(call, scope, now_s)

    def _again(self, call: Call) -> bool:
        """Have a call made twice, unless all places are taken or somebody waits for one."""
        if self._queue or self._running + len(self._overdue) >= self._limits.window:
            return False
        self._overdue.append(call)
        self._crew.call()
        return True

    async def _try(self, call: Call, scope: trio.CancelScope, now_s: float) -> None:
        """Have an agent answer; where two are at it, the first answer counts, or the first error if both fail."""
        self._running += 1
        call.tries.append(scope)
        try:
            output, now_s = await self._ask(call, now_s)
        except (AgentError, Busy) as error:
            if scope in call.tries:
                call.tries.remove(scope)
                call.error = call.error or error
                if not call.tries:
                    self._race.ends(call)
                    await self._gone_wrong(call, call.error, scope)
        else:
            if scope in call.tries:  # nobody was faster
                call.tries.remove(scope)
                call.stop()
                self._race.answered(call, now_s)
                self._answered(call.batch, output)
        finally:
            self._running -= 1
            if not call.tries:
                self._race.ends(call)

    async def _gone_wrong(self, call: Call, error: AgentError | Busy, scope: trio.CancelScope) -> None:
        match error:
            case NoWorker():
                self._unable(call.batch, str(error))
            case Busy():
                await self._wait(call, error.retry_after_ms / 1000, scope)
            case _:
                self._failed(call.batch, str(error))

    async def _ask(self, call: Call, began_s: float) -> tuple[Any, float]:
        """Return an agent's answer (JSON), and when it came."""
        skill, payload = call.batch[0].step.skill, _input(call.batch)
        answered = False
        deadline_s = max(0.001, call.by_s - began_s)
        self._loads.began(skill, began_s)
        try:
            if self._knowing is None:
                output = await self._workers.call(skill, payload, deadline_s=deadline_s)
            else:
                tokens = [visit.token for visit in call.batch]
                subjects = [Subject(token.task_id, token.agreement, token.attempt) for token in tokens]
                output = await self._knowing.call_for(subjects, skill, payload, deadline_s=deadline_s)
            answered = True
        finally:
            now_s = trio.current_time()
            if answered:
                self._loads.answered(skill, now_s, now_s - began_s)
            else:
                self._loads.left(skill, now_s)
        return output, now_s

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

    async def _wait(self, call: Call, after_s: float, scope: trio.CancelScope) -> None:
        """Put a batch back once the agents have room; until then it keeps its place among the calls."""
        call.tries.append(scope)
        await trio.sleep(min(after_s, self._limits.backoff_most_s))
        call.tries.clear()  # it is not broken off any longer
        for visit in call.batch:
            visit.call = None
            if not visit.dead:
                self.put(visit)


def _input(batch: list[Visit]) -> Any:  # noqa: ANN401  (JSON)
    return batch_of(batch[0].step, [work_of(visit.pact.flow, visit.cursor, visit.state) for visit in batch])
