"""How an agreement comes about: the initiator's side, sans-IO.

    proposing ──every answer in──> concluded          all accepted the same bytes
        │  └──a counter, a no, a silence──> proposing  the next revision, to those who stay
        └──too few stay, or too many rounds──> failed

The initiator proposes terms; each participant answers accept (with its signature over exactly those bytes), counter
(terms it would sign instead: never looser), or reject. Counters are merged, strictest wins, into the next revision,
which everybody has to sign anew: no party is ever bound to bytes that it did not sign. The responder keeps no state
beyond what it signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """Where the negotiation is."""

    PROPOSING = "proposing"
    CONCLUDED = "concluded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The participant signed exactly the proposed terms."""

    envelope: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Countered:
    """The participant would sign these terms."""

    terms: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """The participant does not take part."""

    reason: str
    rules: tuple[str, ...] = ()


Answer = Accepted | Countered | Rejected


@dataclass(frozen=True, slots=True)
class Propose:
    """Send these terms to these organizations (events are commands to the runtime)."""

    terms: bytes
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Concluded:
    """Everybody signed: the agreement's terms and signatures."""

    terms: bytes
    signatures: Mapping[str, Accepted]


@dataclass(frozen=True, slots=True)
class Failed:
    """No agreement."""

    reason: str


Event = Propose | Concluded | Failed

#: Makes the next revision: (current terms, counter-offers, organizations that stay) -> terms.
Revise = Callable[[bytes, Sequence[bytes], tuple[str, ...]], bytes]


@dataclass(slots=True)
class Negotiation:
    """One negotiation, from the initiator's side.

    Args:
        terms: the first revision, as bytes.
        participants: the other organizations, without the initiator.
        minimum: how many of them have to stay.
        revise: makes the next revision of the terms.
        round_ms: how long to wait for answers to one revision.
        max_rounds: how many revisions may be proposed in all.
    """

    terms: bytes
    participants: tuple[str, ...]
    minimum: int
    revise: Revise
    round_ms: int = 20_000
    max_rounds: int = 4
    phase: Phase = Phase.PROPOSING
    round: int = 0
    deadline_ms: int = 0
    _answers: dict[str, Answer] = field(default_factory=dict)

    def start(self, now_ms: int) -> list[Event]:
        """Propose the first revision."""
        return self._propose(self.terms, self.participants, now_ms)

    def receive(self, organization: str, about: bytes, answer: Answer, now_ms: int) -> list[Event]:
        """Take an answer to the terms `about`; late, repeated and unasked answers change nothing."""
        if self.phase is not Phase.PROPOSING or organization not in self.participants or about != self.terms:
            return []
        self._answers.setdefault(organization, answer)
        return self._settle(now_ms) if len(self._answers) == len(self.participants) else []

    def tick(self, now_ms: int) -> list[Event]:
        """Go on without those who have not answered in time."""
        if self.phase is not Phase.PROPOSING or now_ms < self.deadline_ms:
            return []
        for organization in self.participants:
            self._answers.setdefault(organization, Rejected("no answer in time"))
        return self._settle(now_ms)

    def _propose(self, terms: bytes, to: tuple[str, ...], now_ms: int) -> list[Event]:
        self.round += 1
        if self.round > self.max_rounds:
            return self._fail(f"no agreement after {self.max_rounds} rounds")
        self.terms, self.participants, self._answers = terms, to, {}
        self.deadline_ms = now_ms + self.round_ms
        return [Propose(terms, to)]

    def _settle(self, now_ms: int) -> list[Event]:
        gone = {name: answer for name, answer in self._answers.items() if isinstance(answer, Rejected)}
        stay = tuple(name for name in self.participants if name not in gone)
        if len(stay) < max(self.minimum, 1):
            reasons = "; ".join(f"{name}: {answer.reason}" for name, answer in sorted(gone.items()))
            return self._fail(f"{len(stay)} of at least {self.minimum} others would take part ({reasons})")
        counters = [answer.terms for answer in self._answers.values() if isinstance(answer, Countered)]
        if gone or counters:
            return self._propose(self.revise(self.terms, counters, stay), stay, now_ms)
        self.phase = Phase.CONCLUDED
        signed = {name: answer for name, answer in self._answers.items() if isinstance(answer, Accepted)}
        return [Concluded(self.terms, signed)]

    def _fail(self, reason: str) -> list[Event]:
        self.phase = Phase.FAILED
        return [Failed(reason)]
