"""Whatever is lost, repeated, late or restarted: nobody is bound to what it did not sign, and all believe the same."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comity.errors import AgreementError
from comity_node.protocol import negotiation_promise as promises
from comity_node.protocol.negotiation import (
    Ask,
    Concluded,
    Countered,
    Dropped,
    Failed,
    Negotiation,
    Patience,
    Phase,
    Ready,
    Rejected,
    Signed,
    Unheard,
    Waiting,
)
from comity_node.protocol.negotiation_promise import Stage
from kit.negotiating import (
    ENDS_MS,
    INITIATOR,
    MOST,
    Agreement,
    Participant,
    Terms,
    World,
    revise,
    signature,
)

NAMES = ("a.example", "b.example", "c.example")
MOODS = ("yes", "yes", "yes", "ask", "no")


class Storm(RuleBasedStateMachine):
    """A negotiation in bad weather: the network and the parties do whatever they like."""

    world: World

    @initialize(
        floors=st.lists(st.integers(0, MOST + 2), min_size=3, max_size=3),
        moods=st.lists(st.sampled_from(MOODS), min_size=3, max_size=3),
        minimum=st.integers(1, 3),
    )
    def begin(self, floors: list[int], moods: list[str], minimum: int) -> None:
        people = zip(NAMES, floors, moods, strict=True)
        self.world = World({name: Participant(name, floor, mood) for name, floor, mood in people}, minimum)

    @precondition(lambda self: self.world.wire)
    @rule(place=st.integers(0, 1000), again=st.booleans(), crash=st.sampled_from([False, False, False, True]))
    def deliver(self, place: int, again: bool, crash: bool) -> None:
        wire = self.world.wire
        message = wire[place % len(wire)] if again else wire.pop(place % len(wire))
        self.world.deliver(message, crash=crash)

    @precondition(lambda self: self.world.wire)
    @rule(count=st.integers(1, 30))
    def deliver_some(self, count: int) -> None:
        for _ in range(min(count, len(self.world.wire))):
            self.world.deliver(self.world.wire.pop(0))

    @precondition(lambda self: self.world.wire)
    @rule(place=st.integers(0, 1000))
    def lose(self, place: int) -> None:
        self.world.wire.pop(place % len(self.world.wire))

    @rule(milliseconds=st.sampled_from([1, 400, 600, 5_000, 21_000, 31_000, 61_000]))
    def wait(self, milliseconds: int) -> None:
        self.world.advance(milliseconds)

    @rule()
    def crash_initiator(self) -> None:
        self.world.crash_initiator()

    @rule(name=st.sampled_from(NAMES), floor=st.integers(0, MOST + 2), mood=st.sampled_from(MOODS))
    def think_again(self, name: str, floor: int, mood: str) -> None:
        self.world.participants[name].floor, self.world.participants[name].mood = floor, mood

    @invariant()
    def nobody_differs(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            del self.world.wire[200:]  # so much is on its way at a time; the rest is lost

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()
            self.world.check()
            self.world.check_end()


TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStorm = pytest.mark.invariant("R2")(TestStorm)


@pytest.mark.invariant("R1")
@given(minimum=st.integers(1, 3), at=st.integers(0, 60), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_whoever_dies_at_whatever_step_the_negotiation_comes_to_the_same_end(minimum: int, at: int, seed: int) -> None:
    """A kill between any two steps: before what was done is written down, or after it and before the answer leaves."""
    floors = ((0, 0, 0), (0, 3, 0), (2, 0, 5), (0, 0, 0))[seed]
    world = World({name: Participant(name, floor) for name, floor in zip(NAMES, floors, strict=True)}, minimum)
    for step in range(60):
        if not world.wire:
            world.advance(600)
            continue
        message = world.wire.pop(0)
        world.deliver(message, crash=step == at)
        if step == at + 1 and world.wire:
            world.wire.pop()  # what it would have said is lost with it
        world.check()
    world.settle()
    world.check()
    world.check_end()
    assert world.initiator.agreement is not None, world.initiator.failed


LIAR_TERMS = [
    Terms(key, revision, 1, (INITIATOR, *others)).write()
    for key in ("w", "w'")
    for revision in (0, 1)
    for size in (1, 2, 3)
    for others in combinations(NAMES, size)
]


@pytest.mark.invariant("S1")
@pytest.mark.invariant("S9")
@given(
    asks=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(LIAR_TERMS)), max_size=40),
    gives=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(LIAR_TERMS)), max_size=40),
)
@settings(max_examples=300, deadline=None)
def test_a_lying_initiator_cannot_have_two_agreements_of_one_id_with_an_honest_party_in_both(
    asks: list[tuple[str, bytes]], gives: list[tuple[str, bytes]]
) -> None:
    """It asks whom it likes to sign what it likes, says that it gave up, and gives whom it likes what it holds."""
    honest = {name: Participant(name) for name in NAMES}
    held: dict[bytes, dict[str, bytes]] = {}
    for name, terms in asks:
        if name not in Terms.read(terms).participants:
            continue
        answer = honest[name].answer(terms, True, 0)
        if isinstance(answer, Signed):
            held.setdefault(terms, {INITIATOR: signature(INITIATOR, terms)})[name] = answer.envelope
        else:
            assert isinstance(answer, Rejected)
            assert "signed already" in answer.reason
        honest[name].hear(honest[name].disk.promises[Terms.read(terms).id].digest, "void", INITIATOR)
    complete = {terms for terms, signed in held.items() if set(signed) == set(Terms.read(terms).participants)}
    for one, other in combinations(complete, 2):
        if Terms.read(one).id == Terms.read(other).id:
            shared = set(Terms.read(one).participants) & set(Terms.read(other).participants)
            assert shared == {INITIATOR}, "two agreements of one id have an honest party in common"
    for name, terms in gives:
        if terms in complete and name in Terms.read(terms).participants:
            honest[name].take(Agreement(terms, held[terms]))
            assert honest[name].disk.promises[Terms.read(terms).id].stage is Stage.CONCLUDED
    for participant in honest.values():
        ids = [Terms.read(terms).id for terms in participant.disk.agreements]
        assert len(ids) == len(set(ids)), "one party holds two agreements of one id"


def test_a_signature_that_was_made_elsewhere_is_seen_and_refused() -> None:
    """Somebody had the organization's key sign other terms of an id: the agreement contradicts the own promise."""
    one = Participant("a.example")
    first, second = (Terms("w", number, 1, (INITIATOR, "a.example")).write() for number in (0, 1))
    assert isinstance(one.answer(first, True, 0), Signed)
    forged = Agreement(second, {name: signature(name, second) for name in (INITIATOR, "a.example")})
    with pytest.raises(AgreementError, match="other terms than this node has signed"):
        one.take(forged)
    assert not one.disk.agreements


# -- the initiator's machine by itself ---------------------------------------------------------------------------------


def machine(*others: str, minimum: int = 1, ends_ms: int = ENDS_MS, **patience: int) -> Negotiation:
    first = Terms("w", 0, 1, (INITIATOR, *others)).write()
    return Negotiation(first, others, minimum, revise, ends_ms, Patience(**patience))


def answer_all(negotiation: Negotiation, answers: dict[str, object], now_ms: int = 0) -> list[object]:
    events: list[object] = []
    for name, answer in answers.items():
        events += negotiation.receive(name, negotiation.terms, answer, now_ms)  # type: ignore[arg-type]
    return events


def signatures(negotiation: Negotiation) -> dict[str, object]:
    return {name: Signed(signature(name, negotiation.terms), ()) for name in negotiation.participants}


def test_nobody_is_asked_to_sign_before_all_are_ready() -> None:
    negotiation = machine(*NAMES)
    assert all(isinstance(event, Ask) and not event.sign for event in negotiation.start(0))
    assert answer_all(negotiation, {NAMES[0]: Ready(), NAMES[1]: Ready()}) == []
    events = answer_all(negotiation, {NAMES[2]: Ready()})
    assert negotiation.phase is Phase.SIGNING
    assert all(isinstance(event, Ask) and event.sign for event in events)
    (end,) = answer_all(negotiation, signatures(negotiation))
    assert isinstance(end, Concluded)
    assert set(end.signatures) == set(NAMES)


def test_a_counter_is_merged_and_put_to_all_again() -> None:
    negotiation = machine(*NAMES)
    negotiation.start(0)
    wanted = Terms("w", 0, 4, (INITIATOR, *NAMES)).write()
    events = answer_all(negotiation, {NAMES[0]: Ready(), NAMES[1]: Countered(wanted), NAMES[2]: Ready()})
    assert [event.organization for event in events if isinstance(event, Ask)] == list(NAMES)
    assert Terms.read(negotiation.terms) == Terms("w", 1, 4, (INITIATOR, *NAMES))


def test_who_asks_for_more_than_can_be_borne_is_left_out_and_the_others_go_on() -> None:
    negotiation = machine(*NAMES)
    negotiation.start(0)
    impossible = Terms("w", 0, MOST + 1, (INITIATOR, *NAMES)).write()
    wanted = Terms("w", 0, 3, (INITIATOR, *NAMES)).write()
    events = answer_all(negotiation, {NAMES[0]: Countered(wanted), NAMES[1]: Countered(impossible), NAMES[2]: Ready()})
    assert events[0] == Dropped(NAMES[1], "too strict")
    assert Terms.read(negotiation.terms) == Terms("w", 1, 3, (INITIATOR, NAMES[0], NAMES[2]))


def test_a_no_while_signatures_are_collected_uses_the_id_up() -> None:
    negotiation = machine(*NAMES)
    negotiation.start(0)
    answer_all(negotiation, {name: Ready() for name in NAMES})
    answers = signatures(negotiation)
    answer_all(negotiation, {**answers, NAMES[1]: Rejected("changed its mind")})
    assert negotiation.phase is Phase.PROPOSING
    assert Terms.read(negotiation.terms) == Terms("w'", 1, 1, (INITIATOR, NAMES[0], NAMES[2]))


def test_late_repeated_and_unasked_answers_change_nothing() -> None:
    negotiation = machine(*NAMES)
    negotiation.start(0)
    first = negotiation.terms
    signed = Signed(b"", ())
    assert answer_all(negotiation, {"zoe.example": Rejected("no")}) == []
    assert answer_all(negotiation, dict.fromkeys(NAMES, signed)) == []
    answer_all(negotiation, {name: Ready() for name in NAMES})
    assert answer_all(negotiation, {name: Ready() for name in NAMES}) == []
    assert negotiation.receive(NAMES[0], b"other terms", Rejected("no"), 0) == []
    (end,) = answer_all(negotiation, signatures(negotiation))
    assert isinstance(end, Concluded)
    assert negotiation.receive(NAMES[0], first, Rejected("no"), 0) == []
    assert negotiation.tick(10**9) == []


def test_the_silent_are_asked_again_and_left_out_in_time() -> None:
    negotiation = machine(*NAMES, minimum=2, round_ms=1_000, first_retry_ms=100, most_retry_ms=300)
    negotiation.start(0)
    answer_all(negotiation, {NAMES[0]: Ready(), NAMES[1]: Ready(), NAMES[2]: Unheard("no link")})
    assert negotiation.next_ms == 200
    assert negotiation.tick(199) == []
    assert negotiation.tick(200) == [Ask(NAMES[2], negotiation.terms, False)]
    assert negotiation.next_ms == 500
    events = negotiation.tick(1_000)
    assert events[0] == Dropped(NAMES[2], "no answer in time: no link")
    assert Terms.read(negotiation.terms).participants == (INITIATOR, *NAMES[:2])


def test_who_waits_for_a_person_has_until_then_and_no_longer_than_the_negotiation() -> None:
    negotiation = machine(*NAMES[:1], ends_ms=50_000, round_ms=1_000, most_retry_ms=5_000)
    negotiation.start(0)
    negotiation.receive(NAMES[0], negotiation.terms, Waiting(until_ms=10**9), 0)
    assert all(isinstance(event, Ask) for event in negotiation.tick(49_999))
    assert not negotiation.over
    events = negotiation.tick(50_000)
    assert isinstance(events[-1], Failed)
    assert "nobody has approved it in time" in events[-1].reason


def test_silence_ends_in_failure_when_too_few_stay() -> None:
    negotiation = machine(*NAMES, minimum=2, round_ms=1_000)
    negotiation.start(0)
    negotiation.receive(NAMES[0], negotiation.terms, Ready(), 0)
    *_, end = negotiation.tick(1_000)
    assert isinstance(end, Failed)
    assert "no answer in time" in end.reason


def test_a_negotiation_whose_time_went_by_while_its_node_was_down_fails_without_asking_for_long() -> None:
    negotiation = machine(*NAMES)
    negotiation.start(0)
    again = machine(*NAMES)
    again.resume(negotiation.snapshot, ENDS_MS)
    assert again.next_ms == ENDS_MS
    *_, end = again.tick(ENDS_MS)
    assert isinstance(end, Failed)
    late = machine(*NAMES)
    (refused,) = late.start(ENDS_MS)
    assert refused == Failed("no agreement in time")


def test_counters_without_end_fail() -> None:
    negotiation = machine(NAMES[0], max_rounds=3)
    events: list[object] = [*negotiation.start(0)]
    asked = 0
    while isinstance(events[-1], Ask):
        asked += 1
        counter = Terms("w", asked, min(asked + 1, MOST), (INITIATOR, NAMES[0])).write()
        events = answer_all(negotiation, {NAMES[0]: Countered(counter)})
    assert isinstance(events[-1], Failed)
    assert asked == 3


# -- a participant's promise by itself ---------------------------------------------------------------------------------


def test_one_set_of_terms_for_an_id_whatever_the_initiator_says() -> None:
    promise = promises.sign(None, b"r", 1_000_000, 0)
    assert promises.sign(promise, b"r", 1_000_000, 5) == promise
    with pytest.raises(AgreementError, match="fresh id"):
        promises.sign(promise, b"r+1", 1_000_000, 5)
    released = promises.given_up(promise)
    assert released.stage is Stage.RELEASED
    with pytest.raises(AgreementError, match="fresh id"):
        promises.sign(released, b"r+1", 1_000_000, 5)
    done = promises.concluded(released, b"r")
    assert done is not None
    assert done.stage is Stage.CONCLUDED
    assert promises.given_up(done) == done


def test_who_waits_asks_the_initiator_and_the_others_in_turn_ever_more_seldom() -> None:
    promise, now_ms, asked, pauses = promises.sign(None, b"r", 10**9, 0), 0, [], []
    for _ in range(12):
        assert not promise.is_due(promise.ask_ms - 1)
        pauses.append(promise.ask_ms - now_ms)
        now_ms = promise.ask_ms
        assert promise.is_due(now_ms)
        asked.append(promise.whom(INITIATOR, NAMES[1:]))
        promise = promises.asked(promise, now_ms)
    assert asked[:6] == [INITIATOR, NAMES[1], INITIATOR, NAMES[2], INITIATOR, NAMES[1]]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 3_600_000
    assert promises.given_up(promise).whom(INITIATOR, NAMES[1:]) in NAMES[1:]
    assert not promise.is_due(10**9)
