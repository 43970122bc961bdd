"""Which tokens a holder gives back since own agents stand still.

What waits only loses its place. Of calls that have begun, as many as may be made twice are given up in the time after
which they are overdue, the newest first and the oldest of a skill never: if agents have become slow for good, here and
elsewhere, most calls are answered all the same, and show how long they take now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.visit import Call, Visit


class Giving:
    """Chooses what is given back, and remembers how many calls may be given up now."""

    def __init__(self, limits: PassingLimits) -> None:
        """Give up a share of the calls, as `limits` says, and at first so many at once."""
        self._share = limits.call_hedge_share * limits.window
        self._credit, self._at_s = self._share, 0.0

    def chosen(
        self, visits: Collection[Visit], overdue: Mapping[str, float], now_s: float, elsewhere: Callable[[Visit], bool]
    ) -> Iterator[Visit]:
        """Return, one by one, what is to be given back; the caller does that before it asks for the next.

        Args:
            visits: all that is here, the oldest first.
            overdue: the skills at which agents stand still, and for how many seconds a visit may be here then.
            now_s: the time that visits go by.
            elsewhere: tells whether another organization can do the step of a visit.
        """
        if not overdue:
            return
        more = self._share * (now_s - self._at_s) / max(overdue.values())
        self._credit, self._at_s = min(max(1.0, self._share), self._credit + more), now_s
        oldest: dict[str, Call] = {}
        late: list[Visit] = []
        for visit in visits:
            if visit.call is not None:
                oldest.setdefault(visit.step.skill, visit.call)
            if (after_s := overdue.get(visit.step.skill)) is not None and now_s - visit.since_s >= after_s:
                late.append(visit)
        for visit in reversed(late):
            begun = visit.call is not None
            if begun and not (self._credit >= 1.0 and visit.call is not oldest[visit.step.skill] and _twice(visit)):
                continue
            if elsewhere(visit):
                self._credit -= begun
                yield visit


def _twice(visit: Visit) -> bool:
    """Whether a step that has begun may be done elsewhere, too."""
    return visit.step.hedge and not visit.step.leased
