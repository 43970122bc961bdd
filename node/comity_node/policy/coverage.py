"""How much of a policy its cases touch: which rules decide one, and which conditions keep a rule from matching one.

A rule is covered when it determines some case's decision. A condition (who, which data, what for, each label) is
covered when it fails in some case about an action of its rule: otherwise it could be taken out and no case would tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comity_node.policy.matching import examine
from comity_node.policy.model import Decision, PolicyDocument, Request, Rule


@dataclass(frozen=True, slots=True)
class RuleCoverage:
    """How often a rule determined a case's decision, and how often each of its conditions failed."""

    rule: Rule
    decided: int
    failed: Mapping[str, int]

    @property
    def unfailed(self) -> tuple[str, ...]:
        """The conditions that no case fails."""
        return tuple(name for name, count in self.failed.items() if not count)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What some cases cover of a policy, rule by rule."""

    rules: tuple[RuleCoverage, ...]

    @property
    def untested(self) -> tuple[str, ...]:
        """Ids of the rules that determine no case's decision, in the policy's order."""
        return tuple(each.rule.id for each in self.rules if not each.decided)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Covered rules, all rules, covered conditions, all conditions."""
        conditions = sum(len(each.failed) for each in self.rules)
        open_ = sum(len(each.unfailed) for each in self.rules)
        return len(self.rules) - len(self.untested), len(self.rules), conditions - open_, conditions

    @property
    def percent(self) -> float:
        """Covered rules and conditions among all; 100 of a policy without any."""
        rules, all_rules, conditions, all_conditions = self.counts
        return 100.0 * (rules + conditions) / (all_rules + all_conditions) if all_rules else 100.0

    def lines(self) -> list[str]:
        """Return what is not covered, one thing a line, and the sum."""
        lines = [f"no case fails {each.rule.id} by its {name}" for each in self.rules for name in each.unfailed]
        rules, all_rules, conditions, all_conditions = self.counts
        total = f"covered: {rules} of {all_rules} rules, {conditions} of {all_conditions} conditions"
        return [*lines, f"{total}: {self.percent:.0f} %"]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {
            "percent": round(self.percent, 2),
            "rules": [
                {"id": each.rule.id, "decided": each.decided, "failed": dict(each.failed)} for each in self.rules
            ],
        }


def conditions_of(rule: Rule) -> tuple[str, ...]:
    """Return the names of a rule's conditions, but for its action, as mismatches have them."""
    scope = {
        "organization": rule.organizations, "role": rule.roles, "dataset": rule.datasets, "kind": rule.kinds,
        "purpose": rule.purposes, "classification": rule.classifications, "jurisdiction": rule.jurisdictions,
        "fields": rule.fields,
    }  # fmt: skip
    labels = dict.fromkeys(f"label {condition.label}" for condition in rule.conditions)
    return (*(name for name, values in scope.items() if values is not None), *labels)


def cover(document: PolicyDocument, decided: Iterable[tuple[Request, Decision]]) -> Coverage:
    """Say what requests and the decisions about them cover of a policy."""
    times = {rule.id: 0 for rule in document.rules}
    failed = {rule.id: dict.fromkeys(conditions_of(rule), 0) for rule in document.rules}
    for request, decision in decided:
        for rule in document.rules:
            times[rule.id] += rule.id in decision.rules
            if request.action not in rule.actions:
                continue
            for mismatch in examine(document, rule, request).mismatches:
                if mismatch.condition in failed[rule.id]:
                    failed[rule.id][mismatch.condition] += 1
    return Coverage(tuple(RuleCoverage(rule, times[rule.id], failed[rule.id]) for rule in document.rules))
