"""One worker: its connection to the node, what it holds, and how it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc import aio

from comity import __version__
from comity._control.channel import CHANNEL_OPTIONS, Tls, control_address
from comity._control.failures import to_control_error
from comity.agent import Agent, ThreadPool, Work
from comity.errors import AgentFailed, ControlError
from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc

_log = logging.getLogger("comity.worker")

_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
_WELCOME_S = 10.0
#: The node will not change its mind about these.
_FATAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did, from its start to its leaving.

    Attributes:
        done: pieces of work with a result.
        failed: pieces of work whose skill raised or returned what is not JSON.
        cancelled: pieces of work that the node took back, or that were lost with the connection.
        connections: how often it was welcomed by a node.
        unfinished: pieces of work that it held when it left.
    """

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    connections: int = 0
    unfinished: int = 0

    def __str__(self) -> str:
        text = f"{self.done} done, {self.failed} failed, {self.cancelled} cancelled"
        return f"{text}, {self.unfinished} left unfinished, {self.connections} connection(s)"


class Stop:
    """Ends `serve_async`: `finish()` lets it finish what it holds, `now()` does not, `leave()` is both in turn."""

    def __init__(self) -> None:
        self.leaving = asyncio.Event()
        self.hurried = asyncio.Event()
        self._told = False

    def finish(self) -> None:
        """Take no more work and finish what is in hand; called again it changes nothing."""
        self.leaving.set()

    def leave(self) -> None:
        """Do as `finish` does; called again: leave at once."""
        if self._told:
            self.now()
        self._told = True
        self.finish()

    def now(self) -> None:
        """Leave at once."""
        self.leaving.set()
        self.hurried.set()


async def serve_async(
    agent: Agent,
    control: str | None = None,
    *,
    tls: Tls | None = None,
    concurrency: int | None = None,
    drain_s: float = 30.0,
    stop: Stop | None = None,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Report:
    """Serve `agent` until `stop`, or a cancellation.

    Args:
        agent: what to serve.
        control: the node's control address; None: COMITY_CONTROL.
        tls: the files for mutual TLS, for a TCP address.
        concurrency: skills that run at a time; None: one for each CPU.
        drain_s: seconds that work in hand gets after `stop`.
        stop: how to end it.
        uniform: the random numbers that spread reconnecting workers.

    Raises:
        ControlError: no address is given, a TLS file is unreadable, or the node refuses the worker for good.
    """
    address = control_address(control)
    size = concurrency or os.cpu_count() or 1
    credentials = tls.credentials() if tls is not None else None
    worker = _Worker(agent, address, credentials, size, drain_s, uniform)
    try:
        await worker.run(stop or Stop())
    finally:
        worker.close()
    return worker.report()


def serve(
    agent: Agent,
    control: str | None = None,
    *,
    tls: Tls | None = None,
    concurrency: int | None = None,
    drain_s: float = 30.0,
) -> Report:
    """Serve `agent` until SIGTERM or SIGINT; says on one line of stderr what was done.

    Arguments and errors as `serve_async`.
    """
    report = serve_until_told(agent, control, tls=tls, concurrency=concurrency, drain_s=drain_s)
    print(f"comity worker {agent.name}: {report}", file=sys.stderr, flush=True)
    return report


def serve_until_told(
    agent: Agent,
    control: str | None = None,
    *,
    tls: Tls | None = None,
    concurrency: int | None = None,
    drain_s: float = 30.0,
    watch: Callable[[Stop], None] | None = None,
) -> Report:
    """Serve `agent` until SIGTERM, SIGINT or what `watch` looks out for, and say nothing.

    Args:
        agent: what to serve; the arguments not named here and the errors as `serve_async`.
        control: likewise.
        tls: likewise.
        concurrency: likewise.
        drain_s: likewise.
        watch: called once on the running loop, with what ends the worker. Then a signal that comes again changes
            nothing: whoever stops all processes of a supervisor at once stops each of them twice.
    """

    async def run() -> Report:
        stop = Stop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.leave if watch is None else stop.finish)
        if watch is not None:
            watch(stop)
        return await serve_async(agent, control, tls=tls, concurrency=concurrency, drain_s=drain_s, stop=stop)

    return asyncio.run(run())


class _Worker:
    """What outlives a connection: the threads, the work that still runs on them, and the counts."""

    def __init__(
        self,
        agent: Agent,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        size: int,
        drain_s: float,
        uniform: Callable[[float, float], float],
    ) -> None:
        self.agent, self.size, self.drain_s = agent, size, drain_s
        self.threads = ThreadPool(size)
        self.running: set[asyncio.Task[None]] = set()
        self.session: _Session | None = None
        self.done = self.failed = self.cancelled = self.connections = self.unfinished = 0
        self._address, self._credentials, self._uniform = address, credentials, uniform

    async def run(self, stop: Stop) -> None:
        """Connect, serve, and connect again."""
        failures = 0
        while not stop.leaving.is_set():
            welcomed = self.connections
            try:
                await self._connect(stop)
                reason = f"the node at {self._address} ended the connection"
            except aio.AioRpcError as error:
                refused = to_control_error(error, self._address, "Work")
                if error.code() in _FATAL:
                    raise refused from error
                lost = self.connections > welcomed
                reason = f"lost the node at {self._address}: {error.details()}" if lost else refused.diagnostics()
            except ControlError as error:
                reason = error.diagnostics()
            except TimeoutError:
                reason = f"the node at {self._address} did not welcome the worker in time"
            if stop.leaving.is_set():
                return
            failures = 0 if self.connections > welcomed else failures + 1
            _log.log(logging.WARNING if failures <= 1 else logging.DEBUG, "%s; trying again", reason)
            pause = self._uniform(_FIRST_BACKOFF_S / 2, min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(failures, 10)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.leaving.wait()

    def close(self) -> None:
        """Give up what still runs."""
        for task in self.running:
            task.cancel()
        self.threads.close()

    def report(self) -> Report:
        return Report(self.done, self.failed, self.cancelled, self.connections, self.unfinished)

    async def _connect(self, stop: Stop) -> None:
        channel = (
            aio.insecure_channel(self._address, CHANNEL_OPTIONS)
            if self._credentials is None
            else aio.secure_channel(self._address, self._credentials, CHANNEL_OPTIONS)
        )
        async with channel:
            await _Session(self, pb_grpc.WorkerServiceStub(channel).Work(None)).run(stop)


class _Session:
    """One connection to the node."""

    def __init__(self, worker: _Worker, call: aio.StreamStreamCall[pb.WorkRequest, pb.WorkResponse]) -> None:
        self._worker, self._call = worker, call
        #: At most one `done` for each credit, and a few words more.
        self._outbox: asyncio.Queue[pb.WorkRequest] = asyncio.Queue(3 * worker.size + 8)
        self._tasks: dict[int, tuple[asyncio.Task[None], Work]] = {}
        self._leaving = False
        self._cut = False

    async def run(self, stop: Stop) -> None:
        """Serve until the node ends the stream.

        Raises:
            AioRpcError: the connection broke, or the node refused.
            ControlError: the node does not keep to the protocol.
            TimeoutError: no welcome came.
        """
        worker, agent = self._worker, self._worker.agent
        hello = pb.WorkerHello(agent=agent.name, skills=agent.skills, version=__version__)
        self._outbox.put_nowait(pb.WorkRequest(hello=hello))
        helpers = [asyncio.create_task(self._send()), asyncio.create_task(self._watch(stop))]
        try:
            async with asyncio.timeout(_WELCOME_S):  # wait_for of Python 3.11 may swallow a cancellation
                first = await self._call.read()
            if not isinstance(first, pb.WorkResponse) or not first.HasField("welcome"):
                raise TimeoutError
            worker.connections += 1
            worker.session = self
            _log.info(
                "serving %s to %s: %s", first.welcome.agent_id, first.welcome.organization, ", ".join(agent.skills)
            )
            self.grant(worker.size - len(worker.running))
            while isinstance(message := await self._call.read(), pb.WorkResponse):
                self._take(message)
        except asyncio.CancelledError:
            if not self._cut:  # else it is our own cut of the stream, which reaches us like a cancellation
                raise
        finally:
            worker.session = None
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self._call.cancel()
            if stop.leaving.is_set():
                worker.unfinished += len(self._tasks)
            for task, work in self._tasks.values():
                work.cancel()
                task.cancel()

    def grant(self, credits: int) -> None:
        """Tell the node that the worker can take so many more."""
        if credits > 0 and not self._leaving:
            self._outbox.put_nowait(pb.WorkRequest(credits=credits))

    def _take(self, message: pb.WorkResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "item":
            self._begin(message.item)
        elif kind == "cancel" and message.cancel in self._tasks:
            task, work = self._tasks[message.cancel]
            work.cancel()
            task.cancel()

    def _begin(self, item: pb.WorkItem) -> None:
        if len(self._tasks) >= self._worker.size:
            raise ControlError(f"the node sent more work than the worker has credits for, {self._worker.size}")
        deadline = time.monotonic() + item.deadline_ms / 1000 if item.deadline_ms else float("inf")
        try:
            work = Work(json.loads(item.input), item.skill, deadline)
        except (ValueError, RecursionError) as error:
            raise ControlError(f"the node sent an input that is not JSON: {error}") from error
        task = asyncio.create_task(self._do(item.id, work))
        self._tasks[item.id] = task, work
        self._worker.running.add(task)

    async def _do(self, number: int, work: Work) -> None:
        worker = self._worker
        done = pb.WorkDone(id=number, error="cancelled")
        try:
            done = pb.WorkDone(id=number, result=await worker.agent.perform(work, worker.threads))
            worker.done += 1
        except AgentFailed as error:
            worker.failed += 1
            _log.warning("%s", error, exc_info=error.__cause__)
            done.error = str(error)
        except asyncio.CancelledError:
            if work.cancelled:
                worker.cancelled += 1
            else:
                worker.failed += 1
                done.error = f"agent {worker.agent.name!r}, skill {work.skill!r}: cancelled itself"
        finally:
            self._finish(number, done)

    def _finish(self, number: int, done: pb.WorkDone) -> None:
        task, _ = self._tasks.pop(number)
        self._worker.running.discard(task)
        current = self._worker.session
        if current is self:
            done.credits = 0 if self._leaving else 1
            self._outbox.put_nowait(pb.WorkRequest(done=done))
        elif current is not None:  # the connection it came by is gone, the place it took is free again
            current.grant(1)

    async def _send(self) -> None:
        while True:
            request = await self._outbox.get()
            try:
                await self._call.write(request)
            except (aio.AioRpcError, asyncio.InvalidStateError):
                return  # the stream is over; the reader learns why

    async def _watch(self, stop: Stop) -> None:
        await stop.leaving.wait()
        self._leaving = True
        await self._outbox.put(pb.WorkRequest(leaving=pb.WorkerLeaving()))
        try:
            async with asyncio.timeout(self._worker.drain_s):
                await stop.hurried.wait()
        except TimeoutError:
            _log.warning("%d pieces of work were not done in %g s", len(self._tasks), self._worker.drain_s)
        self._cut = True
        self._call.cancel()
