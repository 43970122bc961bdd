"""Many tasks in flight on one node: how much memory, how late its loop, and whether all of them come home.

The tasks are of one home; another organization has them in custody, and its agents take as long as they are told to.
When all are there the agents are let go, and everything comes back.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import trio

from bench.common import Cell, cell
from bench.links.processes import _resident
from bench.runtime import flows
from bench.runtime.admission import Admission
from bench.runtime.comity_full import Ends, Site, document, ends, wait_until
from bench.runtime.comity_memory import NoAgents
from bench.runtime.homes import make_homes
from bench.runtime.lag import Probe, read
from comity.client import Client
from comity_node.demo.homes import Home
from comity_node.protocol.flow import read_flow
from comity_node.runtime.passing.ports import End
from comity_node.runtime.passing.world import MemoryWorld, task_ids
from comity_node.storage.connections import connect_readonly

#: As many as Matrix reports on a cluster (arXiv 2511.21686).
TASKS: Final = 12_400
_OTHER: Final = flows.ORGANIZATIONS[0]
_SKILL: Final = flows.skill(0)
_PAIR: Final = (flows.HOME, _OTHER)
_WAIT_S: Final = 90.0
#: Seconds for which no more tasks came to the holder: it has as many as the home's router lets it have.
_QUIET_S: Final = 1.5
_OPEN: Final = "SELECT count(*) FROM journeys WHERE ending = ''"


def flow() -> dict[str, Any]:
    """Return a flow of one step at another organization."""
    step = {"skill": _SKILL, "at": "others", "writes": ["more"], "next": "end"}
    return {
        "state": {"type": "object", "properties": {"more": {"type": "boolean"}}},
        "start": "hold",
        "steps": {"hold": step},
        "limits": {"steps": 4, "seconds": 1800},
        "finish": "none",
    }


class _Patient:
    """Agents that wait until they are let go."""

    def __init__(self) -> None:
        self.let_go = trio.Event()

    def skills(self) -> tuple[str, ...]:
        return (_SKILL,)

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (JSON)
        await self.let_go.wait()
        return {"state": {"more": False}}


def in_memory(tasks: int) -> dict[str, tuple[float, str]]:
    """Measure with ports in memory, both nodes in this process.

    Raises:
        RuntimeError: a task was lost, or came to its end twice.
    """

    async def main() -> dict[str, tuple[float, str]]:
        agents, probe = _Patient(), Probe()
        world = MemoryWorld({flows.HOME: NoAgents(), _OTHER: agents}, read_flow(flow()), onward=True)
        gc.collect()
        resident = _resident(os.getpid())
        async with trio.open_nursery() as nursery:
            await nursery.start(world.run)
            nursery.start_soon(probe.run)
            began = trio.current_time()
            await world.open(flows.HOME, [(each, {}) for each in task_ids(tasks)])
            while world.engine(_OTHER).counts.custody < tasks:  # noqa: ASYNC110  (the engine has no event for it)
                await trio.sleep(0.01)
            held = trio.current_time()
            grown = _resident(os.getpid()) - resident
            agents.let_go.set()
            await world.sinks[flows.HOME].wait(tasks)
            over = trio.current_time()
            nursery.cancel_scope.cancel()
        sink = world.sinks[flows.HOME]
        if {each.end for each in sink.ends.values()} != {End.DONE} or set(sink.told.values()) != {1}:
            raise RuntimeError("a task was lost or came twice")
        return {
            "until all are open": (held - began, "s"),
            "until all are home": (over - held, "s"),
            "more memory of both nodes": (float(grown), "bytes"),
            "p99 of the loop's lag": (probe.percentile(0.99) * 1000, "ms"),
            "longest lag": (probe.percentile(1.0) * 1000, "ms"),
        }

    return trio.run(main)


class _Lagging(Site):
    """A site whose nodes note their loops' lag."""

    def _node(self, home: Home) -> list[str]:
        return ["-m", "bench.runtime.lag", str(home.log / "lag"), *super()._node(home)[2:]]


def in_full(tasks: int) -> dict[str, tuple[float, str]]:
    """Measure two nodes and their workers as processes.

    Raises:
        RuntimeError: a task did not come to its end.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="comity-bench-")))
        for name in ("s", "homes"):
            (directory / name).mkdir()
        admission = stack.enter_context(Admission(directory))
        homes = make_homes(directory / "homes", directory / "s", _PAIR)
        with _Lagging(homes, "bench.runtime.inflight_agents:agent", {"COMITY_BENCH_ADMISSION": admission.path}) as site:
            assert isinstance(site, _Lagging)
            site.start()
            pids = {name: site.node(name).process.pid for name in _PAIR}
            before = {name: _resident(pid) for name, pid in pids.items()}
            admission.begin(0, 2**31)
            with Client(homes[0].control) as client:
                workflow_id = client.submit_workflow(document(flow(), tasks, _PAIR))
                settled = _Settled(homes, tasks)
                wait_until("all tasks are open", settled, site.check, _WAIT_S)
                held = time.time()
                resident = {name: _resident(pid) for name, pid in pids.items()}
                admission.widen(2**31)
                wait_until("all tasks are home", lambda: _done(client, workflow_id), site.check, _WAIT_S)
        found = ends(homes[0], workflow_id)
        if found.counts.get("done", 0) != tasks:
            raise RuntimeError(f"{tasks} tasks, but {found.counts}: {found.reasons}")
        lags = {home.organization: read(home.log / "lag") for home in homes}
    return {
        "until all are open": (settled.opened - found.opened, "s"),
        "until all are home": (found.over - held, "s"),
        "resident memory of the home's node": (float(resident[flows.HOME]), "bytes"),
        **_figures(found, {name: resident[name] - before[name] for name in _PAIR}, lags),
        "of them at the holder": (float(settled.held), "tasks"),
    }


def _figures(found: Ends, grown: Mapping[str, int], lags: Mapping[str, Probe]) -> dict[str, tuple[float, str]]:
    home, other = (lags[name] for name in _PAIR)
    return {
        "more memory of the home's node": (float(grown[flows.HOME]), "bytes"),
        "more memory of the holder's node": (float(grown[_OTHER]), "bytes"),
        "p99 of the home's loop's lag": (home.percentile(0.99, found.opened) * 1000, "ms"),
        "p99 of the holder's loop's lag": (other.percentile(0.99, found.opened) * 1000, "ms"),
        "longest lag": (max(home.percentile(1.0, found.opened), other.percentile(1.0, found.opened)) * 1000, "ms"),
    }


class _Settled:
    """Whether all tasks are open at home, and no more of them come to the holder."""

    def __init__(self, homes: Sequence[Home], tasks: int) -> None:
        self._homes = homes
        self._tasks = tasks
        self.held = 0
        self.opened = 0.0
        self._since = time.time()

    def __call__(self) -> bool:
        held = _count(self._homes[1], "SELECT count(*) FROM tokens_held")
        if held != self.held:
            self.held, self._since = held, time.time()
        if not self.opened and _count(self._homes[0], _OPEN) >= self._tasks:
            self.opened = time.time()
        return bool(held and self.opened and time.time() - self._since > _QUIET_S)


def _count(home: Home, query: str) -> int:
    with closing(connect_readonly(home.path / "node.db")) as database:
        return int(database.execute(query).fetchone()[0])


def _done(client: Client, workflow_id: str) -> bool:
    return client.workflow(workflow_id).state in ("done", "failed")


def cells(tasks: int, arms: Mapping[str, Callable[[int], dict[str, tuple[float, str]]]]) -> list[Cell]:
    """Measure each arm once."""
    found = []
    for arm, measure in arms.items():
        for work, (value, unit) in measure(tasks).items():
            found.append(cell(f"{tasks:,} tasks in flight: {work}", arm, [value], unit))
    return found


ARMS: Final[Mapping[str, Callable[[int], dict[str, tuple[float, str]]]]] = {
    "Comity in memory": in_memory,
    "Comity in full": in_full,
}
