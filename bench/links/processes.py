"""The two processes of an arm, kept alive over all repeats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from bench.links.arm import Order

_ROOT = Path(__file__).resolve().parent.parent.parent
_END_S = 20.0
#: Of /proc/PID/stat, after the name: user and system time (man 5 proc_pid_stat).
_CPU_FIELDS = slice(11, 13)


class Arm:
    """One arm: its server and its client."""

    def __init__(self, name: str, directory: Path, command: Sequence[str] = ()) -> None:
        """Start both and wait until the server is ready.

        Args:
            name: of the arm.
            directory: keys and certificates.
            command: what is run instead of `bench.links.arm`, followed by name, role and directory.
        """
        self.name = name
        base = [*command] or [sys.executable, "-m", "bench.links.arm"]
        self._server = self._start([*base, name, "server", str(directory)])
        ready = self._line(self._server)
        self._client = self._start([*base, name, "client", str(directory)])
        self._tell(ready)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, order: Order) -> dict[str, float]:
        """Have the client do something; `cpu` is added, the seconds of processor time that both spent on it."""
        before = self._cpu()
        self._tell(json.dumps({name: value for name, value in asdict(order).items() if value}))
        answer: dict[str, float] = json.loads(self._line(self._client))
        return {**answer, "cpu": self._cpu() - before}

    def resident_bytes(self) -> int:
        """The memory that both hold."""
        return sum(_resident(process.pid) for process in (self._server, self._client))

    def close(self) -> None:
        """End both."""
        for process in (self._client, self._server):
            _pipe(process.stdin).close()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _pipe(process.stdout).close()

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(_ROOT)}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def _tell(self, line: str) -> None:
        pipe = _pipe(self._client.stdin)
        pipe.write(line.rstrip("\n") + "\n")
        pipe.flush()

    def _line(self, process: subprocess.Popen[str]) -> str:
        line: str = _pipe(process.stdout).readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended")
        return line

    def _cpu(self) -> float:
        return sum(_cpu_seconds(process.pid) for process in (self._server, self._client))


def _pipe(pipe: IO[Any] | None) -> IO[Any]:
    assert pipe is not None
    return pipe


def _cpu_seconds(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return sum(map(int, text.rpartition(")")[2].split()[_CPU_FIELDS])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
