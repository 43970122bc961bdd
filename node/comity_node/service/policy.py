"""What the policy says, what it has just decided, and what people have to do about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

from comity.v1 import control_pb2 as pb
from comity_node import strictyaml
from comity_node.admission import Gate
from comity_node.admission.watching import Seen, Wanted, Watching
from comity_node.policy.cases import read_request
from comity_node.policy.explain import explain
from comity_node.storage.approvals import ApprovalRow
from comity_node.storage.database import Database
from comity_node.storage.notices import Notice


class PolicyService:
    """Answers about decisions and approvals."""

    def __init__(self, gate: Gate, database: Database) -> None:
        """Speak for the policy in force at `gate`; its decisions are in `database`."""
        self._gate = gate
        self._watching = Watching(database)

    async def explain_policy(self, request: pb.ExplainPolicyRequest) -> pb.ExplainPolicyResponse:
        """Explain what the active policy would decide."""
        question = read_request(strictyaml.loads(request.request, "request"))
        explanation = explain(self._gate.policy, question)
        return pb.ExplainPolicyResponse(explanation=json.dumps(explanation.to_json()).encode())

    async def watch_decisions(self, request: pb.WatchDecisionsRequest) -> AsyncIterator[pb.WatchDecisionsResponse]:
        """Tell the decisions as they are made."""
        wanted = Wanted(request.action, request.organization, request.denied)
        async with aclosing(self._watching.follow(wanted)) as sights:
            async for sight in sights:
                yield pb.WatchDecisionsResponse(decisions=map(_watched, sight.decisions), dropped=sight.dropped)

    async def list_approvals(self, request: pb.ListApprovalsRequest) -> pb.ListApprovalsResponse:
        """Return what a person has to approve, or has decided, the newest first."""
        rows = await self._gate.approvals.list(all_of_them=request.all)
        return pb.ListApprovalsResponse(approvals=map(_approval, rows))

    async def decide_approval(self, request: pb.DecideApprovalRequest) -> pb.DecideApprovalResponse:
        """Grant or deny an approval."""
        row = await self._gate.approvals.decide(request.id, approve=request.approve, reason=request.reason)
        return pb.DecideApprovalResponse(approval=_approval(row))

    async def list_notices(self, request: pb.ListNoticesRequest) -> pb.ListNoticesResponse:
        """Return the newest notices."""
        return pb.ListNoticesResponse(notices=map(_notice, await self._gate.approvals.notices()))


def _approval(row: ApprovalRow) -> pb.Approval:
    return pb.Approval(
        id=row.approval_id.hex(),
        rule=row.rule,
        action=row.action,
        organization=row.organization,
        purpose=row.purpose,
        dataset=row.dataset,
        scope=row.scope.hex(),
        request=row.request,
        state=row.state,
        reason=row.reason,
        asked_ms=row.asked_ms,
        deadline_ms=row.deadline_ms,
        decided_ms=row.decided_ms or 0,
    )


def _notice(notice: Notice) -> pb.Notice:
    return pb.Notice(
        at_ms=notice.at_ms,
        persons=notice.persons,
        rules=notice.rules,
        action=notice.action,
        organization=notice.organization,
        purpose=notice.purpose,
        dataset=notice.dataset,
        subject=notice.subject.hex(),
        agreement_digest=notice.agreement.hex(),
        times=notice.times,
    )


def _watched(seen: Seen) -> pb.WatchedDecision:
    entry = seen.entry.entry
    return pb.WatchedDecision(
        index=seen.entry.index,
        at_ms=seen.entry.at_ms,
        action=entry.action,
        organization=entry.peer,
        allowed=entry.decision == "allow",
        rules=entry.rules,
        reason=str(entry.detail.get("reason", "")),
        policy_digest=entry.policy.hex(),
        request=seen.request,
    )
