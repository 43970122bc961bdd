"""The public names of the SDK's control side: adding one is a decision, removing one breaks users."""

from __future__ import annotations

import inspect

import comity.agent
import comity.client
import comity.testing
import comity.worker


def test_modules_export_what_they_promise() -> None:
    assert sorted(comity.client.__all__) == [
        "Admission",
        "AgentInfo",
        "AgreementEnd",
        "AgreementInfo",
        "Approval",
        "AsyncClient",
        "BulkProgress",
        "BulkTransfer",
        "CertifiedRecord",
        "Client",
        "NegotiationStep",
        "Notice",
        "Peer",
        "Record",
        "ReleasedUpdate",
        "Reloaded",
        "RevokedCertificate",
        "RouterPeer",
        "SkillLoad",
        "Status",
        "TaskCertificate",
        "TaskDelivery",
        "TaskEntry",
        "TaskHop",
        "TaskPage",
        "TaskReview",
        "TaskReviewer",
        "TaskSummary",
        "TaskWay",
        "Tls",
        "WatchedDecision",
        "WatchedDecisions",
        "Workflow",
    ]
    assert sorted(comity.agent.__all__) == ["Agent", "Work"]
    assert sorted(comity.worker.__all__) == [
        "Report",
        "Stop",
        "load_agent",
        "main",
        "serve",
        "serve_async",
        "serve_processes",
    ]
    assert sorted(comity.testing.__all__) == ["FakeModel", "FakeNode", "Refusal", "run_skill", "run_skill_async"]


def test_both_clients_have_the_same_calls() -> None:
    calls = [
        "admit_update",
        "agents",
        "agreement",
        "agreements",
        "amend_agreement",
        "approvals",
        "bulk_transfers",
        "cancel_workflow",
        "close",
        "decide_approval",
        "explain_policy",
        "notices",
        "open_tunnel",
        "peers",
        "read_bulk",
        "record",
        "records",
        "release_update",
        "reload",
        "remove_bulk",
        "resume_bulk",
        "revoke_certificate",
        "send_bulk",
        "serve_tunnel",
        "shutdown",
        "sign_export",
        "status",
        "submit_workflow",
        "task",
        "tasks",
        "wait_ready",
        "watch_decisions",
        "withdraw_agreement",
        "workflow",
        "workflows",
    ]
    for client in (comity.client.Client, comity.client.AsyncClient):
        assert sorted(name for name in dir(client) if not name.startswith("_")) == calls
    for call in calls:
        sync, not_sync = getattr(comity.client.Client, call), getattr(comity.client.AsyncClient, call)
        assert list(inspect.signature(sync).parameters.values()) == list(
            inspect.signature(not_sync).parameters.values()
        )
        returned = inspect.signature(not_sync).return_annotation
        assert inspect.iscoroutinefunction(not_sync) is not returned.startswith("AsyncGenerator["), call
        assert not inspect.iscoroutinefunction(sync), call
        assert "Call[" not in returned, f"{call}: what a caller gets, not what the definition returns"


def test_what_a_call_returns_is_what_help_says() -> None:
    returned = {
        (client.__name__, call): inspect.signature(getattr(client, call)).return_annotation
        for client in (comity.client.Client, comity.client.AsyncClient)
        for call in ("status", "peers", "send_bulk", "records")
    }
    assert returned == {
        ("Client", "status"): "Status",
        ("AsyncClient", "status"): "Status",
        ("Client", "peers"): "tuple[Peer, ...]",
        ("AsyncClient", "peers"): "tuple[Peer, ...]",
        ("Client", "send_bulk"): "BulkProgress",
        ("AsyncClient", "send_bulk"): "BulkProgress",
        ("Client", "records"): "Generator[Record, None, None]",
        ("AsyncClient", "records"): "AsyncGenerator[Record, None]",
    }


def test_agent_work_and_fake_node() -> None:
    def public(kind: type) -> list[str]:
        return sorted(name for name in vars(kind) if not name.startswith("_"))

    assert public(comity.agent.Agent) == ["perform", "skill", "skills"]
    assert public(comity.agent.Work) == ["cancel", "cancelled", "deadline", "input", "remaining_s", "skill"]
    assert public(comity.testing.FakeNode) == ["Work", "call", "drop_workers", "serving", "skills", "wait_for_skill"]
    assert str(inspect.signature(comity.worker.serve)).startswith(
        "(agent: 'Agent', control: 'str | None' = None, *, tls: 'Tls | None' = None, concurrency: 'int | None' = None,"
    )
