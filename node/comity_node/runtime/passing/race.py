"""Calls that take very long are made a second time beside the first (hedged requests: Dean and Barroso, 2013)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.stragglers import Percentiles
from comity_node.runtime.passing.visit import Call


class Race:
    """Knows how long calls take, looks after those that are under way, and has a few of them made twice."""

    def __init__(self, limits: PassingLimits, again: Callable[[Call], bool]) -> None:
        """Have `again` make a call a second time, if a place is free for it and nobody waits for one."""
        self._limits = limits
        self._again = again
        self._times = Percentiles()
        self._most = max(1.0, limits.call_hedge_share * limits.window)
        self._credit = 0.0
        #: When each call that may be made twice is made twice.
        self._due: dict[Call, float] = {}
        self._sleep = trio.CancelScope()
        #: Calls that were made twice so far.
        self.hedged = 0

    def begins(self, call: Call) -> None:
        """Look after a call from now on."""
        self._credit = min(self._most, self._credit + self._limits.call_hedge_share)
        if call.twice and (after_s := self._after_s(call)) is not None:
            due_s = self._due[call] = call.began_s + after_s
            if due_s < self._sleep.deadline:
                self._sleep.deadline = due_s

    def answered(self, call: Call, now_s: float) -> None:
        """Learn how long a call took that was answered now."""
        self._times.add(call.kind, now_s - call.began_s, now_s)

    def spared(self) -> None:
        """Hear that a call was over before it was made a second time."""
        self._credit += 1.0
        self.hedged -= 1

    def ends(self, call: Call) -> None:
        """Look after a call no longer."""
        self._due.pop(call, None)

    async def run(self) -> None:
        """Have calls made twice that take too long for their kind, until cancelled."""
        while True:
            with self._sleep:
                await trio.sleep(inf)
            now_s = trio.current_time()
            for call in [call for call, due_s in self._due.items() if due_s <= now_s]:
                if self._credit >= 1.0 and self._again(call):
                    self._credit -= 1.0
                    self.hedged += 1
                    del self._due[call]
                else:
                    self._due[call] = now_s + (self._after_s(call) or self._limits.call_hedge_least_s)
            self._sleep = trio.CancelScope(deadline=min(self._due.values(), default=inf))

    def _after_s(self, call: Call) -> float | None:
        """After how long a call is made twice; None: too few of its kind are known."""
        p95_s = self._times.p95_s(call.kind)
        return None if p95_s is None else max(self._limits.call_hedge_least_s, p95_s * self._limits.hedge_factor)
