"""Which requests a rule can match, as sets: when one rule matches wherever another does, and when a rule never does.

Everything here errs to one side: `contains` and `why_never` may miss something, and what they say is so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from comity_node.policy.asked import asked, range_of
from comity_node.policy.conditions import (
    TIME,
    WEEK,
    Condition,
    FlagCondition,
    NumberCondition,
    TextCondition,
    TimeCondition,
)
from comity_node.policy.lattice import is_under
from comity_node.policy.model import Dataset, PolicyDocument, Rule

_MINUTE_MS = 60_000
_WEEK_MS = WEEK * _MINUTE_MS
#: 1970 began on a Thursday; weeks are counted from Monday.
_MONDAY_MS = 4 * 86_400_000


def speaks_of(rule: Rule, dataset: Dataset) -> bool:
    """Whether a rule can match requests about a dataset."""
    if rule.classifications is not None and dataset.classification not in rule.classifications:
        return False
    return rule.datasets is None or dataset.name in rule.datasets


_SETS = ("actions", "organizations", "kinds", "roles", "datasets", "classifications", "jurisdictions")


def contains(document: PolicyDocument, wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` surely matches every request that `narrow` matches."""
    for name in _SETS:
        allowed, asked_for = getattr(wide, name), getattr(narrow, name)
        if allowed is not None and (asked_for is None or not asked_for <= allowed):
            return False
    if wide.purposes is not None:
        if narrow.purposes is None:
            return False
        if not document.purposes_under(narrow.purposes) <= document.purposes_under(wide.purposes):
            return False
    return _contains_fields(wide, narrow) and all(
        any(_implies(n, w) for n in narrow.conditions) for w in wide.conditions
    )


class Wider:
    """Finds the few rules that can contain another one, by one of its actions and one of its organizations."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Look among `rules`."""
        self._by: dict[tuple[str, str | None], list[tuple[int, Rule]]] = {}
        for position, rule in enumerate(rules):
            for action in rule.actions:
                for organization in (None,) if rule.organizations is None else rule.organizations:
                    self._by.setdefault((action, organization), []).append((position, rule))

    def of(self, rule: Rule) -> Iterator[tuple[int, Rule]]:
        """Yield the rules that may contain `rule`, itself among them, with their positions."""
        action = min(rule.actions, default="")
        yield from self._by.get((action, None), ())
        if rule.organizations:
            yield from self._by.get((action, min(rule.organizations)), ())


def _contains_fields(wide: Rule, narrow: Rule) -> bool:
    if wide.fields is None:
        return True
    if narrow.fields is None or wide.allows is not narrow.allows or narrow.obligations.drop_personal:
        return False
    covered = wide.fields | wide.obligations.redact if wide.allows else wide.fields
    own = narrow.fields | narrow.obligations.redact if narrow.allows else narrow.fields
    return all(is_under(path, covered) for path in own)


def _implies(narrow: Condition, wide: Condition) -> bool:
    if isinstance(narrow, NumberCondition) and isinstance(wide, NumberCondition) and narrow.label == wide.label:
        return wide.minimum <= narrow.minimum and narrow.maximum <= wide.maximum
    if isinstance(narrow, TextCondition) and isinstance(wide, TextCondition) and narrow.label == wide.label:
        return narrow.words <= wide.words
    if isinstance(narrow, TimeCondition) and isinstance(wide, TimeCondition):
        return not _minutes(narrow) & ~_minutes(wide)
    return isinstance(narrow, FlagCondition) and narrow == wide


@lru_cache(maxsize=256)
def _minutes(condition: TimeCondition) -> int:
    """Return the minutes of a week that a window is open, as bits."""
    bits = 0
    for start, end in condition.intervals():
        bits |= ((1 << (end - start)) - 1) << start
    return bits


def why_never(document: PolicyDocument, rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield a code and the reason, in words, for each thing for which no request of a node matches the rule."""
    yield from _never_asked(rule)
    for condition in rule.conditions:
        if isinstance(condition, NumberCondition):
            least, most = range_of(condition.label)
            if condition.maximum < least or condition.minimum > most:
                yield "never-met", f"wants {condition.label} {condition}, and it is from {least:g} to {most:g}"
    by_label: dict[str, frozenset[str]] = {}
    for condition in rule.conditions:
        if isinstance(condition, TextCondition):
            by_label[condition.label] = by_label.get(condition.label, condition.words) & condition.words
    for label, words in by_label.items():
        if not words:
            yield "never-met", f"wants two different words for {label} at once"
    if not _ever_open(rule.conditions):
        yield "never-open", "has a time window that is not open in its range of time_ms"
    places = rule.jurisdictions
    if places is not None and rule.organizations is not None:
        known = [document.jurisdictions_of(name) for name in rule.organizations]
        if all(each is not None and not each & places for each in known):
            yield "never-met", f"names organizations of which none is in {' or '.join(sorted(places))}"


def _never_asked(rule: Rule) -> Iterator[tuple[str, str]]:
    actions = sorted(rule.actions)
    about = actions[0] if len(actions) == 1 else "any of its actions"
    asks = [asked(action) for action in actions]
    if rule.kinds is not None and not any(each.kinds & rule.kinds for each in asks):
        states = sorted({kind for each in asks for kind in each.kinds})
        said = f"only {' or '.join(states)}" if states else "none"
        yield "never-asked", f"asks for the kind {_words(rule.kinds)}; requests about {about} state {said}"
    if rule.roles is not None and not any(each.any_role or each.roles & rule.roles for each in asks):
        states = sorted({role for each in asks for role in each.roles})
        said = f"only {' or '.join(states)}" if states else "none"
        yield "never-asked", f"asks for the role {_words(rule.roles)}; requests about {about} state {said}"
    if not any(each.data for each in asks):
        for name, values in (
            ("dataset", rule.datasets), ("purpose", rule.purposes), ("classification", rule.classifications)
        ):  # fmt: skip
            if values is not None:
                yield "never-asked", f"asks for the {name} {_words(values)}; requests about {about} state none"


def _words(values: Iterable[str]) -> str:
    return " or ".join(sorted(values))


def _ever_open(conditions: Iterable[Condition]) -> bool:
    """Whether some moment lies in all windows and in all ranges of the time label."""
    bits = (1 << WEEK) - 1
    least, most = 0.0, float("inf")
    for each in conditions:
        if isinstance(each, TimeCondition):
            bits &= _minutes(each)
        elif isinstance(each, NumberCondition) and each.label == TIME:
            least, most = max(least, each.minimum), min(most, each.maximum)
    if not bits or most < least:
        return False
    if most - least >= _WEEK_MS:
        return True
    first, last = (int((moment - _MONDAY_MS) // _MINUTE_MS) for moment in (least, most))
    return any(bits >> (minute % WEEK) & 1 for minute in range(first, last + 1))
