"""A node's links and nothing else, as a program that a test drives: JSON lines on stdin and stdout.

    python -m kit.netlab_peer HOME

HOME holds `node.key`, `node.chain.pem`, `consortium.json` and `peer.json` ({"listen": [...], "limits": {...}}). Each
line on stdin is {"id", "do", ...}; each gets one line {"id", "ok", ...} back. As a server it answers a request with its
id, a number that it draws once for each id, and the digest of what came; the number is in `served.log`, on the disk,
before the answer leaves. As a client it sends a request again, under the same id, until there is an answer, and counts
it when that is in `acks.log`, on the disk. Times are of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from comity.bundle import load_bundle
from comity.errors import (
    Busy,
    ComityError,
    DeadlineExceeded,
    LinkClosed,
    PeerUnreachable,
    PolicyDenied,
    ProtocolError,
)
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.links import LinkLimits, Links
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.libp2p_transport import Libp2pTransport
from kit.netlab_journal import Ack, Journal

BULK = "bulk/1"
SERVED, ACKS = "served.log", "acks.log"
_ID, _NUMBER = 16, 16
_CHUNK = bytes(range(256)) * 256
_MAX_LINE = 64 * 1024
_MAX_STATES = 2000
_UNREACHABLE_WAIT_S = 0.5


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def memory_bytes(field_name: str = "VmRSS") -> int:
    """Return what this process holds (VmRSS) or has held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) * 1024
    raise ComityError(f"/proc/self/status has no {field_name}")


@dataclass(slots=True)
class _Answer:
    number: bytes
    written: trio.Event = field(default_factory=trio.Event)


class Server:
    """Answers requests, each id once, and takes in bulk streams."""

    def __init__(self, journal: Journal) -> None:
        """Go on with what the journal has."""
        self._journal = journal
        self._answers: dict[bytes, _Answer] = {}
        self.repeated = 0
        for line in journal.before:
            request, number = line.split()
            answer = self._answers[bytes.fromhex(request)] = _Answer(bytes.fromhex(number))
            answer.written.set()

    @property
    def answered(self) -> int:
        """How many ids there are."""
        return len(self._answers)

    async def on_request(self, _: Attested, payload: bytes) -> bytes:
        """Answer, after the journal has it."""
        request = payload[:_ID]
        if len(request) < _ID:
            raise ProtocolError("a request begins with its id")
        answer = self._answers.get(request)
        if answer is None:
            answer = self._answers[request] = _Answer(os.urandom(_NUMBER))
            await self._journal.append(f"{request.hex()} {answer.number.hex()}")
            answer.written.set()
        else:
            self.repeated += 1
            await answer.written.wait()
        return request + answer.number + hashlib.sha256(payload).digest()

    async def on_tunnel(self, _: Attested, name: str, stream: ByteStream) -> None:
        """Take in a bulk stream: count and digest it, and say so at its end."""
        if name != BULK:
            raise PolicyDenied(f"{name} is not served here")
        digest = hashlib.sha256()
        count = 0
        while data := await stream.receive():
            digest.update(data)
            count += len(data)
        await stream.send(count.to_bytes(8, "big") + digest.digest())
        await stream.aclose()


class Load:
    """Requests to one peer from a number of workers, until it is told to end."""

    def __init__(self, links: Links, acks: Journal, settings: Mapping[str, Any]) -> None:
        """Make a load: {"name", "peer_id", "workers", "bytes", "pause_s", "deadline_s"}."""
        self._links, self._acks = links, acks
        self._name, self._peer = str(settings["name"]), str(settings["peer_id"])
        self._workers = int(settings.get("workers", 4))
        self._filler = bytes(int(settings.get("bytes", 1024)) - _ID)
        self._pause_s = float(settings.get("pause_s", 0.02))
        self._deadline_s = float(settings.get("deadline_s", 30.0))
        self._ending = False
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.done = trio.Event()

    def end(self) -> None:
        """Begin no more requests; those that were begun are still brought to their end."""
        self._ending = True

    async def run(self) -> None:
        """Send until `end`."""
        async with trio.open_nursery() as nursery:
            for worker in range(self._workers):
                nursery.start_soon(self._work, worker)
        self.done.set()

    async def _work(self, worker: int) -> None:
        number = 0
        while not self._ending:
            number += 1
            request = hashlib.sha256(f"{self._name}/{worker}/{number}".encode()).digest()[:_ID]
            began = time.monotonic()
            answer, attempts = await self._ask(request + self._filler)
            expected = hashlib.sha256(request + self._filler).digest()
            if answer[:_ID] != request or answer[_ID + _NUMBER :] != expected:
                self.wrong.append(f"{request.hex()} was answered with {answer.hex()}")
                return
            ended = time.monotonic()
            ack = Ack(request.hex(), answer[_ID : _ID + _NUMBER].hex(), began, ended, attempts)
            await self._acks.append(ack.line())
            await trio.sleep(self._pause_s)

    async def _ask(self, payload: bytes) -> tuple[bytes, int]:
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._links.request(self._peer, payload, self._deadline_s), attempts
            except Busy as error:
                self.errors["Busy"] += 1
                await trio.sleep(error.retry_after_ms / 1000)
            except PeerUnreachable:
                self.errors["PeerUnreachable"] += 1
                with trio.move_on_after(_UNREACHABLE_WAIT_S):
                    await self._links.changes.wait(self._links.changes.version)
            except (LinkClosed, DeadlineExceeded) as error:
                self.errors[type(error).__name__] += 1


class Peer:
    """The program."""

    def __init__(self, home: Path) -> None:
        """Load the identity and the settings."""
        settings = json.loads((home / "peer.json").read_text())
        identity = NodeIdentity.load(home / "node.key", home / "node.chain.pem")
        trust = TrustStore(load_bundle(home / "consortium.json", now_ms=now_ms(), own_ca=None))
        self._served, self._acked = Journal(home / SERVED), Journal(home / ACKS)
        self._server = Server(self._served)
        self._loads: dict[str, Load] = {}
        self._bulk: dict[str, trio.Event] = {}
        self._states: deque[tuple[float, str, str]] = deque(maxlen=_MAX_STATES)
        self.links = Links(
            Libp2pTransport(identity.key, settings["listen"]),
            identity,
            trust,
            self._server.on_request,
            now_ms=now_ms,
            random_bytes=os.urandom,
            limits=LinkLimits(**settings.get("limits", {})),
            on_tunnel=self._server.on_tunnel,
            allow_private=True,
        )

    async def run(self) -> None:
        """Serve until stdin ends or a command says so."""
        async with trio.open_nursery() as nursery:
            for task in (self._served.run, self._acked.run, self._watch):
                nursery.start_soon(task)
            await nursery.start(self.links.run)
            _say({"id": 0, "ok": True, "peer_id": self.links.peer_id, "addresses": self.links.addresses()})
            async with trio.open_nursery() as commands:
                async for command in _commands():
                    if command["do"] == "stop":
                        break
                    commands.start_soon(self._serve, command, nursery)
                commands.cancel_scope.cancel()
            await self.links.drain(1.0)
            nursery.cancel_scope.cancel()

    async def _serve(self, command: Mapping[str, Any], nursery: trio.Nursery) -> None:
        try:
            answer = await self._do(command, nursery)
        except ComityError as error:
            _say({"id": command["id"], "ok": False, "error": f"{type(error).__name__}: {error}"})
        else:
            _say({"id": command["id"], "ok": True, **answer})

    async def _do(self, command: Mapping[str, Any], nursery: trio.Nursery) -> dict[str, Any]:
        match command["do"]:
            case "peer":
                self.links.add_peer(command["peer_id"], command["addresses"])
                return {}
            case "wait":
                await self.links.wait_for(command["peer_id"], command["within_s"])
                return {"at": time.monotonic()}
            case "load":
                load = self._loads[command["name"]] = Load(self.links, self._acked, command)
                nursery.start_soon(load.run)
                return {}
            case "unload":
                load = self._loads[command["name"]]
                load.end()
                await load.done.wait()
                return {"wrong": load.wrong}
            case "bulk":
                return await self._send_bulk(command["peer_id"], command["name"])
            case "end-bulk":
                self._bulk[command["name"]].set()
                return {}
            case "report":
                return self._report()
        raise ComityError(f"unknown command {command['do']!r}")

    async def _send_bulk(self, peer_id: str, name: str) -> dict[str, Any]:
        """Send until "end-bulk"; returns when the other side has taken and digested all of it."""
        ended = self._bulk[name] = trio.Event()
        stream = await self.links.open_tunnel(peer_id, BULK, priority=Priority.BULK)
        digest, count, began = hashlib.sha256(), 0, time.monotonic()
        try:
            while not ended.is_set():
                await stream.send(_CHUNK)
                digest.update(_CHUNK)
                count += len(_CHUNK)
            await stream.send_eof()
            answer = b""
            while data := await stream.receive():
                answer += data
        finally:
            await stream.aclose()
        if answer != count.to_bytes(8, "big") + digest.digest():
            raise ProtocolError("what arrived is not what was sent")
        return {"bytes": count, "began": began, "ended": time.monotonic()}

    def _report(self) -> dict[str, Any]:
        return {
            "at": time.monotonic(),
            "memory": memory_bytes(),
            "most_memory": memory_bytes("VmHWM"),
            "states": list(self._states),
            "reconnects": {state.peer_id: state.reconnects for state in self.links.peers()},
            "round_trip_ms": {state.peer_id: state.round_trip_ms for state in self.links.peers()},
            "errors": dict(sum((load.errors for load in self._loads.values()), Counter[str]())),
            "answered": self._server.answered,
            "repeated": self._server.repeated,
        }

    async def _watch(self) -> None:
        """Note when a link changes its state."""
        last: dict[str, str] = {}
        version = -1
        while True:
            version = await self.links.changes.wait(version)
            for state in self.links.peers():
                if last.get(state.peer_id) != state.state:
                    last[state.peer_id] = state.state
                    self._states.append((time.monotonic(), state.state, state.reason))


async def _commands() -> Any:
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        buffer = b""
        async for data in stdin:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
            if len(buffer) > _MAX_LINE:
                raise ProtocolError("a command is longer than 64 KiB")


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(Peer(Path(sys.argv[1])).run)
