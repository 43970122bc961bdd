"""Worker processes on a real socket: an agent that tells and waits over FIFOs, and the pool that it serves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import trio

from comity_node.control.server import ControlServer, ServerLimits
from comity_node.control.workers import WorkerLimits, WorkerPool

#: A skill tells that it runs by writing its pid into a FIFO, and goes on when the test writes into another.
AGENT = """
import asyncio, os
from comity.agent import Agent, Work

agent = Agent("tester")
not_an_agent = 5

@agent.skill("echo")
async def echo(work: Work):
    return {"pid": os.getpid(), "input": work.input}

@agent.skill("raise")
def raises(work: Work):
    raise ValueError("I do not like this one")

@agent.skill("wrong-type")
def wrong_type(work: Work):
    return {"records": [{"age": 1}, {"age": {2}}]}

@agent.skill("exit")
def leave(work: Work):
    raise SystemExit(3)

@agent.skill("held")
def held(work: Work):
    tell(work.input["started"], os.getpid())
    with open(work.input["release"]) as release:
        return {"pid": os.getpid(), "told": release.read()}

@agent.skill("until-cancelled")
def until_cancelled(work: Work):
    tell(work.input["started"], os.getpid())
    while not work._cancelled.wait(0.01):
        pass
    tell(work.input["stopped"], "thread")

@agent.skill("until-cancelled-async")
async def until_cancelled_async(work: Work):
    tell(work.input["started"], os.getpid())
    try:
        await asyncio.Event().wait()
    finally:
        tell(work.input["stopped"], "task")

def tell(fifo, what):
    with open(fifo, "w") as out:
        out.write(str(what))
"""


class Handlers:
    """These tests call nothing."""


class Place:
    """A directory with an agent, a socket and FIFOs, and the processes started in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.address = f"unix:{directory}/run/s"
        self.agent = directory / "their_agent.py"
        self.agent.write_text(AGENT)
        self.started, self.release, self.stopped = (self.fifo(name) for name in ("started", "release", "stopped"))
        self.held = {"started": self.started, "release": self.release}
        self.processes: list[subprocess.Popen[str]] = []

    def fifo(self, name: str) -> str:
        """Make one; for one writer and one reader at a time."""
        os.mkfifo(self._directory / name)
        return str(self._directory / name)

    def start(self, *options: str, agent: str = "agent") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "comity.worker", f"{self.agent}:{agent}", "--control", self.address, *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def run(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start something else, of which the answer is wanted and not the log."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.processes.append(process)
        return process


@contextlib.contextmanager
def worker_place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="comity-") as directory:
        place = Place(Path(directory))
        try:
            yield place
        finally:
            for process in place.processes:
                process.kill()
                process.communicate(timeout=10)


@contextlib.asynccontextmanager
async def node(place: Place, **limits: Any) -> AsyncIterator[WorkerPool]:
    """A pool behind a control API, stopped again at the end."""
    pool = WorkerPool("mercy.example", limits=WorkerLimits(**{"grace_s": 30.0, **limits}))
    server = ControlServer(place.address, Handlers(), pool, limits=ServerLimits(drain_s=0.1))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield pool
        nursery.cancel_scope.cancel()


async def read(fifo: str) -> str:
    """What a skill writes into a FIFO; waits for it."""
    return await trio.to_thread.run_sync(lambda: Path(fifo).read_text(), abandon_on_cancel=True)  # type: ignore[call-arg]  # stubs of an older trio


async def write(fifo: str, text: str) -> None:
    await trio.to_thread.run_sync(lambda: Path(fifo).write_text(text), abandon_on_cancel=True)  # type: ignore[call-arg]  # stubs of an older trio


async def workers_are(pool: WorkerPool, count: int) -> None:
    while sum(agent.workers for agent in pool.agents()) != count:
        await pool.changed.wait()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the process; its exit status and what it said."""
    said = process.communicate(timeout=20)[1]
    return process.returncode, said


class Calling:
    """A call in the background."""

    def __init__(self, pool: WorkerPool, nursery: trio.Nursery, skill: str, payload: Any) -> None:
        self.result: Any = None
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, pool, skill, payload)

    async def _run(self, pool: WorkerPool, skill: str, payload: Any) -> None:
        with self.scope:
            self.result = await pool.call(skill, payload, deadline_s=60)
        self.over.set()
