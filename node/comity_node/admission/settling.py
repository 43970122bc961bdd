"""What a decision sets going before anything leaves: approvals, rates, quotas, privacy budgets, notices, the audit log.

Plain functions over the connection of one transaction. Whatever is counted is counted with the decision that it is for,
in this order, and a no uses nothing up:

1. what the policy denies stays denied, and so is what would have to be in a form that it cannot have: a tunnel's
bytes cannot be redacted; 2. every rule that asks for an approval has it; 3. there is room in every rate,
quota and budget of the rules that allow it; 4. all of them are counted; 5. who is to be told is told.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from comity_node.admission.questions import EPSILON_UNIT, Question, Waiting, budget_scope, scope_of, to_units
from comity_node.admission.shapes import Shape
from comity_node.policy.engine import Policy
from comity_node.policy.lattice import Approval, Obligations
from comity_node.policy.model import Decision
from comity_node.storage import approvals, audit, journal, ledgers
from comity_node.storage.approvals import ApprovalRow
from comity_node.storage.notices import Notice, put_notice

#: What carries no rows that could be looked at: a form that a rule asks for there would not come about.
_SHAPELESS: Final = frozenset({"update.send", "update.receive", "tunnel.open", "tunnel.serve"})
#: Rules or persons, and characters of a reason or another text, that an entry of the log has room for: whatever is
#: decided has to be written down.
_MOST_NAMED: Final = 50
_LONGEST_REASON: Final = 1000
_LONGEST_TEXT: Final = 128


#: What is done about the decisions of a call in the transaction that has them written down.
Also = Callable[[sqlite3.Connection, Sequence[Decision]], None]


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of `Gate.decide` has to have settled: questions, and what the policy of that time says to each."""

    policy: Policy
    questions: Sequence[Question]
    decisions: Sequence[Decision]
    shapes: Sequence[Shape]
    now_ms: int
    also: Also | None = None


@dataclass(slots=True)
class Settled:
    """What came of a transaction's calls; `notices` and `asked` are for the log, once it is committed."""

    decisions: list[list[Decision]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    asked: list[ApprovalRow] = field(default_factory=list)


def settle_all(connection: sqlite3.Connection, calls: Sequence[Call], new_id: Callable[[int], bytes]) -> Settled:
    """Settle the decisions of each call, in order, and append them to the log in one step.

    Args:
        connection: of the transaction.
        calls: what is settled.
        new_id: returns so many random bytes, for the ids of approvals.
    """
    settled = Settled()
    log: list[tuple[audit.AuditEntry, int]] = []
    for call in calls:
        one = _Settling(connection, call, new_id)
        settled.decisions.append(one.settle())
        if call.also is not None:
            call.also(connection, settled.decisions[-1])
        settled.notices += one.notify()
        settled.asked += one.asked
        log += [(entry, call.now_ms) for entry in one.log]
    audit.append_all(connection, log)
    return settled


class _Settling:
    """Settles one call."""

    def __init__(self, connection: sqlite3.Connection, call: Call, new_id: Callable[[int], bytes]) -> None:
        self._connection = connection
        self._call = call
        self._new_id = new_id
        self.log: list[audit.AuditEntry] = []
        self.asked: list[ApprovalRow] = []
        self._told: dict[tuple[object, ...], Notice] = {}

    def settle(self) -> list[Decision]:
        """Settle all, in order."""
        call, final = self._call, []
        plain: Decision | None = None  # one that asks for nothing: most of a batch are one and the same
        for question, decision, shape in zip(call.questions, call.decisions, call.shapes, strict=True):
            settled = decision
            shapeless = question.request.action in _SHAPELESS
            if decision.allowed and (shapeless or decision is not plain):
                if shapeless or _counts(decision.obligations):
                    settled = self._settle(question, decision, shape)
                else:
                    plain = decision
            final.append(settled)
            self.log.append(_entry(question, settled, call.policy, shape))
        return final

    def _settle(self, question: Question, decision: Decision, shape: Shape) -> Decision:
        action, owed = question.request.action, decision.obligations
        no = _no_form(action, decision) if action in _SHAPELESS else None
        if no is None and owed.approvals:
            no = self._approve(question, decision, shape)
        no = no or self._no_room(question, decision)
        if no is not None:
            return no
        self._count(question, owed)
        if owed.notify:
            self._tell(question, decision)
        return decision

    # -- approvals -------------------------------------------------------------------------------------------------

    def _approve(self, question: Question, decision: Decision, shape: Shape) -> Decision | None:
        """Return the denial for want of an approval, if one is wanting; all that have to be asked for are."""
        denials = [self._approve_one(question, each, shape) for each in decision.obligations.approvals]
        waiting = [one for one in denials if one is not None]
        # What was denied tells more than what is waited for.
        return min(waiting, key=lambda one: isinstance(one, Waiting), default=None)

    def _approve_one(self, question: Question, approval: Approval, shape: Shape) -> Decision | None:
        request, now_ms, scope = question.request, self._call.now_ms, scope_of(question, shape)
        if not scope:
            return _denial(approval.rule, f"rule {approval.rule} asks for approval of what has no canonical form")
        row = approvals.find_approval(self._connection, approval.rule, request.action, request.organization, scope)
        if row is None:
            row = self._ask(question, approval, shape, scope)
            if row is None:
                most = approvals.MAX_PENDING
                return _denial(approval.rule, f"{most} approvals for {request.organization} are waited for already")
        elif row.state == "pending" and row.deadline_ms <= now_ms:
            row = self._expire(row)
        if row.state == "approved":
            return None
        if row.state == "pending":
            reason = (
                f"rule {row.rule} asks for a person's approval: comity approvals approve {row.approval_id.hex()[:12]}"
            )
            owed = Obligations(approvals=(approval,))
            return Waiting(False, (row.rule,), reason, owed, approval=row.approval_id, deadline_ms=row.deadline_ms)
        said = f": {row.reason}" if row.reason else ""
        what = "nobody approved it in time" if row.state == "expired" else f"a person denied it{said}"
        return _denial(row.rule, f"rule {row.rule} asks for a person's approval; {what}")

    def _ask(self, question: Question, approval: Approval, shape: Shape, scope: bytes) -> ApprovalRow | None:
        request, now_ms = question.request, self._call.now_ms
        row = ApprovalRow(
            approval_id=self._new_id(16),
            rule=approval.rule,
            action=request.action,
            organization=request.organization,
            scope=scope,
            request=shape.data,
            purpose=request.purpose,
            dataset=request.dataset,
            state="pending",
            reason="",
            asked_ms=now_ms,
            deadline_ms=now_ms + approval.deadline_ms,
            decided_ms=None,
        )
        if not approvals.put_approval(self._connection, row):
            return None
        self.log.append(approval_entry(row))
        self.asked.append(row)
        return row

    def _expire(self, row: ApprovalRow) -> ApprovalRow:
        expired = approvals.settle_approval(self._connection, row.approval_id, "expired", "", self._call.now_ms)
        self.log.append(approval_entry(expired))
        return expired

    # -- what is counted -------------------------------------------------------------------------------------------

    def _no_room(self, question: Question, decision: Decision) -> Decision | None:
        """Return the denial for want of room in a rate, a quota or a budget; nothing is counted here."""
        owed, amount = decision.obligations, question.amount
        for rate in owed.rates:
            used = journal.reserved(self._connection, rate.rule, rate.per_ms, self._call.now_ms)
            if used + amount > rate.records:
                reason = f"the rate of rule {rate.rule} is used up: {rate.records} records in {rate.per_ms / 1000:g} s"
                no = Obligations(rates=(rate,))
                return Decision(False, (rate.rule,), reason, no, decision.near_misses)
        for quota in owed.quotas:
            left = quota.records - ledgers.quota_used(self._connection, quota.rule)
            if amount > left:
                reason = (
                    f"the quota of rule {quota.rule} is used up: {max(left, 0)} of {quota.records} records are left"
                )
                return _denial(quota.rule, reason)
        return self._no_budget(question, owed)

    def _no_budget(self, question: Question, owed: Obligations) -> Decision | None:
        spending = question.spending
        for budget in owed.budgets if spending is not None and spending.cost else ():
            assert spending is not None
            scope = budget_scope(budget, question.request)
            if ledgers.is_paid(self._connection, scope, spending.release):
                continue
            left = to_units(budget.epsilon, up=False) - ledgers.epsilon_spent(self._connection, scope)
            if spending.cost > left:
                kept = f", for this {' and '.join(budget.per)}" if budget.per else ""
                return _denial(
                    budget.rule,
                    f"the privacy budget of rule {budget.rule} is used up{kept}: {max(left, 0) / EPSILON_UNIT:g} of"
                    f" {budget.epsilon:g} is left, and this costs {spending.cost / EPSILON_UNIT:g}",
                )
        return None

    def _count(self, question: Question, owed: Obligations) -> None:
        connection, amount = self._connection, question.amount
        for rate in owed.rates:
            journal.reserve(connection, rate.rule, rate.records, rate.per_ms, amount, self._call.now_ms)
        for quota in owed.quotas:
            ledgers.spend_quota(connection, quota.rule, quota.records, amount)
        spending = question.spending
        if spending is not None and spending.cost:
            for budget in owed.budgets:
                scope, most = budget_scope(budget, question.request), to_units(budget.epsilon, up=False)
                ledgers.spend_epsilon(connection, scope, spending.release, spending.cost, most)

    # -- who is told -----------------------------------------------------------------------------------------------

    def _tell(self, question: Question, decision: Decision) -> None:
        """Add to the notices of this call: things of one sort are told of together."""
        request, persons = question.request, tuple(sorted(decision.obligations.notify))
        key = (persons, decision.rules, request.action, request.organization, request.purpose, request.dataset,
               question.agreement)  # fmt: skip
        known = self._told.get(key)
        if known is not None:
            self._told[key] = replace(known, times=known.times + 1)
            return
        self._told[key] = Notice(
            self._call.now_ms, persons, decision.rules, request.action, request.organization, request.purpose,
            request.dataset, question.subject, question.agreement, 1,
        )  # fmt: skip

    def notify(self) -> list[Notice]:
        """Store the notices of this call, and note each in the log; returns them."""
        for notice in self._told.values():
            put_notice(self._connection, notice)
            self.log.append(_notice_entry(notice))
        return list(self._told.values())


def _no_form(action: str, decision: Decision) -> Decision | None:
    """Return the denial if the rules ask for a form that what crosses in `action` cannot be brought into."""
    owed = decision.obligations
    asked = {
        "redact": owed.redact, "generalize": owed.generalize, "mask": owed.mask, "hash": owed.hash, "noise": owed.noise,
        "k_anonymity": owed.k_anonymity, "min_distance_to_private": owed.min_distance_to_private,
    }  # fmt: skip
    forms = [name for name, wanted in asked.items() if wanted]
    if not forms:
        return None
    reason = f"{', '.join(forms)} cannot be done in {action}: take it out of {', '.join(decision.rules)}"
    return Decision(False, decision.rules, reason, Obligations())


def _counts(owed: Obligations) -> bool:
    """Whether something has to be asked, counted or told."""
    return bool(owed.rates or owed.quotas or owed.budgets or owed.approvals or owed.notify)


def _denial(rule: str, reason: str) -> Decision:
    return Decision(False, (rule,), reason, Obligations())


def _entry(question: Question, decision: Decision, policy: Policy, shape: Shape) -> audit.AuditEntry:
    request = question.request
    more: dict[str, audit.Detail] = {"request": shape.digest} if shape.digest else {}
    more.update(question.note)
    if len(decision.rules) > _MOST_NAMED:
        more["more_rules"] = len(decision.rules) - _MOST_NAMED
    return audit.AuditEntry(
        kind="decision",
        action=request.action,
        decision="allow" if decision.allowed else "deny",
        rules=decision.rules[:_MOST_NAMED],
        peer=request.organization,
        subject=question.subject,
        policy=policy.digest,
        agreement=question.agreement,
        detail={
            "purpose": request.purpose[:_LONGEST_TEXT],
            "dataset": request.dataset[:_LONGEST_TEXT],
            "kind": request.kind[:_LONGEST_TEXT],
            "reason": decision.reason[:_LONGEST_REASON],
            **more,
        },
    )


def approval_entry(row: ApprovalRow) -> audit.AuditEntry:
    """Return the audit entry about what became of an approval."""
    return audit.AuditEntry(
        kind="approval",
        action=row.action,
        decision={"approved": "allow", "denied": "deny", "expired": "deny"}.get(row.state, ""),
        rules=(row.rule,),
        peer=row.organization,
        subject=row.scope,
        detail={
            "approval": row.approval_id.hex(),
            "state": row.state,
            "purpose": row.purpose[:_LONGEST_TEXT],
            "dataset": row.dataset[:_LONGEST_TEXT],
            "reason": row.reason[:_LONGEST_REASON],
            "deadline_ms": row.deadline_ms,
        },
    )


def _notice_entry(notice: Notice) -> audit.AuditEntry:
    return audit.AuditEntry(
        kind="notice",
        action=notice.action,
        rules=notice.rules[:_MOST_NAMED],
        peer=notice.organization,
        subject=notice.subject,
        agreement=notice.agreement,
        detail={
            "persons": list(notice.persons[:_MOST_NAMED]),
            "times": notice.times,
            "purpose": notice.purpose[:_LONGEST_TEXT],
        },
    )
