"""Clients of a node's control API: `Client` and, for asyncio, `AsyncClient`.

    with Client("unix:/run/comity/mercy/control.sock") as node:
        for record in node.records(dataset="tumour-features"):
            print(record.fields)

Without an address both take the one in COMITY_CONTROL. Every failure is a `ControlError`, with the code and the advice
of the node's own error if it sent one.

Both have the same methods, each defined once: what a definition returns as `Call[T]` is a T to the callers of `Client`,
and an awaitable T to those of `AsyncClient`; a `Stream[T]` is a generator and an async generator of T.
"""

from __future__ import annotations

from comity._control.bulk import BulkCalls, BulkProgress, BulkTransfer
from comity._control.channel import Tls
from comity._control.connection import AsyncConnection, Connection
from comity._control.federation import Admission, FederationCalls, ReleasedUpdate
from comity._control.node import AgentInfo, NodeCalls, Peer, Reloaded, RevokedCertificate, RouterPeer, SkillLoad, Status
from comity._control.policy import Approval, Notice, PolicyCalls, WatchedDecision, WatchedDecisions
from comity._control.records import CertifiedRecord, Record, RecordCalls
from comity._control.tasks import (
    TaskCalls,
    TaskCertificate,
    TaskDelivery,
    TaskEntry,
    TaskHop,
    TaskPage,
    TaskReview,
    TaskReviewer,
    TaskSummary,
    TaskWay,
)
from comity._control.workflows import AgreementEnd, AgreementInfo, NegotiationStep, Workflow, WorkflowCalls

__all__ = [
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


class _Calls(NodeCalls, WorkflowCalls, TaskCalls, RecordCalls, BulkCalls, PolicyCalls, FederationCalls):
    """All calls of the control API."""


class Client(_Calls, Connection):
    """A connection to a node, for programs without a loop; usable from several threads.

    Args:
        address: `unix:/path` or `host:port`; None: COMITY_CONTROL.
        tls: the files for mutual TLS, for a TCP address.
        timeout_s: seconds that a call may take.

    Raises:
        ControlError: no address, or a TLS file is unreadable. Whether a node answers shows at the first call.
    """


class AsyncClient(_Calls, AsyncConnection):
    """The same for asyncio. Arguments and methods as `Client`'s."""
