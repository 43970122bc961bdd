"""Limits of the control API that no other test would miss."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
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


def serving(limits: ServerLimits, use: Any, tmp: Any) -> int:
    """Let `use(stub)` call a server whose `get_status` never answers; return how many calls reached it."""
    reached = 0

    async def never(_: object) -> None:
        nonlocal reached
        reached += 1
        await trio.sleep_forever()

    async def main() -> None:
        handlers: Any = SimpleNamespace(get_status=never)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                server = ControlServer(f"unix:{tmp}/s", handlers, WorkerPool("mercy.example"), limits=limits)
                address = await nursery.start(server.run)

                def call() -> None:
                    with grpc.insecure_channel(address) as channel:
                        use(pb_grpc.ControlServiceStub(channel))

                await trio.to_thread.run_sync(call)
                nursery.cancel_scope.cancel()

    trio.run(main)
    return reached


def status_of(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = call.code()
    return code


def test_calls_of_all_connections_are_bounded(tmp_path: Any) -> None:
    def use(stub: Any) -> None:
        calls = [stub.GetStatus.future(pb.GetStatusRequest(), timeout=20) for _ in range(5)]
        refused = [call for call in calls[2:] if status_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert len(refused) == 3
        for call in calls:
            call.cancel()

    assert serving(ServerLimits(max_calls=2, drain_s=0), use, tmp_path) == 2


def test_calls_of_one_connection_are_bounded(tmp_path: Any) -> None:
    def use(stub: Any) -> None:
        calls = [stub.GetStatus.future(pb.GetStatusRequest(), timeout=2) for _ in range(6)]
        assert {status_of(call) for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}

    assert serving(ServerLimits(max_streams=2, drain_s=0), use, tmp_path) == 2


def test_a_call_without_a_deadline_has_one(tmp_path: Any) -> None:
    def use(stub: Any) -> None:
        call = stub.GetStatus.future(pb.GetStatusRequest())
        assert status_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED

    assert serving(ServerLimits(call_s=0.2, drain_s=0), use, tmp_path) == 1


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
