"""How long steps usually take, of each kind."""

from __future__ import annotations

from comity_node.runtime.passing.stragglers import Percentiles


def test_the_95th_percentile_of_a_kind_is_known_after_a_few_and_follows_what_came_last() -> None:
    times = Percentiles()
    for number in range(15):
        times.add("a", float(number))
    assert times.p95_s("a") is None
    times.add("a", 15.0)
    assert times.p95_s("a") == 15.0
    assert times.p95_s("b") is None
    for _ in range(128):
        times.add("a", 1.0)
    assert times.p95_s("a") == 1.0


def test_the_usual_times_of_so_many_kinds_of_steps_are_known() -> None:
    times = Percentiles()
    for kind in range(5000):
        for _ in range(16):
            times.add(kind, 1.0)
    known = [kind for kind in range(5000) if times.p95_s(kind) is not None]
    assert known == list(range(5000 - 4096, 5000))
