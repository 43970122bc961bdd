"""What the gate knows about a request, and adds to it if a rule of the policy may ask.

That is the time, and how reliable the other organization has been.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from comity_node.policy.conditions import TIME, LabelValue
from comity_node.policy.engine import Policy
from comity_node.policy.model import Request
from comity_node.storage.database import Database
from comity_node.storage.reliability import ReliabilityRow, list_reliability, mean

RELIABILITY: Final = "reliability"
#: As what the other side is judged in an action; in all others by the lower of both.
_ROLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "record.send": "reviewer",
        "review.receive": "reviewer",
        "record.receive": "generator",
        "record.review": "generator",
        "review.send": "generator",
        "record.accept": "generator",
    }
)
_BOTH: Final = ("generator", "reviewer")


def labels_asked(policy: Policy) -> frozenset[str]:
    """Return the labels that some rule of a policy asks about."""
    return frozenset(condition.label for rule in policy.document.rules for condition in rule.conditions)


class Knowledge:
    """Adds labels to requests; nothing is read or added that no rule asks about."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: One value, for it is read and written from threads.
        self._asked: tuple[Policy | None, frozenset[str]] = (None, frozenset())
        self._known: Mapping[tuple[str, str], float] = {}

    def asks(self, policy: Policy, label: str) -> bool:
        """Whether a rule of `policy` asks about a label."""
        known, asked = self._asked
        if policy is not known:
            asked = labels_asked(policy)
            self._asked = (policy, asked)
        return label in asked

    def adds(self, policy: Policy) -> bool:
        """Whether anything is added to requests under a policy."""
        return self.asks(policy, TIME) or self.asks(policy, RELIABILITY)

    async def refresh(self, policy: Policy, now_ms: int) -> None:
        """Read what has been learned about others since the last time, if a rule asks."""
        if self.asks(policy, RELIABILITY):
            self._known = _by_role(await self._database.read(lambda c: list_reliability(c, now_ms)))

    def complete(self, policy: Policy, request: Request, now_ms: int) -> Request:
        """Return the request with what the gate knows. What it does not is left out: the rule cannot be decided."""
        known: dict[str, LabelValue] = {}
        if self.asks(policy, TIME):
            known[TIME] = now_ms
        if self.asks(policy, RELIABILITY):
            roles = (_ROLES[request.action],) if request.action in _ROLES else _BOTH
            known[RELIABILITY] = min(self._known.get((request.organization, role), mean(0.0, 0.0)) for role in roles)
        return replace(request, labels=MappingProxyType({**request.labels, **known})) if known else request


def _by_role(rows: Iterable[ReliabilityRow]) -> Mapping[tuple[str, str], float]:
    return {(row.organization, row.role): row.reliability for row in rows}
