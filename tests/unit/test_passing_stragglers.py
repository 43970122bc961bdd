"""How long steps usually take, of each kind."""

from __future__ import annotations

import random

from comity_node.runtime.passing.stragglers import Percentiles


def test_the_95th_percentile_of_a_kind_is_known_after_a_few_and_follows_what_came_last() -> None:
    times = Percentiles()
    for number in range(15):
        times.add("a", float(number), 100.0)
    assert times.p95_s("a") is None
    times.add("a", 15.0, 100.0)
    assert times.p95_s("a") == 15.0
    assert times.p95_s("b") is None
    for _ in range(128):
        times.add("a", 1.0, 100.0)
    assert times.p95_s("a") == 1.0


def test_the_usual_times_of_so_many_kinds_of_steps_are_known() -> None:
    times = Percentiles()
    for kind in range(5000):
        for _ in range(16):
            times.add(kind, 1.0, 100.0)
    known = [kind for kind in range(5000) if times.p95_s(kind) is not None]
    assert known == list(range(5000 - 4096, 5000))


def test_at_the_beginning_when_only_what_is_short_has_ended_nothing_is_far_above_it() -> None:
    """Sixteen dialogues begin at once, and one begins when one ends; nobody stands still, so nobody is a straggler."""
    times, source = Percentiles(), random.Random(1)
    begun = [0.0] * 16
    lengths = [_turns(source) for _ in begun]
    far: list[float] = []
    for now in range(1, 2_000):
        for place, (since, length) in enumerate(zip(begun, lengths, strict=True)):
            if now - since >= length:
                times.add("talk", now - since, now)
                begun[place], lengths[place] = now, _turns(source)
            elif times.is_far_above("talk", now - since, now, 2.0):
                far.append(now)
    assert not far
    assert times.is_far_above("talk", 2 * 20 + 1, 2_000, 2.0), "one that stands still is"


def _turns(source: random.Random) -> int:
    """Draw a geometric number of turns, six in the mean, at most twenty."""
    turns = 1
    while turns < 20 and source.random() < 5 / 6:
        turns += 1
    return turns
