"""How an agreement comes about: the initiator's side, sans-IO.

    PROPOSING ──all are ready──> SIGNING ──all have signed──> CONCLUDED
       ^  │ counter, no, silence    │ counter, no, silence
       ├──┘                         │
       └── under a fresh id ────────┘
       └── too few stay, no time left ──> FAILED

The initiator proposes terms. Each participant answers that it is ready to sign exactly these bytes, or counters (with
terms it would sign instead: never looser), or rejects, or says that a person has to decide first. Counters are merged,
strictest wins, into the next revision, which everybody is asked about anew. Nothing that was said so far binds anybody.

What each adds to the draw of panels it is bound to when it is ready: the terms that are signed say so (`bind`,
`comity.draw`). Only when all are ready are they asked to sign, and the initiator signs last: its own signature, written
down, is what concludes the agreement. So nobody else can conclude it, and terms that the initiator gives up while it
collects signatures are void for good. What it proposes after that has a fresh id, because whoever has signed once signs
no other terms of that id (`protocol.negotiation_promise`, docs/adr/0015).

Messages may be lost, repeated, late or out of order: each participant is asked again until it has answered, and an
answer counts once, if it is about the terms of this moment. The runtime writes `snapshot` down whenever it has changed,
before any question leaves; `resume` goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """Where the negotiation is."""

    PROPOSING = "proposing"
    SIGNING = "signing"
    CONCLUDED = "concluded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ready:
    """The participant would sign exactly the proposed terms; `commitment` binds it to what it adds to draws."""

    commitment: bytes = b""


@dataclass(frozen=True, slots=True)
class Signed:
    """The participant signed exactly the proposed terms."""

    envelope: bytes
    chain: tuple[bytes, ...]
    #: What it adds to draws.
    draw: bytes = b""


@dataclass(frozen=True, slots=True)
class Countered:
    """The participant would sign these terms."""

    terms: bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    """A person has to decide first, until `until_ms` at the latest."""

    until_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The participant does not take part."""

    reason: str
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unheard:
    """No answer came; it may have been lost on either way."""

    reason: str


Answer = Ready | Signed | Countered | Waiting | Rejected | Unheard


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this organization about these terms; `sign`: for its signature (events are commands to the runtime)."""

    organization: str
    terms: bytes
    sign: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """This organization is left out from here on."""

    organization: str
    reason: str


@dataclass(frozen=True, slots=True)
class Concluded:
    """All others signed: sign last, and write the agreement down."""

    terms: bytes
    signatures: Mapping[str, Signed]


@dataclass(frozen=True, slots=True)
class Failed:
    """No agreement."""

    reason: str


Event = Ask | Dropped | Concluded | Failed


@dataclass(frozen=True, slots=True)
class Revision:
    """The next terms, and whose counter-offers are not in them, with the reasons."""

    terms: bytes
    out: Mapping[str, str] = field(default_factory=dict)


#: Makes the next revision: (terms, counter-offers by organization, organizations that stay, whether the id is used up).
Revise = Callable[[bytes, Mapping[str, bytes], tuple[str, ...], bool], Revision]

#: Makes the terms that are signed of those that all are ready to sign, and of what each is bound to.
Bind = Callable[[bytes, Mapping[str, bytes]], bytes]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an initiator waits; milliseconds.

    Attributes:
        round_ms: for the answer to one revision.
        sign_ms: for signatures, once everybody is ready: long enough for a node to start anew.
        first_retry_ms: before somebody who is silent or waits for a person is asked again; doubles each time.
        most_retry_ms: the longest pause between two questions.
        max_rounds: revisions until which counter-offers are taken in; who has another one then is left out.
    """

    round_ms: int = 20_000
    sign_ms: int = 60_000
    first_retry_ms: int = 500
    most_retry_ms: int = 15_000
    max_rounds: int = 6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What has to be on disk before a question leaves."""

    phase: Phase
    round: int
    terms: bytes
    participants: tuple[str, ...]


@dataclass(slots=True)
class _Asked:
    """One participant in one round."""

    again_ms: int
    deadline_ms: int
    #: For an answer that a person has to approve.
    latest_ms: int
    times: int = 0
    waits: bool = False
    #: Why nothing was heard.
    trouble: str = ""
    answer: Ready | Signed | Countered | Rejected | None = None


@dataclass(slots=True)
class Negotiation:
    """One negotiation, from the initiator's side.

    Args:
        terms: the first revision, as bytes.
        participants: the other organizations, without the initiator.
        minimum: how many of them have to stay.
        revise: makes the next revision of the terms.
        ends_ms: when it fails at the latest, whoever has not answered by then.
        patience: how long it waits in between.
        bind: makes the terms that are signed; None: they are those that all are ready to sign.
    """

    terms: bytes
    participants: tuple[str, ...]
    minimum: int
    revise: Revise
    ends_ms: int
    patience: Patience = field(default_factory=Patience)
    bind: Bind | None = None
    phase: Phase = Phase.PROPOSING
    round: int = 0
    _asked: dict[str, _Asked] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.phase in (Phase.CONCLUDED, Phase.FAILED)

    @property
    def snapshot(self) -> Snapshot:
        """What `resume` needs."""
        return Snapshot(self.phase, self.round, self.terms, self.participants)

    @property
    def next_ms(self) -> int:
        """When `tick` has something to do."""
        times = [min(one.again_ms, one.deadline_ms) for one in self._asked.values() if one.answer is None]
        return min([self.ends_ms, *times])

    def start(self, now_ms: int) -> list[Event]:
        """Propose the first revision."""
        return self._propose(self.terms, self.participants, now_ms)

    def resume(self, snapshot: Snapshot, now_ms: int) -> list[Event]:
        """Go on with what an earlier run wrote down; everybody is asked again, and answers the same."""
        self.phase, self.round = snapshot.phase, snapshot.round
        self.terms, self.participants = snapshot.terms, snapshot.participants
        return [*self._ask_all(now_ms)]

    def receive(self, organization: str, about: bytes, answer: Answer, now_ms: int) -> list[Event]:
        """Take an answer to the terms `about`; late, repeated and unasked answers change nothing."""
        one = self._asked.get(organization)
        if self.over or one is None or one.answer is not None or about != self.terms:
            return []
        if isinstance(answer, Unheard):
            one.again_ms, one.trouble = min(one.again_ms, now_ms + self._pause_ms(one)), answer.reason
            return []
        if isinstance(answer, Waiting):
            one.waits = True
            one.deadline_ms = min(answer.until_ms, one.latest_ms)
            one.again_ms = now_ms + self._pause_ms(one)
            return []
        wanted = Signed if self.phase is Phase.SIGNING else Ready
        if isinstance(answer, (Ready, Signed)) and not isinstance(answer, wanted):
            return []
        one.answer = answer
        return self._settle(now_ms)

    def tick(self, now_ms: int) -> list[Event]:
        """Ask again who is due, and go on without those whose time is over."""
        if self.over:
            return []
        again: list[Event] = []
        for organization, one in self._asked.items():
            if one.answer is not None:
                continue
            if now_ms >= min(one.deadline_ms, self.ends_ms):
                silence = f"no answer in time: {one.trouble}" if one.trouble else "no answer in time"
                one.answer = Rejected("nobody has approved it in time" if one.waits else silence)
            elif now_ms >= one.again_ms:
                again.append(self._ask(organization, one, now_ms))
        return self._settle(now_ms) or again

    def _pause_ms(self, one: _Asked) -> int:
        return min(self.patience.first_retry_ms << min(one.times, 16), self.patience.most_retry_ms)

    def _ask(self, organization: str, one: _Asked, now_ms: int) -> Ask:
        one.times += 1
        one.again_ms = now_ms + self.patience.most_retry_ms
        return Ask(organization, self.terms, self.phase is Phase.SIGNING)

    def _ask_all(self, now_ms: int) -> list[Ask]:
        span_ms = self.patience.sign_ms if self.phase is Phase.SIGNING else self.patience.round_ms
        latest_ms = self._latest_ms(now_ms)
        deadline_ms = min(now_ms + span_ms, latest_ms)
        self._asked = {name: _Asked(now_ms, deadline_ms, latest_ms) for name in self.participants}
        return [self._ask(name, one, now_ms) for name, one in self._asked.items()]

    def _latest_ms(self, now_ms: int) -> int:
        """Return until when anybody is waited for: if it can go on without one, there has to be time left for that."""
        if len(self.participants) - 1 < max(self.minimum, 1):
            return self.ends_ms
        round_ms = self.patience.round_ms + self.patience.sign_ms
        return self.ends_ms - max(0, min(2 * round_ms, (self.ends_ms - now_ms) // 2))

    def _propose(self, terms: bytes, to: tuple[str, ...], now_ms: int) -> list[Event]:
        if now_ms >= self.ends_ms:
            return [self._fail("no agreement in time")]
        self.round += 1
        self.phase, self.terms, self.participants = Phase.PROPOSING, terms, to
        return [*self._ask_all(now_ms)]

    def _settle(self, now_ms: int) -> list[Event]:
        answers = {name: one.answer for name, one in self._asked.items() if one.answer is not None}
        if len(answers) < len(self._asked):
            return []
        gone = {name: answer.reason for name, answer in answers.items() if isinstance(answer, Rejected)}
        counters = {name: answer.terms for name, answer in answers.items() if isinstance(answer, Countered)}
        if gone or counters:
            return self._revise(gone, counters, now_ms)
        if self.phase is Phase.PROPOSING:
            self.phase = Phase.SIGNING
            if self.bind is not None:
                bound = {name: one.commitment for name, one in answers.items() if isinstance(one, Ready)}
                self.terms = self.bind(self.terms, bound)
            return [*self._ask_all(now_ms)]
        self.phase = Phase.CONCLUDED
        return [Concluded(self.terms, {name: one for name, one in answers.items() if isinstance(one, Signed)})]

    def _revise(self, gone: dict[str, str], counters: dict[str, bytes], now_ms: int) -> list[Event]:
        """Propose terms for those who stay; whose counter-offer cannot be taken in does not."""
        spent = self.phase is Phase.SIGNING
        if self.round >= self.patience.max_rounds:  # so that nobody goes on without end: each further round has fewer
            gone |= {name: f"asks for other terms still, after {self.round} rounds" for name in counters}
            counters = {}
        while True:
            stay = tuple(name for name in self.participants if name not in gone)
            if len(stay) < max(self.minimum, 1):
                reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(gone.items()))
                return [
                    *_dropped(gone),
                    self._fail(f"{len(stay)} of at least {self.minimum} others would take part ({reasons})"),
                ]
            counters = {name: terms for name, terms in counters.items() if name in stay}
            revision = self.revise(self.terms, counters, stay, spent)
            if not revision.out.keys() & set(stay):
                return [*_dropped(gone), *self._propose(revision.terms, stay, now_ms)]
            gone |= {name: reason for name, reason in revision.out.items() if name in stay}

    def _fail(self, reason: str) -> Failed:
        self.phase = Phase.FAILED
        return Failed(reason)


def _dropped(gone: Mapping[str, str]) -> list[Event]:
    return [Dropped(name, reason) for name, reason in sorted(gone.items())]
