"""Obligations at the edges: each test here goes red for a line of `policy.lattice` that is a little wrong."""

from __future__ import annotations

import math

import pytest

from comity.errors import ConfigError
from comity_node.policy.lattice import (
    MAX_EPSILON,
    MAX_KEPT,
    Budget,
    KAnonymity,
    Noise,
    Obligations,
    Onward,
    ReviewTerms,
    is_under,
    merge,
    multiples_within,
    units_of,
)


def test_the_stricter_onward_is_the_smaller_one() -> None:
    assert [(each.word, int(each)) for each in Onward] == [("never", 0), ("with_consent", 1), ("allowed", 2)]


@pytest.mark.parametrize("distance", [math.inf, -math.inf, math.nan, -0.1])
def test_a_distance_that_is_none(distance: float) -> None:
    with pytest.raises(ConfigError, match="min_distance_to_private"):
        Obligations(min_distance_to_private=distance)


def test_the_greatest_budget_and_mask_are_good_and_what_is_over_them_not() -> None:
    assert Obligations(budgets=(Budget(MAX_EPSILON, (), "r"),)).budgets
    assert Obligations(mask={"a": 0, "b": MAX_KEPT}).mask == {"a": 0, "b": MAX_KEPT}
    for epsilon in (0.0, -1.0, math.nan, MAX_EPSILON * 1.001):
        with pytest.raises(ConfigError, match="budget"):
            Obligations(budgets=(Budget(epsilon, (), "r"),))
    for kept in (-1, MAX_KEPT + 1):
        with pytest.raises(ConfigError, match="mask"):
            Obligations(mask={"a": kept})


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("path", "root", "under"),
    [
        ("a", "a", True),
        ("a.b", "a", True),
        ("a.b.c", "a", True),
        ("a.b.c.d", "a", True),
        ("a.b.c.d", "a.b", True),
        ("ab.c", "a", False),
        ("a", "a.b", False),
        (".a", "", False),
    ],
)
def test_what_lies_below_a_path(path: str, root: str, under: bool) -> None:
    assert is_under(path, frozenset({root, "z"})) is under
    assert is_under(path, [root]) is under


@pytest.mark.parametrize("grid", [math.inf, -math.inf, math.nan, 0.0, -5.0, 1e-7, 1e9 + 1, 0.1234567])
def test_a_grid_that_is_none(grid: float) -> None:
    with pytest.raises(ConfigError, match="a grid must be"):
        units_of(grid)


@pytest.mark.parametrize(
    ("grid", "lower", "upper", "multiples"),
    [
        (5.0, 0.0, 12.0, (0, 2)),
        (5.0, -7.0, 12.0, (-1, 2)),
        (5.0, 5.0, 10.0, (1, 2)),
        (5.0, 5.1, 9.9, None),
        (5.0, -4.0, -1.0, None),
        (5.0, -4.0, 1.0, (0, 0)),
        (0.1, 0.1, 0.3, (1, 3)),  # as floats: 0.1 is over a tenth, 0.3 below three of them
        (0.1, 0.11, 0.29, (2, 2)),
        (1e9, 0.0, 1e12, (0, 1000)),
    ],
)
def test_the_multiples_of_a_grid_within_bounds(
    grid: float, lower: float, upper: float, multiples: tuple[int, int] | None
) -> None:
    assert multiples_within(grid, Noise(1.0, lower, upper)) == multiples


def test_the_greatest_grid_that_two_have_in_common() -> None:
    first, second, none = (Obligations(generalize={"a": grid}) for grid in (1e9, 5e8, 3e8))
    assert merge(first, second).generalize == {"a": 1e9}
    assert merge(first, none) == Obligations(redact=frozenset({"a"})), "the least common one is too great"


def test_what_one_side_alone_asks_for_stays() -> None:
    nothing = Obligations()
    one = Obligations(
        k_anonymity=KAnonymity(3, frozenset({"a"})), review=ReviewTerms(2), retain_ms=5, expire_ms=7,
        min_distance_to_private=0.1,
    )  # fmt: skip
    assert merge(one, nothing) == merge(nothing, one) == one
