"""The AIMD window: grows while it is used and answered, halves at an overload, and never leaves its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.pacing import AimdWindow


def full_round(window: AimdWindow) -> None:
    """Fill the window, and let all of it be answered."""
    for _ in range(window.free):
        window.begin()
    for _ in range(window.outstanding):
        window.succeeded()


def test_a_window_grows_fast_at_first_and_by_one_a_round_after_an_overload() -> None:
    window = AimdWindow(first=4, cap=64)
    full_round(window)
    assert window.size > 6, "slow start"
    window.begin()
    window.overloaded(1.0)
    before = window.size
    for _ in range(3):
        full_round(window)
    assert before + 1 <= window.size <= before + 3


def test_an_overload_halves_once_for_all_that_began_before_it() -> None:
    window = AimdWindow(first=16)
    for _ in range(16):
        window.begin()
    for number in range(16):
        window.overloaded(10.0 + number / 100, after_s=1.0)
    assert (window.size, window.outstanding) == (8, 0)
    window.begin()
    window.overloaded(20.0, after_s=1.0)
    assert window.size == 4


def test_a_window_that_is_not_used_does_not_grow_and_one_that_restarts_begins_with_one() -> None:
    window = AimdWindow(first=8)
    for _ in range(50):
        window.begin()
        window.succeeded()
    assert window.size == 8
    window.begin()
    window.restart()
    assert (window.size, window.free, window.outstanding) == (1, 0, 1)
    window.released()
    for _ in range(3):
        full_round(window)
    assert window.size > 3


@pytest.mark.parametrize("values", [{"floor": 0.5}, {"first": 0}, {"first": 99}, {"decrease": 1.0}, {"decrease": 0.0}])
def test_a_window_without_sense_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="floor"):
        AimdWindow(**values)


@given(st.lists(st.sampled_from(["begin", "good", "over", "late", "gone", "restart"]), max_size=200))
def test_a_window_never_leaves_its_bounds(steps: list[str]) -> None:
    window, now_s = AimdWindow(first=3, floor=1, cap=9), 0.0
    for step in steps:
        now_s += 1
        match step:
            case "begin":
                window.begin()
            case "good":
                window.succeeded()
            case "over":
                window.overloaded(now_s)
            case "late":
                window.overloaded(now_s, after_s=2.5)
            case "gone":
                window.released()
            case _:
                window.restart()
        assert 1 <= window.size <= 9
        assert window.outstanding >= 0
        assert window.free == max(0, window.size - window.outstanding)
