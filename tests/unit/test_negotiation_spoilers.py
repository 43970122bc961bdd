"""One participant that spoils: it costs the others time, never their agreement."""

from __future__ import annotations

import pytest

from comity.agreement import parse_terms
from comity.v1.agreement_pb2 import Obligations
from comity_node.protocol.negotiation import (
    Ask,
    Concluded,
    Countered,
    Dropped,
    Event,
    Negotiation,
    Patience,
    Phase,
    Ready,
    Signed,
    Waiting,
)
from comity_node.runtime import bargain
from kit.consortium import consortium, names
from kit.documents import make_terms
from kit.negotiating import INITIATOR, Terms, revise, signature

NAMES = ("a.example", "b.example", "c.example")
SPOILER, *OTHERS = NAMES


def machine(ends_ms: int = 300_000, minimum: int = 1, **patience: int) -> Negotiation:
    first = Terms("w", 0, 1, (INITIATOR, *NAMES)).write()
    return Negotiation(first, NAMES, minimum, revise, ends_ms, Patience(**patience))


def ready(negotiation: Negotiation, *who: str, now_ms: int = 0) -> list[Event]:
    events: list[Event] = []
    for name in who:
        events += negotiation.receive(name, negotiation.terms, Ready(), now_ms)
    return events


def sign(negotiation: Negotiation, *who: str, now_ms: int = 0) -> list[Event]:
    events: list[Event] = []
    for name in who:
        signed = Signed(signature(name, negotiation.terms), ())
        events += negotiation.receive(name, negotiation.terms, signed, now_ms)
    return events


@pytest.mark.invariant("R3")
def test_one_that_counters_without_end_is_left_out_and_the_others_go_on() -> None:
    negotiation = machine(max_rounds=4)
    negotiation.start(0)
    events: list[Event] = []
    for asked in range(4):
        ready(negotiation, *OTHERS)
        counter = Terms("w", asked, asked + 2, (INITIATOR, *NAMES)).write()
        events = list(negotiation.receive(SPOILER, negotiation.terms, Countered(counter), 0))
    assert events[0] == Dropped(SPOILER, "asks for other terms still, after 4 rounds")
    assert Terms.read(negotiation.terms).participants == (INITIATOR, *OTHERS)
    ready(negotiation, *OTHERS)
    (end,) = sign(negotiation, *OTHERS)
    assert isinstance(end, Concluded)


@pytest.mark.invariant("R3")
def test_one_that_waits_for_a_person_without_end_is_left_out_while_there_is_time_for_the_others() -> None:
    negotiation = machine(ends_ms=86_400_000)
    negotiation.start(0)
    ready(negotiation, *OTHERS)
    now_ms, events = 0, list[Event]()
    while not events or isinstance(events[0], Ask):
        negotiation.receive(SPOILER, negotiation.terms, Waiting(until_ms=10**15), now_ms)
        now_ms = negotiation.next_ms
        events = negotiation.tick(now_ms)
    assert events[0] == Dropped(SPOILER, "nobody has approved it in time")
    assert now_ms > 86_000_000, "it has had nearly all of the time"
    assert Terms.read(negotiation.terms).participants == (INITIATOR, *OTHERS)
    now_ms += 20_000
    ready(negotiation, *OTHERS, now_ms=now_ms)
    assert negotiation.phase is Phase.SIGNING
    (end,) = sign(negotiation, *OTHERS, now_ms=now_ms + 60_000)
    assert isinstance(end, Concluded)


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("length", [8, 20_000])
def test_a_counter_that_makes_terms_nobody_can_take_is_not_taken_in(length: int) -> None:
    """Each by itself is sound; together they have more fields than terms may, or fill more than a message holds."""
    terms = make_terms(consortium(*names(4)), obligations=Obligations(onward="never", redact=["name"]))
    count = 256 if length == 8 else 200
    counter = type(terms).FromString(terms.SerializeToString())
    counter.obligations.ClearField("redact")
    counter.obligations.redact.extend(["name", *(f"{number:0{length}}" for number in range(count - 1))])
    parse_terms(counter.SerializeToString())
    other = type(terms).FromString(terms.SerializeToString())
    other.obligations.redact.append("address")
    _, first, second, third = terms.participants
    counters = {first: other.SerializeToString(), second: counter.SerializeToString()}
    revision = bargain.revise(terms.SerializeToString(), counters, (first, second, third), bargain.Bounds(), "")
    assert set(revision.out) == {second}
    assert list(parse_terms(revision.terms).terms.obligations.redact) == ["address", "name"]
