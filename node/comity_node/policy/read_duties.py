"""The `obligations` of a rule from YAML."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from comity_node.policy.lattice import (
    MAX_BOUND,
    MAX_EPSILON,
    MAX_GRID,
    MAX_K,
    MAX_KEPT,
    PER,
    Approval,
    Budget,
    KAnonymity,
    Noise,
    Obligations,
    Onward,
    Quota,
    Rate,
    ReviewTerms,
)
from comity_node.strictyaml import Mark, Node, shown

OBLIGATIONS = (
    "redact", "drop_personal", "generalize", "mask", "hash", "noise", "budget", "k_anonymity",
    "min_distance_to_private", "rate", "quota", "retain", "expire", "review", "onward", "notify", "approval",
)  # fmt: skip
RATE_KEYS = ("records", "per")
QUOTA_KEYS = ("records",)
NOISE_KEYS = ("epsilon", "lower", "upper")
BUDGET_KEYS = ("epsilon", "per")
ANONYMITY_KEYS = ("k", "fields")
REVIEW_KEYS = ("quorum", "distinct_organizations", "min_score")
APPROVAL_KEYS = ("within",)
MAX_RECORDS = 2**53
MAX_QUORUM = 1000
MAX_DISTANCE = 1e9
MAX_NAME = 100
YEARS_MS = 100 * 366 * 86_400_000
APPROVAL_MS = 366 * 86_400_000
INSTANT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?"

_T = TypeVar("_T")
_NONE: frozenset[str] = frozenset()


def read_obligations(node: Node, rule: str) -> Obligations:
    """Read the `obligations` of the rule with this id.

    Raises:
        ConfigError: something in them is not understood, or two of them contradict each other.
    """
    section = node.mapping(*OBLIGATIONS)

    def read(key: str, reader: Callable[[Node], _T], absent: _T) -> _T:
        value = section.optional(key)
        return reader(value) if value is not None else absent

    duties = Obligations(
        redact=read("redact", read_paths, _NONE),
        drop_personal=section.boolean("drop_personal", False),
        generalize=read("generalize", lambda each: _by_path(each, _grid), {}),
        mask=read("mask", lambda each: _by_path(each, lambda kept: kept.integer(0, MAX_KEPT)), {}),
        hash=read("hash", read_paths, _NONE),
        noise=read("noise", lambda each: _by_path(each, _noise), {}),
        budgets=read("budget", lambda each: (_budget(each, rule),), ()),
        k_anonymity=read("k_anonymity", _anonymity, None),
        min_distance_to_private=section.number("min_distance_to_private", 0, 0, MAX_DISTANCE) or None,
        rates=read("rate", lambda each: (_rate(each, rule),), ()),
        quotas=read("quota", lambda each: (_quota(each, rule),), ()),
        retain_ms=read("retain", lambda each: each.duration_ms(1000, YEARS_MS), None),
        expire_ms=read("expire", _instant, None),
        review=read("review", _review, None),
        onward=read("onward", _onward, Onward.ALLOWED),
        notify=read("notify", _names, _NONE),
        approvals=read("approval", lambda each: (_approval(each, rule),), ()),
    )
    if excluded := duties.redact - read("redact", read_paths, _NONE):
        node.fail(f"{shown(min(excluded))} cannot have all the forms that are asked for: keep one, or redact it")
    masked = read("mask", lambda each: frozenset(path for path, _, _ in each.table()), _NONE)
    if both := masked & duties.hash:
        node.fail(f"{shown(min(both))} is to be masked and hashed: keep one of them")
    return duties


def read_paths(node: Node) -> frozenset[str]:
    """Read one path of a field, or a list of them."""
    node.strings()
    return frozenset(read_path(each, each.string()) for each in node.one_or_more())


def read_path(node: Node, text: str) -> str:
    """Return `text` if it is the path of a field."""
    _check_path(text, node)
    return text


def _check_path(text: str, where: Node | Mark) -> None:
    """Refuse what names no field. There is no sign for all fields: it would be taken for one, and name none."""
    names = text.split(".")
    if not all(names):
        where.fail(f"{shown(text)} is no path of a field: names joined by dots")
    if "*" in names:
        where.fail(f'{shown(text)} is no path of a field: "*" does not stand for all of them here, name each')


def _by_path(node: Node, read: Callable[[Node], _T]) -> dict[str, _T]:
    forms: dict[str, _T] = {}
    for path, mark, value in node.table():
        _check_path(path, mark)
        forms[path] = read(value)
    return forms


def _grid(node: Node) -> float:
    grid = node.number(1e-6, MAX_GRID)
    if round(grid, 6) != grid:
        node.fail("a grid has at most six decimals")
    return grid


def _noise(node: Node) -> Noise:
    section = node.mapping(*NOISE_KEYS)
    lower = section.required("lower").number(-MAX_BOUND, MAX_BOUND)
    upper = section.required("upper").number(-MAX_BOUND, MAX_BOUND)
    if lower >= upper:
        node.fail("lower is not below upper: noise needs a range that the values lie in")
    return Noise(_epsilon(section.required("epsilon")), lower, upper)


def _epsilon(node: Node) -> float:
    epsilon = node.number(0, MAX_EPSILON)
    if not epsilon:
        node.fail("epsilon must be over 0; the smaller it is the more noise there is")
    return epsilon


def _budget(node: Node, rule: str) -> Budget:
    section = node.mapping(*BUDGET_KEYS)
    per = section.optional("per")
    asked = per.choices(PER, "value") if per is not None else ()
    return Budget(_epsilon(section.required("epsilon")), tuple(each for each in PER if each in asked), rule)


def _anonymity(node: Node) -> KAnonymity:
    section = node.mapping(*ANONYMITY_KEYS)
    return KAnonymity(section.required("k").integer(2, MAX_K), read_paths(section.required("fields")))


def _rate(node: Node, rule: str) -> Rate:
    section = node.mapping(*RATE_KEYS)
    records = section.required("records").integer(0, MAX_RECORDS)
    return Rate(records, section.required("per").duration_ms(1, YEARS_MS), rule)


def _quota(node: Node, rule: str) -> Quota:
    return Quota(node.mapping(*QUOTA_KEYS).required("records").integer(0, MAX_RECORDS), rule)


def _approval(node: Node, rule: str) -> Approval:
    return Approval(node.mapping(*APPROVAL_KEYS).required("within").duration_ms(1000, APPROVAL_MS), rule)


def _names(node: Node) -> frozenset[str]:
    for each in node.one_or_more():
        each.string(max_length=MAX_NAME)
    return frozenset(node.strings())


def _instant(node: Node) -> int:
    """Read a day (its beginning in UTC) or a time in UTC, in milliseconds since 1970."""
    text = node.string()
    try:
        if not re.fullmatch(INSTANT, text):
            raise ValueError
        moment = datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)
    except ValueError:
        node.fail(f"{shown(text)} is no day such as 2027-01-01 and no time such as 2027-01-01T12:00:00Z")
    if (milliseconds := int(moment.timestamp() * 1000)) <= 0:
        node.fail(f"{shown(text)} is before 1970")
    return milliseconds


def _onward(node: Node) -> Onward:
    return Onward.parse(node.choice([each.word for each in Onward], "value"))


def _review(node: Node) -> ReviewTerms:
    section = node.mapping(*REVIEW_KEYS)
    return ReviewTerms(
        quorum=section.required("quorum").integer(1, MAX_QUORUM),
        distinct_organizations=section.boolean("distinct_organizations", True),
        min_score=section.number("min_score", 0, 0, 1),
    )
