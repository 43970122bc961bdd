"""Arm `comity-memory`: Comity's engine for a home and four organizations, in one process, with its ports in memory.

Every step of every row is done at another organization than the one before; tokens go straight from one to the next. In
the arm `comity-memory-home` they come home after each step, as they do where an agreement does not let them go onward.
What is left out against `comity-full` are signatures, policy, disk and links; engine and router are the same.

What a hop costs whoever decides on it (`Case.control_ms`) is charged once for each hop, at the gateway of the
organization that picked who does it, one hop after the other: in `comity-memory` of the home for a row's first hop and
then of the organization that has the row, in `comity-memory-home` of the home for every hop, as in the central arms.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from time import perf_counter
from typing import Any, Final, Self

import trio

from bench.runtime import flows
from bench.runtime.central import Run
from bench.runtime.trio_client import TrioBackend, TrioClerk, open_backend
from comity.errors import NoWorker
from comity_node.protocol.flow import Flow, read_flow
from comity_node.protocol.token import HOME, Token
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import End, Gateway, Outgoing, Refusal, Routing
from comity_node.runtime.passing.world import MemorySink, MemoryWorld, task_ids
from comity_node.runtime.router import Router
from comity_node.runtime.router_flows import FlowRouting

#: Of the latencies that the engine's usual times are made for, in seconds.
_USUAL_S: Final = 1.2
_OVER: Final = frozenset({End.DONE, End.DROPPED})
#: Seconds within which all rows have to be home.
_LIMIT_S: Final = 600.0


def limits(mean_s: float) -> PassingLimits:
    """Return the engine's limits, with its times as much shorter than usual as the latencies are.

    Tasks are few here: the usual share of them that may be out twice, a twentieth, would be none.
    """
    usual, scale = PassingLimits(), mean_s / _USUAL_S
    return replace(
        usual,
        lease_s=usual.lease_s * scale,
        hedge_least_s=usual.hedge_least_s * scale,
        call_hedge_least_s=usual.call_hedge_least_s * scale,
        patience_s=usual.patience_s * scale,
        backoff_s=usual.backoff_s * scale,
        backoff_most_s=usual.backoff_most_s * scale,
        hedge_share=0.25,
    )


class Through:
    """The rows whose last hop is answered: each makes room for the next one, as in all arms."""

    def __init__(self) -> None:
        """Know of none."""
        self._rows: set[int] = set()
        self._news = trio.Event()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._rows)

    def add(self, row: int) -> None:
        """Note that a row's last hop is done, perhaps once more."""
        self._rows.add(row)
        self._news.set()
        self._news = trio.Event()

    async def wait(self, count: int) -> None:
        """Wait until there are so many."""
        while len(self._rows) < count:
            await self._news.wait()


class Agents:
    """An organization's agents: they hold a slot of the back-end for as long as the hop was drawn."""

    def __init__(
        self, site: int, run: Run, backend: TrioBackend, attempts: Counter[tuple[int, int]], through: Through
    ) -> None:  # fmt: skip
        """Serve `site`; `attempts` counts calls of each (row, hop), of all sites together; `through` is of all, too."""
        self._site = site
        self._run = run
        self._script = flows.Script(run.rows)
        self._backend = backend
        self._attempts = attempts
        self._through = through
        self._skills = flows.skills_at(site)

    def skills(self) -> tuple[str, ...]:
        """Return the skills of the site."""
        return self._skills

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (JSON in, JSON out)
        """Do a hop."""
        state: Mapping[str, Any] = payload["state"]
        hop = self._script.hop(state)
        key = (state["row"], state["hop"])
        attempt = self._attempts[key]
        self._attempts[key] += 1
        seconds = self._run.shape.seconds(*key, attempt) if attempt else hop.seconds
        await self._backend.call(hop.pool, self._site, seconds)
        answer = self._script.answer(state)
        if not answer["state"]["more"]:
            self._through.add(state["row"])
        return answer


class Deciding:
    """A gateway at which each hop that is sent to somebody costs what it costs to decide on it."""

    def __init__(self, inner: Gateway, cost_s: float) -> None:
        """Stand in front of `inner`; a hop costs `cost_s` seconds, and the next one waits."""
        self._inner = inner
        self._clerk = TrioClerk(cost_s)

    async def leave(self, to: str, rows: Sequence[Outgoing]) -> Sequence[Token | Refusal]:
        """Decide on each row, but not on those that only come home; then let them out."""
        for row in rows:
            if row.role != HOME:
                await self._clerk.decide()
        return await self._inner.leave(to, rows)

    async def arrive(self, sender: str, tokens: Sequence[Token]) -> Sequence[Refusal | None]:
        """Let tokens in."""
        return await self._inner.arrive(sender, tokens)


class NoAgents:
    """The home's: none."""

    def skills(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (JSON in, JSON out)
        """Refuse.

        Raises:
            NoWorker: always.
        """
        raise NoWorker(f"the home does not offer {skill}")


def routing(organization: str, random: Random) -> Routing:
    """Return the router that nodes have."""
    return FlowRouting(Router(random), me=organization, clock_s=trio.current_time, reachable=lambda _: True)


class ComityMemory:
    """The arm."""

    def __init__(self, *, onward: bool) -> None:
        """Let tokens go from one organization straight to the next, or always come home in between."""
        self._onward = onward
        self._flows: dict[str, Flow] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def measure(self, run: Run) -> float:
        """Run once; the makespan goes from the first row that is opened to the last one that is home again.

        Raises:
            RuntimeError: a row was lost, came twice or failed.
        """
        if run.case.work not in self._flows:
            self._flows[run.case.work] = read_flow(flows.flow(run.case.work))
        return trio.run(self._measure, run, self._flows[run.case.work])

    def cpu_seconds(self) -> float:
        """Return this process's processor time."""
        return time.process_time()

    async def _measure(self, run: Run, flow: Flow) -> float:
        attempts, through = Counter[tuple[int, int]](), Through()
        async with open_backend(run.backend) as backend, trio.open_nursery() as nursery:
            sites = enumerate(flows.ORGANIZATIONS)
            agents = {name: Agents(site, run, backend, attempts, through) for site, name in sites}
            world = MemoryWorld(
                {flows.HOME: NoAgents(), **agents},
                flow,
                seed=run.shape.seed,
                limits=limits(run.case.mean_s),
                onward=self._onward,
                routing=routing,
                gateway=lambda _, inner: Deciding(inner, run.case.control_ms / 1000) if run.case.control_ms else inner,
            )
            await nursery.start(world.run)
            began = perf_counter()
            await feed(world, run, through)
            passed = perf_counter() - began
            nursery.cancel_scope.cancel()
        return passed


async def feed(world: MemoryWorld, run: Run, through: Through) -> None:
    """Open C rows, then one for each that is through, and wait until the home has all of them again.

    Raises:
        RuntimeError: a row did not come to its end in time, or came to it twice.
    """
    sink, count, opened = world.sinks[flows.HOME], len(run.rows), 0
    rows = [(task_id, flows.first_state(number)) for number, task_id in enumerate(task_ids(count))]
    with trio.move_on_after(_LIMIT_S) as scope:
        while opened < count:
            most = min(len(through) + run.case.in_flight, count)
            await world.open(flows.HOME, rows[opened:most])
            opened = most
            await through.wait(min(opened - run.case.in_flight + 1, count))
        await sink.wait(count)
    if scope.cancelled_caught:
        raise RuntimeError(
            f"{run.case.name}: after {_LIMIT_S:.0f} s, {opened} of {count} rows were let in, {len(through)} did their "
            f"last step, and {len(sink.ends)} are home"
        )
    _check(sink, count)


def _check(sink: MemorySink, count: int) -> None:
    ends = Counter(ending.end for ending in sink.ends.values())
    if not ends.keys() <= _OVER or set(sink.told.values()) != {1} or len(sink.ends) != count:
        raise RuntimeError(f"rows were lost or came twice: {ends}")
