"""One pytest session in which many mutants are tried: the tests are collected once, and each mutant is a fork.

1. Unchanged, all tests pass; of each is noted how long it took and which functions of the module it called.
2. For each function the tests that called it pass unchanged in a fork of their own too, the quickest first.
3. For each mutant a fork puts the mutant's code in place (`swap`) and runs the same tests until one fails.

What happened at import and at collection happened without the mutant, so that one that lives here is not believed:
`mutation.run` tries it again in a process that imports it from the start.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, TypeVar

import pytest

from mutation.mutants import Mutant
from mutation.swap import function_of, swap

#: A mutant has so many times the time that its tests take unchanged, and so much more, before it counts as dead.
PATIENCE: Final = 5.0
GRACE_S: Final = 10.0
#: What a mutant may allocate: a loop that never ends should end.
_MEMORY: Final = 4 << 30
_UNTOUCHED: Final = 86  # the exit status of a fork whose mutant could not be put in place
#: pytest would rewrite the assertions of hypothesis, which is loaded already.
OPTIONS: Final = (
    "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip

_T = TypeVar("_T")

#: Told of each mutant that was tried: its position, and whether it is dead; None where it could not be tried here.
Told = Callable[[int, bool | None], None]


@dataclass(slots=True)
class _Seen:
    """What a test did without a mutant."""

    took_s: float = 0.0
    called: set[str] = field(default_factory=set)


class Host:
    """A pytest plugin that runs the collected tests once for each mutant."""

    def __init__(self, path: str, source: str, mutants: Sequence[Mutant], jobs: int, told: Told) -> None:
        """Try `mutants` of the module at `path`, `jobs` at a time."""
        self._path, self._source, self._mutants, self._jobs, self._told = path, source, mutants, jobs, told
        self._here = os.getpid()
        self._seen: dict[str, _Seen] = {}
        self._watching = -1  # the pipe to which the unchanged run writes what it saw

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Fork for each mutant; in a fork, return None, so that pytest goes on with the tests chosen for it."""
        if session.testsfailed:
            return None
        if self._watch():
            return None
        functions = [function_of(self._source, mutant.line) for mutant in self._mutants]
        waiting = iter(
            [*self._controls(session, functions), *((at, name) for at, name in enumerate(functions) if name)]
        )
        for at, name in enumerate(functions):
            if name is None:
                self._told(at, None)
        running: dict[int, tuple[int, float]] = {}
        while True:
            while len(running) < self._jobs and (following := next(waiting, None)) is not None:
                at, name = following
                chosen = self._choose(session, name)
                child = fork()
                if not child:
                    session.items[:] = chosen
                    if at >= 0:
                        self._put_in_place(self._mutants[at], name)
                    return None
                patience_s = GRACE_S + PATIENCE * self._jobs * sum(self._seen[each.nodeid].took_s for each in chosen)
                running[child] = (at, time.monotonic() + patience_s)
            if not running:
                return True
            for at, status in ended(running):
                if at < 0 and status:
                    raise pytest.UsageError("without a mutant, tests fail in another order, or without the others")
                if at >= 0:
                    self._told(at, None if status == _UNTOUCHED else status != 0)

    def _watch(self) -> bool:
        """Run all tests unchanged in a fork, and wait for what it saw; return whether this is that fork."""
        reading, writing = os.pipe()
        child = fork()
        if not child:
            os.close(reading)
            self._watching = writing
            return True
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            raise pytest.UsageError("the tests fail without a mutant")
        for test, (took_s, called) in json.loads(text).items():
            self._seen[test] = _Seen(took_s, set(called))
        return False

    def _controls(self, session: pytest.Session, functions: Sequence[str | None]) -> list[tuple[int, str]]:
        """Return a function for each set of tests, at no mutant's position."""
        sets = {tuple(item.nodeid for item in self._choose(session, name)): name for name in functions if name}
        return [(-1, name) for name in sets.values()]

    def _choose(self, session: pytest.Session, name: str) -> list[pytest.Item]:
        chosen = [item for item in session.items if name in self._seen[item.nodeid].called]
        return sorted(chosen, key=lambda item: self._seen[item.nodeid].took_s)

    def _put_in_place(self, mutant: Mutant, name: str) -> None:
        if not swap(sys.modules[mutant.module], name, mutant.source, self._path):
            os._exit(_UNTOUCHED)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """In the unchanged run, note what a test calls and how long it takes."""
        if self._watching < 0:
            return (yield)
        seen = self._seen.setdefault(item.nodeid, _Seen())

        def trace(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename == self._path:
                seen.called.add(frame.f_code.co_qualname.partition(".<locals>")[0])

        threading.setprofile(trace)
        sys.setprofile(trace)
        began = time.monotonic()
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            seen.took_s = time.monotonic() - began

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """End a fork with pytest's exit status."""
        if os.getpid() == self._here:
            return
        if self._watching >= 0:
            seen = {test: (each.took_s, sorted(each.called)) for test, each in self._seen.items()}
            with os.fdopen(self._watching, "w") as pipe:
                json.dump(seen, pipe)
        os._exit(int(exitstatus))


def fork() -> int:
    """Fork; the child is the leader of a group of its own, is silent, and cannot take all memory."""
    child = os.fork()
    if not child:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    return child


def ended(running: dict[int, tuple[_T, float]]) -> Iterator[tuple[_T, int]]:
    """Wait until a child has ended, or end it when its time (of the monotonic clock) is over; yield what ended."""
    while True:
        for child, (what, until) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if not done and time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                done, status = os.waitpid(child, 0)
            if done:
                del running[child]
                yield what, os.waitstatus_to_exitcode(status)
                return
        time.sleep(0.01)
