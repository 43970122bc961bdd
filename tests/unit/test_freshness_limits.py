"""Freshness, rule by rule."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
import trio

from comity.envelope import Header, seal
from comity.errors import ReplayedMessage, ReplayTableFull, StaleMessage, WrongAudience
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import Attested
from comity_node.admission import Gate
from comity_node.policy.loader import loads_policy
from comity_node.protocol.freshness import Freshness, FreshnessLimits
from comity_node.storage.database import open_database
from kit.consortium import NOW_MS, consortium, names
from kit.lab import policy

NOW = 1_750_000_000_000
LIMITS = FreshnessLimits()
ALICE, BOB = b"a" * 32, b"b" * 32


def header(
    number: int = 0, *, issued: int = NOW, lifetime: int = 60_000, audience: str = "me", expires: int | None = None
) -> Header:
    return Header(audience, number.to_bytes(16, "big"), issued, issued + lifetime if expires is None else expires)


@pytest.mark.invariant("S5")
def test_a_message_is_good_once() -> None:
    freshness = Freshness("me")
    freshness.check(ALICE, header(), NOW)
    for later in (0, 1, 59_999, 90_000):
        with pytest.raises(ReplayedMessage):
            freshness.check(ALICE, header(), NOW + later)
    with pytest.raises(StaleMessage, match="expired 30001 ms ago"):
        freshness.check(ALICE, header(), NOW + 90_001)


@pytest.mark.invariant("S5")
def test_a_message_is_good_for_one_recipient() -> None:
    freshness = Freshness("me")
    with pytest.raises(WrongAudience, match="for you, not for me"):
        freshness.check(ALICE, header(audience="you"), NOW)
    assert len(freshness) == 0
    assert freshness.high_water_ms() == 0


def test_ids_are_each_signer_s_own() -> None:
    freshness = Freshness("me")
    freshness.check(ALICE, header(), NOW)
    freshness.check(BOB, header(), NOW)
    with pytest.raises(ReplayedMessage):
        freshness.check(BOB, header(), NOW)


@pytest.mark.invariant("S5")
def test_an_id_is_good_once_whatever_else_the_header_says() -> None:
    freshness = Freshness("me")
    freshness.check(ALICE, header(), NOW)
    with pytest.raises(ReplayedMessage):
        freshness.check(ALICE, header(issued=NOW + 5, lifetime=200_000), NOW)


@pytest.mark.invariant("S5")
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (header(lifetime=LIMITS.lifetime_ms + 1), "may be good for"),
        (header(lifetime=0), "may be good for"),
        (header(lifetime=-1), "may be good for"),
        (header(issued=NOW + LIMITS.skew_ms + 1), "from the future"),
        (header(issued=NOW - 60_000 - LIMITS.skew_ms - 1), "expired 30001 ms ago"),
    ],
)
def test_a_message_is_good_for_a_bounded_time(bad: Header, reason: str) -> None:
    freshness = Freshness("me")
    with pytest.raises(StaleMessage, match=reason):
        freshness.check(ALICE, bad, NOW)
    assert len(freshness) == 0


@pytest.mark.parametrize(
    "good",
    [
        header(lifetime=LIMITS.lifetime_ms),
        header(lifetime=1),
        header(issued=NOW + LIMITS.skew_ms, lifetime=LIMITS.lifetime_ms),
        header(issued=NOW - 60_000 - LIMITS.skew_ms),
    ],
)
def test_the_bounds_themselves_are_good(good: Header) -> None:
    Freshness("me").check(ALICE, good, NOW)


def of_epoch(number: int, counter: int = 0, *, issued: int = NOW) -> Header:
    return Header("me", number.to_bytes(8, "big") + counter.to_bytes(8, "big"), issued, issued + 60_000)


@pytest.mark.invariant("S5")
def test_a_window_s_borders() -> None:
    freshness = Freshness("me")
    top = LIMITS.window + 100
    freshness.check(ALICE, header(top), NOW)
    freshness.check(ALICE, header(101), NOW)
    for below in (100, 0):
        with pytest.raises(StaleMessage, match="others: seal it anew"):
            freshness.check(ALICE, header(below), NOW)
    freshness.check(ALICE, header(top + 1), NOW)
    with pytest.raises(StaleMessage, match="overtaken"):
        freshness.check(ALICE, header(101), NOW)
    with pytest.raises(ReplayedMessage):
        freshness.check(ALICE, header(top), NOW)
    freshness.check(ALICE, header(2**64 - 1), NOW)
    for old in (top, top + 1):
        with pytest.raises(StaleMessage):
            freshness.check(ALICE, header(old), NOW)


def test_epochs_do_not_touch_each_other() -> None:
    freshness = Freshness("me")
    for epoch in range(5):
        for counter in (2**40, 2**40 - 3):
            freshness.check(ALICE, of_epoch(epoch, counter), NOW)
    assert len(freshness) == 5
    for epoch in range(5):
        with pytest.raises(ReplayedMessage):
            freshness.check(ALICE, of_epoch(epoch, 2**40 - 3), NOW)


@pytest.mark.invariant("S7")
def test_no_number_of_messages_is_too_many() -> None:
    """A hundred thousand in one second, and memory stays that of one window."""
    freshness = Freshness("me")
    for counter in range(100_000):
        freshness.check(ALICE, header(counter), NOW)
    assert len(freshness) == 1
    for counter in (99_999, 99_999 - LIMITS.window + 1):
        with pytest.raises(ReplayedMessage):
            freshness.check(ALICE, header(counter), NOW)


@pytest.mark.invariant("S7")
def test_a_full_table_refuses_and_evicts_nothing() -> None:
    freshness = Freshness("me", limits=FreshnessLimits(epochs_per_signer=3, epochs=5))
    for number in range(3):
        freshness.check(ALICE, of_epoch(number), NOW)
    with pytest.raises(ReplayTableFull):
        freshness.check(ALICE, of_epoch(3), NOW)
    for number in range(2):
        freshness.check(BOB, of_epoch(number), NOW)
    with pytest.raises(ReplayTableFull):
        freshness.check(BOB, of_epoch(2), NOW)
    with pytest.raises(ReplayTableFull):
        freshness.check(b"c" * 32, of_epoch(0), NOW)
    assert len(freshness) == 5
    for number in range(3):
        with pytest.raises(ReplayedMessage):
            freshness.check(ALICE, of_epoch(number), NOW)
        freshness.check(ALICE, of_epoch(number, 1), NOW)  # those who are in go on


@pytest.mark.invariant("S7")
def test_an_organization_with_any_number_of_keys_leaves_room_for_the_others() -> None:
    freshness = Freshness("me", limits=FreshnessLimits(epochs_per_signer=3, epochs_per_group=4, epochs=8))
    keys = [bytes([number]) * 32 for number in range(20)]
    admitted = 0
    for key in keys:
        try:
            freshness.check(key, header(), NOW, "evil.example")
            admitted += 1
        except ReplayTableFull:
            pass
    assert (admitted, len(freshness)) == (4, 4)
    freshness.check(ALICE, header(1), NOW, "good.example")
    freshness.check(BOB, header(1), NOW)
    with pytest.raises(ReplayedMessage):
        freshness.check(keys[0], header(), NOW, "another.example")  # ids are the signer's, whoever vouches for it
    # When they have expired the organization may start anew.
    later = NOW + 100_000
    freshness.check(keys[9], header(issued=later), later, "evil.example")
    assert len(freshness) == 1


def test_by_default_no_organization_takes_more_than_a_quarter() -> None:
    assert LIMITS.epochs_per_group * 4 <= LIMITS.epochs


@pytest.mark.invariant("S7")
def test_memory_is_given_back_when_messages_expire() -> None:
    freshness = Freshness("me", limits=FreshnessLimits(epochs_per_signer=10, epochs=10))
    for wave in range(20):
        now = NOW + wave * 100_000
        for number in range(10):
            freshness.check(ALICE, of_epoch(wave * 10 + number, issued=now), now)
        assert len(freshness) == 10


@pytest.mark.invariant("S7")
def test_a_full_table_takes_at_most_eleven_megabytes() -> None:
    """Signers, epochs and counters that share nothing, up to the limit."""
    tracemalloc.start()
    try:
        freshness = Freshness("me")
        before = tracemalloc.get_traced_memory()[0]
        for number in range(LIMITS.epochs):
            freshness.check(number.to_bytes(32, "big"), of_epoch(number, number * 7), NOW, f"{number // 64}.example")
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    with pytest.raises(ReplayTableFull):
        freshness.check(ALICE, of_epoch(0), NOW)
    assert 2048 * LIMITS.epochs < taken < 11_000_000


@pytest.mark.invariant("S5")
def test_a_clock_that_is_set_back_revives_nothing() -> None:
    freshness = Freshness("me")
    freshness.check(ALICE, header(1), NOW)
    freshness.check(BOB, header(2, issued=NOW + 3_600_000), NOW + 3_600_000)
    assert len(freshness) == 1, "the first is forgotten"
    with pytest.raises(StaleMessage, match="set back"):
        freshness.check(ALICE, header(1), NOW)
    # What expires after everything that was forgotten is good at once: the pause is no longer than a lifetime.
    freshness.check(ALICE, header(3, issued=NOW + 1000), NOW + 1000)


@pytest.mark.invariant("S5")
def test_a_restart_revives_nothing() -> None:
    freshness = Freshness("me")
    freshness.check(ALICE, header(1), NOW)
    again = Freshness("me", high_water_ms=freshness.high_water_ms())
    with pytest.raises(StaleMessage, match="last start"):
        again.check(ALICE, header(1), NOW + 1)
    assert again.high_water_ms() == freshness.high_water_ms()
    later = NOW + LIMITS.mark_step_ms + 1
    again.check(ALICE, header(2, issued=later), later)


@pytest.mark.invariant("S5")
def test_the_mark_covers_what_was_admitted_and_moves_rarely() -> None:
    freshness = Freshness("me")
    marks = set()
    for step in range(1000):
        freshness.check(ALICE, header(step, issued=NOW + step * 10), NOW + step * 10)
        assert freshness.high_water_ms() >= NOW + step * 10
        marks.add(freshness.high_water_ms())
    assert len(marks) == 10, "ten seconds of messages are ten writes"


def test_the_mark_never_goes_back() -> None:
    freshness = Freshness("me", high_water_ms=NOW)
    freshness.check(ALICE, header(1, issued=NOW + 20_000), NOW)
    mark = freshness.high_water_ms()
    freshness.check(ALICE, header(2, issued=NOW + 1), NOW)
    assert freshness.high_water_ms() == mark


@pytest.mark.invariant("S7")
def test_the_gate_counts_the_messages_of_all_nodes_of_an_organization_together(tmp_path: Path) -> None:
    me, peer, other = names(3)
    nodes = consortium(me, peer, other).nodes
    mine = nodes[me].peer_id

    async def main() -> None:
        async with open_database(tmp_path / "node.db") as database:
            gate = Gate(
                identity=nodes[me],
                policy=loads_policy(policy(me)),
                database=database,
                freshness=Freshness(mine, limits=FreshnessLimits(epochs_per_group=2)),
                now_ms=lambda: NOW_MS,
                random_bytes=os.urandom,
            )

            async def arrive(key: PrivateKey, organization: str) -> None:
                sender = Attested(organization, SpiffeId(organization, "node", "n1"), key.public_key, key.peer_id)
                sealed = seal(key, "cards", b"", audience=mine, message_id=os.urandom(16), now_ms=NOW_MS)
                await gate.open(sender, sealed, {"cards"})

            for _ in range(2):
                await arrive(PrivateKey.generate(), peer)
            with pytest.raises(ReplayTableFull):
                await arrive(PrivateKey.generate(), peer)
            await arrive(PrivateKey.generate(), other)

    trio.run(main)


@pytest.mark.invariant("S5")
def test_no_message_is_good_for_longer_than_the_node_lets_it() -> None:
    freshness = Freshness("me", limits=FreshnessLimits(lifetime_ms=5000))
    freshness.check(ALICE, header(1, lifetime=5000), NOW)
    with pytest.raises(StaleMessage, match="may be good for"):
        freshness.check(ALICE, header(2, lifetime=5001), NOW)
