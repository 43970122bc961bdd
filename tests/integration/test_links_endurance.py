"""Two nodes in two processes: what they hold does not grow with what they have done, only with what is going on.

What grows by a megabyte here grows by it every few seconds in a node that runs for months.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from bench.links import consortium

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / "tests" / "kit" / "endurance_peer.py"

#: How much more either process may hold after the work than before it, once it is warm.
MEMORY_BYTES = 8 * 1024 * 1024
#: Of these a few come and go, such as what the last stream has not yet given back.
OBJECTS, TASKS, FILES = 4000, 10, 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.invariant("S7"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc"),
]


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds: bytes of memory, objects, tasks, open files, peers."""

    resident: int
    objects: int
    tasks: int
    files: int
    peers: int


class Process:
    """A node."""

    def __init__(self, role: str, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PEER), role, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def say(self, line: str) -> None:
        pipe = _pipe(self._process.stdin)
        pipe.write(line)
        pipe.flush()

    def hear(self) -> str:
        line = _pipe(self._process.stdout).readline()
        assert line, "a node has ended"
        return line

    def held(self) -> Held:
        self.say("{}\n")
        return Held(**json.loads(self.hear()))

    def close(self) -> None:
        _pipe(self._process.stdin).close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


class Nodes:
    """Both, warm."""

    def __init__(self, server: Process, client: Process) -> None:
        self.server, self.client = server, client

    def do(self, work: str, count: int) -> None:
        self.client.say(json.dumps({"work": work, "count": count}) + "\n")
        self.client.hear()

    def held(self) -> tuple[Held, Held]:
        return self.server.held(), self.client.held()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    directory = tmp_path_factory.mktemp("endurance") / "comity"
    consortium.found(directory)
    server = Process("server", directory)
    client = Process("client", directory)
    try:
        client.say(server.hear())
        both = Nodes(server, client)
        for work, count in (("requests", 5000), ("streams", 500), ("tunnels", 100), ("reconnects", 20)):
            both.do(work, count)
        yield both
    finally:
        client.close()
        server.close()


@pytest.mark.parametrize(
    ("work", "count"), [("requests", 100_000), ("streams", 10_000), ("tunnels", 5000), ("reconnects", 300)]
)
def test_memory_is_flat_over(nodes: Nodes, work: str, count: int) -> None:
    before = nodes.held()
    nodes.do(work, count)
    for was, now in zip(before, nodes.held(), strict=True):
        assert now.resident - was.resident < MEMORY_BYTES, (was, now)
        assert now.objects - was.objects < OBJECTS, (was, now)
        assert now.tasks - was.tasks < TASKS, (was, now)
        assert now.files - was.files < FILES, (was, now)
        assert now.peers == was.peers == 1
