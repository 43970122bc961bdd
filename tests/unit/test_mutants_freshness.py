"""Freshness at the edges: each test here goes red for a line of `protocol.freshness` that is a little wrong."""

from __future__ import annotations

from itertools import count

import pytest

from comity.envelope import Header
from comity.errors import StaleMessage
from comity_node.protocol.freshness import Freshness, FreshnessLimits, MessageIds

NOW = 1_750_000_000_000
SIGNER = b"a" * 32
SKEW_MS = FreshnessLimits().skew_ms


def header(epoch: int, counter: int = 0, *, issued: int = NOW, lifetime: int = 60_000) -> Header:
    return Header("me", epoch.to_bytes(8, "big") + counter.to_bytes(8, "big"), issued, issued + lifetime)


def test_the_recipient_that_was_written_to_longest_ago_is_forgotten_first() -> None:
    epochs = count()
    ids = MessageIds(lambda size: next(epochs).to_bytes(size, "big"), audiences=2)
    made = [ids.next(audience) for audience in ("a", "b", "a", "c", "a", "b")]
    assert [(int.from_bytes(one[:8], "big"), int.from_bytes(one[8:], "big")) for one in made] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (2, 0),  # "b" is forgotten
        (0, 2),
        (3, 0),  # in a new epoch: no id is made twice
    ]


def test_a_message_that_was_overtaken_says_by_how_many() -> None:
    freshness = Freshness("me", limits=FreshnessLimits(window=16))
    freshness.check(SIGNER, header(1, 40), NOW)
    with pytest.raises(StaleMessage, match="overtaken by 16 others"):
        freshness.check(SIGNER, header(1, 24), NOW)
    freshness.check(SIGNER, header(1, 25), NOW)


@pytest.mark.invariant("S7")
def test_the_table_is_swept_once_in_a_second() -> None:
    freshness = Freshness("me")
    old = NOW + 100 - SKEW_MS - 60_000
    freshness.check(SIGNER, header(1, issued=old), NOW)
    freshness.check(SIGNER, header(2), NOW + 500)
    assert len(freshness) == 2, "a sweep for each message would take as long as the table is"
    freshness.check(SIGNER, header(2, 1), NOW + 1000)
    assert len(freshness) == 1


@pytest.mark.invariant("S5")
def test_an_epoch_is_kept_as_long_as_its_last_message_passes() -> None:
    freshness = Freshness("me")
    freshness.check(SIGNER, header(1), NOW)
    last = NOW + 60_000 + SKEW_MS
    for now in (last, last + 1000):
        freshness.check(b"b" * 32, header(2, now - NOW, issued=now), now)
        assert len(freshness) == (2 if now == last else 1)


@pytest.mark.invariant("S5")
def test_the_mark_stays_while_it_covers_a_message() -> None:
    freshness = Freshness("me")
    freshness.check(SIGNER, header(1), NOW)
    mark = freshness.high_water_ms()
    freshness.check(SIGNER, header(1, 1, issued=mark), NOW)
    assert freshness.high_water_ms() == mark
    freshness.check(SIGNER, header(1, 2, issued=mark + 1), NOW)
    assert freshness.high_water_ms() == mark + 1 + FreshnessLimits().mark_step_ms


@pytest.mark.invariant("S7")
def test_nothing_is_left_of_signers_and_groups_whose_messages_expired() -> None:
    freshness = Freshness("me")
    for number in range(50):
        now = NOW + number * 200_000
        freshness.check(number.to_bytes(32, "big"), header(1, issued=now), now, f"{number}.example")
    assert len(freshness) == len(freshness._of_signer) == len(freshness._of_group) == 1


@pytest.mark.invariant("S5")
def test_what_was_issued_at_the_mark_is_from_before_the_restart() -> None:
    freshness = Freshness("me", high_water_ms=NOW)
    with pytest.raises(StaleMessage, match="last start"):
        freshness.check(SIGNER, header(1), NOW)
    freshness.check(SIGNER, header(1, 1, issued=NOW + 1), NOW)
