"""One timer for many deadlines: a cancel scope for each would cost more than the request it guards."""

from __future__ import annotations

from collections.abc import Callable

import trio

#: Deadlines are met this much late at most, in seconds, so that a flood of different ones costs little.
SLACK_S = 0.005


class Deadlines:
    """Calls `expire` when a deadline has passed; nothing is done for those that are met."""

    def __init__(self, expire: Callable[[float], float]) -> None:
        """Make a timer; `run` runs it.

        Args:
            expire: given the time by trio's clock, ends what is due and returns the next deadline, or infinity.
        """
        self._expire = expire
        self._scope = trio.CancelScope()

    def watch(self, deadline: float) -> None:
        """See to it that `expire` is called at `deadline`."""
        if deadline < self._scope.deadline:
            self._scope.deadline = deadline

    async def run(self) -> None:
        """Keep the deadlines until cancelled."""
        while True:
            now = trio.current_time()
            self._scope = trio.CancelScope(deadline=max(self._expire(now), now + SLACK_S))
            with self._scope:
                await trio.sleep_forever()
