"""The workers of this node: who offers which skill, who gets which work, and what happens when one dies.

A worker's stream: it says hello (its agent, its skills), is welcomed, and grants credits; each credit lets the node
send one item, each item is answered by one `done`, also when the node has cancelled it. A worker that wants to go says
`leaving`: it gets no more, and the node ends the stream when all it sent is done.

All state is the trio loop's. Choosing is synchronous, so no two calls ever get the same credit.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import trio

from comity.errors import AgentFailed, Busy, InvalidName, NoWorker, UnexpectedMessage, WorkerLost
from comity.ids import SpiffeId
from comity.v1 import control_pb2 as pb
from comity_node.control.bridge import Stream
from comity_node.control.payload import decode, encode

_log = logging.getLogger(__name__)

_SKILL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_ERROR = 2000
#: What the newest item counts for in the mean of a skill's time.
_EWMA = 0.2

WorkerStream = Stream[pb.WorkRequest, pb.WorkResponse]


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What workers may cost, and how patient a call is.

    Attributes:
        workers: connected at a time.
        skills: of one worker.
        credits: items that one worker may hold, whatever it grants.
        waiting: calls that wait for a credit, of all skills together.
        payload: bytes of an input or a result, as JSON.
        retries: how often one call is sent again after its worker was lost.
        grace_s: seconds for which nobody may offer a skill before calls for it fail.
        hello_s: seconds a new stream has to say hello.
    """

    workers: int = 256
    skills: int = 64
    credits: int = 64
    waiting: int = 1024
    payload: int = 4 * 1024 * 1024
    retries: int = 3
    grace_s: float = 5.0
    hello_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ConnectedAgent:
    """An agent of this organization, as its connected workers serve it."""

    agent_id: SpiffeId
    skills: tuple[str, ...]
    workers: int
    running: int
    credits: int


@dataclass(frozen=True, slots=True)
class SkillQueue:
    """What there is to do for the workers of one skill; one that offers several counts for each.

    Attributes:
        skill: which one.
        workers: that offer it and are not about to leave.
        running: calls that a worker has.
        free: calls that the workers would take at once.
        waiting: calls that wait for a worker.
        waiting_ms: how long the oldest of them has waited.
    """

    skill: str
    workers: int
    running: int
    free: int
    waiting: int
    waiting_ms: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much of a skill the workers can do.

    Attributes:
        at_once: items that they take at a time, whether they have them now or not.
        seconds: that an item of the skill took lately; None before the first.
    """

    at_once: int
    seconds: float | None


@dataclass(eq=False, slots=True)
class _Job:
    """One call, from its first queueing to its result."""

    id: int
    skill: str
    body: bytes
    deadline: float
    asked: float
    session: _Session | None = None
    losses: int = 0
    result: bytes | None = None
    error: str = ""
    sent_at: float = 0.0
    wake: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class _Session:
    """One connected worker."""

    agent: SpiffeId
    skills: frozenset[str]
    stream: WorkerStream
    credits: int = 0
    #: Sent and not yet done; None: cancelled, but the worker has not said so yet.
    running: dict[int, _Job | None] = field(default_factory=dict)
    leaving: bool = False
    last_used: int = 0


class WorkerPool:
    """Hands work to connected workers.

    Args:
        organization: whose workers these are.
        limits: see `WorkerLimits`.
    """

    def __init__(self, organization: str, *, limits: WorkerLimits = WorkerLimits()) -> None:
        self._organization, self._limits = organization, limits
        self._sessions: list[_Session] = []
        #: By skill, oldest first.
        self._waiting: dict[str, OrderedDict[int, _Job]] = {}
        self._absent_since: dict[str, float] = {}
        #: Mean of the last items, by skill: of those on offer only.
        self._seconds: dict[str, float] = {}
        self._opened: float | None = None
        self._ids = itertools.count(1)
        self._uses = itertools.count(1)
        self._changed = trio.Event()
        self._counts = {"worker_calls": 0, "worker_failures": 0, "worker_losses": 0, "worker_busy": 0}

    # ---- what the node asks

    @property
    def changed(self) -> trio.Event:
        """Set once, when a worker comes or goes; ask again for the event of the change after that."""
        return self._changed

    def skills(self) -> tuple[str, ...]:
        """The skills on offer, sorted."""
        return tuple(sorted({skill for session in self._sessions if not session.leaving for skill in session.skills}))

    def agents(self) -> tuple[ConnectedAgent, ...]:
        """A snapshot of the connected agents, by name; several workers may serve one."""
        by_agent: dict[SpiffeId, list[_Session]] = {}
        for session in self._sessions:
            by_agent.setdefault(session.agent, []).append(session)
        return tuple(
            ConnectedAgent(
                agent_id=agent,
                skills=tuple(sorted(frozenset[str]().union(*(session.skills for session in sessions)))),
                workers=len(sessions),
                running=sum(len(session.running) for session in sessions),
                credits=sum(session.credits for session in sessions),
            )
            for agent, sessions in sorted(by_agent.items())
        )

    def queues(self) -> tuple[SkillQueue, ...]:
        """How much there is to do, by skill: of every skill that is on offer or waited for."""
        return tuple(self._queue(skill) for skill in sorted({*self.skills(), *self._waiting}))

    def _queue(self, skill: str) -> SkillQueue:
        offering = [each for each in self._sessions if skill in each.skills and not each.leaving]
        queue = self._waiting.get(skill) or OrderedDict[int, _Job]()
        running = (job for each in self._sessions for job in each.running.values() if job is not None)
        asked = min((job.asked for job in queue.values()), default=math.inf)
        waiting_s = trio.current_time() - asked if queue else 0.0
        return SkillQueue(
            skill=skill,
            workers=len(offering),
            running=sum(job.skill == skill for job in running),
            free=sum(each.credits for each in offering),
            waiting=len(queue),
            waiting_ms=round(waiting_s * 1000),
        )

    def capacity(self, skill: str) -> Capacity:
        """How much of a skill can be done."""
        able = [session for session in self._sessions if skill in session.skills and not session.leaving]
        at_once = sum(session.credits + len(session.running) for session in able)
        return Capacity(at_once, self._seconds.get(skill))

    def counters(self) -> Mapping[str, int]:
        """Calls, failures, losses and refusals since the start."""
        return dict(self._counts)

    async def call(self, skill: str, payload: Any, *, deadline_s: float) -> Any:  # noqa: ANN401  (any JSON value)
        """Have a worker do one piece of work.

        The worker with a free credit and the least running gets it; if none has one, the call waits its turn. If the
        worker dies, another one gets it, at most `limits.retries` times and as the deadline allows. A cancelled call
        is cancelled at the worker, too.

        Args:
            skill: which one.
            payload: the input, a JSON value.
            deadline_s: seconds the whole may take.

        Returns:
            The agent's result, a JSON value.

        Raises:
            NoWorker: nobody has offered the skill for longer than the grace.
            Busy: too many calls wait, or no worker had a credit before the deadline.
            WorkerLost: the workers that had it died.
            AgentFailed: the agent raised, returned what is not JSON or too much of it, or took too long; or the
                payload is not JSON or too large.
        """
        job = _Job(
            next(self._ids),
            skill,
            encode(payload, self._limits.payload, f"skill {skill!r}: the input"),
            trio.current_time() + deadline_s,
            trio.current_time(),
        )
        self._counts["worker_calls"] += 1
        try:
            with trio.move_on_at(job.deadline):
                result = await self._run(job)
                return decode(result, self._limits.payload, f"skill {skill!r}: the result")
            self._timed_out(job, deadline_s)
        except AgentFailed:
            self._counts["worker_failures"] += 1
            raise
        except Busy:
            self._counts["worker_busy"] += 1
            raise
        finally:
            self._forget(job)

    async def _run(self, job: _Job) -> bytes:
        self._submit(job)
        while True:
            absent_at = self._absent_at(job.skill) if job.session is None else math.inf
            with trio.move_on_at(absent_at):
                await job.wake.wait()
                job.wake = trio.Event()
            if job.result is not None:
                return job.result
            if job.error:
                raise AgentFailed(job.error)
            if job.session is not None and job.session not in self._sessions:
                job.losses += 1
                self._counts["worker_losses"] += 1
                if job.losses > self._limits.retries:
                    raise WorkerLost(
                        f"skill {job.skill!r}: {job.losses} workers died with this work, one after another"
                    )
                self._submit(job)
            elif job.session is None and trio.current_time() >= self._absent_at(job.skill):
                self._raise_absent(job)

    def _timed_out(self, job: _Job, deadline_s: float) -> NoReturn:
        if job.session is not None and job.session in self._sessions:
            raise AgentFailed(
                f"agent {job.session.agent.name!r}, skill {job.skill!r}: took longer than {deadline_s:g} s"
            )
        if self._absent_at(job.skill) < math.inf:
            self._raise_absent(job)
        raise Busy(f"skill {job.skill!r}: no worker had room within {deadline_s:g} s")

    def _raise_absent(self, job: _Job) -> NoReturn:
        if job.losses:
            raise WorkerLost(f"skill {job.skill!r}: the worker died with this work, and no other offers the skill")
        raise NoWorker(
            f"no worker offers the skill {job.skill!r}; start one with: python -m comity.worker MODULE:AGENT"
        )

    def _absent_at(self, skill: str) -> float:
        """When calls for `skill` fail because nobody offers it; infinity while somebody does."""
        if any(skill in session.skills and not session.leaving for session in self._sessions):
            return math.inf
        if self._opened is None:
            self._opened = trio.current_time()
        return self._absent_since.get(skill, self._opened) + self._limits.grace_s

    # ---- choosing

    def _submit(self, job: _Job) -> None:
        """Send the job, or queue it: a new one last, one whose worker was lost first."""
        retried, job.session = job.session is not None, None
        session = self._pick(job.skill)
        if session is not None:
            self._send(session, job)
            return
        if not retried and sum(map(len, self._waiting.values())) >= self._limits.waiting:
            raise Busy(f"skill {job.skill!r}: {self._limits.waiting} calls wait for a worker already")
        queue = self._waiting.setdefault(job.skill, OrderedDict())
        queue[job.id] = job
        queue.move_to_end(job.id, last=not retried)

    def _pick(self, skill: str) -> _Session | None:
        able = (session for session in self._sessions if session.credits and skill in session.skills)
        return min(able, key=lambda session: (len(session.running), session.last_used), default=None)

    def _send(self, session: _Session, job: _Job) -> None:
        session.credits -= 1
        session.last_used = next(self._uses)
        job.sent_at = trio.current_time()
        session.running[job.id] = job
        job.session = session
        left_ms = max(1, round((job.deadline - trio.current_time()) * 1000)) if job.deadline < math.inf else 0
        item = pb.WorkItem(id=job.id, skill=job.skill, input=job.body, deadline_ms=left_ms)
        session.stream.send_nowait(pb.WorkResponse(item=item))
        job.wake.set()

    def _feed(self, session: _Session) -> None:
        """Give waiting calls to a worker that has credits, the oldest first."""
        while session.credits:
            queues = [queue for skill in session.skills if (queue := self._waiting.get(skill))]
            if not queues:
                return
            queue = min(queues, key=lambda queue: next(iter(queue)))
            _, job = queue.popitem(last=False)
            if not queue:
                del self._waiting[job.skill]
            self._send(session, job)

    def _forget(self, job: _Job) -> None:
        """Take a call that has ended, in whatever way, out of everything."""
        queue = self._waiting.get(job.skill)
        if queue is not None and queue.pop(job.id, None) is not None and not queue:
            del self._waiting[job.skill]
        session = job.session
        if session is not None and job.id in session.running and session in self._sessions:
            session.running[job.id] = None
            session.stream.send_nowait(pb.WorkResponse(cancel=job.id))

    # ---- workers

    async def serve(self, stream: WorkerStream) -> None:
        """Serve one worker's stream, until it goes away.

        Raises:
            UnexpectedMessage, InvalidName, Busy: the worker is refused; says why.
        """
        session = await self._greet(stream)
        self._join(session)
        try:
            while not (session.leaving and not session.running):
                self._handle(session, await stream.receive())
        except trio.EndOfChannel:
            return
        finally:
            self._part(session)

    async def _greet(self, stream: WorkerStream) -> _Session:
        with trio.move_on_after(self._limits.hello_s):
            message = await stream.receive()
            if message.WhichOneof("message") != "hello":
                raise UnexpectedMessage("a worker says hello first")
            session = self._admit(message.hello, stream)
            stream.send_nowait(
                pb.WorkResponse(welcome=pb.WorkerWelcome(organization=self._organization, agent_id=str(session.agent)))
            )
            return session
        raise UnexpectedMessage(f"the worker did not say hello within {self._limits.hello_s:g} s")

    def _admit(self, hello: pb.WorkerHello, stream: WorkerStream) -> _Session:
        limits = self._limits
        agent = SpiffeId(self._organization, "agent", hello.agent)
        if not 1 <= len(hello.skills) <= limits.skills:
            raise UnexpectedMessage(f"a worker offers 1 to {limits.skills} skills, not {len(hello.skills)}")
        for skill in hello.skills:
            if not _SKILL.fullmatch(skill):
                raise InvalidName(
                    f"{skill!r} is no skill's name: lower-case letters, digits, '.', '_' and '-', at most 64"
                )
        if len(self._sessions) >= limits.workers:
            raise Busy(f"{limits.workers} workers are connected already")
        return _Session(agent, frozenset(hello.skills), stream)

    def _join(self, session: _Session) -> None:
        self._sessions.append(session)
        _log.info("worker of %s joined: %s", session.agent, ", ".join(sorted(session.skills)))
        self._tell_change(session.skills)

    def _part(self, session: _Session) -> None:
        self._sessions.remove(session)
        lost = [job for job in session.running.values() if job is not None]
        level = logging.WARNING if lost else logging.INFO
        _log.log(level, "worker of %s left, %d pieces of work are lost", session.agent, len(lost))
        self._note_absence(session.skills)
        on_offer = frozenset(self.skills())
        self._seconds = {skill: seconds for skill, seconds in self._seconds.items() if skill in on_offer}
        for job in lost:
            job.wake.set()
        self._tell_change(session.skills)

    def _note_absence(self, skills: frozenset[str]) -> None:
        now = trio.current_time()
        # An entry older than the grace says the same as none, once the pool itself is older than that.
        self._absent_since = {
            skill: since for skill, since in self._absent_since.items() if now - since <= self._limits.grace_s
        }
        self._absent_since.update(dict.fromkeys(skills, now))

    def _tell_change(self, skills: frozenset[str]) -> None:
        for skill in skills:
            for job in self._waiting.get(skill, {}).values():
                job.wake.set()
        self._changed.set()
        self._changed = trio.Event()

    def _handle(self, session: _Session, message: pb.WorkRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "credits":
            self._grant(session, message.credits)
        elif kind == "done":
            self._done(session, message.done)
        elif kind == "leaving":
            session.leaving, session.credits = True, 0
            self._note_absence(session.skills)
            self._tell_change(session.skills)
        else:
            raise UnexpectedMessage(f"a worker may not send {kind or 'an empty message'} now")

    def _grant(self, session: _Session, count: int) -> None:
        if session.leaving:
            return
        session.credits = min(session.credits + count, max(0, self._limits.credits - len(session.running)))
        self._feed(session)

    def _done(self, session: _Session, done: pb.WorkDone) -> None:
        if done.id not in session.running:
            raise UnexpectedMessage(f"work {done.id} is not the worker's, or was done before")
        job = session.running.pop(done.id)
        if job is not None:
            if done.error:
                job.error = done.error[:_MAX_ERROR]
            else:  # only these say how long an item takes: who fails at once is not fast
                took = trio.current_time() - job.sent_at
                known = self._seconds.get(job.skill, took)
                self._seconds[job.skill] = known + _EWMA * (took - known)
                job.result = done.result
            job.wake.set()
        self._grant(session, done.credits)
