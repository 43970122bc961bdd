"""The linter's checks of reach: rules that never decide anything, that change nothing, that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from comity_node.policy.asked import UNASKED, asked
from comity_node.policy.findings import Finding, note, warn
from comity_node.policy.lattice import covers, is_under
from comity_node.policy.model import ACTIONS, PolicyDocument, Rule
from comity_node.policy.scopes import Wider, contains, speaks_of, why_never

_RECORD_ACTIONS = frozenset(action for action in ACTIONS if action.startswith(("record.", "bulk.")))


def nothing_allowed(document: PolicyDocument) -> Iterator[Finding]:
    """Find a policy without allow rules."""
    if not any(rule.allows for rule in document.rules):
        yield note("nothing-allowed", document.source, "no rule allows anything, so everything is denied")


def never(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules that no request of a node matches. A forbid rule may stand there to make sure: that is a note."""
    for rule in document.rules:
        for code, reason in why_never(document, rule):
            yield (warn if rule.allows else note)(code, rule, reason)
        if rule.actions <= UNASKED.keys():
            instead = " and ".join(sorted({UNASKED[action] for action in rule.actions}))
            about = " and ".join(sorted(rule.actions))
            nothing = f"it {'allows' if rule.allows else 'stops'} nothing; {instead} does"
            yield warn("never-asked", rule, f"is about {about}, which no node asks about: {nothing}")


def never_stated(document: PolicyDocument) -> Iterator[Finding]:
    """Find conditions on labels, and on fields, that requests about an action do not state: what asks there denies."""
    for rule in document.rules:
        for condition in rule.conditions:
            silent = sorted(each for each in rule.actions if condition.label not in asked(each).labels)
            if silent:
                yield warn("never-stated", rule, _silent(f"the label {condition.label}", silent))
        if rule.fields is not None:
            silent = sorted(each for each in rule.actions if not asked(each).fields)
            if silent:
                yield warn("never-stated", rule, _silent("fields", silent))


def _silent(what: str, actions: list[str]) -> str:
    more = f" and {len(actions) - 1} other actions" if len(actions) > 1 else ""
    return (
        f"asks for {what}, which requests about {actions[0]}{more} do not state: "
        "it cannot be decided there, and what cannot be decided is denied"
    )


def unmeetable(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules about a classification that none of their datasets has."""
    for rule in document.rules:
        if rule.datasets is None and rule.classifications is None:
            continue
        if not any(speaks_of(rule, each) for each in document.datasets.values()):
            yield warn("unmeetable", rule, "asks for a classification that none of its datasets has")


def forbids_all(document: PolicyDocument) -> Iterator[Finding]:
    """Find forbid rules that ask for nothing but an action."""
    for rule in document.rules:
        if not rule.allows and _bare(rule):
            what = "everything" if rule.actions == frozenset(ACTIONS) else f"every {', '.join(sorted(rule.actions))}"
            yield warn("forbids-all", rule, f"forbids {what}, with anybody, for any data")


def _bare(rule: Rule) -> bool:
    scope = (
        rule.organizations, rule.roles, rule.datasets, rule.kinds, rule.classifications, rule.purposes,
        rule.jurisdictions, rule.fields,
    )  # fmt: skip
    return not rule.conditions and all(values is None for values in scope)


def unreachable(document: PolicyDocument) -> Iterator[Finding]:
    """Find allow rules that can never allow: one forbid rule matches wherever they do."""
    forbids = Wider(rule for rule in document.rules if not rule.allows)
    for rule in document.rules:
        if not rule.allows:
            continue
        for _, forbid in forbids.of(rule):
            if not contains(document, forbid, rule):
                continue
            if contains(document, rule, forbid):
                yield warn("contradiction", rule, f"allows exactly what {forbid.id} ({forbid.place}) forbids")
            else:
                yield warn("unreachable", rule, f"never allows anything: {forbid.id} forbids all of it")
            break


def shadowed(document: PolicyDocument) -> Iterator[Finding]:
    """Find rules that change nothing: another of the same effect matches wherever they do and asks for as much."""
    wider = Wider(document.rules)
    for position, rule in enumerate(document.rules):
        for other_position, other in wider.of(rule):
            if other is rule or other.effect is not rule.effect or not contains(document, other, rule):
                continue
            same = contains(document, rule, other)
            if _adds_nothing(rule, other) and (not same or other_position < position or not _adds_nothing(other, rule)):
                yield warn("shadowed", rule, f"changes nothing: {other.id} matches wherever it does")
                break


def _adds_nothing(rule: Rule, other: Rule) -> bool:
    own = rule.obligations
    counted = own.rates or own.quotas or own.budgets or own.approvals or own.notify - other.obligations.notify
    stated = other.states_onward or not rule.states_onward
    personal = all(is_under(path, other.personal) for path in rule.personal)
    return stated and personal and not counted and covers(other.obligations, own)


def broad(document: PolicyDocument) -> Iterator[Finding]:
    """Find allow rules that allow more than anybody means."""
    for rule in document.rules:
        if rule.allows and rule.kinds is None and rule.actions & _RECORD_ACTIONS:
            yield warn("any-kind", rule, "allows records of every kind, raw ones too; say data: {kind: ...}")
        if rule.allows and rule.actions == frozenset(ACTIONS):
            yield warn("any-action", rule, "allows every action that there is")
