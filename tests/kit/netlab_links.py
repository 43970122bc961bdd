"""Links in a lab: programs (`kit.netlab_peer`) in sites of their own, with the keys of one test consortium."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from kit.consortium import Consortium
from kit.netlab import NetLab, Site
from kit.netlab_peer import ACKS, SERVED

PORT = 4001
START_S = 60.0
ANSWER_S = 60.0
_TESTS = Path(__file__).resolve().parents[1]


class PeerFailed(Exception):
    """A peer's program has ended, does not answer, or refuses."""


class PeerProcess:
    """One running peer; a new process each time that it is started."""

    def __init__(self, site: Site, home: Path, peer_id: str) -> None:
        """Made by `Peers`."""
        self.site, self.home, self.peer_id = site, home, peer_id
        self._process: subprocess.Popen[bytes] | None = None
        self._next = 0
        self._buffer = b""
        self._answers: dict[int, dict[str, Any]] = {}

    @property
    def address(self) -> str:
        """Where others dial it."""
        return f"/ip4/{self.site.public_address}/tcp/{PORT}"

    @property
    def acks(self) -> Path:
        """What it has counted as answered, as a client."""
        return self.home / ACKS

    @property
    def served(self) -> Path:
        """What it has answered, as a server."""
        return self.home / SERVED

    def start(self, *, wait: bool = True) -> None:
        """Start the program.

        Raises:
            PeerFailed: it is not up in time.
        """
        paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH", "")])]
        with (self.home / "peer.err").open("ab") as errors:
            self._process = self.site.run(
                [sys.executable, "-m", "kit.netlab_peer", self.home],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._next, self._buffer, self._answers = 0, b"", {}
        if wait:
            self.wait_up()

    def wait_up(self) -> None:
        """Wait until it listens; once, after each start.

        Raises:
            PeerFailed: it is not up in time.
        """
        self._answer(0, START_S)

    def ask(self, do: str, *, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
        """Give a command and return its answer.

        Raises:
            PeerFailed: the program refuses, has ended, or does not answer in time.
        """
        return self.answer_of(self.tell(do, **arguments), timeout_s=timeout_s)

    def tell(self, do: str, **arguments: Any) -> int:
        """Give a command; `answer_of` what this returns is its answer."""
        self._next += 1
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"id": self._next, "do": do, **arguments}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerFailed(self._last_words()) from error
        return self._next

    def answer_of(self, number: int, *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the answer of a command.

        Raises:
            PeerFailed: the program refuses, has ended, or does not answer in time.
        """
        return self._answer(number, timeout_s)

    def kill(self) -> None:
        """End it as a power cut does."""
        process = self._running()
        process.kill()
        process.wait()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does (SIGSTOP)."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._running().send_signal(signal.SIGCONT)

    def _answer(self, number: int, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while number not in self._answers:
            said = json.loads(self._line(deadline))
            self._answers[said["id"]] = said
        answer = self._answers.pop(number)
        if not answer["ok"]:
            raise PeerFailed(f"{self.site.name}: {answer['error']}")
        return answer

    def _line(self, deadline: float) -> bytes:
        process = self._running()
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PeerFailed(f"{self.site.name} does not answer; {self._last_words()}")
            data = os.read(descriptor, 65536)
            if not data:
                raise PeerFailed(f"{self.site.name} has ended; {self._last_words()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise PeerFailed(f"{self.site.name} was not started")
        return self._process

    def _last_words(self) -> str:
        return "it said: " + (self.home / "peer.err").read_text(errors="replace")[-2000:]


class Peers:
    """Makes the homes of peers: one organization of a consortium for each."""

    def __init__(self, directory: Path, consortium: Consortium, *, limits: Mapping[str, Any]) -> None:
        """Make homes under `directory`; `limits` are those of `LinkLimits`."""
        self._directory, self._consortium, self._limits = directory, consortium, limits
        self._left = list(consortium.nodes)

    def add(self, lab: NetLab, name: str, *, nat: str | None = None, listen: bool = True) -> PeerProcess:
        """Add a site and the home of a peer in it; nothing is started."""
        site = lab.site(name, nat=nat)
        identity = self._consortium.nodes[self._left.pop(0)]
        home = self._directory / name
        home.mkdir(parents=True)
        identity.key.save(home / "node.key")
        chain = [load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in identity.chain]
        (home / "node.chain.pem").write_bytes(b"".join(chain))
        (home / "consortium.json").write_bytes(self._consortium.bundle)
        addresses = [f"/ip4/{site.address}/tcp/{PORT}"] if listen else []
        (home / "peer.json").write_text(json.dumps({"listen": addresses, "limits": dict(self._limits)}))
        return PeerProcess(site, home, identity.peer_id)


def link(client: PeerProcess, server: PeerProcess) -> float:
    """Make a server known to a client; returns the seconds until they are linked."""
    began = time.monotonic()
    client.ask("peer", peer_id=server.peer_id, addresses=[server.address])
    at: float = client.ask("wait", peer_id=server.peer_id, within_s=START_S)["at"]
    return at - began
