"""Agents of the arm in full, for `python -m comity.worker bench.runtime.full_agents:agent`.

The home's agent lets rows in; the other organizations' agents hold a slot of the back-end for as long as the hop was
drawn. What a row is follows from the key of the run: it is the name of the first step, and travels in the row's state.

    COMITY_BENCH_SITE        the organization's number; -1: the home
    COMITY_BENCH_BACKEND     the back-end's socket
    COMITY_BENCH_ADMISSION   the admission's socket
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from functools import lru_cache
from typing import Any

from bench.runtime import flows
from bench.runtime.admission import Door
from bench.runtime.central import Clerk
from bench.runtime.client import AsyncBackend
from bench.runtime.works import WORKS, Shape
from comity.agent import Agent, Work

agent = Agent("bench")
_SITE = int(os.environ.get("COMITY_BENCH_SITE", "-1"))


def key_of(work: str, shape: Shape, control_ms: float) -> str:
    """Return the key of a run."""
    return f"{work}_{shape.kind}_{shape.seed}_{int(shape.stragglers)}_{control_ms:g}_{shape.mean_s:g}"


class _Run:
    """What the key of a run says."""

    def __init__(self, key: str) -> None:
        self.work, kind, seed, stragglers, control_ms, mean_s = key.split("_")
        self.shape = Shape(int(seed), kind, float(mean_s), stragglers == "1")
        self.clerk = Clerk(float(control_ms) / 1000)
        self.attempts: Counter[tuple[int, int]] = Counter()
        self.ways: dict[int, list[tuple[int, int]]] = {}

    def way(self, row: int) -> list[tuple[int, int]]:
        """Return the roles and pools of a row's hops."""
        if row not in self.ways:
            self.ways[row] = WORKS[self.work](self.shape, row)
        return self.ways[row]


@lru_cache(maxsize=4)
def _run(key: str) -> _Run:
    return _Run(key)


class Connections:
    """Made when the first work comes, on the worker's loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._backend: AsyncBackend | None = None
        self._door: Door | None = None

    async def backend(self) -> AsyncBackend:
        """Return the connection to the back-end."""
        async with self._lock:
            if self._backend is None:
                self._backend = await AsyncBackend.connect(os.environ["COMITY_BENCH_BACKEND"])
            return self._backend

    async def door(self) -> Door:
        """Return the connection to the admission."""
        async with self._lock:
            if self._door is None:
                path = os.environ["COMITY_BENCH_ADMISSION"]
                _, self._door = await asyncio.get_running_loop().create_unix_connection(Door, path)
            return self._door


connections = Connections()


async def _enter(work: Work) -> dict[str, Any]:
    """Wait until a row may be under way."""
    row = await (await connections.door()).enter()
    return {"state": {"row": row, "hop": 0, "run": work.input["step"]}}


async def _perform(work: Work) -> dict[str, Any]:
    """Do a hop."""
    state = work.input["state"]
    run, row, hop = _run(state["run"]), state["row"], state["hop"]
    way = run.way(row)
    attempt = run.attempts[row, hop]
    run.attempts[row, hop] += 1
    await run.clerk.decide()
    await (await connections.backend()).call(way[hop][1], _SITE, run.shape.seconds(row, hop, attempt))
    more = hop + 1 < len(way)
    if not more:
        (await connections.door()).done(row)
    return {"state": {"hop": hop + 1, "more": more}}


if _SITE < 0:
    agent.skill(flows.ENTER)(_enter)
else:
    for _name in flows.skills_at(_SITE):
        agent.skill(_name)(_perform)
