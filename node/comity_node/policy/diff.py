"""What would be decided otherwise: two policies asked the same requests.

The requests are those of the audit log, or of files of cases. Both policies are asked about each; what they answer is
compared as a person would: first whether it may be done at all, then what must be done about it, then which rules say
so. A recorded request has the labels that the policy of that time asked about; where the new policy asks about others
and could not decide for want of them alone, nothing can be known (`Change.UNKNOWN`).

Requests are streamed: memory is bounded by the number of distinct ones that are remembered (`_MAX_DISTINCT`), of groups
and of examples, however long the log is. What is past those bounds is asked and counted all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from comity_node.policy.engine import Policy
from comity_node.policy.explain import request_json
from comity_node.policy.matching import examine
from comity_node.policy.model import LABELS, Decision, Request
from comity_node.policy.obligations import covers, to_json

#: Distinct requests whose answers are remembered.
_MAX_DISTINCT: Final = 65_536
#: Groups (action, organization, purpose) of the summary; what belongs to another one is counted under "(others)".
_MAX_GROUPS: Final = 1_000
_OTHERS: Final = "(others)"
_MAX_EXAMPLES: Final = 100
#: Labels that requests with the same key have in common.
_TIMELESS: Final = frozenset(LABELS) - {"time_ms"}


class Change(StrEnum):
    """How an answer differs, the gravest first."""

    WIDENED = "deny->allow"
    NARROWED = "allow->deny"
    OBLIGATIONS = "obligations"
    RULES = "rules"
    UNKNOWN = "unknown"
    SAME = "same"


#: What `fails` can be asked to look for.
FAIL_ON: Final = ("widen", "any", "none")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was once asked.

    Attributes:
        request: what was asked.
        key: the same for requests that are alike (but for their time); empty for one that stands alone.
        origin: where it stands: an entry's index, or a case's place and name.
        allowed: what was decided then; None if that is not known or was not for the policy to say.
    """

    request: Request
    key: bytes = b""
    origin: str = ""
    allowed: bool | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One request that is decided otherwise."""

    change: Change
    asked: Asked
    old: Decision
    new: Decision

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {
            "change": self.change.value,
            "origin": self.asked.origin,
            "request": request_json(self.asked.request),
            "old": _decision_json(self.old),
            "new": _decision_json(self.new),
        }

    def lines(self) -> tuple[str, ...]:
        """Return it as lines for a person."""
        request = self.asked.request
        about = [request.purpose and f"for {request.purpose}", request.dataset, request.kind, request.role]
        what = " ".join((request.action, "with", request.organization, *(word for word in about if word)))
        said = (f"  {name}: {_said(each, self.change)}" for name, each in (("old", self.old), ("new", self.new)))
        return (f"{self.change.value}: {what} ({self.asked.origin})", *said)


@dataclass(slots=True)
class Diff:
    """The outcome of a comparison.

    Attributes:
        asked: requests that were asked, with all their repetitions.
        distinct: how many different ones there are; a lower bound if `bounded`.
        bounded: whether there were more than are remembered.
        drifted: decisions of the log that the old policy would not make today: another one was active.
        loosened: decisions that stay allowed and of which less is asked (`is_looser`), with all repetitions.
        changes: decisions by how they change, with all repetitions.
        groups: changed decisions by (change, action, organization, purpose).
        examples: for each change the first few.
    """

    asked: int = 0
    distinct: int = 0
    bounded: bool = False
    drifted: int = 0
    loosened: int = 0
    changes: Counter[Change] = field(default_factory=Counter)
    groups: Counter[tuple[Change, str, str, str]] = field(default_factory=Counter)
    examples: dict[Change, list[Difference]] = field(default_factory=dict)

    def fails(self, on: str) -> bool:
        """Whether there is a change of the kind that must not be: `any`, `none` (never), or `widen`.

        What was denied and is allowed widens a policy, and so does what stays allowed when less is asked of it.
        """
        if on == "none":
            return False
        if on == "widen":
            return self.changes[Change.WIDENED] + self.loosened > 0
        return any(count for change, count in self.changes.items() if change is not Change.SAME)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {
            "asked": self.asked,
            "distinct": self.distinct,
            "distinct_is_a_lower_bound": self.bounded,
            "drifted": self.drifted,
            "loosened": self.loosened,
            "changes": {change.value: self.changes[change] for change in Change},
            "groups": [
                {"change": change.value, "action": action, "organization": name, "purpose": purpose, "decisions": count}
                for (change, action, name, purpose), count in self.groups.most_common()
            ],
            "examples": [each.to_json() for change in Change for each in self.examples.get(change, ())],
        }


def classify(old: Decision, new: Decision) -> Change:
    """Say how two answers to one request differ."""
    if old.allowed is not new.allowed:
        return Change.WIDENED if new.allowed else Change.NARROWED
    if old.allowed and to_json(old.obligations) != to_json(new.obligations):
        return Change.OBLIGATIONS
    return Change.SAME if old.rules == new.rules else Change.RULES


def is_looser(old: Decision, new: Decision) -> bool:
    """Whether both allow, and something that the old one asks for is not asked for, or less of it, by the new one.

    What is counted by rules is compared rule by rule: under another id it begins anew.
    """
    if not (old.allowed and new.allowed):
        return False
    before, after = old.obligations, new.obligations
    kept = (
        covers(after, before)
        and before.notify <= after.notify
        and {each.rule for each in before.approvals} <= {each.rule for each in after.approvals}
        and all(
            any(a.rule == b.rule and a.records <= b.records and a.per_ms >= b.per_ms for a in after.rates)
            for b in before.rates
        )
        and all(any(a.rule == b.rule and a.records <= b.records for a in after.quotas) for b in before.quotas)
        and all(
            any(a.rule == b.rule and a.epsilon <= b.epsilon and a.per == b.per for a in after.budgets)
            for b in before.budgets
        )
    )
    return not kept


def labels_asked(policy: Policy) -> frozenset[str]:
    """Return the labels that the rules of a policy ask about."""
    return frozenset(condition.label for rule in policy.document.rules for condition in rule.conditions)


def untold(policy: Policy, decision: Decision, request: Request, unasked: frozenset[str]) -> bool:
    """Whether a decision denies for want of labels alone that nobody had asked about when the request was recorded.

    Args:
        policy: that decided now.
        decision: what it says.
        request: as it was recorded.
        unasked: the labels that the policy of that time did not ask about.
    """
    missing = unasked - request.labels.keys()
    if decision.allowed or not missing:
        return False
    deciding = [rule for rule in policy.document.rules if rule.id in decision.rules]
    if len(deciding) != len(decision.rules):
        return False  # a built-in rule has a say, too
    return bool(deciding) and all(
        examine(policy.document, rule, request).matches is None
        and any(condition.label in missing for condition in rule.conditions)
        for rule in deciding
    )


def compare(old: Policy, new: Policy, asked: Iterable[Asked], *, examples: int = 3) -> Diff:
    """Ask both policies about each request.

    Args:
        old: the policy as it is.
        new: the policy as it would be.
        asked: the requests, streamed.
        examples: how many of each change are kept, each of another distinct request; 100 at most.
    """
    diff = Diff()
    examples = min(examples, _MAX_EXAMPLES)
    timed = _asks_for_the_time(old) or _asks_for_the_time(new)
    unasked = labels_asked(new) - labels_asked(old)
    seen: dict[bytes, tuple[Change, bool, bool]] = {}
    for each in asked:
        diff.asked += 1
        known = seen.get(each.key) if each.key else None
        if known is None or timed:
            known = _ask(diff, old, new, each, examples, unasked, first=known is None)
            if each.key and len(seen) < _MAX_DISTINCT:
                seen[each.key] = known
            elif each.key:
                diff.bounded = diff.bounded or each.key not in seen
        change, allowed, looser = known
        diff.changes[change] += 1
        diff.loosened += looser
        diff.drifted += each.allowed is not None and each.allowed is not allowed
        if change is not Change.SAME:
            _group(diff, change, each.request)
    return diff


def _asks_for_the_time(policy: Policy) -> bool:
    """Whether requests that are alike but for their time may be decided differently."""
    return any(condition.label not in _TIMELESS for rule in policy.document.rules for condition in rule.conditions)


def _ask(
    diff: Diff, old: Policy, new: Policy, asked: Asked, most: int, unasked: frozenset[str], *, first: bool
) -> tuple[Change, bool, bool]:
    before, after = old.decide(asked.request), new.decide(asked.request)
    change = Change.UNKNOWN if untold(new, after, asked.request, unasked) else classify(before, after)
    diff.distinct += first and not diff.bounded
    kept = diff.examples.setdefault(change, []) if change is not Change.SAME else []
    alike = any(each.asked.key == asked.key for each in kept if asked.key)
    if change is not Change.SAME and len(kept) < most and not alike:
        kept.append(Difference(change, asked, before, after))
    return change, before.allowed, is_looser(before, after)


def _group(diff: Diff, change: Change, request: Request) -> None:
    group = (change, request.action, request.organization, request.purpose)
    if group not in diff.groups and len(diff.groups) >= _MAX_GROUPS:
        group = (change, _OTHERS, _OTHERS, _OTHERS)
    diff.groups[group] += 1


def _decision_json(decision: Decision) -> dict[str, Any]:
    return {
        "decision": "allow" if decision.allowed else "deny",
        "determined_by": list(decision.rules),
        "reason": decision.reason,
        "obligations": to_json(decision.obligations) if decision.allowed else None,
    }


def _said(decision: Decision, change: Change) -> str:
    if change is Change.OBLIGATIONS:
        owed = ", ".join(f"{name}: {value}" for name, value in to_json(decision.obligations).items())
        return f"{decision.reason}, with {owed}"
    return f"{'allow' if decision.allowed else 'deny'}: {decision.reason}"
