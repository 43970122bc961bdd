"""The commands that talk to a running node, over real gRPC to a node whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest

from comity.v1 import control_pb2 as pb
from comity.v1 import control_pb2_grpc as pb_grpc

Cli = Callable[..., tuple[int, str, str]]
PEER = "12D3KooWAknGNDQ2V3oeErGz85jQqiRChGNxNrtBavixqnA4PsXE"


def a_record(number: int, fields: dict[str, object], author: str = "stlukes.example") -> pb.Record:
    return pb.Record(
        task_id=f"{number:032x}",
        author=author,
        dataset="tumours",
        record=json.dumps(fields).encode(),
        score=9000 + number,
    )


class Node(pb_grpc.ControlServiceServicer):
    """A node that gives fixed answers and remembers what it was asked."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, object]] = []
        self.explained: list[dict[str, object]] = []
        self.records = [a_record(1, {"age": 40, "size": 1}), a_record(2, {"age": 50, "size": 2.5})]
        self.stopping = False
        self.revoked: list[bytes] = []
        self.states = ["negotiating", "running", "done"]
        self.decided = [
            pb.WatchedDecision(
                index=7, at_ms=1_700_000_000_000, action="record.send", organization="stlukes.example",
                reason="no rule \x1b[2Jallows it", policy_digest="ab" * 32,
            )
        ]  # fmt: skip

    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            organization="mercy.example",
            node="spiffe://mercy.example/node/n1",
            peer_id=PEER,
            consortium="tumours",
            bundle_epoch=3,
            started_ms=1_700_000_000_000,
            counters={"tasks": 7},
        )

    def ListPeers(self, request: pb.ListPeersRequest, context: grpc.ServicerContext) -> pb.ListPeersResponse:
        # A peer names itself: what it says must not reach the terminal as it is.
        return pb.ListPeersResponse(
            peers=[pb.Peer(organization="stlukes.example", node="n1", peer_id=PEER, state="down", reason="\x1b[2Jgone")]
        )

    def ListAgents(self, request: pb.ListAgentsRequest, context: grpc.ServicerContext) -> pb.ListAgentsResponse:
        return pb.ListAgentsResponse(
            agents=[pb.Agent(organization="stlukes.example", name="generator", skills=["generate"], reliability=0.75)]
        )

    def SubmitWorkflow(
        self, request: pb.SubmitWorkflowRequest, context: grpc.ServicerContext
    ) -> pb.SubmitWorkflowResponse:
        self.submitted.append(json.loads(request.workflow))
        return pb.SubmitWorkflowResponse(workflow_id="w1")

    def GetWorkflow(self, request: pb.GetWorkflowRequest, context: grpc.ServicerContext) -> pb.GetWorkflowResponse:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        step = pb.NegotiationStep(
            at_ms=1_700_000_000_000, organization="stlukes.example", step="countered", detail="less"
        )
        workflow = pb.Workflow(workflow_id="w1", state=state, reason="", tasks={"certified": 5}, steps=[step])
        return pb.GetWorkflowResponse(workflows=[workflow])

    def CancelWorkflow(
        self, request: pb.CancelWorkflowRequest, context: grpc.ServicerContext
    ) -> pb.CancelWorkflowResponse:
        return pb.CancelWorkflowResponse()

    def ListTasks(self, request: pb.ListTasksRequest, context: grpc.ServicerContext) -> pb.ListTasksResponse:
        return pb.ListTasksResponse()

    def ShowTask(self, request: pb.ShowTaskRequest, context: grpc.ServicerContext) -> pb.ShowTaskResponse:
        return pb.ShowTaskResponse()

    def ListRecords(
        self, request: pb.ListRecordsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListRecordsResponse]:
        for record in self.records:
            yield pb.ListRecordsResponse(records=[record])

    def GetRecord(self, request: pb.GetRecordRequest, context: grpc.ServicerContext) -> pb.GetRecordResponse:
        return pb.GetRecordResponse(record=self.records[0], provenance=b'{"payload": ""}')

    def SignExport(self, request: pb.SignExportRequest, context: grpc.ServicerContext) -> pb.SignExportResponse:
        return pb.SignExportResponse(statement=b"{}")

    def ExplainPolicy(
        self, request: pb.ExplainPolicyRequest, context: grpc.ServicerContext
    ) -> pb.ExplainPolicyResponse:
        self.explained.append(json.loads(request.request))
        return pb.ExplainPolicyResponse(explanation=b'{"decision": "deny"}')

    def WatchDecisions(
        self, request: pb.WatchDecisionsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchDecisionsResponse]:
        yield pb.WatchDecisionsResponse()
        yield pb.WatchDecisionsResponse(dropped=3)
        yield pb.WatchDecisionsResponse(decisions=self.decided)

    def ReleaseUpdate(
        self, request: pb.ReleaseUpdateRequest, context: grpc.ServicerContext
    ) -> pb.ReleaseUpdateResponse:
        return pb.ReleaseUpdateResponse()

    def AdmitUpdate(self, request: pb.AdmitUpdateRequest, context: grpc.ServicerContext) -> pb.AdmitUpdateResponse:
        return pb.AdmitUpdateResponse()

    def ServeTunnel(self, request: pb.ServeTunnelRequest, context: grpc.ServicerContext) -> pb.ServeTunnelResponse:
        return pb.ServeTunnelResponse()

    def OpenTunnel(self, request: pb.OpenTunnelRequest, context: grpc.ServicerContext) -> pb.OpenTunnelResponse:
        return pb.OpenTunnelResponse()

    def SendBulk(self, request: pb.SendBulkRequest, context: grpc.ServicerContext) -> Iterator[pb.SendBulkResponse]:
        yield pb.SendBulkResponse()

    def ListBulk(self, request: pb.ListBulkRequest, context: grpc.ServicerContext) -> pb.ListBulkResponse:
        return pb.ListBulkResponse()

    def ReadBulk(self, request: pb.ReadBulkRequest, context: grpc.ServicerContext) -> Iterator[pb.ReadBulkResponse]:
        yield pb.ReadBulkResponse()

    def RemoveBulk(self, request: pb.RemoveBulkRequest, context: grpc.ServicerContext) -> pb.RemoveBulkResponse:
        return pb.RemoveBulkResponse()

    def RevokeCertificate(
        self, request: pb.RevokeCertificateRequest, context: grpc.ServicerContext
    ) -> pb.RevokeCertificateResponse:
        self.revoked.append(request.revocation)
        return pb.RevokeCertificateResponse(
            organization="mercy.example", fingerprint="ab" * 32, from_ms=1_700_000_000_000
        )

    def Reload(self, request: pb.ReloadRequest, context: grpc.ServicerContext) -> pb.ReloadResponse:
        raise NotImplementedError

    def ListAgreements(
        self, request: pb.ListAgreementsRequest, context: grpc.ServicerContext
    ) -> pb.ListAgreementsResponse:
        raise NotImplementedError

    def GetAgreement(self, request: pb.GetAgreementRequest, context: grpc.ServicerContext) -> pb.GetAgreementResponse:
        raise NotImplementedError

    def WithdrawAgreement(
        self, request: pb.WithdrawAgreementRequest, context: grpc.ServicerContext
    ) -> pb.WithdrawAgreementResponse:
        raise NotImplementedError

    def AmendAgreement(
        self, request: pb.AmendAgreementRequest, context: grpc.ServicerContext
    ) -> pb.AmendAgreementResponse:
        raise NotImplementedError

    def ListApprovals(
        self, request: pb.ListApprovalsRequest, context: grpc.ServicerContext
    ) -> pb.ListApprovalsResponse:
        raise NotImplementedError

    def DecideApproval(
        self, request: pb.DecideApprovalRequest, context: grpc.ServicerContext
    ) -> pb.DecideApprovalResponse:
        raise NotImplementedError

    def ListNotices(self, request: pb.ListNoticesRequest, context: grpc.ServicerContext) -> pb.ListNoticesResponse:
        raise NotImplementedError

    def Shutdown(self, request: pb.ShutdownRequest, context: grpc.ServicerContext) -> pb.ShutdownResponse:
        self.stopping = True
        return pb.ShutdownResponse()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    served = Node()
    with ThreadPoolExecutor(max_workers=2) as threads:
        server = grpc.server(threads)
        pb_grpc.add_ControlServiceServicer_to_server(served, server)
        address = f"unix:{tmp_path}/c.sock"
        server.add_insecure_port(address)
        server.start()
        monkeypatch.setenv("COMITY_CONTROL", address)
        yield served
        server.stop(None).wait()


def test_a_revocation_is_given_to_the_node(cli: Cli, node: Node, tmp_path: Path) -> None:
    file = tmp_path / "n1.revoked.json"
    file.write_bytes(b"signed")
    code, out, _ = cli("cert", "publish", file)
    assert (code, node.revoked) == (0, [b"signed"])
    assert "abab" in out
    assert "2023-11-14" in out
    assert json.loads(cli("--json", "cert", "publish", file)[1])["organization"] == "mercy.example"


def test_status_peers_and_agents(cli: Cli, node: Node) -> None:
    code, out, _ = cli("node", "status")
    assert code == 0
    assert "tumours epoch 3" in out
    assert "tasks  7" in out
    assert json.loads(cli("--json", "node", "status")[1])["bundle_epoch"] == 3

    code, out, _ = cli("peers")
    assert code == 0
    assert "\x1b" not in out, "a peer's words must not steer the terminal"
    assert "\\x1b[2Jgone" in out
    assert json.loads(cli("peers", "--json")[1])[0]["reason"] == "\x1b[2Jgone"

    code, out, _ = cli("agents")
    assert code == 0
    assert "0.750" in out


def test_a_watch_tells_what_it_missed_and_ends_with_a_summary(cli: Cli, node: Node) -> None:
    code, out, _ = cli("policy", "watch")
    assert code == 0
    assert "(3 entries of the log skipped)" in out
    assert "22:13:20 deny  record.send stlukes.example: no rule \\x1b[2Jallows it" in out
    assert out.endswith(
        "1 decisions: 0 allowed, 1 denied\n3 entries of the audit log were skipped: this was read too slowly\n"
    )
    dropped, decision, summary = map(json.loads, cli("policy", "watch", "--json")[1].splitlines())
    assert (dropped, decision["index"], decision["request"]) == ({"dropped": 3}, 7, None)
    assert summary == {"summary": {"allowed": 0, "denied": 1, "dropped": 3}}


def test_stop(cli: Cli, node: Node) -> None:
    assert cli("node", "stop")[0] == 0
    assert node.stopping


@pytest.mark.parametrize(
    ("name", "text"), [("w.yaml", "name: tumours\nrecords_per_organization: 20\n"), ("w.json", '{"name": "tumours"}')]
)
def test_submit_and_show_a_workflow(cli: Cli, node: Node, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert cli("workflow", "submit", tmp_path / name) == (0, "w1\n", "")
    assert node.submitted[0]["name"] == "tumours"
    code, out, _ = cli("workflow", "submit", tmp_path / name, "--wait")
    assert code == 0
    assert "done" in out
    assert "countered" in out
    assert "certified 5" in cli("workflow", "show")[1]


def test_a_workflow_that_fails_is_exit_code_1(cli: Cli, node: Node, tmp_path: Path) -> None:
    node.states = ["failed"]
    (tmp_path / "w.json").write_text("{}")
    code, _, err = cli("workflow", "submit", tmp_path / "w.json", "--wait")
    assert code == 1
    assert err.startswith("error: workflow w1 failed")


def test_a_workflow_file_that_is_wrong(cli: Cli, node: Node, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("name: a\nname: b\n")
    code, _, err = cli("workflow", "submit", tmp_path / "w.yaml")
    assert code == 1
    assert "w.yaml:2:1" in err
    (tmp_path / "w.json").write_text("[]")
    assert "a workflow is a mapping" in cli("workflow", "submit", tmp_path / "w.json")[2]
    assert node.submitted == []


def test_records_as_json_lines_and_parquet(cli: Cli, node: Node, tmp_path: Path) -> None:
    code, out, _ = cli("records", "list")
    assert code == 0
    assert "90.01%" in out
    assert cli("records", "export", tmp_path / "r.jsonl")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["fields"]["age"] for line in lines] == [40, 50]

    code, out, _ = cli("--json", "records", "export", tmp_path / "r.parquet")
    assert json.loads(out)["records"] == 2
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.column("age").type == "int64"
    assert table.column("size").to_pylist() == [1.0, 2.5]
    assert table.column("comity_author").to_pylist() == ["stlukes.example"] * 2


def test_an_export_that_fails_leaves_the_old_file(cli: Cli, node: Node, tmp_path: Path) -> None:
    node.records = [a_record(1, {"age": 40}), a_record(2, {"age": "fifty"})]
    (tmp_path / "r.parquet").write_text("the old one")
    code, _, err = cli("records", "export", tmp_path / "r.parquet")
    assert code == 1
    assert "'age' holds int and str; use JSON Lines" in err
    assert (tmp_path / "r.parquet").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_show_writes_the_provenance(cli: Cli, node: Node, tmp_path: Path) -> None:
    code, out, _ = cli("records", "show", f"{1:032x}", "--provenance", tmp_path / "p.json")
    assert code == 0
    assert "stlukes.example" in out
    assert (tmp_path / "p.json").read_bytes() == b'{"payload": ""}'


def test_explain_asks_the_running_node(cli: Cli, node: Node) -> None:
    request = ("--action", "record.send", "--organization", "stlukes.example", "--label", "records=20")
    code, out, _ = cli("policy", "explain", "--live", *request)
    assert code == 0
    assert json.loads(out) == {"decision": "deny"}
    assert node.explained == [{"action": "record.send", "organization": "stlukes.example", "labels": {"records": 20}}]


@pytest.mark.parametrize(
    "command", [("node", "status"), ("peers",), ("agents",), ("records", "list"), ("workflow", "show")]
)
def test_no_node_answers(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, _, err = cli(*command, "--control", f"unix:{tmp_path}/none.sock", "--timeout", "5")
    assert code == 1
    assert err.startswith("error: no node answers")
    assert "comity node run" in err
    assert err.count("\n") == 1
