"""How much a peer may make us hold: receive windows that grow with the line, under budgets. No I/O.

A window is memory that the peer may fill whenever it likes, so a window is charged when it is granted, not when it is
filled, and given back when nothing of it can be held any more.

A stream moves at most a window per round trip. When it is read at more than a quarter of that pace, the window and not
the reader may be what limits the stream, and it doubles (go-libp2p's Yamux does so at an eighth).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from comity_node.transport.budget import Budget

#: When less is left, windows that have grown shrink again: room for a few new streams.
_TIGHT: Final = 1024 * 1024
#: Growing by less is not worth a frame.
_LEAST_GROWTH: Final = 64 * 1024
_ROUND_TRIPS: Final = 4
#: Wider windows are granted again by quarters, others by halves: a frame is cheap beside what is on its way then.
_WIDE: Final = 1024 * 1024


class WindowBudget:
    """What the windows of one connection add up to: at most a limit, most of it charged to a shared budget."""

    __slots__ = ("_charged", "_free", "_shared", "limit", "used")

    def __init__(self, limit: int, free: int) -> None:
        """Make a budget of `limit` bytes, of which the first `free` are charged to nobody else."""
        self.limit = limit
        #: Bytes that are granted.
        self.used = 0
        self._free = free
        self._charged = 0
        self._shared: Budget | None = None

    def share(self, budget: Budget) -> None:
        """Charge what is granted, and what will be, to a budget that others use, too."""
        if budget is self._shared:
            return
        if self._shared is not None:
            self._shared.give(self._charged)
        self._shared, self._charged = budget, 0
        self.take(0)  # if it has not as much left, nothing more can be taken until it has

    @property
    def may_grow(self) -> bool:
        """Whether windows may grow at all: only when somebody watches over all of them."""
        return self._shared is not None

    @property
    def is_tight(self) -> bool:
        """Whether so little is left that new streams may not get a window."""
        if self.take(_TIGHT):
            self.give(_TIGHT)
            return False
        return True

    def take(self, count: int) -> bool:
        """Take so many bytes, or none and return False if there are not as many left."""
        if self.used + count > self.limit:
            return False
        if self._shared is not None and (missing := self._due(count)) > 0:
            if not self._shared.take(missing):
                return False
            self._charged += missing
        self.used += count
        return True

    def take_to_grow(self, wanted: int) -> int:
        """Take up to `wanted` bytes and return how many; as many must be left for new streams afterwards."""
        while wanted >= _LEAST_GROWTH:
            if self.take(2 * wanted):
                self.give(wanted)
                return wanted
            wanted //= 2
        return 0

    def give(self, count: int) -> None:
        """Give bytes back."""
        self.used -= count
        if self._shared is not None and (surplus := -self._due(0)) > 0:
            self._shared.give(surplus)
            self._charged -= surplus

    def _due(self, count: int) -> int:
        return max(0, self.used + count - self._free) - self._charged


@dataclass(slots=True)
class ReceiveWindow:
    """What the peer may send of one stream.

    At all times `size` is the sum of what it may still send (`left`), what waits unread, and what has been read and
    not been granted again (`read`).

    Attributes:
        size: bytes that were granted and may be held.
        left: bytes that the peer may still send.
        granted_at: time of the last grant, in seconds.
        read: bytes that have been read since.
    """

    size: int
    left: int
    granted_at: float
    read: int = 0

    @property
    def unread(self) -> int:
        """Bytes that wait."""
        return self.size - self.left - self.read

    @property
    def is_due(self) -> bool:
        """Whether so much has been read that the peer should be told."""
        return self.read * (4 if self.size > _WIDE else 2) >= self.size

    def growth(self, now: float, rtt_s: float, most: int) -> int:
        """How many bytes wider the window should be: none unless the peer fills it faster than the line turns round."""
        if (now - self.granted_at) * self.size >= _ROUND_TRIPS * rtt_s * self.read:
            return 0
        return max(0, min(self.size, most - self.size))

    def grant(self, now: float, change: int = 0) -> int:
        """Grant what was read again and `change` bytes more (or fewer); return how much more the peer may send."""
        amount = self.read + change
        self.size += change
        self.left += amount
        self.read = 0
        self.granted_at = now
        return amount

    def end(self) -> int:
        """Nothing more comes; return how many bytes can be held no longer."""
        freed = self.left + self.read
        self.size -= freed
        self.left = self.read = 0
        return freed
