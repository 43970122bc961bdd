"""The policy decision point: a pure function from a request to a decision.

1. A request whose action is unknown, or that does not say what its action requires, is denied.
2. A rule matches when all its conditions hold (`matching.examine`). One that cannot be decided denies (S3).
3. A forbid rule that matches denies.
4. Fields of a dataset with a schema: one that the schema does not have denies; a personal one denies, unless a rule
   that allows the request redacts it or lets it pass by name.
5. If an allow rule matches it is allowed, with the obligations of all that match, strictest of each. What no matching
   rule says about onward is `never`.
6. Otherwise it is denied: that is the default, and nothing changes it.

The order does not matter: a denial names everything of 1 to 4 that applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter

from comity_node.policy.matching import NEAREST, examine
from comity_node.policy.model import (
    ACTIONS,
    INCOMPLETE,
    KINDS,
    PERSONAL,
    REQUIRED,
    UNKNOWN_ACTION,
    UNKNOWN_FIELD,
    Condition,
    Dataset,
    Decision,
    NearMiss,
    Obligations,
    Onward,
    PolicyDocument,
    Request,
    Rule,
    overlaps,
)
from comity_node.policy.obligations import is_under, merge_all

_MAX_MEMO = 4096
_NOTHING = Obligations()
_KINDS = frozenset(("", *KINDS))


class Policy:
    """One organization's policy, compiled.

    Rules are indexed by action and organization, so that a decision looks only at those that can matter.
    """

    def __init__(self, document: PolicyDocument) -> None:
        self.document = document
        compiled = [_Compiled(1 << position, rule, document) for position, rule in enumerate(document.rules)]
        self._table = {action: _ActionTable(action, compiled) for action in ACTIONS}
        self._allowed: dict[int, Decision] = {}
        #: (rules that allow, dataset, fields) that no guard of step 4 stops; all of the fields are the schema's own.
        self._clear: set[tuple[int, str, frozenset[str]]] = set()

    @property
    def organization(self) -> str:
        """Whose policy it is."""
        return self.document.organization

    @property
    def digest(self) -> bytes:
        """SHA-256 that names exactly this policy."""
        return self.document.digest

    @property
    def datasets(self) -> Mapping[str, Dataset]:
        """The datasets it speaks of, by name."""
        return self.document.datasets

    @property
    def purposes(self) -> Mapping[str, frozenset[str]] | None:
        """Declared purposes with their parents, or None if any word may be one."""
        return self.document.purposes

    def decide(self, request: Request) -> Decision:
        """Decide on a request."""
        table = self._table.get(request.action)
        if table is None:
            return _denied((UNKNOWN_ACTION,), f"there is no action {request.action[:80]!r}")
        allow = stop = 0
        for rule in table.by_organization.get(request.organization, table.for_others):
            outcome = rule.matches(request)
            if outcome is False:
                continue
            if outcome is True and rule.allows:
                allow |= rule.bit
            else:
                stop |= rule.bit
        guards = table.guards(request)
        if allow and request.fields and (allow, request.dataset, request.fields) not in self._clear:
            guards |= self._field_guards(request, allow)
        if stop or guards:
            return self._stopped(request, stop, guards)
        return self._permitted(allow) if allow else self._default(request)

    def _permitted(self, allow: int) -> Decision:
        decision = self._allowed.get(allow)
        if decision is None:
            rules = tuple(sorted(rule.id for rule in self._rules(allow)))
            decision = Decision(True, rules, f"allowed by {', '.join(rules)}", self.obligations(allow))
            if len(self._allowed) < _MAX_MEMO:
                self._allowed[allow] = decision
        return decision

    def _rules(self, bits: int) -> list[Rule]:
        return [rule for position, rule in enumerate(self.document.rules) if bits >> position & 1]

    def obligations(self, allow: int) -> Obligations:
        """Return the merged obligations of the rules whose positions are the bits of `allow`."""
        rules = self._rules(allow)
        merged = merge_all(rule.obligations for rule in rules)
        return merged if any(rule.states_onward for rule in rules) else replace(merged, onward=Onward.NEVER)

    def _field_guards(self, request: Request, allow: int) -> dict[str, str]:
        """Return the guards of step 4 that a request about a dataset with a schema runs into, with their reasons."""
        dataset = self.document.datasets.get(request.dataset)
        if dataset is None or dataset.fields is None:
            return {}
        guards: dict[str, str] = {}
        known = frozenset(dataset.fields)
        if not request.fields <= known:
            unknown = sorted(path for path in request.fields if not overlaps(path, known))
            if unknown:
                guards[UNKNOWN_FIELD] = f"the schema of {dataset.name} has no field {_some(unknown)}"
        if personal := dataset.personal:
            redacted = self._permitted(allow).obligations.redact
            passed = frozenset(path for rule in self._rules(allow) for path in rule.personal)
            open_ = [path for path in personal if not is_under(path, redacted) and not is_under(path, passed)]
            exposed = sorted(path for path in open_ if overlaps(path, request.fields))
            if exposed:
                guards[PERSONAL] = (
                    f"{_some(exposed)} of {dataset.name} is personal, and no rule redacts it or lets it pass by name"
                )
        if not guards and request.fields <= known and len(self._clear) < _MAX_MEMO:
            self._clear.add((allow, request.dataset, request.fields))
        return guards

    def _stopped(self, request: Request, stop: int, guards: Mapping[str, str]) -> Decision:
        reasons = list(guards.values())
        rules = self._rules(stop)
        for rule in rules:
            unknown = examine(self.document, rule, request).unknown
            reasons.append(
                f"{rule.id} cannot be decided: {'; '.join(unknown)}" if unknown else f"forbidden by {rule.id}"
            )
        return _denied(tuple(sorted((*guards, *(rule.id for rule in rules)))), "; ".join(reasons))

    def _default(self, request: Request) -> Decision:
        what = f"no rule allows {request.action} {ACTIONS[request.action].value} {request.organization}"
        near = self._near_misses(request)
        hint = f"; nearest: {near[0]}" if near else ""
        return Decision(False, (), what + hint, _NOTHING, near)

    def _near_misses(self, request: Request) -> tuple[NearMiss, ...]:
        """Return what `matching.nearest` does, but put into words only the rules that it is about."""
        allows = self._table[request.action].allows
        near = sorted(allows, key=lambda rule: (rule.count_mismatches(request), rule.id))[:NEAREST]
        return tuple(NearMiss(each.id, examine(self.document, each.rule, request).mismatches) for each in near)


def _denied(rules: tuple[str, ...], reason: str) -> Decision:
    return Decision(False, rules, reason, _NOTHING)


def _some(paths: list[str], most: int = 5) -> str:
    return ", ".join(path[:80] for path in paths[:most]) + (", …" if len(paths) > most else "")


class _Compiled:
    """A rule with its sets ready to be looked up in."""

    __slots__ = (
        "actions", "allows", "bit", "classified", "conditions", "datasets", "declared", "id", "kinds", "organizations",
        "purposes", "roles", "rule",
    )  # fmt: skip

    def __init__(self, bit: int, rule: Rule, document: PolicyDocument) -> None:
        self.bit = bit
        self.rule = rule
        self.id = rule.id
        self.allows = rule.allows
        self.actions = rule.actions
        self.organizations = rule.organizations
        self.roles = rule.roles
        self.kinds = rule.kinds
        self.purposes = None if rule.purposes is None else document.purposes_under(rule.purposes)
        self.conditions: tuple[Condition, ...] = rule.conditions
        self.datasets = rule.datasets
        #: The datasets with a classification that the rule asks for, and all that have one.
        self.classified: frozenset[str] | None = None
        self.declared = frozenset(document.datasets)
        if rule.classifications is not None:
            wanted = (each.name for each in document.datasets.values() if each.classification in rule.classifications)
            self.classified = frozenset(wanted)

    def matches(self, request: Request) -> bool | None:
        """Return what `matching.examine` says about this rule, of which action and organization are known to fit."""
        if self.kinds is not None and request.kind not in self.kinds:
            return False
        if self.roles is not None and request.role not in self.roles:
            return False
        if self.purposes is not None and request.purpose not in self.purposes:
            return False
        if self.datasets is not None and request.dataset not in self.datasets:
            return False
        undecided = False
        if self.classified is not None and request.dataset not in self.classified:
            if self._is_classified(request.dataset):
                return False
            undecided = True
        for condition in self.conditions:
            holds = condition.holds(request.labels)
            if holds is False:
                return False
            undecided |= holds is None
        return None if undecided else True

    def count_mismatches(self, request: Request) -> int:
        """Return how many mismatches `matching.examine` finds in this rule, of which the action is known to fit."""
        count = sum(condition.holds(request.labels) is False for condition in self.conditions)
        count += self.organizations is not None and request.organization not in self.organizations
        count += self.roles is not None and request.role not in self.roles
        count += self.kinds is not None and request.kind not in self.kinds
        count += self.purposes is not None and request.purpose not in self.purposes
        count += self.datasets is not None and request.dataset not in self.datasets
        if self.classified is not None and request.dataset not in self.classified:
            count += self._is_classified(request.dataset)
        return count

    def _is_classified(self, dataset: str) -> bool:
        """Whether it is known that `dataset` is of another classification; no dataset at all is of none."""
        return not dataset or dataset in self.declared


class _ActionTable:
    """The rules for one action, by organization."""

    __slots__ = ("_required", "_required_names", "allows", "by_organization", "for_others")

    def __init__(self, action: str, compiled: list[_Compiled]) -> None:
        rules = [rule for rule in compiled if action in rule.actions]
        self.allows = tuple(rule for rule in rules if rule.allows)
        names = {name for rule in rules for name in rule.organizations or ()}
        self.for_others = tuple(rule for rule in rules if rule.organizations is None)
        self.by_organization = {
            name: tuple(rule for rule in rules if rule.organizations is None or name in rule.organizations)
            for name in names
        }
        self._required_names = ("organization", *REQUIRED.get(action, ()))
        self._required = attrgetter("action", *self._required_names)

    def guards(self, request: Request) -> dict[str, str]:
        """Return the guard of step 1 that the request runs into, with its reason."""
        if all(self._required(request)) and request.kind in _KINDS:
            return {}
        missing = [name for name in self._required_names if not getattr(request, name)]
        if missing:
            return {INCOMPLETE: f"the request does not state its {' and '.join(missing)}"}
        return {INCOMPLETE: f"there is no kind {request.kind[:80]!r} of data"}
