"""Whose turn it is to send, how much at once, and how windows and budgets add up."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity_node.transport.base import Priority
from comity_node.transport.budget import Budget
from comity_node.transport.noise import CUT
from comity_node.transport.scheduler import LONE_PIECE, MAX_PIECE, SMALL_PIECE, BatchSize, Scheduler
from comity_node.transport.windows import ReceiveWindow, WindowBudget
from comity_node.transport.yamux_frames import HEADER_BYTES

KIB, MIB = 1024, 1024 * 1024


def turns(scheduler: Scheduler, priorities: dict[int, Priority], count: int) -> list[tuple[int, int]]:
    """So many turns, of streams that always have more to send."""
    found = []
    for _ in range(count):
        stream_id, limit = scheduler.next()
        scheduler.add(stream_id, priorities[stream_id])
        scheduler.sent(priorities[stream_id], limit)
        found.append((stream_id, limit))
    return found


def full(priorities: dict[int, Priority]) -> Scheduler:
    scheduler = Scheduler()
    for stream_id, priority in priorities.items():
        scheduler.add(stream_id, priority)
    return scheduler


def test_streams_of_one_class_take_turns() -> None:
    priorities = dict.fromkeys((1, 3, 5), Priority.WORK)
    assert turns(full(priorities), priorities, 7) == [(n, MAX_PIECE) for n in (1, 3, 5, 1, 3, 5, 1)]


def test_bulk_sends_small_pieces_while_others_wait_and_large_ones_alone() -> None:
    priorities = {1: Priority.BULK, 3: Priority.BULK}
    scheduler = full(priorities)
    assert turns(scheduler, priorities, 2) == [(1, SMALL_PIECE), (3, SMALL_PIECE)]
    scheduler.remove(3, Priority.BULK)
    assert turns(scheduler, priorities, 2) == [(1, LONE_PIECE)] * 2
    assert len(scheduler) == 1


def test_pieces_fill_the_records_that_noise_makes_of_them() -> None:
    assert MAX_PIECE + HEADER_BYTES == CUT
    assert (LONE_PIECE + HEADER_BYTES) % CUT == 0
    assert CUT % 128 == 0
    assert LONE_PIECE + HEADER_BYTES <= BatchSize.LARGEST


def test_an_empty_scheduler_has_no_next() -> None:
    with pytest.raises(IndexError):
        Scheduler().next()


@pytest.mark.invariant("R4")
def test_every_class_that_waits_gets_a_byte_for_seven_of_those_before_it_in_small_pieces() -> None:
    priorities = {1: Priority.CONTROL, 3: Priority.WORK, 5: Priority.BULK}
    sent: Counter[int] = Counter()
    for stream_id, limit in turns(full(priorities), priorities, 1000):
        sent[stream_id] += limit
        if stream_id != 1:
            assert limit == SMALL_PIECE
    assert sent[3] / sent[1] == pytest.approx(1 / 7, rel=0.01)
    assert sent[5] / (sent[1] + sent[3]) == pytest.approx(1 / 7, rel=0.01)


@given(st.dictionaries(st.integers(1, 30), st.sampled_from(Priority), min_size=1), st.integers(1, 300))
def test_nobody_starves_whoever_else_waits(priorities: dict[int, Priority], more: int) -> None:
    scheduler = full(priorities)
    each = Counter(priorities.values())
    # A class gets a turn for every 112 KiB of the others, which are at most three turns of theirs.
    count = 8 * len(priorities) * 3 + more
    served = Counter(stream_id for stream_id, _ in turns(scheduler, priorities, count))
    assert set(served) == set(priorities), each


def test_a_batch_grows_on_a_fast_line_and_shrinks_at_once_on_a_slow_one() -> None:
    batch = BatchSize()
    assert batch.bytes == 16 * KIB
    taken = 0
    while batch.bytes < BatchSize.LARGEST:
        taken += batch.bytes
        batch.written(batch.bytes, 0.001)
    assert taken >= 512 * KIB  # more than a socket takes without sending
    batch.written(batch.bytes, 0.01)
    assert batch.bytes == 128 * KIB
    batch.written(batch.bytes, 0.1)
    assert batch.bytes == 16 * KIB
    for _ in range(100):
        batch.written(200, 0.0001)  # small ones say nothing about the line
    assert batch.bytes == 16 * KIB


def test_a_window_is_granted_again_by_halves_and_wide_ones_by_quarters() -> None:
    window = ReceiveWindow(256 * KIB, 256 * KIB, granted_at=0.0)
    window.left -= 200 * KIB
    assert window.unread == 200 * KIB
    due = []
    for count in (127 * KIB, 1 * KIB):
        window.read += count
        due.append(window.is_due)
    assert due == [False, True]
    assert window.grant(5.0) == 128 * KIB
    assert (window.left, window.unread, window.granted_at) == (184 * KIB, 72 * KIB, 5.0)
    wide = ReceiveWindow(4 * MIB, 0, granted_at=0.0, read=1 * MIB)
    assert wide.is_due


@pytest.mark.parametrize(
    ("elapsed_s", "rtt_s", "grown"),
    [(0.19, 0.1, True), (0.21, 0.1, False), (0.001, 0.0, False), (0.0, 0.0, False), (0.0, 0.001, True)],
)
def test_a_window_grows_when_half_of_it_is_read_in_less_than_two_round_trips(
    elapsed_s: float, rtt_s: float, grown: bool
) -> None:
    window = ReceiveWindow(256 * KIB, 128 * KIB, granted_at=1.0, read=128 * KIB)
    assert window.growth(1.0 + elapsed_s, rtt_s, 16 * MIB) == (256 * KIB if grown else 0)
    assert window.growth(1.0 + elapsed_s, rtt_s, 300 * KIB) == (44 * KIB if grown else 0)
    assert window.growth(1.0 + elapsed_s, rtt_s, 100 * KIB) == 0


@pytest.mark.invariant("S7")
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 4 * MIB)), max_size=60))
def test_budgets_are_never_overdrawn_and_come_back_whole(acts: list[tuple[int, bool, int]]) -> None:
    total = Budget(6 * MIB)
    peers = [Budget(4 * MIB, total), Budget(4 * MIB, total)]
    budgets = [WindowBudget(8 * MIB, 1 * MIB) for _ in range(3)]
    budgets[0].share(peers[0])
    budgets[1].share(peers[0])
    for index, take, count in acts:
        budget = budgets[index]
        if take:
            budget.take(count)
        else:
            budget.give(min(count, budget.used))
        if index == 2 and count % 2:
            budget.share(peers[1])  # confirmed only now
        assert all(each.used <= each.limit for each in budgets)
        assert all(each.used <= each.limit for each in (total, *peers))
        assert total.used == peers[0].used + peers[1].used
    for budget in budgets:
        budget.give(budget.used)
    assert (total.used, peers[0].used, peers[1].used) == (0, 0, 0)


@pytest.mark.invariant("S7")
def test_growing_leaves_as_much_as_it_takes_and_windows_shrink_when_little_is_left() -> None:
    shared = Budget(8 * MIB)
    budget = WindowBudget(64 * MIB, 0)
    assert not WindowBudget(64 * MIB, 0).may_grow
    budget.share(shared)
    assert budget.may_grow
    assert budget.take_to_grow(2 * MIB) == 2 * MIB
    assert budget.take_to_grow(16 * MIB) == 2 * MIB
    assert budget.take_to_grow(10) == 0
    tight = [budget.is_tight, budget.take(7 * MIB // 2), budget.is_tight]
    assert tight == [False, True, True]
    assert budget.take_to_grow(1 * MIB) == 256 * KIB
    assert (budget.used, shared.used) == (7 * MIB + 768 * KIB, 7 * MIB + 768 * KIB)
    other = Budget(100 * MIB)
    budget.share(other)  # another organization's
    assert (shared.used, other.used) == (0, budget.used)
