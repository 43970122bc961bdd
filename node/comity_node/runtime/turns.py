"""Whose turn it is: a few slots for work, shared fairly among the homes whose batches wait.

Invariant
  S7  a home holds at most its share of the slots, whatever it sends, and homes take turns: one whose batches are many,
      or fail again and again, costs the others no more than its turn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import count

from comity_node.storage.journal import HeldOffer


class Turns:
    """Knows which batches are being worked on and which of the waiting ones come next; times are seconds."""

    def __init__(self, slots: int, per_home: int) -> None:
        """Work on at most `slots` batches at once, and on at most `per_home` of one home."""
        self._slots = slots
        self._per_home = per_home
        self._running: dict[bytes, str] = {}
        self._aside: dict[bytes, float] = {}
        self._served: dict[str, int] = {}
        self._number = count(1)
        self._paused_until = -math.inf

    def choose(self, held: Sequence[HeldOffer], now: float) -> list[HeldOffer]:
        """Choose what to begin now, and count it as begun.

        The home whose last turn is longest ago comes first; of one home's batches, the first in `held`.
        """
        self._aside = {digest: at for digest, at in self._aside.items() if at > now}
        chosen: list[HeldOffer] = []
        while now >= self._paused_until and len(self._running) < self._slots:
            of_home = Counter(self._running.values())
            free = [one for one in held if self._may_begin(one) and of_home[one.home] < self._per_home]
            if not free:
                break
            best = min(free, key=lambda one: self._served.get(one.home, 0))
            self._served[best.home] = next(self._number)
            self._running[best.digest] = best.home
            chosen.append(best)
        return chosen

    def _may_begin(self, offer: HeldOffer) -> bool:
        return offer.digest not in self._running and offer.digest not in self._aside

    def end(self, digest: bytes, again_at: float | None = None) -> None:
        """Free the slot of a batch; if it is not over, it is put aside until `again_at`."""
        del self._running[digest]
        if again_at is not None:
            self._aside[digest] = again_at

    def pause(self, until: float) -> None:
        """Begin nothing before `until`: there is nobody to do the work."""
        self._paused_until = until

    def next_at(self, now: float) -> float:
        """Return when it is worth while to choose again though nothing ended and nothing came; inf if never."""
        upcoming = [at for at in (*self._aside.values(), self._paused_until) if at > now]
        return min(upcoming, default=math.inf)
