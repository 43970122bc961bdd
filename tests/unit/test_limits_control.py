"""Limits of the control API that no other test would miss."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing

from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc
from comity_node.control.bridge import Bridge
from comity_node.control.server import ControlServer, ServerLimits
from comity_node.control.workers import WorkerPool

pytestmark = pytest.mark.invariant("S7")


class Node:
    """A server whose `get_status` never answers, and how many calls have reached it."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.reached = 0

    async def get_status(self, _: object) -> None:
        self.reached += 1
        self.arrived.release()
        await trio.sleep_forever()

    def wait_for(self, calls: int) -> None:
        for _ in range(calls):
            assert self.arrived.acquire(timeout=20)


def serving(limits: ServerLimits, use: Callable[[Node, Any], None], directory: Path) -> None:
    """Let `use(node, stub)` call the server."""

    async def main() -> None:
        node: Any = Node()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                server = ControlServer(f"unix:{directory}/s", node, WorkerPool("mercy.example"), limits=limits)
                address = await nursery.start(server.run)

                def call() -> None:
                    with grpc.insecure_channel(address) as channel:
                        use(node, pb_grpc.ControlServiceStub(channel))

                await trio.to_thread.run_sync(call)
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="comity-") as made:  # pytest's own are too long for a socket
        yield Path(made)


def test_calls_of_all_connections_are_bounded(directory: Path) -> None:
    def use(node: Node, stub: Any) -> None:
        held = [stub.GetStatus.future(pb.GetStatusRequest()) for _ in range(2)]
        node.wait_for(2)
        refused = [stub.GetStatus.future(pb.GetStatusRequest(), timeout=20) for _ in range(3)]
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert not any(call.done() for call in held)

    serving(ServerLimits(max_calls=2, drain_s=0), use, directory)


def test_calls_of_one_connection_are_bounded(directory: Path) -> None:
    def use(node: Node, stub: Any) -> None:
        held = [stub.GetStatus.future(pb.GetStatusRequest()) for _ in range(2)]
        node.wait_for(2)
        waits = stub.GetStatus.future(pb.GetStatusRequest(), timeout=0.5)
        assert waits.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert node.reached == 2
        assert not any(call.done() for call in held)

    serving(ServerLimits(max_streams=2, drain_s=0), use, directory)


def test_a_call_without_a_deadline_has_one(directory: Path) -> None:
    def use(node: Node, stub: Any) -> None:
        assert stub.GetStatus.future(pb.GetStatusRequest()).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert node.reached == 1

    serving(ServerLimits(call_s=0.2, drain_s=0), use, directory)


def test_a_thread_that_does_not_end_is_left_behind() -> None:
    release = threading.Event()

    async def hang() -> None:
        release.wait(30)
        await asyncio.sleep(0)

    async def main() -> None:
        limits = ServerLimits(stop_s=0.2)
        bridge = Bridge(stop_s=limits.stop_s)
        async with trio.open_nursery() as nursery:
            await nursery.start(bridge.run)
            nursery.start_soon(bridge.call_asyncio, hang)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            await bridge.stop()
            assert trio.current_time() - began < 10
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    finally:
        release.set()
