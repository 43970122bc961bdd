"""The `when` of a rule from YAML."""

from __future__ import annotations

import re
from collections.abc import Collection

from comity_node.policy.conditions import (
    DAY,
    DAYS,
    LABELS,
    Condition,
    FlagCondition,
    Label,
    NumberCondition,
    TextCondition,
    TimeCondition,
)
from comity_node.strictyaml import Node, suggest

#: What `when` knows besides the labels.
TIME_KEY, JURISDICTION_KEY = "time", "jurisdiction"
TIME_KEYS = ("from", "to", "days", "zone")
NUMBER_KEYS = ("min", "max")
CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00"
ZONE = r"Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9]"


def read_when(node: Node | None, jurisdictions: Collection[str]) -> tuple[tuple[Condition, ...], frozenset[str] | None]:
    """Read conditions; `jurisdictions` are those that some organization is in.

    Returns:
        The conditions on labels, and the jurisdictions if they are asked for.
    """
    if node is None:
        return (), None
    conditions: list[Condition] = []
    asked: frozenset[str] | None = None
    known = (*LABELS, TIME_KEY, JURISDICTION_KEY)
    for label, mark, value in node.table():
        if label == JURISDICTION_KEY:
            asked = _jurisdictions(value, jurisdictions)
        elif label == TIME_KEY:
            conditions.append(_time(value))
        elif label in LABELS:
            conditions.append(_condition(label, value))
        else:
            mark.fail(f'unknown label "{label[:60]}"{suggest(label, known) or "; known: " + ", ".join(sorted(known))}')
    return tuple(conditions), asked


def _jurisdictions(node: Node, known: Collection[str]) -> frozenset[str]:
    if not known:
        node.fail("no organization has a jurisdiction; write them under organizations: {NAME: {jurisdiction: EU}}")
    return frozenset(node.choices(known, "jurisdiction"))


def _condition(label: str, node: Node) -> Condition:
    if LABELS[label] is Label.FLAG:
        return FlagCondition(label, node.boolean())
    if LABELS[label] is Label.TEXT:
        return TextCondition(label, frozenset(node.strings()))
    limits = node.mapping(*NUMBER_KEYS)
    if not list(limits):
        node.fail("a condition on a number needs min, max or both")
    low, high = limits.optional("min"), limits.optional("max")
    minimum = low.number() if low is not None else float("-inf")
    maximum = high.number() if high is not None else float("inf")
    if minimum > maximum:
        node.fail("min is above max: nothing meets that")
    return NumberCondition(label, minimum, maximum)


def _time(node: Node) -> TimeCondition:
    section = node.mapping(*TIME_KEYS)
    if not list(section):
        node.fail('a time window needs from and to ("08:00"), days ([mon, tue]) or both')
    if ("from" in section) != ("to" in section):
        node.fail("a time window has from and to, or neither")
    start = _clock(section.required("from")) if "from" in section else 0
    end = _clock(section.required("to")) if "to" in section else DAY
    if start == end:
        node.fail("from and to are the same; leave both out for the whole day")
    if start == DAY:
        section.required("from").fail('a window cannot begin at 24:00; write "00:00"')
    days, zone = section.optional("days"), section.optional("zone")
    begins = frozenset(DAYS.index(day) for day in days.choices(DAYS, "day")) if days else frozenset(range(len(DAYS)))
    return TimeCondition(start, end, begins, _zone(zone) if zone is not None else 0)


def _clock(node: Node) -> int:
    text = node.string()
    if not re.fullmatch(CLOCK, text):
        node.fail('expected a time of day from "00:00" to "24:00"')
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def _zone(node: Node) -> int:
    text = node.string()
    if not re.fullmatch(ZONE, text):
        node.fail('expected an offset from UTC such as "+01:00", or "Z"; names of zones are not known here')
    if text == "Z":
        return 0
    hours, minutes = text[1:].split(":")
    return (int(hours) * 60 + int(minutes)) * (-1 if text[0] == "-" else 1)
