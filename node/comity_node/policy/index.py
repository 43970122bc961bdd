"""Rules looked up by what a request says: which of them fit it, without looking at each.

Rules of one action stand in a row, and a set of them is a number with a bit for each: the first rule is the lowest. For
each property of a request there is the set of rules that its value fits, and the rules that fit a request are what all
of those have in common. Only what a rule asks of labels and fields is then looked at, rule by rule.

`matching.examine` is the definition of all this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import and_
from typing import Final

from comity_node.policy.matching import misfits
from comity_node.policy.model import PolicyDocument, Request, Rule

#: Characters of a request that is remembered.
_MAX_KEY = 1024


def bits_of(rules: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, lowest first."""
    while rules:
        lowest = rules & -rules
        yield lowest.bit_length() - 1
        rules ^= lowest


def _set_of(positions: Iterable[int], size: int) -> int:
    buffer = bytearray(size // 8 + 1)
    for position in positions:
        buffer[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(buffer, "little")


class _Property:
    """The rules that each value of one property fits."""

    __slots__ = ("_named", "_sets", "_size", "others")

    def __init__(self, wanted: Sequence[frozenset[str] | None]) -> None:
        """Index by what each rule wants: one of these values, or (None) any."""
        self._size = len(wanted)
        self._named: dict[str, list[int]] = {}
        #: Made of `_named` when a value is first asked for.
        self._sets: dict[str, int] = {}
        #: What a value fits that no rule names.
        self.others: Final = _set_of((at for at, values in enumerate(wanted) if values is None), self._size)
        for position, values in enumerate(wanted):
            for value in values or ():
                self._named.setdefault(value, []).append(position)

    def fitting(self, value: str) -> int:
        """Return the rules that `value` fits."""
        found = self._sets.get(value)
        if found is None:
            positions = self._named.get(value)
            if positions is None:
                return self.others
            found = self._sets[value] = self.others | _set_of(positions, self._size)
        return found


class _Fact:
    """The rules that a value fits by what the policy says about it; where it says nothing, that is not known."""

    __slots__ = ("_asking", "_known", "_property")

    def __init__(self, wanted: Sequence[frozenset[str] | None], known: frozenset[str]) -> None:
        """Index by the values that each rule wants (None: any), all of which are `known`."""
        self._property = _Property(wanted)
        self._known = known
        self._asking = _set_of((at for at, values in enumerate(wanted) if values is not None), len(wanted))

    def fitting(self, value: str, *, absent_is_known: bool) -> tuple[int, int]:
        """Return the rules that `value` fits or may fit, and of them those of which it is not known."""
        if not self._asking:
            return self._property.others, 0
        if value in self._known or (absent_is_known and not value):
            return self._property.fitting(value), 0
        return self._property.others | self._asking, self._asking


class RuleIndex:
    """The rules for one action."""

    __slots__ = (
        "_classification", "_document", "_jurisdiction", "_labels", "_open", "_properties", "_reads_fields", "allowing",
        "rules",
    )  # fmt: skip

    def __init__(self, document: PolicyDocument, rules: Sequence[Rule]) -> None:
        self.rules: Final = tuple(rules)
        self._document = document
        size = len(rules)
        #: The rules that allow.
        self.allowing: Final = _set_of((at for at, rule in enumerate(rules) if rule.allows), size)
        purposes = [None if rule.purposes is None else document.purposes_under(rule.purposes) for rule in rules]
        self._properties = (
            _Property([rule.organizations for rule in rules]),
            _Property([rule.roles for rule in rules]),
            _Property([rule.datasets for rule in rules]),
            _Property([rule.kinds for rule in rules]),
            _Property(purposes),
        )
        self._classification = _Fact([_classified(document, rule) for rule in rules], frozenset(document.datasets))
        located = frozenset(name for name, each in document.organizations.items() if each.jurisdictions is not None)
        self._jurisdiction = _Fact([_located(document, rule) for rule in rules], located)
        self._labels = sorted({condition.label for rule in rules for condition in rule.conditions})
        self._reads_fields = any(rule.fields is not None for rule in rules)
        #: The rules that ask something of labels or fields.
        self._open = _set_of((at for at, rule in enumerate(rules) if rule.conditions or rule.fields is not None), size)

    def match(self, request: Request) -> tuple[int, int]:
        """Return the rules that match a request, and those of which it cannot be decided."""
        organization, role, dataset, kind, purpose = self._properties
        found = (
            organization.fitting(request.organization)
            & role.fitting(request.role)
            & dataset.fitting(request.dataset)
            & kind.fitting(request.kind)
            & purpose.fitting(request.purpose)
        )
        if not found:
            return 0, 0
        classified, unclassified = self._classification.fitting(request.dataset, absent_is_known=True)
        located, unlocated = self._jurisdiction.fitting(request.organization, absent_is_known=False)
        found &= classified & located
        undecided = found & (unclassified | unlocated)
        if open_ := found & self._open:
            for position in bits_of(open_):
                holds = self._holds(self.rules[position], request)
                if holds is False:
                    found ^= 1 << position
                    undecided &= found
                elif holds is None:
                    undecided |= 1 << position
        return found ^ undecided, undecided

    def _holds(self, rule: Rule, request: Request) -> bool | None:
        """Whether what a rule asks of labels and fields holds; None if that cannot be decided."""
        undecided = False
        if rule.fields is not None:
            outside = misfits(self._document, rule, request)
            if outside:
                return False
            undecided = outside is None
        for condition in rule.conditions:
            holds = condition.holds(request.labels)
            if holds is False:
                return False
            undecided |= holds is None
        return None if undecided else True

    def key(self, request: Request) -> tuple[object, ...] | None:
        """Return what requests have in common to which all of these rules compare in the same way.

        None if it is not worth keeping: it would be long, or the rules ask about fields.
        """
        said = (request.action, request.organization, request.role, request.dataset, request.kind, request.purpose)
        labels = [request.labels.get(label) for label in self._labels]
        if self._reads_fields or sum(len(text) for text in (*said, *labels) if isinstance(text, str)) > _MAX_KEY:
            return None
        return (*said, *((type(value), value) for value in labels))

    def nearest(self, request: Request, most: int) -> list[Rule]:
        """Return the allow rules that come nearest to matching: fewest mismatches first, then the policy's order.

        None of the rules may match the request.
        """
        found: list[Rule] = []
        later: dict[int, int] = {}
        for count, level in enumerate(self._by_mismatches(request)):
            for position in bits_of(level | later.pop(count, 0)):
                rule = self.rules[position]
                total = count
                if self._open >> position & 1 and level >> position & 1:
                    total += self._count_open(rule, request)
                if total > count:
                    later[total] = later.get(total, 0) | 1 << position
                    continue
                found.append(rule)
                if len(found) == most:
                    return found
        for _, level in sorted(later.items()):
            found += [self.rules[position] for position in bits_of(level)]
        return found[:most]

    def _by_mismatches(self, request: Request) -> list[int]:
        """Return the allow rules that mismatch in nothing, in one thing, in two, …, labels and fields not counted."""
        organization, role, dataset, kind, purpose = self._properties
        fits = (
            organization.fitting(request.organization),
            role.fitting(request.role),
            dataset.fitting(request.dataset),
            kind.fitting(request.kind),
            purpose.fitting(request.purpose),
            self._classification.fitting(request.dataset, absent_is_known=True)[0],
            self._jurisdiction.fitting(request.organization, absent_is_known=False)[0],
        )
        levels = [self.allowing]
        if self.allowing & reduce(and_, fits) == self.allowing:
            return levels
        for fit in fits:
            missed = [level & ~fit for level in levels]
            levels = [level & fit for level in levels]
            if missed[-1]:
                levels.append(0)
            for count, level in enumerate(missed[: len(levels) - 1]):
                levels[count + 1] |= level
        return levels

    def _count_open(self, rule: Rule, request: Request) -> int:
        count = sum(condition.holds(request.labels) is False for condition in rule.conditions)
        return count + bool(rule.fields is not None and misfits(self._document, rule, request))


def _classified(document: PolicyDocument, rule: Rule) -> frozenset[str] | None:
    """Return the datasets with a classification that a rule asks for."""
    if rule.classifications is None:
        return None
    return frozenset(each.name for each in document.datasets.values() if each.classification in rule.classifications)


def _located(document: PolicyDocument, rule: Rule) -> frozenset[str] | None:
    """Return the organizations in a jurisdiction that a rule asks for."""
    wanted = rule.jurisdictions
    if wanted is None:
        return None
    places = ((name, each.jurisdictions or frozenset()) for name, each in document.organizations.items())
    return frozenset(name for name, words in places if words & wanted)
