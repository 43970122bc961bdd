"""What the node's policy says, what it has just decided, and what people have to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from comity._control.connection import Call, Stream
from comity._control.defined import call, stream
from comity._control.values import json_object, read_value, read_values, to_json
from comity.v1 import control_pb2 as pb

#: Seconds without a word after which a watched node counts as gone; it says something every five.
_QUIET_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class WatchedDecision:
    """A decision that the node has just made.

    Attributes:
        index: of its entry in the audit log.
        at_ms: when, in milliseconds since 1970.
        action: of the policy language.
        organization: the other side.
        allowed: whether it may be done.
        rules: ids of the rules that determined it.
        reason: one line for a person.
        policy_digest: SHA-256 of the policy that decided, hex.
        request: what was asked, JSON in the words of a case; empty if it was not kept.
    """

    index: int
    at_ms: int
    action: str
    organization: str
    allowed: bool
    rules: tuple[str, ...]
    reason: str
    policy_digest: str
    request: bytes


@dataclass(frozen=True, slots=True)
class WatchedDecisions:
    """Decisions that came together (none: the node is there and has nothing to tell).

    Attributes:
        decisions: in the order of the audit log.
        dropped: entries of the audit log that were skipped before these, because the watcher was too slow.
    """

    decisions: tuple[WatchedDecision, ...]
    dropped: int


@dataclass(frozen=True, slots=True)
class Approval:
    """Something that a person of this organization has to approve before it happens.

    Attributes:
        id: in hex.
        rule: of the policy, that asks for it.
        action: what would be done.
        organization: the other side.
        purpose: what for.
        dataset: whose data.
        scope: SHA-256, in hex, of the agreement or of the very thing that it is good for.
        request: what the policy was asked, in the words of a policy's test case (JSON).
        state: "pending", "approved", "denied" or "expired".
        reason: what the person said.
        asked_ms: since when it waits, in milliseconds since the Unix epoch.
        deadline_ms: until when it waits.
        decided_ms: when it was decided; 0 before.
    """

    id: str
    rule: str
    action: str
    organization: str
    purpose: str
    dataset: str
    scope: str
    request: bytes
    state: str
    reason: str
    asked_ms: int
    deadline_ms: int
    decided_ms: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that was allowed, and that somebody is told of.

    Attributes:
        at_ms: when, in milliseconds since the Unix epoch.
        persons: who is told.
        rules: of the policy, that allowed it.
        action: what was done.
        organization: the other side.
        purpose: what for.
        dataset: whose data.
        subject: SHA-256, in hex, of what it was about; of the first, if there were several.
        agreement_digest: in hex.
        times: how many things it was about.
    """

    at_ms: int
    persons: tuple[str, ...]
    rules: tuple[str, ...]
    action: str
    organization: str
    purpose: str
    dataset: str
    subject: str
    agreement_digest: str
    times: int


class PolicyCalls:
    """Calls about decisions and approvals."""

    @call
    def explain_policy(self, request: Mapping[str, Any]) -> Call[dict[str, Any]]:
        """What the node's policy says to a request, and why."""
        question = pb.ExplainPolicyRequest(request=to_json(request, "the policy request"))
        return Call("ExplainPolicy", question, lambda it: json_object(it.explanation, "the explanation"))

    @stream
    def watch_decisions(
        self, *, action: str = "", organization: str = "", denied: bool = False
    ) -> Stream[WatchedDecisions]:
        """Yield the node's decisions as they are made, until the generator is closed.

        The first value has no decisions: what is decided after it is told. Later ones without any show that the node is
        there. A reader that is too slow misses decisions, and is told how many entries of the log were skipped.

        Args:
            action: only of this action; empty: of all.
            organization: only with this one; empty: with all.
            denied: denials alone.
        """
        request = pb.WatchDecisionsRequest(action=action, organization=organization, denied=denied)
        return Stream("WatchDecisions", request, _watched, _QUIET_S)

    @call
    def approvals(self, *, everything: bool = False) -> Call[list[Approval]]:
        """Return what waits for a person's approval, the newest first; with `everything` what was decided too."""
        request = pb.ListApprovalsRequest(all=everything)
        return Call("ListApprovals", request, lambda it: list(read_values(Approval, it.approvals)))

    @call
    def decide_approval(self, approval_id: str, *, approve: bool, reason: str = "") -> Call[Approval]:
        """Grant or deny an approval, named by its id or at least six digits of its beginning.

        Raises:
            ControlError: with code "not_found" if no approval has this name, or several do.
        """
        request = pb.DecideApprovalRequest(id=approval_id, approve=approve, reason=reason)
        return Call("DecideApproval", request, lambda it: read_value(Approval, it.approval))

    @call
    def notices(self) -> Call[list[Notice]]:
        """Return the newest things that somebody is told of, the newest first."""
        return Call("ListNotices", pb.ListNoticesRequest(), lambda it: list(read_values(Notice, it.notices)))


def _watched(it: pb.WatchDecisionsResponse) -> tuple[WatchedDecisions]:
    return (WatchedDecisions(read_values(WatchedDecision, it.decisions), it.dropped),)
