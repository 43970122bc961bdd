"""`comity top`: what it shows, its rates, and what it does while the node is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from comity.client import Client
from comity.errors import ControlError
from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc
from comity_node.cli import top

Cli = Callable[..., tuple[int, str, str]]
PEER = "12D3KooWAknGNDQ2V3oeErGz85jQqiRChGNxNrtBavixqnA4PsXE"


class Node(pb_grpc.ControlServiceServicer):
    """A node that has done 10 more of everything each time that it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> pb.GetStatusResponse:
        self.asked += 10
        status = pb.GetStatusResponse(
            organization="mercy.example", node="spiffe://mercy.example/node/n1", consortium="tumours", bundle_epoch=3,
            version="1", started_ms=1, counters={
                "passing.open": 4, "passing.custody": 5, "outbox": 6, "passing.taken_over": 1, "passing.hedged": 2,
                "passing.called_twice": 3,
            },
            warnings=["the certificate\x1b[2J expires"], fair_organizations=0.75, fair_workflows=1.0,
            audit_entries=self.asked, database_bytes=2_500_000,
        )  # fmt: skip
        status.loads.add(skill="label", workers=2, running=3, free=1, waiting=40, waiting_ms=1500)
        for number in range(30):
            status.router.add(
                skill="label", organization=f"org{number:02}.example", expected_ms=12.0, outstanding=3, window=16,
                circuit="half-open", answers=9, share=0.25, reliability=0.5,
            )  # fmt: skip
        return status

    def ListPeers(self, request: pb.ListPeersRequest, context: grpc.ServicerContext) -> pb.ListPeersResponse:
        peer = pb.Peer(
            organization="stlukes.example", peer_id=PEER, state="connected", path="direct", round_trip_ms=1.25,
            queued_bytes=2000, messages_sent=self.asked, messages_received=self.asked,
        )  # fmt: skip
        return pb.ListPeersResponse(peers=[peer])

    def GetWorkflow(self, request: pb.GetWorkflowRequest, context: grpc.ServicerContext) -> pb.GetWorkflowResponse:
        running = pb.Workflow(
            workflow_id="w1", state="running", tasks={"certified": self.asked, "queued": 3}, journeys={"leased": 2},
            holders={"stlukes.example": 2},
        )  # fmt: skip
        return pb.GetWorkflowResponse(workflows=[running, pb.Workflow(workflow_id="w0", state="done")])


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    served = Node()  # type: ignore[abstract]  # the other calls are not made
    with ThreadPoolExecutor(max_workers=2) as threads:
        server = grpc.server(threads)
        pb_grpc.add_ControlServiceServicer_to_server(served, server)
        address = f"unix:{tmp_path}/c.sock"
        server.add_insecure_port(address)
        server.start()
        monkeypatch.setenv("COMITY_CONTROL", address)
        yield served
        server.stop(None).wait()


def test_top_once_shows_all_tables_without_what_steers_a_terminal(cli: Cli, node: Node) -> None:
    code, out, _ = cli("top", "--once", "--interval", "0.1")
    assert code == 0
    for said in (
        "spiffe://mercy.example/node/n1", "4 own on their way, 5 of others here",
        "1 after their lease, 2 given to a second one, 3 calls of own agents", "2.5 MB", "0.75 of organizations",
        "stlukes.example", "1.2 ms", "2.0 kB", "label", "1.5 s", "2 leased", "20 certified, 3 queued", "3/16",
        "half-open", "25%", "... and 10 more", "! the certificate\\x1b[2J expires",
    ):  # fmt: skip
        assert said in out, said
    assert "\x1b" not in out
    assert "w0" not in out


def test_top_as_json_looks_twice_and_has_rates(cli: Cli, node: Node) -> None:
    _, out, _ = cli("top", "--json", "--interval", "0.1")
    answer = json.loads(out)
    assert answer["status"]["audit_entries"] == 20
    assert 0 < answer["audit_per_second"] <= 100
    assert [each["workflow_id"] for each in answer["workflows"]] == ["w1"]
    assert 0 < answer["workflows"][0]["per_second"] <= 100
    assert answer["peers"][0]["round_trip_ms"] == 1.25


def test_rates_are_of_the_time_between_two_looks(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0])
    with Client(timeout_s=5) as client:
        first, second = (top.look(client, lambda: next(clock)) for _ in range(2))
    answer = top.to_json(second, first)
    assert answer["audit_per_second"] == 5.0
    assert answer["workflows"][0]["per_second"] == 5.0
    assert top.to_json(first, None)["audit_per_second"] == 0.0
    assert "10.0" in top.to_text(second, first, 20)
    assert top.rate(3, 10, 1.0) == 0.0


def test_top_goes_on_when_the_node_was_away_and_ends_with_ctrl_c(node: Node) -> None:
    drawn: list[str] = []
    asked = iter([None, ControlError("no answer\x1b"), None])

    def ask() -> top.Sample:
        if (error := next(asked)) is not None:
            raise error
        with Client(timeout_s=5) as client:
            return top.look(client)

    def sleep(seconds: float) -> None:
        assert seconds == 1.0
        if len(drawn) == 3:
            raise KeyboardInterrupt

    top.watch(ask, drawn.append, 1.0, 20, sleep)
    assert "stlukes.example" in drawn[0]
    assert drawn[1].startswith("! the node does not answer: no answer\\x1b")
    assert "stlukes.example" in drawn[1]
    assert drawn[2].startswith("node ")


def test_an_interval_that_cannot_be_is_refused(cli: Cli) -> None:
    code, _, err = cli("top", "--once", "--interval", "0")
    assert code == 2
    assert "--interval" in err
