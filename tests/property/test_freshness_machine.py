"""S5 under everything that can happen to a node: replays, reordering, clocks that jump, and restarts at any moment.

A message counts as *acted on* when it was admitted and the high-water mark was on disk, which is when the node does
something about it. A crash between the two forgets the admission, and nothing was done.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from comity.envelope import Header
from comity.errors import EnvelopeError, ReplayedMessage, ReplayTableFull, StaleMessage, WrongAudience
from comity_node.protocol.freshness import Freshness, FreshnessLimits, MessageIds

ME = "12D3KooWMe"
LIMITS = FreshnessLimits(window=16, epochs_per_signer=3, epochs_per_group=4, epochs=5)
#: The first two are of one organization.
SIGNERS = [bytes([number]) * 32 for number in range(3)]
GROUPS = dict(zip(SIGNERS, ("a.example", "a.example", "b.example"), strict=True))
START = 1_750_000_000_000
LAST = 2**64 - 1

Sent = tuple[bytes, Header]
Epoch = tuple[bytes, bytes]

# Around the limits, where the mistakes are, and anywhere.
signers = st.sampled_from(SIGNERS)
lifetimes = st.one_of(st.sampled_from([1, 1000, 5000, 60_000, LIMITS.lifetime_ms]), st.integers(1, LIMITS.lifetime_ms))
steps = st.one_of(
    st.sampled_from([1, 1000, LIMITS.skew_ms, 31_001, 91_001, 400_000]), st.integers(1, 5000), st.integers(1, 10**8)
)
#: Of a new counter to the highest that was sent in its epoch.
gaps = st.one_of(st.just(1), st.integers(1, 2 * LIMITS.window + 16), st.integers(1, 10**6))
behinds = st.integers(0, LIMITS.window - 1)


def epoch_of(sent: Sent) -> Epoch:
    return sent[0], sent[1].id[:8]


class Machine(RuleBasedStateMachine):
    """A node, its clock and its disk; those who send to it; and everything that was ever sent."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.disk = 0
        self.node = Freshness(ME, limits=LIMITS)
        self.sent: dict[tuple[bytes, bytes], Sent] = {}
        #: The senders' own: number of the epoch that each is in, and the highest counter of each epoch.
        self.epochs = dict.fromkeys(SIGNERS, 0)
        self.highest: dict[Epoch, int] = {}
        self.acted: set[Sent] = set()
        #: Admitted since the start of this run of the node.
        self.admitted: set[Sent] = set()
        self.latest = START
        self.started_with = 0

    def message(self, signer: bytes, counter: int, issued: int, lifetime: int, *, epochs_back: int = 0) -> Sent:
        """A message with a new id; if the id was used before, the message that it was used for."""
        epoch = max(0, self.epochs[signer] - epochs_back).to_bytes(8, "big")
        counter = min(max(counter, 0), LAST)
        header = Header(ME, epoch + counter.to_bytes(8, "big"), issued, issued + lifetime)
        self.highest[signer, epoch] = max(self.highest.get((signer, epoch), 0), counter)
        return self.sent.setdefault((signer, header.id), (signer, header))

    def top(self, signer: bytes, epochs_back: int = 0) -> int:
        return self.highest.get((signer, max(0, self.epochs[signer] - epochs_back).to_bytes(8, "big")), 0)

    def deliver(self, sent: Sent, *, crash: bool) -> bool:
        """Hand a message to the node, as the gate does; return whether it was admitted."""
        signer, header = sent
        try:
            self.node.check(signer, header, self.now, GROUPS[signer])
        except EnvelopeError:
            return False
        assert sent not in self.acted, "admitted again after it was acted on"
        assert sent not in self.admitted, "admitted twice in one run"
        self.admitted.add(sent)
        if crash:
            self.restart()
            return True
        self.disk = max(self.disk, self.node.high_water_ms())
        self.acted.add(sent)
        return True

    @rule(
        signer=signers,
        offset=st.integers(-400_000, 40_000),
        lifetime=st.integers(-1, LIMITS.lifetime_ms + 2),
        ahead=st.one_of(st.integers(-40, 40), st.sampled_from([-LAST, LAST])),
        epochs_back=st.integers(0, 5),
        crash=st.booleans(),
    )
    def send_anything(
        self, signer: bytes, offset: int, lifetime: int, ahead: int, epochs_back: int, crash: bool
    ) -> None:
        counter = self.top(signer, epochs_back) + ahead
        sent = self.message(signer, counter, self.now + offset, lifetime, epochs_back=epochs_back)
        header = sent[1]
        admitted = self.deliver(sent, crash=crash)
        fits = (
            0 < header.expires_ms - header.issued_ms <= LIMITS.lifetime_ms
            and header.issued_ms <= self.now + LIMITS.skew_ms
            and header.expires_ms + LIMITS.skew_ms >= self.now
        )
        assert fits or not admitted, "admitted out of its time"

    @rule(
        signer=signers,
        lifetime=lifetimes,
        ahead=st.integers(0, 30_000),
        late=st.booleans(),
        gap=gaps,
        anew=st.booleans(),
    )
    def send_fresh(self, signer: bytes, lifetime: int, ahead: int, late: bool, gap: int, anew: bool = False) -> None:
        """What is new and in time is admitted, unless the table is full, the node restarted, or its clock went back."""
        self.epochs[signer] += anew
        if self.top(signer) + gap <= LAST:
            self.must_pass(signer, self.top(signer) + gap, lifetime, ahead, late)

    @rule(signer=signers, lifetime=lifetimes, ahead=st.integers(0, 30_000), late=st.booleans(), behind=behinds)
    def send_overtaken(self, signer: bytes, lifetime: int, ahead: int, late: bool, behind: int) -> None:
        """So is what fewer others have overtaken than the window has places."""
        counter = self.top(signer) - behind
        identity = self.epochs[signer].to_bytes(8, "big") + max(counter, 0).to_bytes(8, "big")
        if counter >= 0 and (signer, identity) not in self.sent:
            self.must_pass(signer, counter, lifetime, ahead, late)

    def must_pass(self, signer: bytes, counter: int, lifetime: int, ahead: int, late: bool) -> None:
        issued = self.now - lifetime - LIMITS.skew_ms + ahead if late else self.now + LIMITS.skew_ms - ahead
        sent = self.message(signer, counter, issued, lifetime)
        clock_ran_on = self.now == self.latest
        if self.deliver(sent, crash=False) or not clock_ran_on or issued <= self.started_with:
            return
        with pytest.raises(ReplayTableFull):
            self.node.check(signer, sent[1], self.now, GROUPS[signer])
        # Nothing is kept longer than its time, so a table is only full of epochs that could still be replayed.
        live = {epoch_of(one) for one in self.admitted if one[1].expires_ms + LIMITS.skew_ms + 2000 >= self.now}
        assert epoch_of(sent) not in live
        of_group = [one for one in live if GROUPS[one[0]] == GROUPS[signer]]
        of_signer = [one for one in live if one[0] == signer]
        assert (
            len(live) >= LIMITS.epochs
            or len(of_group) >= LIMITS.epochs_per_group
            or len(of_signer) >= LIMITS.epochs_per_signer
        )

    @rule(signer=signers, lifetime=lifetimes, times=st.integers(1, 4))
    def sender_restarts_again_and_again(self, signer: bytes, lifetime: int, times: int) -> None:
        """Each time it sends something: the table fills up, and evicts nothing."""
        for _ in range(times):
            self.send_fresh(signer, lifetime, 0, late=False, gap=1, anew=True)

    @rule(signer=signers, lifetime=lifetimes, beside=st.integers(-1, 1))
    def send_at_the_mark(self, signer: bytes, lifetime: int, beside: int) -> None:
        """The floor after the next restart, to the millisecond."""
        issued = self.node.high_water_ms() + beside
        self.deliver(self.message(signer, self.top(signer) + 1, issued, lifetime), crash=False)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), crash=st.booleans())
    def replay(self, data: st.DataObject, crash: bool) -> None:
        self.deliver(data.draw(st.sampled_from(list(self.sent.values()))), crash=crash)

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def replay_what_was_admitted(self, data: st.DataObject) -> None:
        signer, header = data.draw(st.sampled_from(sorted(self.admitted, key=repr)))
        with pytest.raises((ReplayedMessage, StaleMessage)):
            self.node.check(signer, header, self.now, GROUPS[signer])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_to_somebody_else(self, data: st.DataObject) -> None:
        signer, header = data.draw(st.sampled_from(list(self.sent.values())))
        with pytest.raises(WrongAudience):
            self.node.check(signer, Header("other", header.id, header.issued_ms, header.expires_ms), self.now)

    @precondition(lambda self: self.acted)
    @rule(data=st.data(), past=st.integers(0, 3000), signer=signers)
    def replay_after_a_jump_of_the_clock(self, data: st.DataObject, past: int, signer: bytes) -> None:
        """The clock goes past a message's time, the node sweeps its table, and the clock comes back."""
        old = data.draw(st.sampled_from(sorted(self.acted, key=repr)))
        before = self.now
        self.clock_runs(max(0, old[1].expires_ms + LIMITS.skew_ms + past - self.now))
        self.send_fresh(signer, 1000, 0, late=False, gap=1)
        self.now = before
        self.deliver(old, crash=False)

    @rule(step=steps)
    def clock_runs(self, step: int) -> None:
        self.now += step
        self.latest = max(self.latest, self.now)

    @rule()
    def clock_is_put_right(self) -> None:
        self.now = self.latest

    @rule(step=steps)
    def clock_is_set_back(self, step: int) -> None:
        self.now -= step

    @rule()
    def restart(self) -> None:
        """kill -9: all but the disk is gone."""
        self.node = Freshness(ME, high_water_ms=self.disk, limits=LIMITS)
        self.started_with = self.disk
        self.admitted = set()
        self.latest = self.now

    @invariant()
    def nothing_that_was_acted_on_passes(self) -> None:
        """Whatever happened since, in this run of the node or before."""
        for signer, header in sorted(self.acted, key=repr):
            with pytest.raises((ReplayedMessage, StaleMessage)):
                self.node.check(signer, header, self.now, GROUPS[signer])

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.node) <= LIMITS.epochs
        live = {epoch_of(one) for one in self.admitted if one[1].expires_ms + LIMITS.skew_ms >= self.latest}
        for signer in SIGNERS:
            assert sum(one[0] == signer for one in live) <= LIMITS.epochs_per_signer
            assert sum(GROUPS[one[0]] == GROUPS[signer] for one in live) <= LIMITS.epochs_per_group

    @invariant()
    def the_mark_covers_what_was_admitted(self) -> None:
        assert all(header.issued_ms <= self.node.high_water_ms() for _, header in self.admitted)


TestFreshness = pytest.mark.invariant("S5")(Machine.TestCase)
TestFreshness.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def at_counter(counter: int) -> Header:
    return Header(ME, bytes(8) + counter.to_bytes(8, "big"), START, START + 1000)


@pytest.mark.invariant("S5")
@given(
    st.sampled_from([8, 16, 24]),
    st.sampled_from([0, 5, 2**32 - 9, LAST - 999]),
    st.sampled_from([0, 1, 8, 30]),
    st.lists(st.integers(0, 72), max_size=25),
)
def test_a_window_is_a_set_that_forgets_what_is_below_it(size: int, base: int, drift: int, places: list[int]) -> None:
    """The ring of bits and a plain set say the same to every counter, wherever the window goes."""
    node = Freshness(ME, limits=FreshnessLimits(window=size))
    seen: set[int] = set()
    for number, place in enumerate(places):
        counter = min(base + number * drift + place, LAST)
        if counter not in seen and not (seen and counter <= max(seen) - size):
            node.check(SIGNERS[0], at_counter(counter), START)
            seen.add(counter)
        for each in range(max(0, max(seen) - size - 20), min(max(seen) + 40, LAST + 1)):
            if each <= max(seen) - size:
                with pytest.raises(StaleMessage, match="overtaken"):
                    node.check(SIGNERS[0], at_counter(each), START)
            elif each in seen:
                with pytest.raises(ReplayedMessage):
                    node.check(SIGNERS[0], at_counter(each), START)
            else:
                deepcopy(node).check(SIGNERS[0], at_counter(each), START)


@given(st.lists(st.sampled_from("abcdefg"), max_size=60), st.integers(1, 8))
def test_no_id_is_made_twice_and_each_recipient_s_count_up(audiences: list[str], remembered: int) -> None:
    epochs = iter(range(10_000))
    ids = MessageIds(lambda count: next(epochs).to_bytes(count, "big"), audiences=remembered)
    made: dict[str, list[bytes]] = {}
    for audience in audiences:
        made.setdefault(audience, []).append(ids.next(audience))
    everything = [one for each in made.values() for one in each]
    assert len(set(everything)) == len(audiences)
    for each in made.values():
        if remembered >= 7:
            assert [one[:8] for one in each] == [each[0][:8]] * len(each)
            assert [int.from_bytes(one[8:], "big") for one in each] == list(range(len(each)))
