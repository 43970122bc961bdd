"""What this node tells all members about the others: how often their rows and reviews agreed with the certificates."""

from __future__ import annotations

from collections.abc import Sequence

from comity.trust import NodeIdentity, TrustStore
from comity_node.admission import Gate, Question
from comity_node.discovery.news import Hint
from comity_node.policy.model import Request
from comity_node.storage import journal
from comity_node.storage.database import Database
from comity_node.storage.reliability import ReliabilityRow

_SCALE = 10_000
#: Outcomes after which our word has half the weight that it can have.
_HALF_WEIGHT = 20.0


class Standing:
    """Makes hints of the journal's counts, if the policy lets every member have them (`news.send`)."""

    def __init__(self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, database: Database) -> None:
        """Speak in the name of `identity`'s organization."""
        self._identity, self._trust = identity, trust
        self._gate, self._database = gate, database

    async def hints(self) -> Sequence[Hint]:
        """Return what can be told now; nothing, if there is a member who may not hear it: news go to all."""
        now_ms = self._gate.now_ms()
        rows = await self._database.read(lambda c: journal.list_reliability(c, now_ms))
        others = sorted(set(self._trust.bundle.members) - {self._identity.organization})
        told = [row for row in rows if row.organization in others]
        if not told:
            return ()
        questions = [Question(Request(action="news.send", organization=each)) for each in others]
        if not all(decision.allowed for decision in await self._gate.decide(questions)):
            return ()
        return [hint_of(row) for row in told]


def hint_of(row: ReliabilityRow) -> Hint:
    """Return a row of the journal as a hint, in integers."""
    outcomes = row.agreed + row.disagreed
    return Hint(
        organization=row.organization,
        role=row.role,
        agreed_milli=round(row.agreed * 1000),
        disagreed_milli=round(row.disagreed * 1000),
        mean=round(row.reliability * _SCALE),
        weight=round(outcomes / (outcomes + _HALF_WEIGHT) * _SCALE),
    )
