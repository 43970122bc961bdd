"""The arms that need nothing of ours: one asyncio orchestrator, and one broker for each role.

They are written as one would write them who had no other tool: a fixed number of runners instead of a task for each
row, one connection for all requests, no locks, no copies. A group of workers (site) is picked by fewest requests under
way. Where a hop costs something to decide on, the orchestrator pays for one hop after the other; a broker, for each of
its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any, Final

from bench.runtime import grid
from bench.runtime.backend import precise_loop
from bench.runtime.client import AsyncBackend
from bench.runtime.paired import percentile
from bench.runtime.works import Hop, Row, Shape

#: A hop that takes longer than this many times the 95th percentile is asked for a second time (Dean and Barroso, The
#: Tail at Scale, 2013).
_HEDGE_FACTOR: Final = 2.0
_SEEN, _SEEN_LEAST = 256, 32


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one case, the same for every arm.

    Attributes:
        case: of the grid.
        shape: how its rows were drawn, for second attempts.
        rows: them.
        backend: the path of the back-end's socket.
    """

    case: grid.Case
    shape: Shape
    rows: tuple[Row, ...]
    backend: str


class Clerk:
    """Whoever decides on hops: each costs the same, one after the other, and the next one waits."""

    def __init__(self, cost_s: float) -> None:
        self._cost_s = cost_s
        self._free_at = 0.0

    async def decide(self) -> None:
        """Wait until a hop has been decided on."""
        if self._cost_s:
            loop = asyncio.get_running_loop()
            now = loop.time()
            self._free_at = max(now, self._free_at) + self._cost_s
            await asyncio.sleep(self._free_at - now)


class Sites:
    """The groups of workers through which the back-end is called."""

    def __init__(self, backend: AsyncBackend) -> None:
        self._backend = backend
        self._busy = [0] * grid.SITES

    async def call(self, hop: Hop, *, but: int = -1, seconds: float | None = None) -> None:
        """Do a hop at the site with the fewest requests under way."""
        site = self.pick(but)
        await self.call_at(site, hop.pool, hop.seconds if seconds is None else seconds)

    def pick(self, but: int = -1) -> int:
        """Return the site with the fewest requests under way."""
        return min((site for site in range(grid.SITES) if site != but), key=self._busy.__getitem__)

    async def call_at(self, site: int, pool: int, seconds: float) -> None:
        """Do a hop at a site."""
        self._busy[site] += 1
        try:
            await self._backend.call(pool, site, seconds)
        finally:
            self._busy[site] -= 1


async def _with_runners(count: int, runner: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(runner())


async def row_level(run: Run, sites: Sites) -> None:
    """C runners; each takes a row, does all its hops, and takes the next."""
    clerk, waiting = Clerk(run.case.control_ms / 1000), iter(run.rows)

    async def runner() -> None:
        for row in waiting:
            for hop in row:
                await clerk.decide()
                await sites.call(hop)

    await _with_runners(run.case.in_flight, runner)


async def hedged(run: Run, sites: Sites) -> None:
    """As `row_level`, but a hop that takes unusually long is asked for again elsewhere; the first answer counts."""
    clerk, waiting, patience = Clerk(run.case.control_ms / 1000), enumerate(run.rows), _Patience()

    async def runner() -> None:
        for number, row in waiting:
            for position, hop in enumerate(row):
                await clerk.decide()
                again = run.shape.seconds(number, position, attempt=1)
                await _first(sites, hop, again, patience)

    await _with_runners(run.case.in_flight, runner)


class _Patience:
    """How long to wait before asking again: from the latencies that were seen last."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=_SEEN)

    def add(self, seconds: float) -> None:
        self._seen.append(seconds)

    def seconds(self) -> float | None:
        if len(self._seen) < _SEEN_LEAST:
            return None
        return _HEDGE_FACTOR * percentile(sorted(self._seen), 0.95)


async def _first(sites: Sites, hop: Hop, again: float, patience: _Patience) -> None:
    began, site = perf_counter(), sites.pick()
    first = asyncio.ensure_future(sites.call_at(site, hop.pool, hop.seconds))
    asked = {first}
    done, _ = await asyncio.wait(asked, timeout=patience.seconds())
    if not done:
        asked.add(asyncio.ensure_future(sites.call(hop, but=site, seconds=again)))
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    for call in asked - done:
        call.cancel()
    patience.add(perf_counter() - began)


async def batches(run: Run, sites: Sites, size: int) -> None:
    """A batch goes through a stage, at most C of it at a time; when all of it is through, it enters the next."""
    clerk, waiting = Clerk(run.case.control_ms / 1000), iter(run.rows)

    async def stage(hops: Iterator[Hop], count: int) -> None:
        async def runner() -> None:
            for hop in hops:
                await clerk.decide()
                await sites.call(hop)

        await _with_runners(min(count, run.case.in_flight), runner)

    while group := tuple(islice(waiting, size)):
        for number in range(max(map(len, group))):
            hops = [row[number] for row in group if len(row) > number]
            await stage(iter(hops), len(hops))


async def brokers(run: Run, sites: Sites) -> None:
    """A queue and C consumers for each role; a row goes from queue to queue, and the next one enters as one ends."""
    roles = 1 + max(hop.role for row in run.rows for hop in row)
    clerks = [Clerk(run.case.control_ms / 1000) for _ in range(roles)]
    queues = [asyncio.Queue[tuple[Row, int]]() for _ in range(roles)]  # at most C rows are in all of them
    waiting, left, over = iter(run.rows), len(run.rows), asyncio.Event()

    def admit() -> None:
        if (row := next(waiting, None)) is not None:
            queues[row[0].role].put_nowait((row, 0))

    async def consumer(role: int) -> None:
        nonlocal left
        while True:
            row, number = await queues[role].get()
            await clerks[role].decide()
            await sites.call(row[number])
            if number + 1 < len(row):
                queues[row[number + 1].role].put_nowait((row, number + 1))
                continue
            admit()
            left -= 1
            if not left:
                over.set()

    for _ in range(run.case.in_flight):
        admit()
    consumers = [asyncio.create_task(consumer(role)) for role in range(roles) for _ in range(run.case.in_flight)]
    await over.wait()
    for task in consumers:
        task.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)


ARMS: Final[Mapping[str, Callable[[Run, Sites], Coroutine[Any, Any, None]]]] = {
    "central-row": row_level,
    "central-row-hedged": hedged,
    "central-batch-50": lambda run, sites: batches(run, sites, grid.BATCH),
    "central-batch-C": lambda run, sites: batches(run, sites, run.case.in_flight),
    "brokers": brokers,
}


def measure(arm: str, run: Run) -> float:
    """Run an arm once and return its makespan in seconds: from the first decision to the last row's end."""

    async def main() -> float:
        backend = await AsyncBackend.connect(run.backend)
        try:
            began = perf_counter()
            await ARMS[arm](run, Sites(backend))
            return perf_counter() - began
        finally:
            backend.close()

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(main())


def totals(rows: Sequence[Row]) -> int:
    """Return how many hops the rows make."""
    return sum(map(len, rows))
