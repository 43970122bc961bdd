"""Workers as Ray actors: started, counted, replaced and let go by one loop that looks at the node's queue."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from comity._control.channel import Tls, control_address
from comity.agent import Agent
from comity.client import Client
from comity.errors import AgentError, ComityError, ConfigError, ControlError, WorkerLost
from comity.ray.scaling import Scaler, ScalingSettings, demand_of
from comity.ray.start import local_ray, ray_module
from comity.worker import Report, Stop, load_agent, serve_async

_log = logging.getLogger(__name__)

AgentSource = str | Callable[[], Agent]

_QUICK_S = 10.0
_QUICK_DEATHS = 5
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 10.0
_LEAVE_S = 5.0
_ASK_S = 5.0


@dataclass(frozen=True, slots=True)
class RayReport:
    """What actors did together.

    Attributes:
        work: what they did; one that died could not say what it did.
        most: actors there were at once.
        replaced: actors that died, and had another one in their place.
        killed: actors that did not leave in time.
    """

    work: Report
    most: int
    replaced: int
    killed: int


class _Worker:
    """What runs in an actor."""

    def __init__(self, source: AgentSource, control: str, tls: Tls | None, concurrency: int, drain_s: float) -> None:
        self._source, self._control, self._tls = source, control, tls
        self._concurrency, self._drain_s = concurrency, drain_s
        self._stop = Stop()
        self._agent: Agent | None = None

    async def skills(self) -> tuple[str, ...]:
        return self._loaded().skills

    async def serve(self) -> dict[str, int]:
        report = await serve_async(
            self._loaded(), self._control, tls=self._tls, concurrency=self._concurrency, drain_s=self._drain_s,
            stop=self._stop,
        )  # fmt: skip
        return asdict(report)

    async def leave(self) -> None:
        self._stop.leave()

    def _loaded(self) -> Agent:
        if self._agent is None:
            found = load_agent(self._source) if isinstance(self._source, str) else self._source()
            if not isinstance(found, Agent):
                raise ConfigError(f"the factory made a {type(found).__name__}, not an Agent")
            self._agent = found
        return self._agent


def serve_on_ray(
    agent: AgentSource,
    control: str | None = None,
    *,
    minimum: int = 1,
    maximum: int = 8,
    idle_s: float = 30.0,
    concurrency: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    tls: Tls | None = None,
    drain_s: float = 30.0,
    poll_s: float = 0.5,
    stop: threading.Event | None = None,
) -> RayReport:
    """Serve an agent with Ray actors until `stop`, SIGTERM or SIGINT; blocks.

    It uses the Ray that the process is connected to (`ray.init(address=...)`), else it starts one on this machine. Each
    actor is a worker of its own that connects to the node; on other machines that takes the node's TCP address and the
    TLS files at the same place on each.

    Args:
        agent: `module:agent`, `path/to/file.py:agent`, or a function that makes it, called in each actor.
        control: the node's control address; None: COMITY_CONTROL.
        minimum: actors that are kept up.
        maximum: actors at most, with those that are leaving: another one starts when one of these has left.
        idle_s: seconds for which fewer have to be enough before some leave.
        concurrency: skills that run at a time in one actor.
        num_cpus: that Ray sets aside for one actor.
        num_gpus: likewise.
        tls: the files for mutual TLS, for a TCP address.
        drain_s: seconds that work in hand gets when an actor leaves.
        poll_s: seconds between two looks at the node's queue.
        stop: ends it; None: signals alone do.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: a number is out of range.
        ControlError: no address is given, or a TLS file is unreadable.
        AgentError: an actor said why it cannot go on: no such agent, the node refuses it.
        WorkerLost: one actor after another died at once.
    """
    scaler = Scaler(ScalingSettings(minimum, maximum, idle_s), concurrency)
    address = control_address(control)
    over = stop or threading.Event()
    with local_ray(), _signals(over), Client(address, tls=tls, timeout_s=_ASK_S) as node:
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0}
        arguments = (agent, address, tls, concurrency, drain_s)
        return _Pool(scaler, node, options, arguments, drain_s).run(over, poll_s)


@dataclass(eq=False, slots=True)
class _Actor:
    """One actor; `serving` is the result of its `serve`."""

    handle: Any
    serving: Any
    began: float
    leave_by: float | None = None


class _Pool:
    """The actors, by what their `serve` will return."""

    def __init__(
        self, scaler: Scaler, node: Client, options: dict[str, Any], arguments: tuple[Any, ...], drain_s: float
    ) -> None:
        self._ray = ray_module()
        self._kind = self._ray.remote(**options)(_Worker)
        self._scaler, self._node, self._arguments, self._drain_s = scaler, node, arguments, drain_s
        self._actors: dict[Any, _Actor] = {}
        self._skills: tuple[str, ...] = ()
        #: What an actor was asked for its skills and has not answered yet.
        self._asked: Any = None
        self._work = Report()
        self._most = self._replaced = self._killed = self._quick = 0
        self._demand = 0
        self._not_before = 0.0

    def run(self, over: threading.Event, poll_s: float) -> RayReport:
        try:
            while not over.is_set():
                self._learn_skills()
                self._fill(self._scaler.wanted(time.monotonic(), self._ask()))
                self._settle(poll_s, over)
        finally:
            self._end(poll_s)
        return RayReport(self._work, self._most, self._replaced, self._killed)

    def _ask(self) -> int:
        """How many calls run or wait at the node; what it said last while it does not answer."""
        try:
            self._demand = demand_of(self._node.status().loads, self._skills)
        except ControlError as error:
            _log.debug("the node does not say how long its queue is: %s", error)
        return self._demand

    def _fill(self, wanted: int) -> None:
        """Start actors, or let the newest ones go."""
        now = time.monotonic()
        staying = [actor for actor in self._actors.values() if actor.leave_by is None]
        for actor in staying[wanted:]:
            self._let_go(actor)
        if now < self._not_before:
            return
        for _ in range(min(wanted - len(staying), self._scaler.maximum - len(self._actors))):
            handle = self._kind.remote(*self._arguments)
            serving = handle.serve.remote()
            self._actors[serving] = _Actor(handle, serving, now)
        if self._actors and not self._skills and self._asked is None:
            self._asked = next(reversed(self._actors.values())).handle.skills.remote()
        self._most = max(self._most, len(self._actors))

    def _learn_skills(self) -> None:
        """Take in the skills if the actor that was asked has answered; nobody waits for that."""
        if self._asked is None or not self._ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked = self._asked, None
        try:
            self._skills = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:  # its `serve` says why
            _log.debug("an actor does not say its skills: %s", error)

    def _let_go(self, actor: _Actor) -> None:
        actor.leave_by = time.monotonic() + self._drain_s + _LEAVE_S
        actor.handle.leave.remote()

    def _settle(self, wait_s: float, over: threading.Event | None = None) -> None:
        """Wait until an actor ends, but no longer than `wait_s`; take in what ended."""
        if not self._actors:
            if over is not None:
                over.wait(wait_s)
            return
        ended, _ = self._ray.wait(list(self._actors), num_returns=1, timeout=wait_s)
        for serving in ended:
            self._take(self._actors.pop(serving))
        for actor in list(self._actors.values()):
            if actor.leave_by is not None and time.monotonic() > actor.leave_by:
                self._killed += 1
                self._ray.kill(actor.handle)
                del self._actors[actor.serving]

    def _take(self, actor: _Actor) -> None:
        """Take in how an actor ended.

        Raises:
            AgentError, WorkerLost: there is no use in another one.
        """
        try:
            done = self._ray.get(actor.serving)
        except self._ray.exceptions.RayTaskError as error:
            raise AgentError(_reason(error)) from error
        except self._ray.exceptions.RayError as error:
            self._note_death(actor, _reason(error))
            return
        self._ray.kill(actor.handle)  # it has left; Ray would keep its process as long as we have the handle
        names = [each.name for each in fields(Report)]
        self._work = Report(**{name: getattr(self._work, name) + done[name] for name in names})

    def _note_death(self, actor: _Actor, reason: str) -> None:
        now = time.monotonic()
        self._quick = self._quick + 1 if now - actor.began < _QUICK_S else 0
        if self._quick >= _QUICK_DEATHS:
            raise WorkerLost(f"{self._quick} actors died at once, one after another; the last: {reason}")
        if actor.leave_by is None:
            self._replaced += 1
            self._not_before = now + min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** max(0, self._quick - 1))
            _log.warning("an actor died (%s); starting another", reason)

    def _end(self, poll_s: float) -> None:
        """Let all go, and wait for them; what ends badly now is not told any more."""
        for actor in self._actors.values():
            if actor.leave_by is None:
                self._let_go(actor)
        while self._actors:
            try:
                self._settle(poll_s)
            except ComityError as error:
                _log.warning("%s", error)


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, ComityError):
        return cause.diagnostics()
    return (str(cause or error).strip().splitlines() or [type(error).__name__])[0][:500]


@contextmanager
def _signals(over: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT end it, where a signal can be taken."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, lambda *_: over.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
