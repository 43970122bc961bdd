"""Calls a second that a node's workers do, by how many processes there are.

    make bench-workers

`empty` returns at once: what a call costs by itself. `busy` computes for about ten milliseconds, holding the
interpreter as it does. The worker processes, the pool and the callers share the machine's cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial

import trio

from bench.common import Cell, cell, interleave, write
from comity.agent import Agent, Work
from comity_node.control.server import ControlServer, ServerLimits
from comity_node.control.workers import WorkerLimits, WorkerPool

agent = Agent("bench")
_ROUNDS = 200_000


@agent.skill("empty")
async def empty(work: Work) -> None:
    """Do nothing."""


@agent.skill("busy")
def busy(work: Work) -> int:
    """Compute for about ten milliseconds."""
    total = 0
    for number in range(_ROUNDS):
        total += number * number % 7
    return total


class _NoHandlers:
    """Nobody calls the control service here."""


async def measure(processes: int, skill: str, callers: int, seconds: float) -> float:
    """Return calls a second."""
    with tempfile.TemporaryDirectory(prefix="comity-") as directory:
        address = f"unix:{directory}/s"
        pool = WorkerPool("bench.example", limits=WorkerLimits(grace_s=60.0))
        server = ControlServer(address, _NoHandlers(), pool, limits=ServerLimits(drain_s=0.1))  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            command = ["-m", "comity.worker", "bench.workers:agent", "--control", address, "--log-level", "error"]
            command += ["--processes", str(processes), "--concurrency", str(-(-callers // processes))]
            supervisor = await trio.to_thread.run_sync(
                lambda: subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
            )
            try:
                while sum(each.workers for each in pool.agents()) < processes:
                    await pool.changed.wait()
                return await _rate(pool, skill, callers, seconds)
            finally:
                supervisor.terminate()
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(supervisor.wait)
                nursery.cancel_scope.cancel()
    raise AssertionError("unreachable")


async def _rate(pool: WorkerPool, skill: str, callers: int, seconds: float) -> float:
    done = 0

    async def call() -> None:
        nonlocal done
        while True:
            await pool.call(skill, None, deadline_s=60.0)
            done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(call)
        await trio.sleep(min(1.0, seconds))  # until all is warm
        before, began = done, time.perf_counter()
        await trio.sleep(seconds)
        rate = (done - before) / (time.perf_counter() - began)
        nursery.cancel_scope.cancel()
    return rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and write `bench-out/workers.json`."""
    parser = argparse.ArgumentParser(prog="bench.workers", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="how many (1 2)")
    parser.add_argument("--callers", type=int, default=16, help="calls under way at a time (16)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (3)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each arm (3)")
    parsed = parser.parse_args(arguments)
    cells: list[Cell] = []
    for skill in agent.skills:
        arms = {
            f"{count}-processes": partial(trio.run, measure, count, skill, parsed.callers, parsed.seconds)
            for count in parsed.processes
        }
        cells += [cell(skill, arm, runs, "calls/s") for arm, runs in interleave(arms, parsed.repeats).items()]
    write("workers", cells)


if __name__ == "__main__":
    main()
