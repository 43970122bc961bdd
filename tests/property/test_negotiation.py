"""Whatever is lost, repeated or late: nobody is ever bound to bytes that it did not sign."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from comity_node.protocol.negotiation import (
    Accepted,
    Concluded,
    Countered,
    Event,
    Failed,
    Negotiation,
    Phase,
    Propose,
    Rejected,
)

ORGANIZATIONS = ("a.example", "b.example", "c.example", "d.example")


def revise(terms: bytes, counters: Sequence[bytes], stay: tuple[str, ...]) -> bytes:
    """Terms are 'revision:strictness:participants'; the strictest counter wins."""
    revision, strictness, _ = terms.decode().split(":")
    strictest = max([int(strictness), *(int(counter.decode().split(":")[1]) for counter in counters)])
    return f"{int(revision) + 1}:{strictest}:{','.join(stay)}".encode()


class Responder:
    """Accepts what is at least as strict as its own floor, else counters; signs only what it saw."""

    def __init__(self, name: str, floor: int, takes_part: bool) -> None:
        self.name, self.floor, self.takes_part = name, floor, takes_part
        self.signed: set[bytes] = set()

    def answer(self, terms: bytes) -> Accepted | Countered | Rejected:
        if not self.takes_part:
            return Rejected("not interested")
        revision, strictness, who = terms.decode().split(":")
        if int(strictness) < self.floor:
            return Countered(f"{revision}:{self.floor}:{who}".encode())
        self.signed.add(terms)
        return Accepted(b"signed by " + self.name.encode() + terms, ())


def drive(negotiation: Negotiation, responders: dict[str, Responder], plan: st.DataObject) -> Event:
    """Run to the end, with the network deciding what is lost, repeated or delayed."""
    now = 0
    late: list[tuple[str, bytes, Accepted | Countered | Rejected]] = []
    pending = negotiation.start(now)
    while True:
        last = pending[-1]
        if not isinstance(last, Propose):
            return last
        flight = [(name, last.terms, responders[name].answer(last.terms)) for name in last.to] + late
        late = [flight[index] for index in plan.draw(st.lists(st.integers(0, len(flight) - 1), max_size=3))]
        order = plan.draw(st.permutations(flight))
        pending = []
        for name, about, answer in order:
            fate = plan.draw(st.sampled_from(["once", "once", "once", "twice", "lost"]))
            for _ in range({"once": 1, "twice": 2, "lost": 0}[fate]):
                pending += negotiation.receive(name, about, answer, now)
        now = negotiation.deadline_ms
        pending = pending or negotiation.tick(now)


@given(
    floors=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    willing=st.lists(st.booleans(), min_size=4, max_size=4),
    minimum=st.integers(1, 4),
    plan=st.data(),
)
def test_no_interleaving_binds_anyone_to_terms_it_did_not_sign(
    floors: list[int], willing: list[bool], minimum: int, plan: st.DataObject
) -> None:
    responders = {
        name: Responder(name, floor, takes) for name, floor, takes in zip(ORGANIZATIONS, floors, willing, strict=True)
    }
    negotiation = Negotiation(b"0:1:" + ",".join(ORGANIZATIONS).encode(), ORGANIZATIONS, minimum, revise)
    end = drive(negotiation, responders, plan)
    if isinstance(end, Concluded):
        assert negotiation.phase is Phase.CONCLUDED
        _, strictness, who = end.terms.decode().split(":")
        assert len(end.signatures) >= minimum
        assert set(who.split(",")) == set(end.signatures)
        for name in end.signatures:
            assert end.terms in responders[name].signed
            assert int(strictness) >= responders[name].floor
    else:
        assert isinstance(end, Failed)
        assert negotiation.phase is Phase.FAILED


def test_a_counter_is_merged_and_signed_by_all() -> None:
    responders = {name: Responder(name, floor, True) for name, floor in zip(ORGANIZATIONS, (0, 1, 4, 2), strict=True)}
    negotiation = Negotiation(b"0:1:x", ORGANIZATIONS, 4, revise)
    events = negotiation.start(0)
    rounds = 0
    while isinstance(events[-1], Propose):
        rounds += 1
        proposal = events[-1]
        events = []
        for name in proposal.to:
            events += negotiation.receive(name, proposal.terms, responders[name].answer(proposal.terms), 0)
    assert isinstance(events[-1], Concluded)
    assert rounds == 2
    assert events[-1].terms.startswith(b"1:4:")


def test_silence_ends_in_failure_when_too_few_stay() -> None:
    negotiation = Negotiation(b"0:1:x", ORGANIZATIONS, 2, revise, round_ms=1000)
    negotiation.start(0)
    assert negotiation.tick(999) == []
    (end,) = negotiation.tick(1000)
    assert isinstance(end, Failed)
    assert "no answer in time" in end.reason


def test_counters_without_end_fail() -> None:
    negotiation = Negotiation(b"0:0:x", ("a.example",), 1, revise, max_rounds=3)
    events = negotiation.start(0)
    step = 0
    while isinstance(events[-1], Propose):
        step += 1
        counter = f"{step}:{step + 10}:x".encode()
        events = negotiation.receive("a.example", events[-1].terms, Countered(counter), 0)
    assert isinstance(events[-1], Failed)
    assert step == 3
