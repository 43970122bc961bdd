"""What a node's requests state, action by action: what a rule can ask about with any effect.

The engine decides on any request; this table says which ones a node makes. A rule for `tunnel.open` that asks for a
kind of data loads, and never matches: no request about a tunnel states one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from comity_node.policy.conditions import TIME

#: What the gate itself knows, in every request.
_ALWAYS: Final = frozenset({TIME, "reliability"})
_TERMS: Final = frozenset(
    {
        "records", "batch_records", "repair_rounds", "participants", "eligible", "faulty", "quorum", "min_score",
        "lease_seconds", "lifetime_seconds", "distinct_organizations",
    }
)  # fmt: skip
_RECORD: Final = _TERMS | {"k", "bytes", "distance"}


@dataclass(frozen=True, slots=True)
class Asks:
    """What requests about one action state.

    Attributes:
        kinds: of data; empty if they state none.
        roles: of the other side; empty if they state none.
        any_role: whether they may state any other role, too: a task under way states the skill that it is sent for.
        data: whether they state a purpose and a dataset.
        fields: whether they state the record's fields.
        labels: those that they may state.
    """

    kinds: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    any_role: bool = False
    data: bool = False
    fields: bool = False
    labels: frozenset[str] = _ALWAYS


def _asks(
    *kinds: str, role: str = "", any_role: bool = False, fields: bool = False, labels: frozenset[str] = frozenset()
) -> Asks:
    roles = frozenset({role}) if role else frozenset[str]()
    return Asks(frozenset(kinds), roles, any_role, True, fields, _ALWAYS | labels)


_AGREEMENT: Final = _asks("synthetic", labels=_TERMS)
_UNCERTIFIED: Final = _asks("synthetic", role="validator", fields=True, labels=_RECORD)
#: To be reviewed (`validator`), or a task under way: for the skill of its next step, or `home`.
_UNDER_WAY: Final = _asks("synthetic", role="validator", any_role=True, fields=True, labels=_RECORD)
_CERTIFIED: Final = _asks("certified", role="validator", fields=True, labels=_RECORD | {"score", "reviews"})
_REVIEW: Final = _asks()
_UPDATE: Final = _asks("update", role="trainer", labels=frozenset({"round", "examples"}))
_BULK: Final = _asks("raw", "synthetic", "certified", fields=True, labels=frozenset({"records", "bytes"}))
_TUNNEL: Final = Asks(labels=_ALWAYS | {"tunnel"})

#: An action that is not listed states the other side alone.
ASKED: Final[Mapping[str, Asks]] = MappingProxyType(
    {
        "agreement.offer": _AGREEMENT,
        "agreement.accept": _AGREEMENT,
        "record.send": _UNDER_WAY,
        "record.receive": _UNDER_WAY,
        "record.review": _UNCERTIFIED,
        "record.release": _CERTIFIED,
        "record.accept": _CERTIFIED,
        "review.send": _REVIEW,
        "review.receive": _REVIEW,
        "update.send": _UPDATE,
        "update.receive": _UPDATE,
        "bulk.send": _BULK,
        "bulk.receive": _BULK,
        "tunnel.open": _TUNNEL,
        "tunnel.serve": _TUNNEL,
    }
)
_NOTHING: Final = Asks()
#: Actions of the language that no node asks about: what is taken to be reviewed is decided on by `record.receive`, with
#: the same facts. A policy may name them, as many do; they allow and forbid nothing.
UNASKED: Final[Mapping[str, str]] = MappingProxyType({"record.review": "record.receive"})


def asked(action: str) -> Asks:
    """Return what requests about an action state."""
    return ASKED.get(action, _NOTHING)


#: Numbers that a label can be, inclusive; the others are 0 or more.
_UNIT: Final = (0.0, 1.0)
_RANGES: Final = MappingProxyType({"score": _UNIT, "min_score": _UNIT, "reliability": _UNIT})


def range_of(label: str) -> tuple[float, float]:
    """Return the least and the greatest number that a label can be."""
    return _RANGES.get(label, (0.0, float("inf")))
