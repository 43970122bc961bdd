"""How much may be under way at once at somebody whose capacity nobody knows: a window that learns it.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with the slow start of TCP (RFC 5681) up to where it
went wrong last. No clock: seconds of any monotonic clock are passed in. The router holds one for every peer, and who
calls a model's back-end holds one for that.
"""

from __future__ import annotations

import math


class AimdWindow:
    """How many requests may be under way at once.

    `begin` before each request that `free` has room for; then exactly one of `succeeded`, `overloaded`, `released`.
    """

    __slots__ = (
        "_cap", "_decrease", "_first", "_floor", "_outstanding", "_peak", "_round", "_shrunk_s", "_size", "_threshold",
    )  # fmt: skip

    def __init__(self, *, first: float = 4.0, floor: float = 1.0, cap: float = 64.0, decrease: float = 0.5) -> None:
        """Open a window.

        Args:
            first: requests at first, until it is known better.
            floor: that it never falls below; at least 1, so that it can grow again.
            cap: that it never grows over.
            decrease: what is left of it, as a share, after an overload.

        Raises:
            ValueError: not 1 <= floor <= first <= cap, or not 0 < decrease < 1.
        """
        if not 1 <= floor <= first <= cap or not 0 < decrease < 1:
            raise ValueError("a window has 1 <= floor <= first <= cap and 0 < decrease < 1")
        self._first, self._floor, self._cap, self._decrease = first, floor, cap, decrease
        self._size = first
        self._threshold = cap
        self._outstanding = self._peak = self._round = 0
        self._shrunk_s = -math.inf

    @property
    def size(self) -> int:
        """How many may be under way."""
        return int(self._size)

    @property
    def outstanding(self) -> int:
        """How many are."""
        return self._outstanding

    @property
    def free(self) -> int:
        """How many more may begin."""
        return max(0, int(self._size) - self._outstanding)

    def begin(self) -> None:
        """Note that a request begins."""
        self._outstanding += 1
        self._peak = max(self._peak, self._outstanding)

    def succeeded(self) -> None:
        """Note that one was answered in time: twice the window in each round below the threshold, one more beyond it.

        A window of which not half is in use does not grow: nothing shows that more would pass (RFC 7661).
        """
        self.released()
        self._round += 1
        used = self._peak
        if self._round >= int(self._size):
            self._round, self._peak = 0, self._outstanding
        if 2 * used >= int(self._size):
            gained = 1.0 if self._size < self._threshold else 1.0 / self._size
            self._size = min(self._cap, self._size + gained)

    def overloaded(self, now_s: float, after_s: float = math.inf) -> None:
        """Note that one was turned away as too much, or not answered in time.

        Args:
            now_s: the time.
            after_s: how long ago the request began. One that began before the window shrank says nothing new; without
                it each one counts.
        """
        self.released()
        self.shrink(now_s, after_s)

    def shrink(self, now_s: float, after_s: float = math.inf) -> None:
        """Shrink for what `overloaded` says, while all that is under way stays counted."""
        if math.isinf(after_s) or now_s - after_s >= self._shrunk_s:
            self._size = max(self._floor, self._size * self._decrease)
            self._threshold = self._size
            self._shrunk_s = now_s

    def released(self) -> None:
        """Note that one ended without a word about load: cancelled, or refused for another reason."""
        self._outstanding = max(0, self._outstanding - 1)

    def restart(self) -> None:
        """Begin anew from the floor, as with somebody who was away; what is under way stays counted."""
        self._threshold = max(self._floor, min(self._threshold, self._size * self._decrease), self._first)
        self._size = self._floor
