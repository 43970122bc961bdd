"""The policy decision point: a pure function from a request to a decision.

1. A request whose action is unknown, or that does not say what its action requires, or that is for a purpose which is
   not among those that the policy declares, is denied.
2. A rule matches when all its conditions hold (`matching.examine`). One that cannot be decided denies (S3).
3. A forbid rule that matches denies.
4. Fields of a dataset with a schema: one that the schema does not have denies; a personal one denies, unless a rule
   that allows the request redacts it or lets it pass by name.
   Where one that allows it drops personal fields, it has to be known which those are.
5. If an allow rule matches it is allowed, with the obligations of all that match, strictest of each. What no matching
   rule says about onward is `never`.
6. Otherwise it is denied: that is the default, and nothing changes it.

The order does not matter: a denial names everything of 1 to 4 that applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Final

from comity.errors import PolicyDenied
from comity_node.policy.index import RuleIndex, bits_of
from comity_node.policy.lattice import is_under, merge_all, resolve
from comity_node.policy.matching import NEAREST, examine
from comity_node.policy.model import (
    ACTIONS,
    INCOMPLETE,
    KINDS,
    PERSONAL,
    REQUIRED,
    UNKNOWN_ACTION,
    UNKNOWN_FIELD,
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

_MAX_MEMO = 4096
#: Reasons of a denial, and rules that allow, that are told.
_MOST_REASONS = 8
_NOTHING = Obligations()
_KINDS = frozenset(("", *KINDS))


class Policy:
    """One organization's policy, compiled.

    Rules are indexed by all that a request says (`index`), so that a decision looks only at those that can matter.
    """

    def __init__(self, document: PolicyDocument) -> None:
        self.document = document
        self._actions = _actions(document)
        #: By the action, the rules that allow, and the dataset where one of them drops its personal fields.
        self._allowed: dict[tuple[str, int, str], Decision] = {}
        #: Denials by default, by all that their reasons depend on.
        self._denied: dict[tuple[object, ...], Decision] = {}
        #: (action, rules that allow, dataset, fields) that no guard of step 4 stops; all fields are the schema's own.
        self._clear: set[tuple[str, int, str, frozenset[str]]] = set()

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
        action = self._actions.get(request.action)
        if action is None:
            return _denied((UNKNOWN_ACTION,), f"there is no action {request.action[:80]!r}")
        matched, undecided = action.index.match(request)
        allow = matched & action.index.allowing
        stop = matched ^ allow | undecided
        guards = action.guards(request)
        if allow:
            guards |= self._field_guards(action, request, allow)
        if stop or guards:
            return self._stopped(action, request, stop, undecided, guards)
        return self._permitted(action, request, allow) if allow else self._default(action, request)

    def _permitted(self, action: _Action, request: Request, allow: int) -> Decision:
        key = (request.action, allow, request.dataset if allow & action.drops else "")
        decision = self._allowed.get(key)
        if decision is None:
            rules = action.chosen(allow)
            ids = tuple(sorted(rule.id for rule in rules))
            decision = Decision(True, ids, f"allowed by {_listed(ids)}", self._merged(rules, request.dataset))
            if len(self._allowed) < _MAX_MEMO:
                self._allowed[key] = decision
        return decision

    def _merged(self, rules: list[Rule], dataset: str) -> Obligations:
        """Return the obligations, for a dataset, of all these rules."""
        personal = self.document.personal_of(dataset) or frozenset()
        merged = resolve(merge_all(rule.obligations for rule in rules), personal)
        return merged if any(rule.states_onward for rule in rules) else replace(merged, onward=Onward.NEVER)

    def _field_guards(self, action: _Action, request: Request, allow: int) -> dict[str, str]:
        """Return the guards of step 4 that a request runs into, with their reasons."""
        key = (request.action, allow, request.dataset, request.fields)
        if key in self._clear:
            return {}
        dataset = self.document.datasets.get(request.dataset)
        if dataset is None or dataset.fields is None:
            if not allow & action.drops:
                return {}
            what = f"the dataset {request.dataset[:80]!r} has no schema" if request.dataset else "there is no dataset"
            return {PERSONAL: f"personal fields are to be dropped, but {what}, so nobody knows which those are"}
        guards: dict[str, str] = {}
        known = frozenset(dataset.fields)
        if not request.fields <= known:
            unknown = sorted(path for path in request.fields if not overlaps(path, known))
            if unknown:
                guards[UNKNOWN_FIELD] = f"the schema of {dataset.name} has no field {_some(unknown)}"
        if (personal := dataset.personal) and request.fields and not allow & action.drops:
            settled = frozenset(
                path for rule in action.chosen(allow) for path in rule.personal | rule.obligations.redact
            )
            open_ = [path for path in personal if not is_under(path, settled)]
            exposed = sorted(path for path in open_ if overlaps(path, request.fields))
            if exposed:
                guards[PERSONAL] = (
                    f"{_some(exposed)} of {dataset.name} is personal, and no rule redacts it or lets it pass by name"
                )
        if not guards and request.fields <= known and len(self._clear) < _MAX_MEMO:
            self._clear.add(key)
        return guards

    def _stopped(
        self, action: _Action, request: Request, stop: int, undecided: int, guards: Mapping[str, str]
    ) -> Decision:
        reasons = list(guards.values())
        rules = action.chosen(stop)
        for rule, position in zip(rules, bits_of(stop), strict=True):
            if undecided >> position & 1:
                unknown = examine(self.document, rule, request).unknown
                reasons.append(f"{rule.id} cannot be decided: {'; '.join(unknown)}")
            else:
                reasons.append(f"forbidden by {rule.id}")
        more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
        said = "; ".join(reasons[:_MOST_REASONS]) + more
        return _denied(tuple(sorted((*guards, *(rule.id for rule in rules)))), said)

    def _default(self, action: _Action, request: Request) -> Decision:
        key = action.index.key(request)
        if key is None:
            return self._explain_default(action, request)
        decision = self._denied.get(key)
        if decision is None:
            if len(self._denied) >= _MAX_MEMO:
                self._denied.clear()
            decision = self._denied[key] = self._explain_default(action, request)
        return decision

    def _explain_default(self, action: _Action, request: Request) -> Decision:
        near = tuple(
            NearMiss(rule.id, examine(self.document, rule, request).mismatches)
            for rule in action.index.nearest(request, NEAREST)
        )
        what = f"no rule allows {request.action} {ACTIONS[request.action].value} {request.organization}"
        hint = f"{PolicyDenied.NEAREST}{near[0]}" if near else ""
        return Decision(False, (), what + hint, _NOTHING, near)


def _denied(rules: tuple[str, ...], reason: str) -> Decision:
    return Decision(False, rules, reason, _NOTHING)


def _listed(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _MOST_REASONS} others" if len(ids) > _MOST_REASONS else ""
    return ", ".join(ids[:_MOST_REASONS]) + more


def _some(paths: list[str], most: int = 5) -> str:
    return ", ".join(path[:80] for path in paths[:most]) + (", …" if len(paths) > most else "")


class _Action:
    """One action: what a request for it must say, and the rules about it."""

    __slots__ = ("_purposes", "_required", "_required_names", "drops", "index")

    def __init__(self, action: str, index: RuleIndex, purposes: Mapping[str, object] | None) -> None:
        self.index: Final = index
        self._purposes = purposes
        #: The rules that allow and drop personal fields.
        self.drops: Final = sum(
            1 << at for at, rule in enumerate(index.rules) if rule.allows and rule.obligations.drop_personal
        )
        self._required_names = ("organization", *REQUIRED.get(action, ()))
        self._required = attrgetter("action", *self._required_names)

    def guards(self, request: Request) -> dict[str, str]:
        """Return the guard of step 1 that the request runs into, with its reason."""
        strange = self._purposes is not None and request.purpose != "" and request.purpose not in self._purposes
        if all(self._required(request)) and request.kind in _KINDS and not strange:
            return {}
        missing = [name for name in self._required_names if not getattr(request, name)]
        if missing:
            return {INCOMPLETE: f"the request does not state its {' and '.join(missing)}"}
        if strange:
            return {INCOMPLETE: f"the policy declares no purpose {request.purpose[:80]!r}"}
        return {INCOMPLETE: f"there is no kind {request.kind[:80]!r} of data"}

    def chosen(self, rules: int) -> list[Rule]:
        """Return the rules of a set, in the policy's order."""
        return [self.index.rules[position] for position in bits_of(rules)]


def _actions(document: PolicyDocument) -> dict[str, _Action]:
    """Return the actions; those of which the same rules speak share their index."""
    rules: dict[str, list[int]] = {action: [] for action in ACTIONS}
    for position, rule in enumerate(document.rules):
        for action in rule.actions:
            rules[action].append(position)
    shared: dict[tuple[int, ...], RuleIndex] = {}
    for positions in map(tuple, rules.values()):
        if positions not in shared:
            shared[positions] = RuleIndex(document, [document.rules[position] for position in positions])
    purposes = document.purposes
    return {action: _Action(action, shared[tuple(positions)], purposes) for action, positions in rules.items()}
