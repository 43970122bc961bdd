"""`comity tasks` over real gRPC to a node whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc

Cli = Callable[..., tuple[int, str, str]]
ID, RECORD_ID = "ab" * 16, "cd" * 16
SUMMARY = pb.TaskSummary(
    task_id=ID, workflow_id="w1", agreement_digest="12" * 32, state="certified", record_task_id=RECORD_ID, attempt=2,
    revision=1, opened_ms=1_700_000_000_000, updated_ms=1_700_000_009_000,
)  # fmt: skip
SECRET = "zebra"


def a_way() -> pb.ShowTaskResponse:
    way = pb.ShowTaskResponse(task=SUMMARY, feedback=["x: too \x1b[2Jlarge"])
    way.hops.add(
        at_ms=1_700_000_001_234, organization="ada.example", to_organization="bea.example", role="label", attempt=2,
        rules=["send-it"], verified=True,
    )  # fmt: skip
    way.reviewers.add(
        organization="bea.example", revision=1, state="voted", offered_ms=1_700_000_002_000,
        committed_ms=1_700_000_002_500, in_set=True,
    )  # fmt: skip
    way.reviews.add(
        organization="bea.example", revision=1, accept=True, score=9000, axes={"range": 9000},
        received_ms=1_700_000_003_000, counted=True,
    )  # fmt: skip
    way.reviews.add(
        organization="cyd.example", revision=1, accept=False, score=100, received_ms=1_700_000_010_000, late=True
    )
    way.certificate.CopyFrom(pb.TaskCertificate(score=9000, organizations=["bea.example"], stored_ms=1_700_000_009_000))
    way.deliveries.add(kind="records", organization="bea.example", state="sent", attempts=3)
    way.entries.add(
        index=7, at_ms=1_700_000_001_000, kind="decision", action="record.send", decision="allow",
        organization="bea.example", rules=["send-it"], detail='{"tokens": 2}',
    )  # fmt: skip
    return way


class Node(pb_grpc.ControlServiceServicer):
    """A node with one task."""

    def __init__(self) -> None:
        self.listed: list[pb.ListTasksRequest] = []
        self.shown: list[pb.ShowTaskRequest] = []
        self.way = a_way()
        self.more = False

    def ListTasks(self, request: pb.ListTasksRequest, context: grpc.ServicerContext) -> pb.ListTasksResponse:
        self.listed.append(request)
        return pb.ListTasksResponse(tasks=[SUMMARY], more=self.more)

    def ShowTask(self, request: pb.ShowTaskRequest, context: grpc.ServicerContext) -> pb.ShowTaskResponse:
        self.shown.append(request)
        way = pb.ShowTaskResponse()
        way.CopyFrom(self.way)
        way.record = json.dumps({"word": SECRET}).encode() if request.record else b""
        return way


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


def test_tasks_list_asks_for_what_is_wanted_and_prints_a_line_each(cli: Cli, node: Node) -> None:
    node.more = True
    code, out, _ = cli("tasks", "list", "--workflow", "w1", "--state", "certified", "--limit", "7")
    assert code == 0
    assert (node.listed[0].workflow_id, node.listed[0].state, node.listed[0].limit) == ("w1", "certified", 7)
    line = out.splitlines()[1].split()
    assert line[:6] == [ID[:12], "certified", "-", "-", "2", "1"]
    assert "there are more" in out


def test_tasks_list_as_json_has_everything(cli: Cli, node: Node) -> None:
    _, out, _ = cli("tasks", "list", "--json")
    answer = json.loads(out)
    assert answer["more"] is False
    assert answer["tasks"][0]["task_id"] == ID
    assert answer["tasks"][0]["updated_ms"] == 1_700_000_009_000


def test_tasks_show_tells_what_happened_in_its_order(cli: Cli, node: Node) -> None:
    code, out, _ = cli("tasks", "show", ID[:8])
    assert code == 0
    assert (node.shown[0].task_id, node.shown[0].record) == (ID[:8], False)
    told = [
        "decision: record.send", "hop: label", "review asked for", "review committed to", "accepts with 90.00",
        "certified  ", "rejects with 1.00 (no axes), late",
    ]  # fmt: skip
    timeline = out[out.index("TIME (UTC)") :]
    places = [timeline.index(what) for what in told]
    assert places == sorted(places)
    assert "2023-11-14 22:13:21.234" in out
    assert "ada.example -> bea.example" in out
    assert "send-it" in out
    assert "1, all of them verify" in out
    assert "\x1b" not in out
    assert SECRET not in out


def test_a_record_is_shown_if_it_is_asked_for_and_else_nothing_of_it(cli: Cli, node: Node) -> None:
    _, without, _ = cli("tasks", "show", ID, "--json")
    assert "record" not in json.loads(without)
    assert SECRET not in without
    _, asked, _ = cli("tasks", "show", ID, "--json", "--record")
    assert json.loads(asked)["record"] == {"word": SECRET}
    assert json.loads(asked)["entries"][0]["detail"] == {"tokens": 2}
    _, text, _ = cli("tasks", "show", ID, "--record")
    assert SECRET in text


def test_a_hop_that_does_not_verify_is_said_so_and_the_exit_code_is_1(cli: Cli, node: Node) -> None:
    node.way.hops.add(at_ms=1_700_000_001_500, organization="bea.example", role="home", attempt=2)
    node.way.unverified = "hop 1 does not follow from the one before it"
    code, out, err = cli("tasks", "show", ID)
    assert code == 1
    assert "DOES NOT VERIFY" in out
    assert "2, of which 1 DO NOT VERIFY" in out
    assert "hop 1 does not follow" in err


def test_tasks_needs_to_know_what_to_do(cli: Cli) -> None:
    assert cli("tasks")[0] == 2
    assert cli("tasks", "show")[0] == 2
