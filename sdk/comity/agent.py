"""Agents: named sets of skills, written as decorated functions.

    agent = Agent("generator")

    @agent.skill("generate")
    def generate(work: Work) -> dict[str, object]:
        return {"records": [...]}

A worker (`comity.worker`) serves an agent to its organization's node; `comity.testing` runs one without a node.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from comity.errors import AgentFailed, ConfigError

__all__ = ["Agent", "Work"]

#: Bytes that an input or a result may have, as JSON.
MAX_PAYLOAD = 4 * 1024 * 1024
_MAX_DEPTH = 64
_MAX_TEXT = 1000
#: As the node has it: one segment of a SPIFFE ID.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work.

    Attributes:
        input: what the node sent, a JSON value.
        skill: which skill is asked for.
        deadline: when the node stops waiting, in seconds of `time.monotonic`; infinity: never.
    """

    input: Any
    skill: str
    deadline: float = float("inf")
    _cancelled: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more. A long synchronous skill looks at it from time to time."""
        return self._cancelled.is_set() or time.monotonic() >= self.deadline

    def cancel(self) -> None:
        """Say that nobody waits any more."""
        self._cancelled.set()


Skill = Callable[[Work], Any]
F = TypeVar("F", bound=Skill)


class Threads(Protocol):
    """Where synchronous skills run."""

    def run(self, function: Skill, work: Work) -> asyncio.Future[Any]:
        """Call `function(work)` on a thread; the future, of the running loop, has its result."""


class Agent:
    """A named set of skills.

    Args:
        name: the agent's name in its organization: lower-case letters, digits, '.', '_' and '-', at most 64.

    Raises:
        ConfigError: that is no name.
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name, "agent")
        self._skills: dict[str, Skill] = {}

    @property
    def skills(self) -> tuple[str, ...]:
        """The names of the skills, sorted."""
        return tuple(sorted(self._skills))

    def skill(self, name: str) -> Callable[[F], F]:
        """Decorate a function that takes a `Work` and returns a JSON value; it may be async.

        A synchronous one runs on a thread, several at a time if the worker allows that; an async one runs on the
        worker's loop and must not block it.

        Raises:
            ConfigError: `name` is no name or is taken, or the function is a generator.
        """
        _checked(name, "skill")
        if name in self._skills:
            raise ConfigError(f"agent {self.name!r} has a skill {name!r} already")

        def register(function: F) -> F:
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise ConfigError(f"skill {name!r} of agent {self.name!r} must return its result, not yield it")
            self._skills[name] = function
            return function

        return register

    async def perform(self, work: Work, threads: Threads) -> bytes:
        """Run the skill that `work` asks for, and return its result as JSON.

        Cancelled, it cancels an async skill; a synchronous one is told by `work.cancelled`, and waited for.

        Raises:
            AgentFailed: there is no such skill, it raised, or it returned what is not JSON or too much of it. The
                skill's own exception is its cause.
        """
        where = f"agent {self.name!r}, skill {work.skill!r}"
        function = self._skills.get(work.skill)
        if function is None:
            raise AgentFailed(f"{where}: there is no such skill; it has {', '.join(self.skills) or 'none'}")
        try:
            if _is_async(function):
                result = await function(work)
            else:
                result = await _on_thread(threads.run(function, work), work)
        except (Exception, SystemExit) as error:  # user code may raise anything, or call sys.exit; all is reported
            raise AgentFailed(f"{where}: {type(error).__name__}: {error}"[:_MAX_TEXT]) from error
        return encode_result(result, where)


async def _on_thread(future: asyncio.Future[Any], work: Work) -> Any:  # noqa: ANN401  (the skill's result)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        work.cancel()
        await asyncio.wait([future])
        future.exception()  # nobody wants it any more: taken, so that asyncio does not report it as forgotten
        raise


def encode_result(result: Any, where: str) -> bytes:  # noqa: ANN401  (whatever user code returned)
    """Return `result` as JSON.

    Raises:
        AgentFailed: it is no JSON value (names the first place that is none), or over `MAX_PAYLOAD`.
    """
    wrong = _find_wrong(result, 0)
    if wrong is not None:
        raise AgentFailed(f"{where}: result{wrong[0][:200]} {wrong[1]}")
    body = json.dumps(result, allow_nan=False, separators=(",", ":")).encode()
    if len(body) > MAX_PAYLOAD:
        raise AgentFailed(f"{where}: result has {len(body)} bytes, and may have {MAX_PAYLOAD}; return less at a time")
    return body


def _find_wrong(value: Any, depth: int) -> tuple[str, str] | None:  # noqa: ANN401  (whatever user code returned)
    """Return the first place in `value` that is not JSON, and what is wrong with it."""
    if value is None or isinstance(value, (str, bool, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else ("", f"is {value}, which JSON cannot say")
    if depth == _MAX_DEPTH:
        return "", f"is nested deeper than {_MAX_DEPTH} levels"
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                return "", f"has the key {key!r}; keys must be strings"
            if wrong := _find_wrong(inner, depth + 1):
                return f"[{key!r}]{wrong[0]}", wrong[1]
        return None
    if isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            if wrong := _find_wrong(inner, depth + 1):
                return f"[{index}]{wrong[0]}", wrong[1]
        return None
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return "", f"is a {kind}; return dicts, lists, strings, numbers, booleans and None only"


def _is_async(function: Skill) -> bool:
    # An object may be a skill, too: then its class says what a call is.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no {what}'s name: lower-case letters, digits, '.', '_' and '-', at most 64")
    return name


class ThreadPool:
    """At most `size` threads that do not keep the process: a skill that hangs cannot hold up its end.

    Args:
        size: how many. The caller starts no more than that at a time; one more would wait.
    """

    def __init__(self, size: int) -> None:
        self._size, self._count, self._idle = size, 0, 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def run(self, function: Skill, work: Work) -> asyncio.Future[Any]:
        """Call `function(work)` on a thread; the future, of the running loop, has its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:  # noqa: ANN401  (the function's)
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def job() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = function(work)
            except StopIteration as raised:  # a future cannot hold it
                error = RuntimeError(f"StopIteration: {raised}")
            except BaseException as raised:  # noqa: BLE001  handed to whoever awaits the future
                error = raised
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:  # the loop is closed: nobody waits for it any more
                return

        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._count < self._size:
                self._count += 1
                threading.Thread(target=self._loop, name=f"comity-skill-{self._count}", daemon=True).start()
        self._jobs.put(job)
        return future

    def close(self) -> None:
        """Let idle threads end; busy ones end after what they do."""
        with self._lock:
            for _ in range(self._count):
                self._jobs.put(None)

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job
            with self._lock:
                self._idle += 1
