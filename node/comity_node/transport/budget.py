"""Memory that peers may make a node hold, as nested budgets: of a peer, of its organization, of all."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakValueDictionary


class Budget:
    """So many bytes, some of them taken; whatever is taken is taken from the parent, too."""

    __slots__ = ("__weakref__", "_parent", "limit", "used")

    def __init__(self, limit: int, parent: Budget | None = None) -> None:
        """Make a budget of `limit` bytes, within its parent's."""
        self.limit = limit
        #: Bytes that are taken.
        self.used = 0
        self._parent = parent

    def take(self, count: int) -> bool:
        """Take `count` bytes if they are there, here and in every budget above; say whether they were."""
        if self.used + count > self.limit or (self._parent is not None and not self._parent.take(count)):
            return False
        self.used += count
        return True

    def give(self, count: int) -> None:
        """Give `count` bytes back."""
        self.used -= count
        if self._parent is not None:
            self._parent.give(count)


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """How many bytes peers may make a node hold unread, beyond what every connection may hold anyway.

    Attributes:
        total: all peers together.
        per_organization: the nodes of one organization.
        per_peer: one peer.
    """

    total: int = 512 * 1024 * 1024
    per_organization: int = 128 * 1024 * 1024
    per_peer: int = 64 * 1024 * 1024


class Budgets:
    """The budgets of all peers. One lives for as long as somebody holds it: a connection, or its child."""

    def __init__(self, limits: BudgetLimits | None = None) -> None:
        """Make the budget of the node."""
        self._limits = limits or BudgetLimits()
        self.total = Budget(self._limits.total)
        self._organizations: WeakValueDictionary[str, Budget] = WeakValueDictionary()
        self._peers: WeakValueDictionary[tuple[str, str], Budget] = WeakValueDictionary()

    def of(self, peer_id: str, organization: str = "") -> Budget:
        """The budget of a peer. Peers of no organization have none in common but the node's."""
        budget = self._peers.get((peer_id, organization))
        if budget is None:
            budget = Budget(self._limits.per_peer, self._of_organization(organization))
            self._peers[peer_id, organization] = budget
        return budget

    def _of_organization(self, organization: str) -> Budget:
        if not organization:
            return self.total
        budget = self._organizations.get(organization)
        if budget is None:
            budget = self._organizations[organization] = Budget(self._limits.per_organization, self.total)
        return budget
