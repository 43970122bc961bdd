"""Starts and stops Flower on this machine: a SuperLink, SuperNodes and runs, offline and on loopback.

    with FlowerProcesses(home) as flower:
        port = flower.start_superlink(environment={"COMITY_CONTROL": ...})
        flower.start_supernode("mercy", tunnel_port, environment={...})
        flower.run_app(app, {"num-server-rounds": 3}, timeout_s=120)

Flower starts processes of its own (a SuperExec for each SuperLink and SuperNode, a new process for each message).
They inherit the environment given here, which is how an app finds its node, and they all end with the `with` block.
Nothing is installed, downloaded or reported while they run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.request import ProxyHandler, Request, build_opener

from google.protobuf.message import DecodeError

from comity.errors import AgentFailed, ConfigError, DeadlineExceeded, MissingExtra

#: The one minor version of Flower that this launcher, the tunnel's filter and the hooks are tested with.
TESTED_FLOWER = "1.41"
_LOOPBACK = "127.0.0.1"
_MARK = "COMITY_FLOWER_PROCESSES"
_POLL_S = 0.05
_STOP_S = 5.0
#: Passed on from our own environment; everything else an app needs is given by name.
_INHERITED = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LD_LIBRARY_PATH", "SYSTEMROOT")
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    # Small models: several processes with one thread each are faster than one with many.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def check_version() -> None:
    """Check that the installed Flower is of the tested minor version.

    Raises:
        MissingExtra: Flower is not installed.
        ConfigError: it is of another minor version.
    """
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError as error:
        raise MissingExtra("flower", "flwr") from error
    if version.rpartition(".")[0] != TESTED_FLOWER:
        raise ConfigError(
            f"flwr {version} is installed; Comity is tested with flwr {TESTED_FLOWER} and starts no other: "
            f"pip install 'flwr=={TESTED_FLOWER}.*'"
        )


def app_digest(app: Path) -> str:
    """Return the SHA-256 in hex of the bundle (FAB) that Flower makes of the app in a directory.

    This is what the members' tunnels let in.

    Raises:
        ConfigError: the directory holds no Flower app.
    """
    check_version()
    from flwr.cli.build import build_fab_from_disk

    from comity.digest import hex_digest

    try:
        return hex_digest(build_fab_from_disk(app))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Flower app: {error}", file=str(app)) from error


_Popen = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class _Process:
    name: str
    process: _Popen
    log: Path
    port: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: Flower's id of it, and how many seconds it took."""

    run_id: str
    seconds: float


class FlowerProcesses:
    """A context manager that owns every Flower process that it starts.

    Args:
        home: a directory for the processes' logs, homes and caches; made if it is missing.
        deadline_s: seconds that one of them may take to answer its health check.

    Raises:
        MissingExtra: Flower is not installed.
        ConfigError: it is of another version than the tested one.
    """

    def __init__(self, home: Path, *, deadline_s: float = 60.0) -> None:
        check_version()
        self._home = home
        self._deadline_s = deadline_s
        self._mark = uuid.uuid4().hex
        self._processes: list[_Process] = []
        self._superlink_port = 0
        home.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> FlowerProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_superlink(self, *, environment: Mapping[str, str] | None = None) -> int:
        """Start the SuperLink, wait until it is healthy, and return its port.

        Raises:
            AgentFailed: it did not start; the message names its log.
            DeadlineExceeded: it is not healthy in time.
        """

        def command(port: int) -> list[str]:
            return [
                *("flower-superlink", "--insecure", "--host", _LOOPBACK, "--port", str(port)),
                "--disable-runtime-dependency-installation",
            ]

        self._superlink_port = self._start("superlink", command, environment or {}, wait=True)
        return self._superlink_port

    def start_supernode(
        self, name: str, superlink_port: int, *, environment: Mapping[str, str] | None = None, wait: bool = True
    ) -> None:
        """Start a SuperNode that talks to a SuperLink, or a tunnel's entry, on a loopback port.

        Args:
            name: for its log and home, such as the organization.
            superlink_port: where it finds the Fleet API.
            environment: variables that its ClientApps see, such as COMITY_CONTROL.
            wait: wait until it is healthy; False to start several at once.

        Raises:
            AgentFailed: it did not start; the message names its log.
            DeadlineExceeded: it is not healthy in time.
        """

        def command(port: int) -> list[str]:
            return [
                *("flower-supernode", "--insecure", "--superlink", f"{_LOOPBACK}:{superlink_port}"),
                *("--host", _LOOPBACK, "--port", str(port)),
            ]

        self._start(f"supernode-{name}", command, environment or {}, wait=wait)

    def run_app(self, app: Path, config: Mapping[str, str | int | float | bool], *, timeout_s: float) -> RunResult:
        """Run an app on the SuperLink and wait until it has finished.

        Raises:
            ConfigError: no SuperLink was started, or the app is none.
            AgentFailed: the run failed; the message says why and names the log.
            DeadlineExceeded: it has not finished within `timeout_s` seconds.
        """
        if not self._superlink_port:
            raise ConfigError("start a SuperLink before an app")
        started = time.monotonic()
        deadline = started + timeout_s
        run_id = self._submit(app, config, deadline)
        while True:
            status, sub_status, details = self._run_status(run_id)
            if status == "finished":
                break
            self.check()
            _wait(deadline, f"the run has not finished within {timeout_s:g} s; see {self.log('superlink')}", 0.2)
        if sub_status != "completed":
            raise AgentFailed(f"the run ended as {sub_status}: {details}; see {self.log('superlink')}")
        return RunResult(run_id, time.monotonic() - started)

    def log(self, name: str) -> Path:
        """Return the log of a process: `superlink`, or `supernode-` and a name."""
        return self._home / f"{name}.log"

    def check(self) -> None:
        """Check that everything that was started still runs.

        Raises:
            AgentFailed: a process has ended; the message names it and its log.
        """
        for one in self._processes:
            if one.process.poll() is not None:
                raise AgentFailed(f"{one.name} has ended ({one.process.returncode}); see {one.log}")

    def close(self) -> None:
        """Stop everything, the processes that Flower has started among it; safe to call twice."""
        for one in reversed(self._processes):
            _signal_group(one.process, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for one in reversed(self._processes):
            with suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(one.process, signal.SIGKILL)
            one.process.wait()
        self._processes.clear()
        _kill_marked(self._mark)

    def wait_healthy(self) -> None:
        """Wait until everything that was started answers its health check.

        Raises:
            AgentFailed: a process has ended; the message names it and its log.
            DeadlineExceeded: one is not healthy in time.
        """
        deadline = time.monotonic() + self._deadline_s
        for one in self._processes:
            while not _is_healthy(one.port):
                self.check()
                _wait(deadline, f"{one.name} is not healthy after {self._deadline_s:g} s; see {one.log}", _POLL_S)

    def _start(
        self, name: str, command: Callable[[int], list[str]], environment: Mapping[str, str], *, wait: bool
    ) -> int:
        port = free_port()
        variables = self._environment(name, environment)
        log = self.log(name)
        with log.open("ab") as output:
            process = self._spawn(command(port), variables, output)
        self._processes.append(_Process(name, process, log, port))
        if wait:
            self.wait_healthy()
        return port

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str], output: IO[bytes]) -> _Popen:
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            raise MissingExtra("flower", command[0])
        return subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=self._home,
            start_new_session=True,
        )

    def _environment(self, name: str, extra: Mapping[str, str]) -> dict[str, str]:
        """Everything that a process of Flower sees: no proxies, no telemetry, its own home, and what is in `extra`.

        PYTHONDONTWRITEBYTECODE is not passed on: each message starts a new interpreter, which would compile Flower
        and scikit-learn anew, three times the work of the rest of it.
        """
        home = self._home / name
        home.mkdir(exist_ok=True)
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        own = {
            "PATH": path,
            "FLWR_HOME": str(home),
            _MARK: self._mark,
        }
        return {**inherited, **_ENVIRONMENT, **own, **extra}

    def _submit(self, app: Path, config: Mapping[str, str | int | float | bool], deadline: float) -> str:
        """Run `flwr run` and return the id of the run."""
        environment = self._environment("flwr", {})
        address = f'[superlink]\ndefault = "lab"\n\n[superlink.lab]\naddress = "{_LOOPBACK}:{self._superlink_port}"\n'
        (Path(environment["FLWR_HOME"]) / "config.toml").write_text(address + "insecure = true\n", encoding="utf-8")
        command = ["flwr", "run", str(app.resolve()), "lab", "--format", "json"]
        for name, value in config.items():
            command += ["--run-config", f"{name}={_toml(value)}"]
        with self.log("flwr").open("w+b") as output:
            process = self._spawn(command, environment, output)
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise DeadlineExceeded(f"flwr run did not end in time; see {self.log('flwr')}") from error
            finally:
                _signal_group(process, signal.SIGKILL)
                process.wait()
            output.seek(0)
            said = output.read().decode("utf-8", "replace")
        match = re.search(r'"run-id":\s*"?([0-9]+)', said)
        if process.returncode != 0 or match is None:
            raise AgentFailed(f"Flower did not take the app: {' '.join(said.split())[-400:]}")
        return match[1]

    def _run_status(self, run_id: str) -> tuple[str, str, str]:
        """Ask the SuperLink's Control API, here on loopback, how a run is doing: status, sub-status, details."""
        from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

        request = Request(
            f"http://{_LOOPBACK}:{self._superlink_port}/v1/control/list-runs",
            data=ListRunsRequest(run_id=int(run_id)).SerializeToString(),
            headers={"content-type": "application/protobuf", "accept": "application/protobuf"},
        )
        try:
            with _OPENER.open(request, timeout=5.0) as answer:
                status = ListRunsResponse.FromString(answer.read()).run_dict[int(run_id)].status
        except (OSError, DecodeError) as error:
            raise AgentFailed(f"the SuperLink does not answer: {error}; see {self.log('superlink')}") from error
        return status.status, status.sub_status, status.details


def free_port() -> int:
    """Return a TCP port of loopback that is free now; somebody may still take it before it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind((_LOOPBACK, 0))
        return int(one.getsockname()[1])


#: Loopback only, whatever proxies the environment names.
_OPENER = build_opener(ProxyHandler({}))


def _is_healthy(port: int) -> bool:
    try:
        with _OPENER.open(f"http://{_LOOPBACK}:{port}/health", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait(deadline: float, complaint: str, interval_s: float) -> None:
    """Wait between two looks at another program, which has no event to wait for."""
    if time.monotonic() >= deadline:
        raise DeadlineExceeded(complaint)
    time.sleep(interval_s)


def _toml(value: str | int | float | bool) -> str:
    return json.dumps(value)


def _signal_group(process: _Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _kill_marked(mark: str) -> None:
    """End what a process of ours has started in a session of its own, by the mark in its environment.

    Flower's own children also watch for their parent and end with it; where there is no /proc that has to do.
    """
    wanted = f"{_MARK}={mark}".encode()
    deadline = time.monotonic() + _STOP_S
    while left := _marked(wanted):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait(deadline, f"processes of Flower do not end: {left}", _POLL_S)


def _marked(wanted: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        # Processes of others cannot be read, and some are gone by now.
        with suppress(OSError):
            if wanted in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found
