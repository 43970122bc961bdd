"""Real Flower processes: a run whose every call goes through tunnels, and whose every update goes through the gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from comity.signing import PrivateKey
from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as rpc
from comity_node.demo import data
from comity_node.demo.generator import Generator
from comity_node.demo.training import LocalConsortium, LocalNode, app_directory
from comity_node.flower_processes import FlowerProcesses, app_digest
from comity_node.transport.memory import MemoryNetwork
from comity_node.tunnel import FleetEntry, FleetExit, TunnelEvent

SERVER = "mercy.example"
MEMBERS = ("mercy.example", "hope.example", "stlukes.example")
REFUSING = "stlukes.example"
AGREEMENT = "ab" * 32
PROTOCOL = "/test/tunnel"


class Node(rpc.ControlServiceServicer):
    """The part of a node's control API that Flower apps use, with real signatures and a policy that may say no."""

    def __init__(self, organization: str, node: LocalNode, records: Sequence[pb.Record]) -> None:
        self.organization, self.node, self.records = organization, node, records

    def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(organization=self.organization)

    def ListRecords(self, request: Any, context: Any) -> Iterator[pb.ListRecordsResponse]:
        yield pb.ListRecordsResponse(records=self.records)

    def ReleaseUpdate(self, request: Any, context: Any) -> pb.ReleaseUpdateResponse:
        if self.organization == REFUSING:
            context.set_trailing_metadata((("comity-code", "policy_denied"), ("comity-rules-bin", b"never-updates")))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no rule allows it")
        released = self.node.release_update(
            to_organization=request.to_organization,
            agreement=request.agreement_digest,
            federation=request.federation,
            round_number=request.round,
            update_digest=request.update_digest,
            private_examples=request.private_examples,
            certified_examples=request.certified_examples,
        )
        return pb.ReleaseUpdateResponse(manifest=released.manifest, chain=released.chain)

    def AdmitUpdate(self, request: Any, context: Any) -> pb.AdmitUpdateResponse:
        answer = self.node.admit_update(
            manifest=request.manifest,
            chain=list(request.chain),
            federation=request.federation,
            round_number=request.round,
            update_digest=request.update_digest,
        )
        return pb.AdmitUpdateResponse(
            code=answer.code,
            reason=answer.reason,
            organization=answer.organization,
            private_examples=answer.private_examples,
            certified_examples=answer.certified_examples,
        )


@contextmanager
def control_servers(directory: Path, records: Sequence[pb.Record]) -> Iterator[Mapping[str, str]]:
    consortium = LocalConsortium()
    servers = []
    for name in MEMBERS:
        consortium.node(name)
    for name in MEMBERS:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        node = Node(name, consortium.node(name), records)  # type: ignore[abstract]  # Flower apps use these four
        rpc.add_ControlServiceServicer_to_server(node, server)
        server.add_insecure_port(f"unix:{directory}/{name}.sock")
        server.start()
        servers.append(server)
    yield {name: f"unix:{directory}/{name}.sock" for name in MEMBERS}
    for server in servers:
        server.stop(grace=None).wait()


@dataclass(frozen=True)
class Member:
    organization: str
    peer_id: str


@dataclass
class Tunnels:
    """An exit at the server's organization and an entry for each member, over streams in memory."""

    exit: FleetExit
    ports: dict[str, int] = field(default_factory=dict)

    async def open(self, nursery: trio.Nursery, events: list[TunnelEvent], apps: frozenset[str]) -> None:
        network = MemoryNetwork()
        members = {PrivateKey.generate().peer_id: name for name in MEMBERS}
        server = network.transport("server")
        server.serve(PROTOCOL, lambda stream: self.exit.handle(member_of(members, stream.remote_peer), stream))
        await nursery.start(server.run)

        async def on_event(event: TunnelEvent) -> None:
            events.append(event)

        for peer_id, name in members.items():
            transport = network.transport(peer_id)
            await nursery.start(transport.run)
            entry = FleetEntry(
                "tabular",
                SERVER,
                partial(transport.open_stream, "server", (), PROTOCOL),
                app_digests=apps,
                on_event=on_event,
            )
            self.ports[name] = await nursery.start(entry.run)


def member_of(members: Mapping[str, str], peer_id: str) -> Member:
    return Member(members[peer_id], peer_id)


def prepare(directory: Path) -> list[pb.Record]:
    parts = data.split(data.breast_cancer(), organizations=len(MEMBERS), seed=1)
    data.write_split(parts, {name: directory / name for name in MEMBERS}, directory / "test")
    rows = Generator(parts.parts[1]).sample(60, 1)
    return [
        pb.Record(task_id=str(n), author="hope.example", dataset="tumours", record=json.dumps(row).encode())
        for n, row in enumerate(rows)
    ]


def flower_list(home: Path, port: int) -> subprocess.CompletedProcess[str]:
    """Point `flwr list` at a tunnel, as somebody would who takes it for the SuperLink."""
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    environment = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    command = [str(Path(sys.executable).parent / "flwr"), "list", "lab", "--format", "json"]
    environment |= {"PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def train(directory: Path, flower: FlowerProcesses, control: Mapping[str, str], ports: Mapping[str, int]) -> None:
    for name in MEMBERS:
        environment = {
            "COMITY_CONTROL": control[name],
            "COMITY_FLOWER_SERVER": SERVER,
            "TABULAR_SCHEMA": str(directory / name / data.SCHEMA_FILE),
            "TABULAR_ROWS": str(directory / name / data.PRIVATE_FILE),
        }
        flower.start_supernode(name, ports[name], environment=environment, wait=False)
    flower.wait_healthy()
    config: dict[str, str | int | float | bool]
    config = {"members": len(MEMBERS), "num-server-rounds": 1, "agreement": AGREEMENT, "dataset": "tumours"}
    flower.run_app(app_directory(), config, timeout_s=100)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
@pytest.mark.invariant("S1")
def test_a_run_through_tunnels_takes_in_only_what_was_released(tmp_path: Path) -> None:
    records = prepare(tmp_path)
    events: list[TunnelEvent] = []

    async def main(control: Mapping[str, str], flower: FlowerProcesses, superlink: int) -> Tunnels:
        async def on_event(event: TunnelEvent) -> None:
            events.append(event)

        tunnels = Tunnels(FleetExit("tabular", f"127.0.0.1:{superlink}", on_event=on_event))
        async with trio.open_nursery() as nursery:
            await tunnels.open(nursery, events, frozenset({app_digest(app_directory())}))
            await trio.to_thread.run_sync(train, tmp_path, flower, control, tunnels.ports)
            listed = await trio.to_thread.run_sync(flower_list, tmp_path / "intruder", tunnels.ports[MEMBERS[1]])
            assert "run-id" not in listed.stdout
            nursery.cancel_scope.cancel()
        return tunnels

    with control_servers(tmp_path, records) as control, FlowerProcesses(tmp_path / "flower") as flower:
        environment = {
            "COMITY_CONTROL": control[SERVER],
            "TABULAR_SCHEMA": str(tmp_path / SERVER / data.SCHEMA_FILE),
            "TABULAR_HELDOUT": str(tmp_path / SERVER / data.PRIVATE_FILE),
            "TABULAR_RESULT": str(tmp_path / "result.json"),
        }
        trio.run(main, control, flower, flower.start_superlink(environment=environment))

    (report,) = json.loads((tmp_path / "result.json").read_text())["rounds"]
    admitted = {entry["organization"]: entry for entry in report["admitted"]}
    assert set(admitted) == {"mercy.example", "hope.example"}
    assert admitted["mercy.example"]["certified_examples"] == 60
    assert admitted["hope.example"]["certified_examples"] == 0
    (refused,) = report["refused"]
    assert "policy_denied" in refused["reasons"][0]
    assert "never-updates" in refused["reasons"][0]
    assert report["auc"] > 0.95
    registered = {event.organization for event in events if event.kind == "registered"}
    assert registered == set(MEMBERS)
    assert [event.code for event in events if event.kind == "refused"] == ["policy_denied"]
