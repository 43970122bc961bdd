"""Lines that are on the disk before anybody counts on them, and what they say afterwards."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio


@dataclass(slots=True)
class _Batch:
    lines: list[str] = field(default_factory=list)
    done: trio.Event = field(default_factory=trio.Event)


class Journal:
    """A file of lines, written by `run`; many that wait share one fsync."""

    def __init__(self, path: Path) -> None:
        """Open a file, new or not; `before` are the whole lines that are in it."""
        text = path.read_text(encoding="ascii") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        self.before = whole.splitlines()
        self._file = path.open("ab")
        self._file.truncate(len(whole))  # a line that a kill has cut off was never acknowledged
        self._batch = _Batch()
        self._work = trio.Event()

    async def append(self, line: str) -> None:
        """Write a line; it is on the disk when this returns."""
        batch = self._batch
        batch.lines.append(line)
        self._work.set()
        await batch.done.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            batch, self._batch = self._batch, _Batch()
            await trio.to_thread.run_sync(self._write, "".join(f"{line}\n" for line in batch.lines))
            batch.done.set()

    def _write(self, text: str) -> None:
        self._file.write(text.encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())


@dataclass(frozen=True, slots=True)
class Ack:
    """A request that the client has counted as answered.

    Attributes:
        request: its id.
        answer: what the server said.
        began: when it was first sent, by the monotonic clock in seconds.
        ended: when the answer was there.
        attempts: how often it was sent.
    """

    request: str
    answer: str
    began: float
    ended: float
    attempts: int

    def line(self) -> str:
        """Return it as a line of the client's journal."""
        return f"{self.request} {self.answer} {self.began:.6f} {self.ended:.6f} {self.attempts}"


def read_acks(path: Path) -> list[Ack]:
    """Read a client's journal, in the order of the answers."""
    acks = []
    for line in _whole_lines(path):
        request, answer, began, ended, attempts = line.split()
        acks.append(Ack(request, answer, float(began), float(ended), int(attempts)))
    return acks


@dataclass(frozen=True, slots=True)
class Verdict:
    """What two journals say together.

    Attributes:
        lost: requests that the client has counted and the server does not know.
        contradicted: requests with two different answers, wherever they are written.
        unknown_to_client: requests that the server has answered and the client has not counted.
    """

    lost: tuple[str, ...]
    contradicted: tuple[str, ...]
    unknown_to_client: int


def compare(acks: Path, served: Path) -> Verdict:
    """Compare a client's journal with a server's."""
    answered: dict[str, set[str]] = {}
    for line in _whole_lines(served):
        request, answer = line.split()
        answered.setdefault(request, set()).add(answer)
    twice = Counter(line.split()[0] for line in _whole_lines(served))
    counted: dict[str, set[str]] = {}
    for ack in read_acks(acks):
        counted.setdefault(ack.request, set()).add(ack.answer)
    lost = tuple(request for request in counted if request not in answered)
    contradicted = {request for request, count in twice.items() if count > 1}
    contradicted |= {request for request, answers in counted.items() if len(answers | answered.get(request, set())) > 1}
    return Verdict(lost, tuple(sorted(contradicted)), len(answered.keys() - counted.keys()))


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="ascii") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
