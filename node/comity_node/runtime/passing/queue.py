"""A fair queue: deficit round robin (Shreedhar and Varghese, 1996) over (home, agreement), in batches of one step.

Invariant
  R4  whoever puts in a lot waits for its own, not others for it: each gets the same share of what is taken out, and
      is behind by no more than a quantum and a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

_QUANTUM = 32


class _Line(Generic[T]):
    """What one source has waiting, by step; steps take turns."""

    __slots__ = ("deficit", "steps", "turns")

    def __init__(self) -> None:
        self.deficit = 0
        self.steps: dict[Hashable, tuple[int, deque[T]]] = {}
        self.turns: deque[Hashable] = deque()


class FairQueue(Generic[T]):
    """Items wait by source and step; it is bounded by who fills it."""

    def __init__(self, quantum: int = _QUANTUM) -> None:
        """Give each source `quantum` items a turn."""
        self._quantum = quantum
        self._lines: dict[Hashable, _Line[T]] = {}
        self._ring: deque[Hashable] = deque()
        self._size = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._size

    def put(self, source: Hashable, step: Hashable, item: T, rows: int = 1) -> bool:
        """Add an item of a source that waits for a step, of which at most `rows` are taken at a time.

        Returns:
            Whether there is one more batch now.
        """
        line = self._lines.get(source)
        if line is None:
            line = self._lines[source] = _Line()
            self._ring.append(source)
        waiting = line.steps.get(step)
        if waiting is None:
            waiting = line.steps[step] = (rows, deque())
            line.turns.append(step)
        waiting[1].append(item)
        self._size += 1
        return rows == 1 or len(waiting[1]) % rows == 1

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Forget the items that are not wanted any longer; the others keep their turns."""
        for source, line in list(self._lines.items()):
            for step, (rows, waiting) in list(line.steps.items()):
                left = deque(item for item in waiting if wanted(item))
                self._size -= len(waiting) - len(left)
                if left:
                    line.steps[step] = rows, left
                else:
                    del line.steps[step]
                    line.turns.remove(step)
            if not line.turns:
                del self._lines[source]
                self._ring.remove(source)

    def take(self) -> list[T]:
        """Take the next batch: items of one source and one step; empty if nothing waits."""
        if not self._size:
            return []
        while (line := self._lines[self._ring[0]]).deficit <= 0:
            line.deficit += self._quantum
            self._ring.rotate(-1)
        step = line.turns[0]
        rows, waiting = line.steps[step]
        batch = [waiting.popleft() for _ in range(min(rows, len(waiting)))]
        line.deficit -= len(batch)
        self._size -= len(batch)
        if waiting:
            line.turns.rotate(-1)
        else:
            del line.steps[step]
            line.turns.popleft()
            if not line.turns:
                del self._lines[self._ring.popleft()]
        return batch
