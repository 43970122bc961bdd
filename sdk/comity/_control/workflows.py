"""Workflows, and the agreements that come of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from comity._control.connection import Call
from comity._control.defined import call
from comity._control.values import read_value, read_values, to_json
from comity.errors import ControlError
from comity.v1 import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class NegotiationStep:
    """`step` is "proposed", "accepted", "countered", "rejected" or "concluded"."""

    at_ms: int
    organization: str
    step: str
    detail: str


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow of this node. `state` is "negotiating", "running", "done", "failed" or "cancelled".

    `tasks` counts tasks by state, `refused_by` and `rejected_by` count by rule or axis; `terms` is the agreement as
    it was signed. With a flow `journeys` counts the tasks that go from step to step by state, and `holders` those that
    are out by who has them.
    """

    workflow_id: str
    state: str
    reason: str
    agreement_digest: str
    terms: bytes
    steps: tuple[NegotiationStep, ...]
    tasks: Mapping[str, int]
    refused_by: Mapping[str, int]
    rejected_by: Mapping[str, int]
    repaired: int
    journeys: Mapping[str, int] = field(default_factory=dict)
    holders: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgreementEnd:
    """A participant's withdrawal from an agreement: who, why, and when by its clock."""

    organization: str
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class AgreementInfo:
    """An agreement of the node, or terms that it has signed.

    `state` is "signed" (nobody has said yet that it is concluded), "given up" (its initiator says so), "active",
    "suspended", "withdrawn", "replaced", "over" or "void"; `terms` are as they were signed (`comity.agreement` reads
    them), and `at_ms` is when the node got it. `document` is what to give to an auditor; it is empty in a list.
    """

    digest: str
    state: str
    terms: bytes
    at_ms: int
    withdrawals: tuple[AgreementEnd, ...] = ()
    document: bytes = b""


class WorkflowCalls:
    """Calls about workflows and agreements."""

    @call
    def submit_workflow(self, document: Mapping[str, Any]) -> Call[str]:
        """Start a workflow and return its id; it is durable then, and not yet negotiated."""
        request = pb.SubmitWorkflowRequest(workflow=to_json(document, "the workflow"))
        return Call("SubmitWorkflow", request, lambda it: str(it.workflow_id))

    @call
    def workflow(self, workflow_id: str) -> Call[Workflow]:
        """One workflow; a ControlError with code "not_found" if there is no such one."""

        def parse(response: pb.GetWorkflowResponse) -> Workflow:
            found = _workflows(response)
            if len(found) != 1:
                raise ControlError(f"the node knows no workflow {workflow_id!r}", code="not_found")
            return found[0]

        return Call("GetWorkflow", pb.GetWorkflowRequest(workflow_id=workflow_id), parse)

    @call
    def workflows(self) -> Call[tuple[Workflow, ...]]:
        """All workflows of the node."""
        return Call("GetWorkflow", pb.GetWorkflowRequest(), _workflows)

    @call
    def cancel_workflow(self, workflow_id: str, reason: str = "") -> Call[int]:
        """End the own tasks of a running workflow; returns how many were under way or not decided.

        The agreement stays, and so do the tasks of the other participants: `withdraw_agreement` ends all.
        """
        request = pb.CancelWorkflowRequest(workflow_id=workflow_id, reason=reason)
        return Call("CancelWorkflow", request, lambda it: int(it.tasks))

    @call
    def agreements(self) -> Call[tuple[AgreementInfo, ...]]:
        """The node's agreements, the newest first, whatever has become of them."""
        request = pb.ListAgreementsRequest()
        return Call("ListAgreements", request, lambda it: tuple(_agreement(each, b"") for each in it.agreements))

    @call
    def agreement(self, name: str) -> Call[AgreementInfo]:
        """One agreement, by its id, its digest in hex or the beginning of that, with its document for auditors."""
        request = pb.GetAgreementRequest(digest=name)
        return Call("GetAgreement", request, lambda it: _agreement(it.info, it.document))

    @call
    def withdraw_agreement(self, name: str, reason: str = "") -> Call[str]:
        """Withdraw from an agreement, for good; returns its digest. The others are told."""
        request = pb.WithdrawAgreementRequest(digest=name, reason=reason)
        return Call("WithdrawAgreement", request, lambda it: str(it.digest))

    @call
    def amend_agreement(self, name: str, changes: Mapping[str, Any]) -> Call[str]:
        """Negotiate terms that take an agreement's place; returns the id of the workflow that does.

        Args:
            name: of the agreement, as for `agreement`.
            changes: what is to be another, in the words of a workflow document.
        """
        request = pb.AmendAgreementRequest(digest=name, changes=to_json(changes, "the amendment"))
        return Call("AmendAgreement", request, lambda it: str(it.workflow_id))


def _workflows(response: pb.GetWorkflowResponse) -> tuple[Workflow, ...]:
    return tuple(
        read_value(Workflow, each, steps=read_values(NegotiationStep, each.steps)) for each in response.workflows
    )


def _agreement(info: pb.AgreementInfo, document: bytes) -> AgreementInfo:
    return read_value(AgreementInfo, info, withdrawals=read_values(AgreementEnd, info.withdrawals), document=document)
