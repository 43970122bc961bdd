"""The demo's processes: a node and a worker for each organization; none of them outlives the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from comity.client import Client
from comity.errors import AgentFailed, ControlError, DeadlineExceeded
from comity_node.demo.homes import BAD, Home

_STOP_S = 15.0
_POLL_S = 0.2
_TAIL = 400
#: Small matrices: two threads each would spend their time on waking each other.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
#: Batches after which the bad organization turns bad.
TURN = 1


@dataclass(frozen=True, slots=True)
class Running:
    """A process that the demo started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """Starts the organizations' processes, and ends every one of them when it is left."""

    def __init__(self, homes: Sequence[Home]) -> None:
        """Own the processes of `homes`."""
        self._homes = {home.organization: home for home in homes}
        self._running: dict[str, Running] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_node(self, organization: str) -> Running:
        """Start (or start again) the node of an organization."""
        home = self._homes[organization]
        if organization == BAD:
            others = [name for name in self._homes if name != BAD]
            command = ["-m", "comity_node.demo.bad_node", "--home", str(home.path), "--members", *others]
        else:
            command = ["-m", "comity_node.cli", "--home", str(home.path), "node", "run"]
        return self._start(f"{organization} node", command, home.log / "node.log", {})

    def start_worker(self, organization: str) -> Running:
        """Start (or start again) the worker of an organization."""
        home = self._homes[organization]
        agent = "bad" if organization == BAD else "hospital"
        environment = {"COMITY_DEMO_DATA": str(home.data), "COMITY_DEMO_TURN": str(TURN), **_ONE_THREAD}
        command = ["-m", "comity.worker", f"comity_node.demo.agents:{agent}", "--control", home.control]
        return self._start(f"{organization} worker", command, home.log / "worker.log", environment)

    def start_helper(self, name: str, arguments: Sequence[str], log: Path) -> Running:
        """Start a helper of the demo itself at low priority."""
        return self._start(name, arguments, log, _ONE_THREAD, nice=10)

    def _start(
        self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str], nice: int = 0
    ) -> Running:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        if nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        running = self._running[name] = Running(name, process, log)
        return running

    def kill(self, running: Running) -> None:
        """End a process as a power cut does (SIGKILL), and wait until it is gone."""
        running.process.kill()
        running.process.wait(_STOP_S)
        self._running.pop(running.name, None)

    def check(self) -> None:
        """Refuse to go on when a process has ended by itself.

        Raises:
            AgentFailed: one has; the message ends with the last lines of its log.
        """
        for one in self._running.values():
            code = one.process.poll()
            if code not in (None, 0):
                tail = one.log.read_text(errors="replace")[-_TAIL:]
                raise AgentFailed(f"{one.name} ended with {code}; its log {one.log} ends:\n{tail}")

    def stop(self) -> None:
        """End everything: SIGTERM, then SIGKILL for what has not ended in time."""
        for one in self._running.values():
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for one in self._running.values():
            try:
                one.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait(_STOP_S)
        self._running.clear()

    def leave(self) -> list[int]:
        """Let everything run on after the demo; returns the process ids."""
        left = [one.process.pid for one in self._running.values() if one.process.poll() is None]
        self._running.clear()
        return left


def wait_until(what: str, ready: Callable[[], bool], *, timeout_s: float, check: Callable[[], None]) -> float:
    """Poll until `ready`; returns how many seconds it took.

    Raises:
        DeadlineExceeded: it was not in time; the message names `what`.
    """
    started = time.monotonic()
    while not ready():
        check()
        if time.monotonic() - started > timeout_s:
            raise DeadlineExceeded(f"{what}: not within {timeout_s:g} s")
        time.sleep(_POLL_S)
    return time.monotonic() - started


def answers(home: Home, question: Callable[[Client], bool]) -> bool:
    """Ask a node a question; no while the node does not answer yet."""
    try:
        with Client(home.control) as client:
            return question(client)
    except ControlError:
        return False
