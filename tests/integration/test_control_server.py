"""The control API over real sockets: clients, errors, limits, health, reflection, stopping."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import trio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from comity.client import AsyncClient, BulkProgress, Client, Record
from comity.errors import ConfigError, ControlError, NotFound, PolicyDenied
from comity.v1 import control_pb2 as pb
from comity_node.control.server import ControlServer, ServerLimits
from comity_node.control.workers import WorkerPool

T = TypeVar("T")
FAST = ServerLimits(drain_s=0.3)


class Handlers:
    """A node that knows a little of everything."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.begun = trio.Event()
        self.cancelled = trio.Event()
        self.release = trio.Event()
        self.pages = 0

    async def get_status(self, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            organization="mercy.example",
            bundle_epoch=3,
            counters={"offered": 5},
            skills=["generate"],
            addresses=["/ip4"],
        )

    async def list_peers(self, request: pb.ListPeersRequest) -> pb.ListPeersResponse:
        return pb.ListPeersResponse(peers=[pb.Peer(organization="hope.example", state="down", reason="dial failed")])

    async def list_agents(self, request: pb.ListAgentsRequest) -> pb.ListAgentsResponse:
        return pb.ListAgentsResponse(agents=[pb.Agent(name="generator", skills=["generate"], reliability=0.75)])

    async def submit_workflow(self, request: pb.SubmitWorkflowRequest) -> pb.SubmitWorkflowResponse:
        return pb.SubmitWorkflowResponse(workflow_id=json.loads(request.workflow)["name"])

    async def get_workflow(self, request: pb.GetWorkflowRequest) -> pb.GetWorkflowResponse:
        steps = [pb.NegotiationStep(at_ms=1, organization="hope.example", step="accepted")]
        one = pb.Workflow(workflow_id="w1", state="running", tasks={"open": 2}, steps=steps)
        return pb.GetWorkflowResponse(workflows=[one] if request.workflow_id in ("", "w1") else [])

    async def cancel_workflow(self, request: pb.CancelWorkflowRequest) -> pb.CancelWorkflowResponse:
        return pb.CancelWorkflowResponse(tasks=len(request.workflow_id))

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        return pb.ListTasksResponse(tasks=[pb.TaskSummary(task_id="ab" * 16, state=request.state)], more=True)

    async def show_task(self, request: pb.ShowTaskRequest) -> pb.ShowTaskResponse:
        return pb.ShowTaskResponse(task=pb.TaskSummary(task_id=request.task_id))

    async def list_records(self, request: pb.ListRecordsRequest) -> AsyncIterator[pb.ListRecordsResponse]:
        if request.dataset == "secret":
            raise PolicyDenied("not yours", rules=("never",))
        try:
            for number in range(request.limit or 3):
                self.pages += 1
                filler = "x" * (100_000 if request.dataset == "big" else 0)
                body = json.dumps({"n": number, "author": request.author, "filler": filler}).encode()
                yield pb.ListRecordsResponse(records=[pb.Record(task_id=f"t{number}", record=body)])
        finally:
            self.cancelled.set()

    async def get_record(self, request: pb.GetRecordRequest) -> pb.GetRecordResponse:
        if request.task_id != "t1":
            raise NotFound(f"no record of task {request.task_id!r}")
        return pb.GetRecordResponse(record=pb.Record(task_id="t1", record=b"[1]"), provenance=b"{}")

    async def sign_export(self, request: pb.SignExportRequest) -> pb.SignExportResponse:
        self.asked.append(request)
        return pb.SignExportResponse(statement=b"{}")

    async def explain_policy(self, request: pb.ExplainPolicyRequest) -> pb.ExplainPolicyResponse:
        raise RuntimeError("the patient's name is Ann")

    async def release_update(self, request: pb.ReleaseUpdateRequest) -> pb.ReleaseUpdateResponse:
        async with trio.open_nursery():
            raise PolicyDenied("updates stay here", rules=("no-updates",))

    async def admit_update(self, request: pb.AdmitUpdateRequest) -> pb.AdmitUpdateResponse:
        self.asked.append(request)
        return pb.AdmitUpdateResponse(code="stale", reason="too old")

    async def serve_tunnel(self, request: pb.ServeTunnelRequest) -> pb.ServeTunnelResponse:
        self.asked.append(request)
        return pb.ServeTunnelResponse()

    async def open_tunnel(self, request: pb.OpenTunnelRequest) -> pb.OpenTunnelResponse:
        return pb.OpenTunnelResponse(port=4711)

    async def send_bulk(
        self, request: pb.SendBulkRequest, send: Callable[[pb.SendBulkResponse], Awaitable[None]]
    ) -> None:
        self.asked.append(request)
        for state in ("preparing", "sending", "done"):
            await send(pb.SendBulkResponse(transfer_id="ab" * 32, state=state, rows=7))
        if request.dataset == "secret":
            raise PolicyDenied("not yours", rules=("never",))

    async def list_bulk(self, request: pb.ListBulkRequest) -> pb.ListBulkResponse:
        return pb.ListBulkResponse(transfers=[pb.BulkTransfer(transfer_id="ab" * 32, direction="in", bytes=12)])

    async def read_bulk(self, request: pb.ReadBulkRequest) -> AsyncIterator[pb.ReadBulkResponse]:
        if request.transfer_id != "ab":
            raise NotFound(f"no transfer {request.transfer_id!r}")
        for piece in (b"one", b"two"):
            yield pb.ReadBulkResponse(data=piece)

    async def remove_bulk(self, request: pb.RemoveBulkRequest) -> pb.RemoveBulkResponse:
        return pb.RemoveBulkResponse(transfer_id=request.transfer_id * 32)

    async def revoke_certificate(self, request: pb.RevokeCertificateRequest) -> pb.RevokeCertificateResponse:
        raise NotImplementedError

    async def list_agreements(self, request: pb.ListAgreementsRequest) -> pb.ListAgreementsResponse:
        raise NotImplementedError

    async def get_agreement(self, request: pb.GetAgreementRequest) -> pb.GetAgreementResponse:
        raise NotImplementedError

    async def withdraw_agreement(self, request: pb.WithdrawAgreementRequest) -> pb.WithdrawAgreementResponse:
        raise NotImplementedError

    async def amend_agreement(self, request: pb.AmendAgreementRequest) -> pb.AmendAgreementResponse:
        raise NotImplementedError

    async def list_approvals(self, request: pb.ListApprovalsRequest) -> pb.ListApprovalsResponse:
        raise NotImplementedError

    async def decide_approval(self, request: pb.DecideApprovalRequest) -> pb.DecideApprovalResponse:
        raise NotImplementedError

    async def list_notices(self, request: pb.ListNoticesRequest) -> pb.ListNoticesResponse:
        raise NotImplementedError

    async def watch_decisions(self, request: pb.WatchDecisionsRequest) -> AsyncIterator[pb.WatchDecisionsResponse]:
        yield pb.WatchDecisionsResponse()

    async def reload(self, request: pb.ReloadRequest) -> pb.ReloadResponse:
        return pb.ReloadResponse(changed=["policy a -> b"], refused=["bundle refused: too old"])

    async def shutdown(self, request: pb.ShutdownRequest) -> pb.ShutdownResponse:
        self.begun.set()
        try:
            await self.release.wait()
        finally:
            self.cancelled.set()
        return pb.ShutdownResponse()


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="comity-") as directory:  # pytest's own are too long for a socket
        yield f"unix:{directory}/s"


def serving(address: str, test: Callable[[Handlers, str], Awaitable[None]], limits: ServerLimits = FAST) -> None:
    async def main() -> None:
        handlers = Handlers()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                server = ControlServer(address, handlers, WorkerPool("mercy.example"), limits=limits)
                await test(handlers, await nursery.start(server.run))
                nursery.cancel_scope.cancel()
        assert "comity-control" not in {thread.name for thread in threading.enumerate()}

    trio.run(main)


async def off_loop(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return await trio.to_thread.run_sync(functools.partial(function, *args, **kwargs))


def test_every_call_of_the_sync_client(address: str) -> None:
    def use(address: str) -> None:
        with Client(address) as node:
            node.wait_ready(10)
            status = node.status()
            assert (status.organization, status.bundle_epoch, status.counters) == ("mercy.example", 3, {"offered": 5})
            assert node.peers()[0].reason == "dial failed"
            assert node.agents()[0].skills == ("generate",)
            assert node.submit_workflow({"name": "screening"}) == "screening"
            assert node.workflow("w1").steps[0].step == "accepted"
            assert [found.tasks for found in node.workflows()] == [{"open": 2}]
            assert (node.tasks(state="leased").tasks[0].state, node.tasks().more) == ("leased", True)
            way = node.task("ab" * 3)
            assert (way.task.task_id, way.hops, way.certificate) == ("ab" * 3, (), None)
            records = list(node.records(author="hope.example"))
            assert [record.fields["n"] for record in records] == [0, 1, 2]
            assert records[0].fields["author"] == "hope.example"
            assert node.record("t1").provenance == b"{}"
            assert node.sign_export("r.jsonl", "ab" * 32, form="jsonl", records=3, root=bytes(32)) == b"{}"
            with pytest.raises(ControlError, match="is no JSON object"):
                _ = node.record("t1").record.fields
            admission = node.admit_update(
                manifest=b"m", chain=[b"a", b"b"], federation="f", round_number=2, update_digest=b"d"
            )
            assert (admission.admitted, admission.code) == (False, "stale")
            node.serve_tunnel("flower", "127.0.0.1:9092")
            assert node.open_tunnel("flower", "hope.example") == 4711
            use_bulk(node)

    async def test(handlers: Handlers, address: str) -> None:
        await off_loop(use, address)
        export, update, tunnel, *bulk = handlers.asked
        assert (export.name, export.form, export.records, export.root) == ("r.jsonl", "jsonl", 3, bytes(32))
        assert [Path(request.path).is_absolute() for request in bulk] == [True, False, False]
        assert bulk[0].path.endswith("/rows.csv")
        assert bulk[1].resume == "abab"
        assert list(update.chain) == [b"a", b"b"]
        assert tunnel.filter == "flower-fleet"

    serving(address, test)


def use_bulk(node: Client) -> None:
    seen: list[BulkProgress] = []
    send = functools.partial(node.send_bulk, to_organization="hope.example", purpose="screening")
    done = send("rows.csv", dataset="rows", on_progress=seen.append)
    assert ([one.state for one in seen], done.rows) == (["preparing", "sending", "done"], 7)
    assert node.resume_bulk("abab").transfer_id == "ab" * 32
    with pytest.raises(ControlError) as refused:
        send(None, dataset="secret", kind="certified")
    assert (refused.value.code, refused.value.rules) == ("policy_denied", ("never",))
    assert [(one.direction, one.bytes) for one in node.bulk_transfers()] == [("in", 12)]
    assert b"".join(node.read_bulk("ab")) == b"onetwo"
    with pytest.raises(ControlError, match="no transfer 'cd'"):
        list(node.read_bulk("cd"))
    assert node.remove_bulk("ab") == "ab" * 32


def test_the_async_client_does_the_same(address: str) -> None:
    async def use(address: str) -> list[Record]:
        async with AsyncClient(address) as node:
            await node.wait_ready(10)
            assert (await node.status()).skills == ("generate",)
            assert (await node.workflow("w1")).state == "running"
            assert await node.sign_export("r", "ab" * 32, form="jsonl", records=3, root=bytes(32)) == b"{}"
            with pytest.raises(ControlError) as caught:
                await node.record("t9")
            assert (caught.value.code, str(caught.value)) == ("not_found", "no record of task 't9'")
            with pytest.raises(ControlError) as refused:
                await anext(node.records(dataset="secret"))
            assert refused.value.rules == ("never",)
            progress: list[BulkProgress] = []
            send = functools.partial(node.send_bulk, to_organization="hope.example", purpose="screening")
            assert (await send("rows.csv", dataset="rows", on_progress=progress.append)).state == "done"
            assert (len(progress), (await node.resume_bulk("abab")).rows) == (3, 7)
            assert [one.direction for one in await node.bulk_transfers()] == ["in"]
            assert [piece async for piece in node.read_bulk("ab")] == [b"one", b"two"]
            assert await node.remove_bulk("ab") == "ab" * 32
            return [record async for record in node.records(limit=5)]

    async def test(handlers: Handlers, address: str) -> None:
        assert [record.task_id for record in await off_loop(asyncio.run, use(address))] == [
            "t0",
            "t1",
            "t2",
            "t3",
            "t4",
        ]

    serving(address, test)


def test_errors_keep_their_code_and_the_node_stays_up(address: str, caplog: pytest.LogCaptureFixture) -> None:
    def use(address: str) -> None:
        with Client(address) as node:
            with pytest.raises(ControlError) as denied:
                node.release_update(
                    to_organization="hope.example", agreement="", federation="f", round_number=1, update_digest=b"",
                    private_examples=1, certified_examples=0,
                )  # fmt: skip
            assert (denied.value.code, denied.value.rules) == ("policy_denied", ("no-updates",))
            with pytest.raises(ControlError, match="RuntimeError") as failed:
                node.explain_policy({"action": "record.send"})
            assert failed.value.code == "internal"
            assert "Ann" not in str(failed.value)
            with pytest.raises(ControlError, match="knows no workflow 'w9'"):
                node.workflow("w9")
            with pytest.raises(ControlError, match="not yours"):
                list(node.records(dataset="secret"))
            assert node.status().organization == "mercy.example"

    async def test(handlers: Handlers, address: str) -> None:
        with caplog.at_level(logging.ERROR):
            await off_loop(use, address)
        assert "explain_policy failed" in caplog.text

    serving(address, test)


def test_no_node_is_said_so(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(address) as node, pytest.raises(ControlError, match="no node answers at unix:") as caught:
        node.status()
    assert caught.value.diagnostics().endswith("(start it with: comity node run)")
    with Client(address) as node, pytest.raises(ControlError, match=r"within 0\.1 s"):
        node.wait_ready(0.1)
    monkeypatch.delenv("COMITY_CONTROL", raising=False)
    with pytest.raises(ControlError, match="no control address is given"):
        Client()
    monkeypatch.setenv("COMITY_CONTROL", address)
    with Client() as node:
        assert node.address == address


@pytest.mark.invariant("S7")
def test_the_socket_is_its_owners_alone_and_goes_away(address: str) -> None:
    path = Path(address.removeprefix("unix:"))

    def mode() -> int:
        return stat.S_IMODE(path.stat().st_mode)

    async def test(handlers: Handlers, address: str) -> None:
        assert mode() == 0o600
        with pytest.raises(ConfigError, match="another node runs on"):
            await ControlServer(address, Handlers(), WorkerPool("mercy.example")).run()
        assert mode() == 0o600  # the second one has not taken it away

    serving(address, test)
    assert not path.exists()
    serving(address, test)


@pytest.mark.invariant("R5")
def test_stopping_lets_a_call_end_and_tells_the_ones_that_do_not(address: str) -> None:
    outcomes: list[str] = []

    def call(address: str) -> None:
        with Client(address) as node:
            try:
                node.shutdown()
                outcomes.append("done")
            except ControlError as error:
                outcomes.append(error.code)

    async def scenario(release: bool) -> None:
        handlers = Handlers()
        with trio.fail_after(30):
            async with trio.open_nursery() as clients:
                async with trio.open_nursery() as nursery:
                    server = ControlServer(address, handlers, WorkerPool("mercy.example"), limits=FAST)
                    clients.start_soon(off_loop, call, await nursery.start(server.run))
                    await handlers.begun.wait()
                    nursery.cancel_scope.cancel()
                    if release:
                        handlers.release.set()

    trio.run(scenario, True)
    trio.run(scenario, False)
    assert outcomes == ["done", "node_stopping"]


def test_a_client_that_gives_up_cancels_its_handler(address: str) -> None:
    def use(address: str) -> None:
        with Client(address, timeout_s=0.2) as node:
            with pytest.raises(ControlError) as caught:
                node.shutdown()
            assert caught.value.code == "deadline_exceeded"  # the client's own, or the node's: they have one deadline

    async def test(handlers: Handlers, address: str) -> None:
        await off_loop(use, address)
        await handlers.cancelled.wait()

    serving(address, test)


@pytest.mark.invariant("R4")
def test_a_client_that_does_not_read_costs_a_few_pages_and_delays_nobody(address: str) -> None:
    async def test(handlers: Handlers, address: str) -> None:
        def begin() -> tuple[Client, Iterator[Record]]:
            node = Client(address)
            records = node.records(dataset="big", limit=10_000)
            next(records)
            return node, records

        def others() -> None:
            with Client(address) as node:
                for _ in range(50):
                    node.status()

        node, records = await off_loop(begin)
        await off_loop(others)
        pages = handlers.pages
        await off_loop(others)
        assert handlers.pages == pages < 400  # the window here and what the sockets hold: it stands still
        await off_loop(records.close)  # type: ignore[attr-defined]
        await handlers.cancelled.wait()  # closed at once, not left to the garbage
        await off_loop(node.close)

    serving(address, test)


@pytest.mark.invariant("S7")
def test_a_message_over_the_limit_is_refused_and_the_node_stays_up(address: str) -> None:
    def use(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            submit = channel.unary_unary("/comity.v1.ControlService/SubmitWorkflow", None, None)
            with pytest.raises(grpc.RpcError) as caught:
                submit(bytes(9 * 1024 * 1024), timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.RpcError) as garbage:
                submit(b"\xff\xff\xff", timeout=10)
            assert garbage.value.code() is grpc.StatusCode.UNKNOWN
        with Client(address) as node:
            assert node.status().organization == "mercy.example"

    async def test(handlers: Handlers, address: str) -> None:
        await off_loop(use, address)

    serving(address, test)


def test_garbage_on_the_socket_harms_nobody(address: str) -> None:
    def use(address: str) -> None:
        with socket.socket(socket.AF_UNIX) as noise:
            noise.settimeout(10)
            noise.connect(address.removeprefix("unix:"))
            noise.sendall(os.urandom(4096))
            while noise.recv(4096):
                pass
        with Client(address) as node:
            assert node.status().organization == "mercy.example"

    async def test(handlers: Handlers, address: str) -> None:
        await off_loop(use, address)

    serving(address, test)


def test_health_and_reflection_are_on(address: str) -> None:
    def use(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "comity.v1.ControlService", "comity.v1.WorkerService"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=10)
            names = {service.name for service in listed.list_services_response.service}
            assert {"comity.v1.ControlService", "comity.v1.WorkerService", "grpc.health.v1.Health"} <= names

    async def test(handlers: Handlers, address: str) -> None:
        await off_loop(use, address)

    serving(address, test)
