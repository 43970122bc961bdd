"""A negotiation without I/O: the machines of `protocol`, a network that does as it likes, disks, and one clock.

Terms are `id|revision|strictness|participants`; a signature is `name over terms`. What a party has on disk is all that
outlives its crash, and each writes to disk before it answers, as the runtime does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from comity.errors import AgreementError
from comity_node.protocol import negotiation_promise as promises
from comity_node.protocol.negotiation import (
    Answer,
    Ask,
    Concluded,
    Countered,
    Event,
    Failed,
    Negotiation,
    Patience,
    Phase,
    Ready,
    Rejected,
    Revision,
    Signed,
    Snapshot,
    Unheard,
    Waiting,
)
from comity_node.protocol.negotiation_promise import Promise, Stage

INITIATOR = "i.example"
PATIENCE = Patience(round_ms=20_000, sign_ms=30_000, first_retry_ms=500, most_retry_ms=4_000, max_rounds=5)
#: The terms expire, and the negotiation fails, this long after the start.
EXPIRES_MS, ENDS_MS = 3_600_000, 300_000
#: What a party can bear at most, beyond which it is dropped.
MOST = 8


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms, read."""

    id: str
    revision: int
    strictness: int
    participants: tuple[str, ...]

    @classmethod
    def read(cls, data: bytes) -> Terms:
        name, revision, strictness, who = data.decode().split("|")
        return cls(name, int(revision), int(strictness), tuple(who.split(",")))

    def write(self) -> bytes:
        return f"{self.id}|{self.revision}|{self.strictness}|{','.join(self.participants)}".encode()


def signature(name: str, terms: bytes) -> bytes:
    return f"{name} over ".encode() + terms


@dataclass(frozen=True, slots=True)
class Agreement:
    """Terms with the signatures of those who signed."""

    terms: bytes
    signatures: Mapping[str, bytes]

    def verify(self) -> Terms:
        terms = Terms.read(self.terms)
        wanted = {name: signature(name, self.terms) for name in terms.participants}
        assert dict(self.signatures) == wanted, "not signed by all participants"
        return terms


def revise(terms: bytes, counters: Mapping[str, bytes], stay: tuple[str, ...], spent: bool) -> Revision:
    """Merge counters, strictest wins, but for those beyond what can be borne."""
    now = Terms.read(terms)
    wanted = {name: Terms.read(counter).strictness for name, counter in counters.items()}
    out = {name: "too strict" for name, strictness in wanted.items() if strictness > MOST}
    strictest = max([now.strictness, *(one for name, one in wanted.items() if name not in out)])
    fresh = f"{now.id}'" if spent else now.id
    return Revision(Terms(fresh, now.revision + 1, strictest, (INITIATOR, *sorted(stay))).write(), out)


@dataclass
class Disk:
    """What a participant has written down."""

    promises: dict[str, Promise] = field(default_factory=dict)
    signed: dict[str, bytes] = field(default_factory=dict)
    agreements: dict[bytes, Agreement] = field(default_factory=dict)


@dataclass
class Participant:
    """One that answers, as `runtime.responder` does; what it thinks is in its policy, what it did on its disk.

    Attributes:
        floor: strictness below which it counters.
        mood: "yes", "no", or "ask": a person has to decide first.
    """

    name: str
    floor: int = 0
    mood: str = "yes"
    disk: Disk = field(default_factory=Disk)
    #: Strictness that its policy asked for when it signed.
    floors: dict[bytes, int] = field(default_factory=dict)

    def answer(self, terms: bytes, sign: bool, now_ms: int) -> Answer:
        read = Terms.read(terms)
        if (known := self.disk.promises.get(read.id)) is not None:
            try:
                promises.sign(known, terms, EXPIRES_MS, now_ms)
            except AgreementError as error:
                return Rejected(str(error))
            return Signed(self.disk.signed[read.id], ())
        if self.mood == "no":
            return Rejected("not interested")
        if self.mood == "ask":
            return Waiting(now_ms + 60_000)
        if read.strictness < self.floor:
            return Countered(replace(read, strictness=self.floor).write())
        if not sign:
            return Ready()
        self.disk.promises[read.id] = promises.sign(None, terms, EXPIRES_MS, now_ms)
        self.disk.signed[read.id] = signature(self.name, terms)
        self.floors[terms] = self.floor
        return Signed(self.disk.signed[read.id], ())

    def take(self, agreement: Agreement) -> None:
        """Take an agreement from anybody; refuses what contradicts its own signature."""
        terms = agreement.verify()
        done = promises.concluded(self.disk.promises.get(terms.id), agreement.terms)
        if done is not None:
            self.disk.promises[terms.id] = done
        self.disk.agreements[agreement.terms] = agreement

    def hear(self, about: bytes, outcome: Agreement | str, whom: str) -> None:
        """Take the answer to what became of terms."""
        if isinstance(outcome, Agreement):
            self.take(outcome)
        elif outcome == "void" and whom == INITIATOR:
            key = Terms.read(about).id
            self.disk.promises[key] = promises.given_up(self.disk.promises[key])

    def questions(self, now_ms: int) -> list[tuple[str, bytes]]:
        """Whom to ask what became of which terms."""
        asked = []
        for key, promise in self.disk.promises.items():
            if promise.is_due(now_ms):
                others = [
                    name for name in Terms.read(promise.digest).participants if name not in (self.name, INITIATOR)
                ]
                asked.append((promise.whom(INITIATOR, others), promise.digest))
                self.disk.promises[key] = promises.asked(promise, now_ms)
        return asked


@dataclass
class Initiator:
    """The one who proposes: a machine in memory, a snapshot and the agreement on disk."""

    others: tuple[str, ...]
    minimum: int
    machine: Negotiation | None = None
    snapshot: Snapshot | None = None
    agreement: Agreement | None = None
    failed: str = ""
    acknowledged: set[str] = field(default_factory=set)
    resend_ms: int = 0

    def _fresh(self) -> Negotiation:
        first = Terms("w", 0, 1, (INITIATOR, *self.others)).write()
        return Negotiation(first, self.others, self.minimum, revise, ENDS_MS, PATIENCE)

    def boot(self, now_ms: int) -> list[Ask]:
        """Start, or start again with what is on disk."""
        self.machine = None
        if self.agreement is not None or self.failed:
            return []
        self.machine = self._fresh()
        if self.snapshot is None:
            return self.carry_out(self.machine.start(now_ms))
        return self.carry_out(self.machine.resume(self.snapshot, now_ms))

    def carry_out(self, events: list[Event], *, crash_before_save: bool = False) -> list[Ask]:
        """Write down what has to be, and return the questions that leave then."""
        machine = self.machine
        if machine is None or crash_before_save:
            return []
        for event in events:
            if isinstance(event, Concluded):
                signatures = {name: one.envelope for name, one in event.signatures.items()}
                signatures[INITIATOR] = signature(INITIATOR, event.terms)
                self.agreement = Agreement(event.terms, signatures)
            elif isinstance(event, Failed):
                self.failed = event.reason
        if not machine.over:
            self.snapshot = machine.snapshot
        return [event for event in events if isinstance(event, Ask)]

    def status(self, about: bytes) -> Agreement | str:
        if self.agreement is not None and self.agreement.terms == about:
            return self.agreement
        under_way = self.snapshot is not None and self.agreement is None and not self.failed
        return "open" if under_way and self.snapshot is not None and self.snapshot.terms == about else "void"

    @property
    def phase(self) -> Phase | None:
        return None if self.machine is None else self.machine.phase


@dataclass(frozen=True, slots=True)
class Message:
    """Something on the wire."""

    sender: str
    to: str
    kind: str
    about: bytes
    body: object = None


class World:
    """An initiator, participants, and what is on the wire between them."""

    def __init__(self, participants: Mapping[str, Participant], minimum: int) -> None:
        self.now_ms = 0
        self.participants = dict(participants)
        self.initiator = Initiator(tuple(sorted(participants)), minimum)
        self.wire: list[Message] = []
        self._ask(self.initiator.boot(self.now_ms))

    def _ask(self, questions: list[Ask]) -> None:
        self.wire += [Message(INITIATOR, one.organization, "propose", one.terms, one.sign) for one in questions]

    def deliver(self, message: Message, *, crash: bool = False) -> None:
        """Have a message arrive; `crash`: the receiver goes down before it has written anything or answered."""
        if message.to == INITIATOR:
            self._to_initiator(message, crash)
        elif not crash:
            self._to_participant(self.participants[message.to], message)

    def _to_initiator(self, message: Message, crash: bool) -> None:
        one = self.initiator
        match message.kind, message.body:
            case "answer", Ready() | Signed() | Countered() | Waiting() | Rejected() | Unheard() as answer:
                if one.machine is not None:
                    events = one.machine.receive(message.sender, message.about, answer, self.now_ms)
                    self._ask(one.carry_out(events, crash_before_save=crash))
            case "status", _ if not crash:
                self.wire.append(
                    Message(INITIATOR, message.sender, "outcome", message.about, one.status(message.about))
                )
            case "taken", _ if not crash:
                one.acknowledged.add(message.sender)
            case _:
                pass
        if crash:
            self.crash_initiator()

    def _to_participant(self, one: Participant, message: Message) -> None:
        match message.kind, message.body:
            case "propose", bool() as sign:
                answer = one.answer(message.about, sign, self.now_ms)
                self.wire.append(Message(one.name, message.sender, "answer", message.about, answer))
            case "agreement", Agreement() as agreement:
                one.take(agreement)
                self.wire.append(Message(one.name, message.sender, "taken", message.about))
            case "status", _:
                outcome: object = one.disk.agreements.get(message.about, "unknown")
                self.wire.append(Message(one.name, message.sender, "outcome", message.about, outcome))
            case "outcome", Agreement() | str() as outcome:
                one.hear(message.about, outcome, message.sender)
            case _:
                pass

    def crash_initiator(self) -> None:
        """Its memory is gone; it starts again."""
        self._ask(self.initiator.boot(self.now_ms))

    def advance(self, milliseconds: int) -> None:
        """Let time pass; everybody looks at the clock."""
        self.now_ms += milliseconds
        one = self.initiator
        if one.machine is not None:
            self._ask(one.carry_out(one.machine.tick(self.now_ms)))
        if one.agreement is not None and self.now_ms >= one.resend_ms:  # the outbox
            one.resend_ms = self.now_ms + 2_000
            waiting = set(Terms.read(one.agreement.terms).participants) - {INITIATOR} - one.acknowledged
            agreement = one.agreement
            self.wire += [Message(INITIATOR, name, "agreement", agreement.terms, agreement) for name in sorted(waiting)]
        for participant in self.participants.values():
            for whom, about in participant.questions(self.now_ms):
                self.wire.append(Message(participant.name, whom, "status", about))

    def settle(self) -> None:
        """Let the network be good from here on, until nothing more can happen before the terms expire."""
        while self.now_ms < EXPIRES_MS - 1:
            waiting, self.wire = self.wire, []
            for message in waiting:
                self.deliver(message)
            if not self.wire:
                self.advance(min(1_000 if self.now_ms < 2 * ENDS_MS else 60_000, EXPIRES_MS - 1 - self.now_ms))

    # -- what must hold --------------------------------------------------------------------------------------------

    def held(self) -> list[tuple[str, Agreement]]:
        """Who believes in which agreement."""
        own = [(INITIATOR, self.initiator.agreement)] if self.initiator.agreement is not None else []
        return own + [(name, one) for name, who in self.participants.items() for one in who.disk.agreements.values()]

    def check(self) -> None:
        """No two parties believe different terms of one id, and nobody is bound to what it did not sign."""
        believed: dict[str, bytes] = {}
        for _, agreement in self.held():
            terms = agreement.verify()
            assert believed.setdefault(terms.id, agreement.terms) == agreement.terms, "two agreements of one id"
            for name in terms.participants:
                if name != INITIATOR:
                    participant = self.participants[name]
                    assert participant.disk.promises[terms.id].digest == agreement.terms, (
                        "bound to what it did not sign"
                    )
                    assert terms.strictness >= participant.floors[agreement.terms], "below somebody's floor"
        assert len({agreement.terms for _, agreement in self.held()}) <= 1, "an honest initiator concludes once"

    def check_end(self) -> None:
        """It has ended, and who signed what was concluded knows it."""
        one = self.initiator
        assert one.agreement is not None or one.failed, "it goes on for ever"
        for name, participant in self.participants.items():
            for promise in participant.disk.promises.values():
                if one.agreement is not None and promise.digest == one.agreement.terms:
                    assert promise.stage is Stage.CONCLUDED, f"{name} has signed and does not know"
                    assert one.agreement.terms in participant.disk.agreements
                else:
                    assert promise.stage is Stage.RELEASED, f"{name} waits for what was given up"
