"""Tokens that are decided on together: what they are, and what came of each once the policy has spoken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from comity import merkle
from comity.agreement import Agreed
from comity.v1.flow_pb2 import FlowHop
from comity_node.admission.gate import Question
from comity_node.admission.questions import Waiting
from comity_node.admission.token_frame import Owed
from comity_node.policy.model import Decision, Obligations, Request
from comity_node.protocol.token import Token
from comity_node.protocol.token_wire import content_digest
from comity_node.storage import audit

#: Rules that an entry or a hop names; of a decision, the log has all.
MOST_RULES: Final = 8
_REASON_CHARS: Final = 500
#: How soon a token is tried again that waits for a person, or for room in a rate: a tenth of its time, between these.
_PERSON_S: Final = 5.0
_LEAST_S: Final = 1.0
_MOST_S: Final = 60.0
_AT_ONCE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Denied:
    """A token that may not pass.

    Attributes:
        reason: that may be told.
        rules: that say so.
        retry_after_s: over 0: it may be let pass then.
    """

    reason: str
    rules: tuple[str, ...] = ()
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Leaving:
    """A token that is to leave, and what its recipient is to do with it."""

    token: Token
    role: str


@dataclass(slots=True)
class Ready:
    """A token in the form in which it may leave: at which place of the batch it is, and its hop."""

    place: int
    token: Token
    hop: FlowHop


@dataclass(slots=True)
class Group:
    """Tokens about which the policy is asked the same.

    Attributes:
        request: what it is asked.
        decision: what it says, before anything is counted.
        owed: what is done to each; or why none of them may leave.
        ready: those that may leave if it says yes then.
        refused: those that may not, by their place.
        envelopes: the signed hops of those that are ready.
        questions: one about all that are ready, or one about each.
    """

    request: Request
    decision: Decision
    owed: Owed | Denied
    ready: list[Ready] = field(default_factory=list)
    refused: dict[int, Denied] = field(default_factory=dict)
    envelopes: list[bytes] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def key_of(request: Request) -> object:
    """What tells one question from another, all of it."""
    labels = tuple((name, type(value), value) for name, value in sorted(request.labels.items()))
    return (request.action, request.organization, request.role, request.dataset, request.fields, labels)


def came_of(groups: Sequence[Group], decisions: Sequence[Decision], many: int, me: str) -> list[Token | Denied]:
    """Return what came of each token, in their order, once the policy has decided."""
    out: list[Token | Denied] = [Denied("it was not decided on")] * many
    answers = iter(decisions)
    for group in groups:
        for place, denied in group.refused.items():
            out[place] = denied
        own = [next(answers) for _ in group.questions]
        for number, ready in enumerate(group.ready):
            decision = own[number if len(own) > 1 else 0]
            out[ready.place] = _passed(group, ready, group.envelopes[number], decision, me)
    return out


def _passed(group: Group, ready: Ready, envelope: bytes, decision: Decision, me: str) -> Token | Denied:
    if not decision.allowed:
        return Denied(decision.reason, decision.rules, retry_after_s(decision))
    if (decision.rules, decision.obligations) != (group.decision.rules, group.decision.obligations):
        return Denied("the rules that let it pass changed while it was made ready", decision.rules, _AT_ONCE_S)
    one = ready.token
    hops = (envelope,) if one.home == me else (*one.hops, envelope)
    return Token(
        one.task_id, one.agreement, one.home, one.home_peer, one.attempt, one.sequence, one.cursor, one.state, hops,
        one.deadline_ms, one.outcome, one.reason,
    )  # fmt: skip


def retry_after_s(decision: Decision) -> float:
    """Return after how many seconds a denial may be none any more; 0: it is one for good, as far as anybody knows."""
    if isinstance(decision, Waiting):
        return _PERSON_S
    pauses = [rate.per_ms / 10_000 for rate in decision.obligations.rates]
    return min(_MOST_S, max(_LEAST_S, *pauses)) if pauses and not decision.allowed else 0.0


def refusals(agreed: Agreed, to: str, groups: Sequence[Group], leaving: Sequence[Leaving]) -> list[audit.AuditEntry]:
    """Return the audit entries about tokens that the policy allows and that cannot have the form which it asks for."""
    entries = []
    for group in groups:
        if not group.decision.allowed or not group.refused:
            continue
        places = sorted(group.refused)
        entries.append(
            audit.AuditEntry(
                kind="effect",
                action="token.refused",
                decision="deny",
                rules=group.decision.rules[:MOST_RULES],
                peer=to,
                subject=merkle.root_of([content_digest(leaving[place].token) for place in places]),
                agreement=agreed.digest,
                detail={"reason": group.refused[places[0]].reason[:_REASON_CHARS], **count_of(len(places))},
            )
        )
    return entries


def count_of(count: int) -> dict[str, Any]:
    """Return how many tokens an entry is about, for its detail."""
    return {"tokens": count}


def is_counted(owed: Obligations) -> bool:
    """Whether something is counted, asked or told for each token."""
    return bool(owed.rates or owed.quotas or owed.budgets or owed.approvals or owed.notify)
