"""Places for those who have not proved themselves yet: when they run out, whoever has most gives one up."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class FairSlots(Generic[T]):
    """A bounded set of things, each of which counts for a source.

    Who comes always gets a place. When there are too many of its source, the oldest of that source goes; when there are
    too many in all, the oldest of the source that has most goes, and of known sources only when there are no others.
    """

    def __init__(self, total: int, per_source: int, *, knows: Callable[[str], bool] = lambda source: False) -> None:
        """Make places.

        Args:
            total: of all sources.
            per_source: of one.
            knows: whether a source is one from which members have come before.
        """
        self._total, self._per_source, self._knows = total, per_source, knows
        self._sources: dict[str, dict[T, None]] = {}
        self._count = 0
        #: Those that had to go.
        self.evicted = 0

    def __len__(self) -> int:
        return self._count

    def add(self, source: str, item: T) -> T | None:
        """Give `item` a place, and return whoever has lost its own for it."""
        group = self._sources.setdefault(source, {})
        group[item] = None
        self._count += 1
        if len(group) > self._per_source:
            return self._evict(source)
        if self._count > self._total:
            return self._evict(max(self._sources, key=lambda each: (not self._knows(each), len(self._sources[each]))))
        return None

    def remove(self, source: str, item: T) -> None:
        """Take a place back; no effect if it is gone already."""
        group = self._sources.get(source)
        if group is not None and item in group:
            del group[item]
            self._count -= 1
            if not group:
                del self._sources[source]

    def _evict(self, source: str) -> T:
        oldest = next(iter(self._sources[source]))
        self.remove(source, oldest)
        self.evicted += 1
        return oldest
