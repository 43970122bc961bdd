"""Whereto: who does the next step of a task."""

from __future__ import annotations

from collections.abc import Collection

import trio

from comity_node.protocol.flow import Cursor, Step
from comity_node.runtime.passing.ports import Pact, Pacts, Routing


class Ways:
    """Knows who may and can do a step, and has the router choose among them."""

    def __init__(self, me: str, pacts: Pacts, routing: Routing) -> None:
        """Choose in the name of organization `me`."""
        self._me = me
        self._pacts = pacts
        self._routing = routing

    def candidates(self, pact: Pact, cursor: Cursor, step: Step, home: str) -> list[str]:
        """Return who may do the step for a task of `home`, and says that it can."""
        offering = self._pacts.offering(pact.agreement, step.skill)
        if step.leased and (lease := cursor.leases.get(step.leased)) is not None:
            return [lease.at] if lease.at in offering else []
        return [each for each in offering if step.at.allows(each, home)]

    def can(self, pact: Pact, cursor: Cursor, step: Step, home: str) -> bool:
        """Whether this organization may do the step and says that it can."""
        if not step.at.allows(self._me, home) or self._me not in self._pacts.offering(pact.agreement, step.skill):
            return False
        return not step.leased or self._me in self.candidates(pact, cursor, step, home)

    def choose(self, pact: Pact, cursor: Cursor, step: Step, home: str, without: Collection[str]) -> str | None:
        """Return who does the step: this organization if it may and can, else whom the router picks; None: nobody."""
        if self._me not in without and self.can(pact, cursor, step, home):
            return self._me
        return self.choose_other(pact, cursor, step, home, without)

    def choose_other(
        self, pact: Pact, cursor: Cursor, step: Step, home: str, without: Collection[str]
    ) -> str | None:  # fmt: skip
        """Return whom of the others the router picks; None: nobody."""
        candidates = [
            each
            for each in self.candidates(pact, cursor, step, home)
            if each != self._me and (not without or each not in without)
        ]
        return self._routing.pick(step.skill, candidates, trio.current_time()) if candidates else None
