"""The other side of a rule from YAML: organizations, groups of them, roles, skills, and facts about organizations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from comity.errors import InvalidName
from comity.ids import organization_name
from comity_node.policy.model import ACTIONS, Direction, Effect, Facts, TextCondition
from comity_node.strictyaml import Mark, Node, Section, shown

#: Of purposes, datasets, groups and rules.
NAME = r"[a-z0-9][a-z0-9._-]{0,99}"
#: A jurisdiction's; by custom ISO 3166 codes such as `DE` and `US-CA`, and `EU`.
JURISDICTION = r"[A-Za-z0-9][A-Za-z0-9-]{0,31}"
SIDE_KEYS = ("organization", "group", "role", "skill")
GROUP_KEYS = ("organization", "group")
FACT_KEYS = ("jurisdiction",)
_MAX_GROUPS_DEEP = 16
_NAME = re.compile(NAME)
_JURISDICTION = re.compile(JURISDICTION)


def check_name(name: str, mark: Mark) -> None:
    """Refuse a key that cannot name a purpose, a dataset or a group."""
    if not _NAME.fullmatch(name):
        mark.fail(f"{shown(name)} is no name: lower-case letters, digits, '.', '_' and '-', at most 100")


def is_any(node: Node) -> bool:
    """Whether a value is `"*"`."""
    return node.value == "*"


def read_facts(node: Node | None) -> dict[str, Facts]:
    """Read what the policy says about organizations."""
    facts: dict[str, Facts] = {}
    for name, mark, value in node.table() if node is not None else ():
        try:
            organization_name(name)
        except InvalidName as error:
            mark.fail(str(error))
        words = value.mapping(*FACT_KEYS).required("jurisdiction")
        for each in words.one_or_more():
            if not _JURISDICTION.fullmatch(each.string()):
                each.fail(f"{shown(each.string())} is no jurisdiction: letters, digits and '-', at most 32")
        facts[name] = Facts(frozenset(words.strings()))
    return facts


def read_groups(node: Node | None) -> dict[str, frozenset[str]]:
    """Read groups: the organizations in each, also those by way of another group."""
    return _Groups(node).members


@dataclass(frozen=True, slots=True)
class Side:
    """The other side of a rule: organizations and roles (None: any), and what it asks of labels."""

    organizations: frozenset[str] | None = None
    groups: frozenset[str] = frozenset()
    roles: frozenset[str] | None = None
    conditions: tuple[TextCondition, ...] = ()


def read_side(section: Section, effect: Effect, actions: frozenset[str], groups: Mapping[str, frozenset[str]]) -> Side:
    """Read `to`, `from` or `with`."""
    present = [key for key in ("to", "from", "with") if key in section]
    if not present:
        if effect is Effect.ALLOW:
            section.node.fail('an allow rule must say who: to, from or with: {organization: [...]} ("*" for everybody)')
        return Side()
    if len(present) > 1:
        section.required(present[1]).fail("a rule names the other side once: to, from or with")
    (key,) = present
    node = section.required(key)
    if key != "with" and (wrong := sorted(each for each in actions if ACTIONS[each] != key)):
        other = Direction.IN if key == Direction.OUT else Direction.OUT
        node.fail(f"{wrong[0]} does not go {key} the other side; write {other.value}, or with for both directions")
    side = node.mapping(*SIDE_KEYS)
    role, skill = side.optional("role"), side.optional("skill")
    named, chosen = side.optional("organization"), side.optional("group")
    if named is None and chosen is None:
        node.fail('the key "organization" is missing, or "group" instead of it ("*" is everybody)')
    names = frozenset(chosen.choices(tuple(groups), "group")) if chosen is not None else frozenset()
    organizations: frozenset[str] | None = frozenset(one for name in names for one in groups[name])
    if named is not None and is_any(named):
        if chosen is not None:
            chosen.fail('organization: "*" is everybody already; leave the group or the "*" out')
        organizations = None
    elif named is not None and organizations is not None:
        organizations |= _organizations(named)
    return Side(
        organizations,
        names,
        None if role is None or is_any(role) else frozenset(role.strings()),
        () if skill is None or is_any(skill) else (TextCondition("skill", frozenset(skill.strings())),),
    )


def _organizations(node: Node) -> frozenset[str]:
    node.strings()
    return frozenset(each.organization() for each in node.one_or_more())


class _Groups:
    """Groups of organizations, with those in the groups that they hold."""

    def __init__(self, node: Node | None) -> None:
        self._entries = {name: (mark, value) for name, mark, value in node.table()} if node is not None else {}
        self._path: list[str] = []
        self.members: dict[str, frozenset[str]] = {}
        for name, (mark, _) in self._entries.items():
            check_name(name, mark)
        for name in self._entries:
            self._read(name)

    def _read(self, name: str) -> frozenset[str]:
        if name in self.members:
            return self.members[name]
        mark, node = self._entries[name]
        if name in self._path:
            mark.fail(
                f"the group {shown(name)} holds itself: {' > '.join((*self._path[self._path.index(name) :], name))}"
            )
        if len(self._path) >= _MAX_GROUPS_DEEP:
            mark.fail(f"groups are nested over {_MAX_GROUPS_DEEP} levels deep")
        section = node.mapping(*GROUP_KEYS)
        named, groups = section.optional("organization"), section.optional("group")
        if named is None and groups is None:
            node.fail("a group needs organization: [...], group: [...] or both")
        members = _organizations(named) if named is not None else frozenset()
        self._path.append(name)
        for other in groups.choices(tuple(self._entries), "group") if groups is not None else ():
            members |= self._read(other)
        self._path.pop()
        self.members[name] = members
        return members
