"""So many things a second and no more: what strangers can make a node compute is bounded."""

from __future__ import annotations

import trio

from comity.errors import Busy


class Pace:
    """Turns at a steady rate, a burst of them at once; who would wait too long is refused at once.

    A token bucket that is kept as the time at which it is full again (the generic cell rate algorithm of ITU-T I.371).
    """

    def __init__(self, per_s: float, *, burst: int, longest_wait_s: float) -> None:
        """Make a pace.

        Args:
            per_s: turns a second, in the long run.
            burst: turns that are given without waiting after a quiet time.
            longest_wait_s: whoever would have to wait longer is refused instead.
        """
        self._each_s = 1 / per_s
        self._ahead_s = burst / per_s
        self._longest_wait_s = longest_wait_s
        self._full_at = float("-inf")

    async def turn(self) -> None:
        """Wait for a turn.

        Raises:
            Busy: there are too many before us.
        """
        now = trio.current_time()
        full_at = max(self._full_at, now) + self._each_s
        wait_s = full_at - self._ahead_s - now
        if wait_s > self._longest_wait_s:
            raise Busy("too many at once", retry_after_ms=round(wait_s * 1000))
        self._full_at = full_at
        await trio.sleep(max(wait_s, 0))
