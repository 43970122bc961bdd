"""Calls that take very long are made a second time beside the first (hedged requests: Dean and Barroso, 2013)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import trio

from comity.errors import AgentError, Busy, NoWorker
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.stragglers import Percentiles


class Race:
    """Knows how long calls take, and makes a few of them twice; whichever answers first counts."""

    def __init__(self, limits: PassingLimits, begin: Callable[[], bool], end: Callable[[], None]) -> None:
        """Have `begin` take a place for a second call, if one is free and nobody waits for it, and `end` free it."""
        self._limits = limits
        self._begin = begin
        self._end = end
        self._times = Percentiles()
        self._credit = 0.0
        #: Calls that were made twice so far.
        self.hedged = 0

    async def run(self, kind: Hashable, ask: Callable[[], Awaitable[Any]], *, twice: bool) -> Any:  # noqa: ANN401  (JSON)
        """Return the answer of `ask`, which may be called again if it takes too long for its kind and `twice` is set.

        Kinds have to be few, since each is remembered.

        Raises:
            AgentError: every call that was made failed; it is the first one's error.
            Busy: in the same way.
            NoWorker: in the same way.
        """
        most, began = max(1.0, self._limits.call_hedge_share * self._limits.window), trio.current_time()
        self._credit = min(most, self._credit + self._limits.call_hedge_share)
        p95_s = self._times.p95_s(kind)
        if not twice or p95_s is None:
            answer = await ask()
        else:
            after_s = max(self._limits.call_hedge_least_s, p95_s * self._limits.hedge_factor)
            answer = await self._race(ask, after_s)
        self._times.add(kind, trio.current_time() - began)
        return answer

    async def _race(self, ask: Callable[[], Awaitable[Any]], after_s: float) -> Any:  # noqa: ANN401  (JSON)
        answers: list[Any] = []
        errors: list[AgentError | Busy | NoWorker] = []
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                await one()
                if errors and not second_runs:
                    nursery.cancel_scope.cancel()

            async def one() -> None:
                try:
                    answers.append(await ask())
                except (AgentError, Busy, NoWorker) as error:
                    errors.append(error)
                else:
                    nursery.cancel_scope.cancel()

            second_runs = False
            nursery.start_soon(first)
            while True:
                await trio.sleep(after_s)
                if self._credit >= 1.0 and self._begin():
                    break
            second_runs = True
            self._credit -= 1.0
            self.hedged += 1
            try:
                await one()
            finally:
                self._end()
        if not answers:
            raise errors[0]
        return answers[0]
