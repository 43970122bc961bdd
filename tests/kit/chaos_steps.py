"""A world of faults that is driven step by step from outside: what a state machine does to it, it does at once.

The world has a thread of its own. Between two steps it stands still, whatever the real clock says.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from kit.chaos_plan import Plan
from kit.chaos_virtual import run
from kit.chaos_work import Reviews
from kit.chaos_world import Played, World, played_of

Step = Callable[[World], Awaitable[Any]]
_WAIT_S = 60.0


class Stepped:
    """A world whose workflow is submitted, and which waits for steps."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        """Begin it."""
        self.world = World(plan, directory, Reviews(plan))
        self._directory = directory
        self._steps: queue.Queue[Step | None] = queue.Queue(1)
        self._results: queue.Queue[Any] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name="world", daemon=True)
        self._thread.start()
        self._result()

    def step(self, step: Step) -> Any:
        """Do one step and return what it returns; an error of the world is raised here."""
        self._steps.put(step, timeout=_WAIT_S)
        return self._result()

    def end(self) -> Played:
        """Mend everything, wait until nothing is under way, and return what came of it."""
        still = self.step(lambda world: world.settle())
        took_s = self.step(_now)
        self.close()
        return played_of(self.world, self._directory, still, took_s)

    def close(self) -> None:
        """End the world."""
        if self._thread.is_alive():
            self._steps.put(None, timeout=_WAIT_S)
            self._thread.join(_WAIT_S)

    def _result(self) -> Any:
        result = self._results.get(timeout=_WAIT_S)
        if isinstance(result, BaseException):
            self._thread.join(_WAIT_S)
            raise result
        return result

    def _run(self) -> None:
        try:
            run(self._main, self.world.plan.seed)
        except BaseException as error:  # noqa: BLE001  (raised where the step was asked for)
            self._results.put(error)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            await self.world.begin(nursery)
            self._results.put(None)
            while (step := self._steps.get()) is not None:  # the loop stands still meanwhile, as it should
                self._results.put(await step(self.world))
            nursery.cancel_scope.cancel()


async def _now(world: World) -> float:
    return trio.current_time()
