"""Why a request is decided as it is: every rule, every condition, and what would have to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity_node.policy.engine import Policy
from comity_node.policy.matching import Examination, examine, nearest
from comity_node.policy.model import (
    INCOMPLETE,
    PERSONAL,
    UNKNOWN_ACTION,
    UNKNOWN_FIELD,
    Decision,
    NearMiss,
    Request,
    Rule,
)
from comity_node.policy.obligations import to_json

_BUILT_IN = {
    UNKNOWN_ACTION: "ask for one of the actions of the policy language",
    INCOMPLETE: "state in the request what the reason names",
    PERSONAL: "redact these fields, or name them under data: personal in a rule that allows the request",
    UNKNOWN_FIELD: "leave these fields out, or declare them in the dataset's schema",
}


@dataclass(frozen=True, slots=True)
class RuleExplanation:
    """How one rule looks at the request.

    `outcome` is `matched`, `failed` (conditions in the examination), `undecided`, or `other-action`.
    """

    rule: Rule
    outcome: str
    examination: Examination


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with its reasons.

    Attributes:
        rules: every rule of the policy, in its order.
        advice: for a denial: what would have to change; for an allow: which rule asks for what.
    """

    request: Request
    decision: Decision
    rules: tuple[RuleExplanation, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON data."""
        return {
            "request": request_json(self.request),
            "decision": "allow" if self.decision.allowed else "deny",
            "determined_by": list(self.decision.rules),
            "reason": self.decision.reason,
            "obligations": to_json(self.decision.obligations) if self.decision.allowed else None,
            "rules": [_rule_json(each) for each in self.rules],
            "advice": list(self.advice),
        }

    def text(self) -> str:
        """Return the explanation as lines for a person; rules for other actions are left out."""
        lines = [f"{'ALLOW' if self.decision.allowed else 'DENY'}: {self.decision.reason}"]
        lines += [_rule_line(each) for each in self.rules if each.outcome != "other-action"]
        lines += [f"=> {each}" for each in self.advice]
        return "\n".join(lines)


def request_json(request: Request) -> dict[str, Any]:
    """Return a request as JSON data, in the words of a case."""
    return {
        "action": request.action,
        "organization": request.organization,
        "role": request.role,
        "purpose": request.purpose,
        "dataset": request.dataset,
        "kind": request.kind,
        "fields": sorted(request.fields),
        "labels": dict(request.labels),
    }


def explain(policy: Policy, request: Request) -> Explanation:
    """Decide on a request and say why."""
    decision = policy.decide(request)
    rules = tuple(_explain_rule(policy, rule, request) for rule in policy.document.rules)
    advice = _obligation_sources(rules) if decision.allowed else _changes(policy, request, decision, rules)
    return Explanation(request, decision, rules, tuple(advice))


def _explain_rule(policy: Policy, rule: Rule, request: Request) -> RuleExplanation:
    examination = examine(policy.document, rule, request)
    if request.action not in rule.actions:
        outcome = "other-action"
    else:
        outcome = {True: "matched", False: "failed", None: "undecided"}[examination.matches]
    return RuleExplanation(rule, outcome, examination)


def _obligation_sources(rules: tuple[RuleExplanation, ...]) -> list[str]:
    advice: list[str] = []
    for each in rules:
        if each.outcome == "matched" and each.rule.allows:
            asked = to_json(each.rule.obligations)
            if not each.rule.states_onward:
                del asked["onward"]
            if asked:
                advice.append(f"{each.rule.id} asks for {', '.join(f'{key}: {value}' for key, value in asked.items())}")
    if not any(each.rule.states_onward for each in rules if each.outcome == "matched"):
        advice.append("no rule says anything about onward, so it is never")
    return advice


def _changes(policy: Policy, request: Request, decision: Decision, rules: tuple[RuleExplanation, ...]) -> list[str]:
    """Return what would have to change, first what stands in the way, then what is missing."""
    advice = [_BUILT_IN[rule] for rule in decision.rules if rule in _BUILT_IN]
    allowed = False
    for each in rules:
        if each.outcome == "undecided":
            advice.append(f"{each.rule.id} must be decidable: {'; '.join(each.examination.unknown)}")
        elif each.outcome == "matched" and not each.rule.allows:
            advice.append(f"{each.rule.id} ({each.rule.place}) must not match: it forbids {_scope(each.rule)}")
        allowed |= each.outcome == "matched" and each.rule.allows
    if not allowed:
        near = nearest(policy.document, request)
        advice += [f"{miss.rule} would allow it if {_if(miss)}" for miss in near]
        if not any(each.rule.allows and each.outcome != "other-action" for each in rules):
            advice.append("no allow rule is about this action; one would have to be written")
    return advice


def _if(miss: NearMiss) -> str:
    return " and ".join(f"{each.condition} were {each.wanted}" for each in miss.mismatches)


def _scope(rule: Rule) -> str:
    """Return what a rule asks for, in words."""
    parts = [
        f"{name} {' or '.join(sorted(values))}"
        for name, values in (
            ("organization", rule.organizations),
            ("role", rule.roles),
            ("dataset", rule.datasets),
            ("kind", rule.kinds),
            ("classification", rule.classifications),
            ("purpose", rule.purposes),
        )
        if values is not None
    ]
    parts += [f"{condition.label} {condition}" for condition in rule.conditions]
    return ", ".join(parts) or "everything"


def _rule_json(each: RuleExplanation) -> dict[str, Any]:
    failed = [{"condition": m.condition, "wanted": m.wanted, "got": m.got} for m in each.examination.mismatches]
    return {
        "id": each.rule.id,
        "effect": each.rule.effect.value,
        "place": each.rule.place,
        "outcome": each.outcome,
        "failed": failed,
        "unknown": list(each.examination.unknown),
    }


def _rule_line(each: RuleExplanation) -> str:
    said = [str(mismatch) for mismatch in each.examination.mismatches]
    if each.outcome == "undecided":
        said = list(each.examination.unknown)
    why = f": {'; '.join(said)}" if said else ""
    return f"  {each.outcome:9} {each.rule.effect.value:6} {each.rule.id}{why}"
