"""S5 under everything that can happen to a node: replays, clocks that jump, and restarts at any moment.

A message counts as *acted on* when it was admitted and the high-water mark was on disk, which is when the node does
something about it. A crash between the two forgets the admission, and nothing was done.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from comity.envelope import Header
from comity.errors import EnvelopeError, ReplayedMessage, ReplayTableFull, StaleMessage, WrongAudience
from comity_node.protocol.freshness import Freshness, FreshnessLimits

ME = "12D3KooWMe"
LIMITS = FreshnessLimits(ids_per_signer=6, ids_per_group=8, ids=10)
#: The first two are of one organization.
SIGNERS = [bytes([number]) * 32 for number in range(3)]
GROUPS = dict(zip(SIGNERS, ("a.example", "a.example", "b.example"), strict=True))
START = 1_750_000_000_000

Sent = tuple[bytes, Header]

# Around the limits, where the mistakes are, and anywhere.
lifetimes = st.one_of(st.sampled_from([1, 1000, 5000, 60_000, LIMITS.lifetime_ms]), st.integers(1, LIMITS.lifetime_ms))
steps = st.one_of(
    st.sampled_from([1, 1000, LIMITS.skew_ms, 31_001, 91_001, 400_000]), st.integers(1, 5000), st.integers(1, 10**8)
)


class Machine(RuleBasedStateMachine):
    """A node, its clock and its disk; and everything that was ever sent to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.disk = 0
        self.node = Freshness(ME, limits=LIMITS)
        self.sent: list[Sent] = []
        self.acted: set[Sent] = set()
        #: Admitted since the start of this run of the node.
        self.admitted: set[Sent] = set()
        self.latest = START
        self.started_with = 0

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
        signer=st.sampled_from(SIGNERS),
        offset=st.integers(-400_000, 40_000),
        lifetime=st.integers(-1, LIMITS.lifetime_ms + 2),
        crash=st.booleans(),
    )
    def send_anything(self, signer: bytes, offset: int, lifetime: int, crash: bool) -> None:
        issued = self.now + offset
        header = Header(ME, len(self.sent).to_bytes(16, "big"), issued, issued + lifetime)
        self.sent.append((signer, header))
        admitted = self.deliver((signer, header), crash=crash)
        fits = (
            0 < lifetime <= LIMITS.lifetime_ms
            and offset <= LIMITS.skew_ms
            and header.expires_ms + LIMITS.skew_ms >= self.now
        )
        assert fits or not admitted, "admitted out of its time"

    @rule(signer=st.sampled_from(SIGNERS), lifetime=lifetimes, ahead=st.integers(0, 30_000), late=st.booleans())
    def send_fresh(self, signer: bytes, lifetime: int, ahead: int, late: bool) -> None:
        """What is new and in time is admitted, unless the table is full, the node restarted, or its clock went back."""
        issued = self.now - lifetime - LIMITS.skew_ms + ahead if late else self.now + LIMITS.skew_ms - ahead
        header = Header(ME, len(self.sent).to_bytes(16, "big"), issued, issued + lifetime)
        self.sent.append((signer, header))
        clock_ran_on = self.now == self.latest
        if self.deliver((signer, header), crash=False) or not clock_ran_on or issued <= self.started_with:
            return
        with pytest.raises(ReplayTableFull):
            self.node.check(signer, header, self.now, GROUPS[signer])
        # Nothing is kept longer than its time, so a table is only full of messages that could still be replayed.
        live = [one for one in self.admitted if one[1].expires_ms + LIMITS.skew_ms + 2000 >= self.now]
        of_group = [one for one in live if GROUPS[one[0]] == GROUPS[signer]]
        of_signer = [one for one in live if one[0] == signer]
        assert (
            len(live) >= LIMITS.ids or len(of_group) >= LIMITS.ids_per_group or len(of_signer) >= LIMITS.ids_per_signer
        )

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), crash=st.booleans())
    def replay(self, data: st.DataObject, crash: bool) -> None:
        self.deliver(data.draw(st.sampled_from(self.sent)), crash=crash)

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def replay_what_was_admitted(self, data: st.DataObject) -> None:
        signer, header = data.draw(st.sampled_from(sorted(self.admitted, key=lambda one: one[1].id)))
        with pytest.raises((ReplayedMessage, StaleMessage)):
            self.node.check(signer, header, self.now, GROUPS[signer])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_to_somebody_else(self, data: st.DataObject) -> None:
        signer, header = data.draw(st.sampled_from(self.sent))
        with pytest.raises(WrongAudience):
            self.node.check(signer, Header("other", header.id, header.issued_ms, header.expires_ms), self.now)

    @precondition(lambda self: self.acted)
    @rule(data=st.data(), past=st.integers(0, 3000), signer=st.sampled_from(SIGNERS))
    def replay_after_a_jump_of_the_clock(self, data: st.DataObject, past: int, signer: bytes) -> None:
        """The clock goes past a message's time, the node sweeps its table, and the clock comes back."""
        old = data.draw(st.sampled_from(sorted(self.acted, key=lambda one: one[1].id)))
        before = self.now
        self.clock_runs(max(0, old[1].expires_ms + LIMITS.skew_ms + past - self.now))
        self.send_fresh(signer, 1000, 0, late=False)
        self.now = before
        self.deliver(old, crash=False)

    @rule(step=steps)
    def clock_runs(self, step: int) -> None:
        self.now += step
        self.latest = max(self.latest, self.now)

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
    def memory_is_bounded(self) -> None:
        assert len(self.node) <= LIMITS.ids
        live = [one for one in self.admitted if one[1].expires_ms + LIMITS.skew_ms >= self.latest]
        assert all(sum(GROUPS[one[0]] == group for one in live) <= LIMITS.ids_per_group for group in GROUPS.values())

    @invariant()
    def the_mark_covers_what_was_admitted(self) -> None:
        assert all(header.issued_ms <= self.node.high_water_ms() for _, header in self.admitted)


TestFreshness = pytest.mark.invariant("S5")(Machine.TestCase)
TestFreshness.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
