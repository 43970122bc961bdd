"""A kit for testing agents: run one skill without a node, or a worker against a node that is only a fake.

def test_generates_as_many_as_asked() -> None:
    result = run_skill(agent, "generate", {"count": 3, "seed": 7})
    assert len(result["records"]) == 3

def test_survives_a_restart_of_the_node() -> None:
    with FakeNode() as node, node.serving(agent):
        node.call("generate", {"count": 3, "seed": 7})
        node.drop_workers()
        node.call("generate", {"count": 3, "seed": 7})

`FakeModel` stands for a model's server behind an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from comity._control.channel import CHANNEL_OPTIONS
from comity.agent import Agent, ThreadPool, Work, encode_result
from comity.errors import AgentFailed, NoWorker, WorkerLost
from comity.fake_model import FakeModel, Refusal
from comity.ids import SpiffeId
from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc
from comity.worker import Stop, serve_async

__all__ = ["FakeModel", "FakeNode", "Refusal", "run_skill", "run_skill_async"]

_MAX_WORKERS = 16
_MAX_ITEMS = 64


async def run_skill_async(agent: Agent, skill: str, input: Any = None, *, timeout_s: float = 30.0) -> Any:  # noqa: ANN401
    """Run one skill as a worker would: with the input and the result carried as JSON, and the same checks.

    Args:
        agent: whose skill.
        skill: which one.
        input: a JSON value.
        timeout_s: seconds it may take.

    Returns:
        The result as the node would get it.

    Raises:
        AgentFailed: as the node would see it: no such skill, it raised (its exception is the cause), it returned
            what is not JSON, or it took too long. Also when the input is not JSON.
    """
    where = f"agent {agent.name!r}, skill {skill!r}"
    work = Work(json.loads(encode_result(input, f"{where}, its input")), skill, time.monotonic() + timeout_s)
    threads = ThreadPool(1)
    try:
        task = asyncio.ensure_future(agent.perform(work, threads))
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            work.cancel()
            task.cancel()
            raise AgentFailed(f"{where}: took longer than {timeout_s:g} s")
        return json.loads(task.result())
    finally:
        threads.close()


def run_skill(agent: Agent, skill: str, input: Any = None, *, timeout_s: float = 30.0) -> Any:  # noqa: ANN401
    """Do what `run_skill_async` does, for tests without a loop."""
    return asyncio.run(run_skill_async(agent, skill, input, timeout_s=timeout_s))


@dataclass(eq=False)
class _FakeSession:
    """One worker's connection."""

    skills: frozenset[str]
    credits: int = 0
    #: What goes to the worker; None: the connection breaks; True: it ends in order.
    outbox: queue.Queue[pb.WorkResponse | bool | None] = field(default_factory=lambda: queue.Queue(4 * _MAX_ITEMS))
    running: dict[int, futures.Future[pb.WorkDone]] = field(default_factory=dict)
    leaving: bool = False


class FakeNode(pb_grpc.WorkerServiceServicer):
    """Serves WorkerService over a real socket, and nothing else: no policy, no peers, no retries.

    Args:
        organization: whose node it pretends to be.
    """

    def __init__(self, organization: str = "test.example") -> None:
        self.organization = organization
        self._directory = Path(tempfile.mkdtemp(prefix="comity-"))
        self.address = f"unix:{self._directory}/s"
        self._sessions: list[_FakeSession] = []
        self._changed = threading.Condition()
        self._ids = itertools.count(1)

    def __enter__(self) -> FakeNode:
        options = (*CHANNEL_OPTIONS, ("grpc.http2.min_ping_interval_without_data_ms", 5_000))
        self._server = grpc.server(futures.ThreadPoolExecutor(_MAX_WORKERS), options=options)
        pb_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop_workers()
        self._server.stop(grace=1.0).wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def skills(self) -> tuple[str, ...]:
        """The skills that connected workers offer, sorted."""
        with self._changed:
            return tuple(sorted({skill for it in self._sessions if not it.leaving for skill in it.skills}))

    def wait_for_skill(self, skill: str, timeout_s: float = 10.0) -> None:
        """Wait until a worker offers `skill`.

        Raises:
            NoWorker: none did within `timeout_s` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: skill in self.skills, timeout_s):
                raise NoWorker(f"no worker offered {skill!r} within {timeout_s:g} s")

    def call(self, skill: str, input: Any = None, *, timeout_s: float = 30.0) -> Any:  # noqa: ANN401
        """Have a worker do one piece of work, and return its result; waits for a worker with a free credit.

        Raises:
            NoWorker: none was free within `timeout_s` seconds.
            AgentFailed: the skill failed, or took too long.
            WorkerLost: the connection broke meanwhile (a real node would ask another worker).
        """
        body = encode_result(input, f"the input for {skill!r}")
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if not self._changed.wait_for(lambda: self._free(skill) is not None, timeout_s):
                raise NoWorker(f"no worker with room for {skill!r} within {timeout_s:g} s")
            session = self._free(skill)
            assert session is not None  # the lock was held since it was found
            session.credits -= 1
            number = next(self._ids)
            result = session.running[number] = futures.Future()
            left_ms = max(1, int((deadline - time.monotonic()) * 1000))
            item = pb.WorkItem(id=number, skill=skill, input=body, deadline_ms=left_ms)
            session.outbox.put_nowait(pb.WorkResponse(item=item))
        try:
            done = result.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            with contextlib.suppress(queue.Full):  # the worker is gone or stuck: nothing to cancel
                session.outbox.put_nowait(pb.WorkResponse(cancel=number))
            raise AgentFailed(f"skill {skill!r}: took longer than {timeout_s:g} s") from error
        if done.error:
            raise AgentFailed(done.error)
        return json.loads(done.result)

    def drop_workers(self) -> None:
        """Break every worker's connection, as the crash of a node would; they may come back."""
        with self._changed:
            for session in self._sessions:
                session.leaving = True
                session.outbox.put_nowait(None)

    @contextlib.contextmanager
    def serving(self, agent: Agent, *, concurrency: int = 1) -> Iterator[None]:
        """Run a worker for `agent` on a thread, connected to this node, for the block.

        Raises:
            NoWorker: it did not connect.
        """
        ready = threading.Event()
        loop: asyncio.AbstractEventLoop
        stop: Stop

        async def run() -> None:
            nonlocal loop, stop
            loop, stop = asyncio.get_running_loop(), Stop()
            ready.set()
            await serve_async(agent, self.address, concurrency=concurrency, stop=stop, drain_s=5.0)

        with futures.ThreadPoolExecutor(1) as thread:
            worker = thread.submit(asyncio.run, run())
            try:
                if not ready.wait(10.0):
                    raise NoWorker("the worker's thread did not start")
                for skill in agent.skills:
                    self.wait_for_skill(skill)
                yield
            finally:
                loop.call_soon_threadsafe(stop.leave)
                worker.result(timeout=15.0)

    def _free(self, skill: str) -> _FakeSession | None:
        free = (it for it in self._sessions if skill in it.skills and it.credits and not it.leaving)
        return min(free, key=lambda it: len(it.running), default=None)

    # ---- what workers call

    def Work(self, request_iterator: Any, context: Any) -> Iterator[pb.WorkResponse]:  # noqa: ANN401  (grpc's own)
        """Serve one worker; see WorkerService in control.proto."""
        hello = next(request_iterator).hello
        agent = SpiffeId(self.organization, "agent", hello.agent)
        session = _FakeSession(frozenset(hello.skills))
        yield pb.WorkResponse(welcome=pb.WorkerWelcome(organization=self.organization, agent_id=str(agent)))
        reader = threading.Thread(target=self._read, args=(session, request_iterator), daemon=True)
        with self._changed:
            self._sessions.append(session)
            self._changed.notify_all()
        reader.start()
        try:
            while isinstance(message := session.outbox.get(), pb.WorkResponse):
                yield message
        finally:
            with self._changed:
                self._sessions.remove(session)
                self._changed.notify_all()
            for result in session.running.values():
                result.set_exception(WorkerLost("the worker's connection broke"))
        if message is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the fake node dropped its workers")

    def _read(self, session: _FakeSession, requests: Iterator[pb.WorkRequest]) -> None:
        try:
            for request in requests:
                with self._changed:
                    self._take(session, request)
                    self._changed.notify_all()
        except grpc.RpcError:
            return  # the connection broke; the writing side ends below
        finally:
            session.outbox.put(True)

    def _take(self, session: _FakeSession, request: pb.WorkRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "credits":
            session.credits = min(session.credits + request.credits, _MAX_ITEMS)
        elif kind == "done":
            session.credits = min(session.credits + request.done.credits, _MAX_ITEMS)
            result = session.running.pop(request.done.id, None)
            if result is not None:
                result.set_result(request.done)
        elif kind == "leaving":
            session.leaving = True
        else:
            session.outbox.put_nowait(None)
        if session.leaving and not session.running:
            session.outbox.put(True)
