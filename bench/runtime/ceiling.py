"""How many hops a second there are at most: agents that cost nothing, in memory and in full, beside Ray's actors.

A hop is a task that one organization hands to another, with its acknowledgement. The task's state has a text, so that a
token is about as long as the message that Ray's actors send each other.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import trio

from bench.common import Cell, Ratio, cell, compare
from bench.runtime import ray_pingpong
from comity_node.protocol.flow import Flow, read_flow
from comity_node.runtime.passing.ports import End
from comity_node.runtime.passing.world import MemoryWorld, task_ids

#: Bytes of Ray's message, and of a token, nearly.
MESSAGE: Final = 1024
_TEXT: Final = 700
TURNS: Final = 50
_ROWS: Final = 64
#: Tasks under way together.
MANY: Final = 1000
IN_MEMORY: Final = "Comity in memory"
_HOME, _OTHER = "home.example", "other.example"
_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_RAY_STARTS_S: Final = 90.0


def ping_pong(other: str, turns: int = TURNS) -> dict[str, Any]:
    """Return a flow that goes to and fro between the home and others, or stays at home (`other` is "home")."""
    common = {"reads": ["turn"], "writes": ["turn"], "rows": _ROWS, "most": turns}
    over = {"when": {"turn": {"above": turns - 0.5}}, "go": "end"}
    return {
        "state": {
            "type": "object",
            "properties": {"turn": {"type": "integer"}, "text": {"type": "string", "maxLength": 2 * _TEXT}},
        },
        "start": "open",
        "steps": {
            "open": {"skill": "open", "at": "home", "rows": _ROWS, "writes": ["turn", "text"], "next": "pong"},
            "pong": {"skill": "pong", "at": other, **common, "next": [over, {"go": "ping"}]},
            "ping": {"skill": "ping", "at": "home", **common, "next": [over, {"go": "pong"}]},
        },
        "limits": {"steps": turns + 1, "seconds": 600},
        "finish": "none",
    }


def opened(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Begin rows, each with a text."""
    return {"rows": [{"state": {"turn": 0, "text": "x" * _TEXT}} for _ in payload["rows"]]}


def turned(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Answer as both agents do: one turn more."""
    return {"rows": [{"state": {"turn": work["state"]["turn"] + 1}} for work in payload["rows"]]}


async def _in_memory(flow: Flow, tasks: int, at_once: int, world: MemoryWorld) -> float:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.run)
        gc.collect()
        began = perf_counter()
        rows: list[tuple[bytes, Mapping[str, Any]]] = [(each, {}) for each in task_ids(tasks)]
        for start in range(0, tasks, at_once):
            await world.open(_HOME, rows[start : start + at_once])
            await world.sinks[_HOME].wait(min(start + at_once, tasks))
        passed = perf_counter() - began
        nursery.cancel_scope.cancel()
    if any(each.end is not End.DONE for each in world.sinks[_HOME].ends.values()):
        raise RuntimeError("not all tasks came to their end")
    return passed


def in_memory(other: str, tasks: int, at_once: int, turns: int = TURNS) -> float:
    """Return steps a second of tasks, so many at once, that go between two nodes in one process, or stay at one."""
    # Imported late: `memory.Agents` is for measurements, and has nothing to do with those of the grid.
    from comity_node.runtime.passing.memory import Agents

    skills = {"open": opened, "ping": turned, "pong": turned}
    agents = {_HOME: Agents(skills)} if other == "home" else {_HOME: Agents(skills), _OTHER: Agents({"pong": turned})}
    flow = read_flow(ping_pong(other, turns))
    passed = trio.run(_in_memory, flow, tasks, at_once, MemoryWorld(agents, flow, onward=True))
    return tasks * turns / passed


def memory_cells(repeats: int, scale: float = 1.0) -> list[Cell]:
    """Measure the engine with its ports in memory."""
    many, turns = max(2, int(MANY * scale)), max(4, int(TURNS * scale))
    works: dict[str, Callable[[], float]] = {
        "ceiling steps at one node": lambda: in_memory("home", many, many, turns),
        "ceiling 1,000 under way": lambda: in_memory("others", many, many, turns),
        "ceiling one after the other": lambda: in_memory("others", 20, 1, 2 * turns),
    }
    units = {"ceiling steps at one node": "steps/s"}
    return [
        cell(work, IN_MEMORY, [measure() for _ in range(repeats)], units.get(work, "hops/s"))
        for work, measure in works.items()
    ]


def ray_cells(seconds: float, repeats: int, say: Callable[[str], None]) -> list[Cell]:
    """Measure Ray's actor ping-pong, in processes of their own; nothing, with a line, where Ray is not installed."""
    if not ray_pingpong.available():
        say("Ray is not installed: left out (pip install ray)")
        return []
    runs = [_ray(seconds) for _ in range(repeats)]
    arms = {
        "sequential": ("Ray", "one after the other"),
        "pipelined": ("Ray", "1,000 under way"),
        "async": ("Ray, asyncio actor", "1,000 under way"),
    }
    return [cell(f"ceiling {work}", arm, [run[name] for run in runs], "hops/s") for name, (arm, work) in arms.items()]


def ratios(cells: list[Cell]) -> list[Ratio]:
    """Compare every arm of ours with Ray in the works that both have."""
    found = {(each.work, each.arm): each for each in cells}
    return [
        compare(each, found[each.work, "Ray"])
        for each in cells
        if not each.arm.startswith("Ray") and (each.work, "Ray") in found
    ]


def _ray(seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.runtime.ray_pingpong", str(seconds), str(MESSAGE)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    limit = _RAY_STARTS_S + 5 * seconds
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=limit
    )
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates
