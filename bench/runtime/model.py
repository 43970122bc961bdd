"""What scheduling alone can gain: the same rows in virtual time, where sending and waking up cost nothing.

Row by row: C rows are under way; a row asks for its next slot when its last hop is done, and slots are given in the
order of asking. With a barrier: a batch goes through its first stage, and only when all of it is through, those who go
on enter the second. Both use the draws of the measured runs, so their quotient is what row by row can be faster by: a
measured ratio above it is not due to scheduling.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import islice

from bench.runtime.works import Row


def row_level(rows: Sequence[Row], in_flight: int, slots: Sequence[int], control_s: float = 0.0) -> float:
    """Return the virtual makespan, in seconds, of rows that go their ways one by one.

    Args:
        rows: their hops.
        in_flight: C, rows under way at a time.
        slots: of each pool.
        control_s: what a hop costs the only one who decides.
    """
    return _Run(slots, control_s).play(rows, in_flight, 0.0)


def barrier(rows: Sequence[Row], batch: int, in_flight: int, slots: Sequence[int], control_s: float = 0.0) -> float:
    """Return the virtual makespan, in seconds, of batches that go stage by stage; see `row_level`."""
    run, now, waiting = _Run(slots, control_s), 0.0, iter(rows)
    while group := tuple(islice(waiting, batch)):
        for stage in range(max(map(len, group))):
            now = run.play([row[stage : stage + 1] for row in group if len(row) > stage], in_flight, now)
    return now


def bound(rows: Sequence[Row], slots: Sequence[int]) -> float:
    """Return what no scheduler can beat, in seconds: the longest row, or all of a pool's work over its slots."""
    longest = max(sum(hop.seconds for hop in row) for row in rows)
    loads = [0.0] * len(slots)
    for row in rows:
        for hop in row:
            loads[hop.pool] += hop.seconds
    return max(longest, *(load / count for load, count in zip(loads, slots, strict=True)))


class _Run:
    """Discrete events in the order of their times; those at the same time, in the order in which they were made."""

    def __init__(self, slots: Sequence[int], control_s: float) -> None:
        self._slots = list(slots)
        self._control_s = control_s
        self._decided = 0.0

    def play(self, rows: Sequence[Row], in_flight: int, start: float) -> float:
        """Play rows from `start`; return when the last one is done."""
        free, waiting = list(self._slots), [deque[tuple[int, int]]() for _ in self._slots]
        events: list[tuple[float, int, bool, int, int]] = []  # when, number, whether done (or it asks), row, hop
        now, admitted, count = start, iter(range(len(rows))), 0

        def later(when: float, done: bool, row: int, hop: int) -> None:
            nonlocal count
            count += 1
            heapq.heappush(events, (when, count, done, row, hop))

        def decide(row: int, hop: int) -> None:
            self._decided = max(now, self._decided) + self._control_s
            later(self._decided, False, row, hop)

        def hold(row: int, hop: int) -> None:
            later(now + rows[row][hop].seconds, True, row, hop)

        for row in islice(admitted, in_flight):
            decide(row, 0)
        while events:
            now, _, done, row, hop = heapq.heappop(events)
            pool = rows[row][hop].pool
            if not done and free[pool]:
                free[pool] -= 1
                hold(row, hop)
            elif not done:
                waiting[pool].append((row, hop))
            else:
                if waiting[pool]:
                    hold(*waiting[pool].popleft())
                else:
                    free[pool] += 1
                if hop + 1 < len(rows[row]):
                    decide(row, hop + 1)
                elif (new := next(admitted, None)) is not None:
                    decide(new, 0)
        return now
