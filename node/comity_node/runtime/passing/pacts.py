"""The agreements as the engine of tasks under way sees them, and who offers what under each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import trio

from comity.agreement import Agreed
from comity.errors import AgreementError, Busy, ConfigError
from comity_node.policy import obligations as duties
from comity_node.policy.model import Onward
from comity_node.protocol.flow import Flow, parse_flow
from comity_node.runtime.agreements import Agreements
from comity_node.runtime.passing.ports import Pact

#: Seconds for which it is remembered who offers a skill and is linked.
_FRESH_S = 0.1
#: Agreements whose flows are kept read.
_FLOWS_KEPT = 1_024
#: Of why a flow cannot be read.
_REASON_CHARS = 500


class AgreedPacts:
    """Pacts of the agreements that are in force (`ports.Pacts`)."""

    def __init__(
        self, agreements: Agreements, *, me: str, own: Callable[[], Sequence[str]],
        others: Callable[[], Mapping[str, frozenset[str]]], reachable: Callable[[str], bool],
        now_ms: Callable[[], int], suspended: Callable[[], Collection[str]] = tuple,
    ) -> None:  # fmt: skip
        """Look at `agreements`.

        Args:
            agreements: of this node.
            me: the own organization.
            own: the skills that its agents offer.
            others: those that others' agents offer, by organization.
            reachable: whether a node of an organization is linked.
            now_ms: the time, in milliseconds since the Unix epoch.
            suspended: who is given no task now, whatever it offers (`suspensions.Suspensions.now`).
        """
        self._agreements = agreements
        self._me = me
        self._own = own
        self._others = others
        self._reachable = reachable
        self._now_ms = now_ms
        self._suspended = suspended
        self._pacts: dict[bytes, Pact] = {}
        self._offering: dict[tuple[bytes, str], tuple[str, ...]] = {}
        self._fresh_until = 0.0

    def pact(self, agreement: bytes) -> Pact | None:
        """Return an agreement, suspended or not; None: unknown, over, without a flow that can be read."""
        agreed = self._agreements.find(agreement)
        if agreed is None or not agreed.terms.flow or self._agreements.is_over(agreement):
            return None
        if self._now_ms() >= agreed.terms.expires_ms:
            return None
        pact = self._pacts.get(agreement)
        if pact is None:
            try:
                flow = parse_flow(agreed.terms.flow)
            except ConfigError:  # of another version of this software: it was signed by that, and nothing runs here
                return None
            onward = duties.from_terms(agreed.terms.obligations).onward is Onward.ALLOWED
            if len(self._pacts) >= _FLOWS_KEPT:
                self._pacts.clear()
            terms = agreed.terms
            pact = self._pacts[agreement] = Pact(
                agreement, flow, onward, lease_s=float(terms.lease_seconds), expires_ms=terms.expires_ms
            )
        return pact

    def why_none(self, agreement: bytes) -> str:
        """Return why there is no such pact: with this end the tasks that a run finds and cannot go on with."""
        agreed = self._agreements.find(agreement)
        if stopped := self._agreements.why_stopped(agreement):
            return stopped
        if agreed is None:
            return "its agreement is not known here any more"
        if not agreed.terms.flow:
            return "its agreement has no flow"
        if self._agreements.is_over(agreement) or self._now_ms() >= agreed.terms.expires_ms:
            return "its agreement is over"
        try:
            parse_flow(agreed.terms.flow)
        except ConfigError as error:
            return f"this version of the node cannot read its flow: {error}"[:_REASON_CHARS]
        return "its agreement is over"

    def find(self, agreement: bytes) -> Agreed | None:
        """Return an agreement that is in force now; None if it is not."""
        try:
            agreed = self._agreements.get(agreement)
        except (AgreementError, Busy):
            return None
        return agreed if self._now_ms() < agreed.terms.expires_ms else None

    def flow(self, agreement: bytes) -> Flow | None:
        """Return the steps of an agreement that is in force now."""
        pact = self.pact(agreement)
        return pact.flow if pact is not None else None

    def offering(self, agreement: bytes, skill: str) -> Sequence[str]:
        """Return the participants that say that they offer a skill, and are linked now; this organization too."""
        now = trio.current_time()
        if now >= self._fresh_until:
            self._offering.clear()
            self._fresh_until = now + _FRESH_S
        key = (agreement, skill)
        known = self._offering.get(key)
        if known is None:
            known = self._offering[key] = tuple(self._who(agreement, skill))
        return known

    def _who(self, agreement: bytes, skill: str) -> list[str]:
        agreed = self.find(agreement)
        if agreed is None:  # while it is suspended nobody is asked for anything: its tasks wait
            return []
        others, suspended = self._others(), self._suspended()
        who = [
            name
            for name in agreed.terms.participants
            if skill in others.get(name, frozenset()) and name not in suspended and self._reachable(name)
        ]
        return sorted([*who, self._me]) if skill in self._own() else who
