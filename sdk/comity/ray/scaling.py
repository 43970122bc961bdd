"""How many workers a queue needs. No Ray, no clock: seconds of any monotonic clock are passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from comity.client import SkillLoad
from comity.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Between which numbers, and how slowly it shrinks.

    Attributes:
        minimum: workers that are kept up with nothing to do.
        maximum: workers, however long the queue.
        idle_s: seconds for which fewer have to be enough before some leave.
    """

    minimum: int = 1
    maximum: int = 8
    idle_s: float = 30.0


class Scaler:
    """Grows at once, shrinks to the most that was needed in the last `idle_s` seconds.

    Args:
        settings: see `ScalingSettings`.
        concurrency: calls that one worker takes at a time.

    Raises:
        ConfigError: not 1 <= minimum <= maximum, or another number is none.
    """

    def __init__(self, settings: ScalingSettings, concurrency: int) -> None:
        if not 1 <= settings.minimum <= settings.maximum or not settings.idle_s >= 0 or concurrency < 1:
            raise ConfigError(
                "workers scale from a minimum of at least 1 to a maximum, with a concurrency of at least 1"
            )
        self._settings, self._concurrency = settings, concurrency
        #: When so many were needed; the numbers fall, so that there are never more entries than `maximum`.
        self._peaks: deque[tuple[float, int]] = deque()

    @property
    def maximum(self) -> int:
        """Workers at most, those that are leaving among them."""
        return self._settings.maximum

    def wanted(self, now_s: float, demand: int) -> int:
        """Return how many workers there should be.

        Args:
            now_s: the time.
            demand: calls that run or wait.
        """
        settings = self._settings
        needed = min(settings.maximum, max(settings.minimum, -(-demand // self._concurrency)))
        while self._peaks and self._peaks[-1][1] <= needed:
            self._peaks.pop()
        self._peaks.append((now_s, needed))
        while now_s - self._peaks[0][0] > settings.idle_s:
            self._peaks.popleft()
        return self._peaks[0][1]


def demand_of(loads: Iterable[SkillLoad], skills: Collection[str]) -> int:
    """Return how many calls of these skills run or wait at the node.

    Calls that other workers of the same skills run count, too: the node does not say whose they are.
    """
    return sum(load.running + load.waiting for load in loads if load.skill in skills)
