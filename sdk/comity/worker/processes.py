"""Several worker processes of one agent, kept up by a supervisor.

Every process is a `python -m comity.worker` of its own, started afresh (nothing is forked after threads have begun) and
in a process group of its own, so that Ctrl-C reaches the supervisor alone, which passes it on. The supervisor loads no
agent. A socket pair joins the two: over it a process says at its end what it did, or why it could not begin; and when
the supervisor is gone, the process sees the end of the stream and leaves, too. Over it the supervisor says as well that
a process is to leave at once: a second signal may be no second word, but the first one of whoever stops all processes.

A process that dies is replaced after a pause. One that says itself why it ends (no such agent, the node refuses it)
ends the supervisor: the next would end likewise. So does a place where one process after another dies at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

from comity._control.channel import Tls, control_address
from comity.errors import AgentError, ComityError, ConfigError, WorkerLost
from comity.worker.serving import Report, Stop

_log = logging.getLogger("comity.worker")

_WORD_BYTES = 16 * 1024
_TEXT = 2000
#: What a supervisor says to a process that is to leave at once. A second signal does not: see `serve_until_told`.
_NOW = b"!"


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """How patient a supervisor is.

    Attributes:
        processes: that it keeps up, at most.
        quick_s: a process that lived for less died at once.
        quick_deaths: so many in one place, one after another, end the supervisor.
        first_backoff_s: seconds before a dead one is replaced; doubled after each that died at once.
        max_backoff_s: seconds, the longest such pause.
        leave_s: seconds beyond its drain that a process gets to leave before it is killed.
    """

    processes: int = 256
    quick_s: float = 5.0
    quick_deaths: int = 5
    first_backoff_s: float = 0.2
    max_backoff_s: float = 5.0
    leave_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ProcessesReport:
    """What a supervisor's processes did together.

    Attributes:
        agent: its name; what was asked for, if no process lived to say it.
        processes: how many were kept up.
        work: what they did; a process that was killed could not say what it did.
        restarts: processes that were started in the place of one that died.
        killed: processes that did not leave in time.
    """

    agent: str
    processes: int
    work: Report
    restarts: int = 0
    killed: int = 0

    def __str__(self) -> str:
        text = f"comity worker {self.agent}, {self.processes} processes: {self.work}, {self.restarts} restart(s)"
        return f"{text}, {self.killed} killed" if self.killed else text


def serve_processes(
    agent: str,
    control: str | None = None,
    *,
    processes: int,
    tls: Tls | None = None,
    concurrency: int | None = None,
    drain_s: float = 30.0,
    log_level: str = "info",
    limits: ProcessLimits = ProcessLimits(),
) -> ProcessesReport:
    """Keep `processes` workers of an agent up until SIGTERM or SIGINT (a second one: at once).

    Args:
        agent: `module:agent` or `path/to/file.py:agent`, loaded by each process.
        control: the node's control address; None: COMITY_CONTROL.
        processes: how many.
        tls: the files for mutual TLS, for a TCP address.
        concurrency: skills that run at a time in each process; None: the CPUs, shared out among the processes.
        drain_s: seconds that work in hand gets when leaving.
        log_level: of the processes.
        limits: see `ProcessLimits`.

    Raises:
        ConfigError: `processes` is out of range, or the agent cannot be loaded.
        ControlError: no address is given.
        AgentError: a process said why it cannot go on, e.g. because the node refuses it.
        WorkerLost: one process after another died at once.
    """
    if not 1 <= processes <= limits.processes:
        raise ConfigError(f"{processes} processes cannot be kept up, only 1 to {limits.processes}")
    each = concurrency or max(1, -(-(os.cpu_count() or 1) // processes))
    command = [sys.executable, "-m", "comity.worker", agent, "--control", control_address(control)]
    command += ["--concurrency", str(each), "--drain", f"{drain_s:g}", "--log-level", log_level]
    if tls is not None:
        command += ["--tls-key", str(tls.key), "--tls-certificate", str(tls.certificate), "--tls-ca", str(tls.ca)]

    async def run() -> ProcessesReport:
        stop = Stop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.leave)
        return await Supervisor(command, agent, processes, drain_s=drain_s, limits=limits).run(stop)

    return asyncio.run(run())


class Supervisor:
    """Keeps processes up.

    Args:
        command: starts one; `--supervised FD` is added.
        agent: what it is called until a process says its name.
        processes: how many are kept up.
        drain_s: seconds that a process takes at most to leave.
        limits: see `ProcessLimits`.
    """

    def __init__(
        self, command: Sequence[str], agent: str, processes: int, *, drain_s: float, limits: ProcessLimits
    ) -> None:
        self._command, self._agent, self._count = tuple(command), agent, processes
        self._drain_s, self._limits = drain_s, limits
        self._work = Report()
        self._restarts = self._killed = 0
        self._failure: ComityError | None = None

    async def run(self, stop: Stop) -> ProcessesReport:
        """Keep them up until `stop`.

        Raises:
            ConfigError, AgentError, WorkerLost: as `serve_processes`; the other processes have left by then.
        """
        async with asyncio.TaskGroup() as places:
            for _ in range(self._count):
                places.create_task(self._keep(stop))
        if self._failure is not None:
            raise self._failure
        return ProcessesReport(self._agent, self._count, self._work, self._restarts, self._killed)

    async def _keep(self, stop: Stop) -> None:
        """Keep one place filled."""
        clock = asyncio.get_running_loop().time
        quick = 0
        while True:
            began = clock()
            end = await self._once(stop)
            self._work = _sum(self._work, end.report)
            self._agent = end.agent or self._agent
            if stop.leaving.is_set():
                return
            quick = quick + 1 if clock() - began < self._limits.quick_s else 0
            failure = end.failure()
            if failure is None and quick >= self._limits.quick_deaths:
                failure = WorkerLost(f"{quick} worker processes died at once, one after another; the last: {end.how}")
            if failure is not None:
                self._failure = self._failure or failure
                stop.finish()  # a signal that comes now is the first one
                return
            _log.warning("a worker process of %s is gone (%s); starting another", self._agent, end.how)
            await self._pause(quick, stop)
            if stop.leaving.is_set():
                return
            self._restarts += 1

    async def _pause(self, quick: int, stop: Stop) -> None:
        pause = min(self._limits.max_backoff_s, self._limits.first_backoff_s * 2 ** max(0, quick - 1))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await stop.leaving.wait()

    async def _once(self, stop: Stop) -> _End:
        """Run one process to its end."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                number = theirs.fileno()
                try:
                    process = await asyncio.create_subprocess_exec(
                        *self._command, "--supervised", str(number),
                        pass_fds=(number,), stdin=asyncio.subprocess.DEVNULL, process_group=0,
                    )  # fmt: skip
                except OSError as error:
                    return _End(how=f"it could not be started: {error.strerror or error}")
            telling = asyncio.create_task(self._tell(process, ours, stop))
            try:
                status = await process.wait()
            finally:
                telling.cancel()
                if process.returncode is None:  # we are cancelled: nobody would look after it
                    _kill(process)
            return _read_end(ours, status)

    async def _tell(self, process: asyncio.subprocess.Process, ours: socket.socket, stop: Stop) -> None:
        """Pass on what the supervisor is told, and end a process that does not leave."""
        await stop.leaving.wait()
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself: as wanted
            process.terminate()
            try:
                async with asyncio.timeout(self._drain_s + self._limits.leave_s):
                    await stop.hurried.wait()
                with contextlib.suppress(OSError):  # it has gone, or never got so far as to listen
                    ours.send(_NOW)
                process.terminate()
                await asyncio.sleep(self._limits.leave_s)
            except TimeoutError:
                _log.warning("worker process %d did not leave in time", process.pid)
            if process.returncode is None:
                self._killed += 1
                _kill(process)


@dataclass(frozen=True, slots=True)
class _End:
    """How a process ended, and what it said last."""

    how: str
    report: Report = field(default_factory=Report)
    agent: str = ""
    error: str = ""
    status: int = 0

    def failure(self) -> ComityError | None:
        """Why another one would not do better; None: it may."""
        if not self.error:
            return None
        return ConfigError(self.error) if self.status == 2 else AgentError(self.error)


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process that nobody has waited for yet, and what it has started: its group is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_end(ours: socket.socket, status: int) -> _End:
    how = f"killed by {_signal_name(-status)}" if status < 0 else f"exit status {status}"
    ours.setblocking(False)
    try:
        said = json.loads(ours.recv(_WORD_BYTES) or b"{}")
        numbers = {each.name: int(said["report"][each.name]) for each in fields(Report)} if "report" in said else {}
        return _End(how, Report(**numbers), str(said.get("agent", "")), str(said.get("error", "")), status)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _End(how)  # it died before, or in the middle of, its last word


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal: most of them have no name
        return f"signal {number}"


def _sum(one: Report, other: Report) -> Report:
    return Report(**{each.name: getattr(one, each.name) + getattr(other, each.name) for each in fields(Report)})


class Supervised:
    """A supervised process's end of the socket pair.

    Args:
        descriptor: of the socket, as the supervisor passed it on.

    Raises:
        ConfigError: it is no socket of a supervisor.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            self._socket = socket.socket(fileno=descriptor)
            self._socket.getpeername()
        except OSError as error:
            raise ConfigError(f"--supervised is for the processes of --processes alone: {error.strerror}") from error
        self._socket.set_inheritable(False)  # what the agent starts has no part in it
        self._socket.setblocking(False)

    def watch(self, stop: Stop) -> None:
        """Leave when the supervisor is gone, and at once when it says so."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            try:
                said = self._socket.recv(len(_NOW))
            except ConnectionError:
                said = b""
            if said:
                stop.now()
                return
            loop.remove_reader(self._socket)
            _log.warning("the supervisor is gone; leaving")
            stop.finish()

        loop.add_reader(self._socket, heard)

    def report(self, agent: str, report: Report) -> None:
        """Say what was done."""
        self._say({"agent": agent, "report": asdict(report)})

    def fail(self, error: str) -> None:
        """Say why it cannot go on."""
        self._say({"error": error[:_TEXT]})

    def _say(self, what: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: nobody wants to know
            self._socket.send(json.dumps(what, ensure_ascii=False).encode(errors="replace"))
