"""What obligations do to a record and how they combine: tables of cases that a property would not name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from comity.errors import AgreementError, ConfigError, PolicyDenied
from comity.v1 import agreement_pb2
from comity_node.policy.obligations import (
    Obligations,
    Onward,
    Rate,
    ReviewTerms,
    apply,
    covers,
    from_terms,
    merge,
    to_json,
    to_score,
    to_terms,
    verify,
)


def redact(*paths: str) -> Obligations:
    return Obligations(redact=frozenset(paths))


@pytest.mark.invariant("S1")
@pytest.mark.parametrize(
    ("path", "record", "left"),
    [
        ("a", {"a": 1, "b": 2}, {"b": 2}),
        ("a", {"a": {"b": 1}}, {}),
        ("a.b", {"a": {"b": 1, "c": 2}}, {"a": {"c": 2}}),
        ("a.b", {"a.b": 1, "a": 2}, {"a": 2}),
        ("a.b.c", {"a.b": {"c": 1}, "a": {"b.c": 1, "b": {"c": 1}}}, {"a.b": {}, "a": {"b": {}}}),
        ("a.b", {"a": [{"b": 1, "c": 2}, [{"b": 3}], 4]}, {"a": [{"c": 2}, [{}], 4]}),
        ("a", {"aa": 1, "A": 2, "b": {"a": 3}}, {"aa": 1, "A": 2, "b": {"a": 3}}),
        ("a.b", {"a": None}, {"a": None}),
        ("a", {"a.b": 1, "ab": 2}, {"ab": 2}),
        ("a.b", {"a": {"b.c": 1, "bc": 2}, "a.b.c": 3}, {"a": {"bc": 2}}),
    ],
)
def test_redaction_leaves_no_spelling_of_the_path(path: str, record: dict[str, Any], left: dict[str, Any]) -> None:
    duties = redact(path)
    assert apply(duties, record) == left
    verify(duties, left)
    if left != record:
        with pytest.raises(PolicyDenied, match=f"'{path}' should have been redacted"):
            verify(duties, record)


@pytest.mark.parametrize(
    ("grid", "value", "rounded"),
    [
        (5, 12, 10),
        (5, 13, 15),
        (5, -13, -15),
        (2, 3, 4),
        (2, 5, 4),
        (5, 12.5, 10.0),
        (0.1, 0.25, 0.2),
        (0.1, 0.30000000000000004, 0.3),
        (0.1, 7, 7.0),
        (0.3, 1, 0.9),
        (5, 10**17 + 1, 10**17),
        (5, 1e200, 1e200),
        (5, None, None),
        (5, [11, None, 14.0], [10, None, 15.0]),
        (1e-6, 0.1234567, 0.123457),
    ],
)
def test_rounding(grid: float, value: Any, rounded: Any) -> None:
    duties = Obligations(generalize={"x": grid})
    result = apply(duties, {"x": value})["x"]
    assert result == rounded
    assert type(result) is type(rounded)
    verify(duties, {"x": result})


@pytest.mark.invariant("S3")
@pytest.mark.parametrize("value", ["12", True, {}, math.nan, math.inf, [[1]], 10**400, [True]])
def test_what_is_no_number_cannot_be_rounded_and_does_not_pass(value: Any) -> None:
    duties = Obligations(generalize={"x": 5})
    for act in (apply, verify):
        with pytest.raises(PolicyDenied, match="'x' is to be rounded"):
            act(duties, {"x": value})


@pytest.mark.parametrize(
    ("grid", "value"), [(5, 12), (5, 10.001), (0.1, 0.25), (0.1, 0.3000001), (5, [10, 11]), (5, 1e-9)]
)
def test_a_value_off_its_grid_does_not_pass(grid: float, value: Any) -> None:
    with pytest.raises(PolicyDenied, match="'x' should have been rounded to multiples of"):
        verify(Obligations(generalize={"x": grid}), {"x": value})


@pytest.mark.invariant("S7")
def test_nesting_costs_no_stack() -> None:
    deep: Any = {"b": 1}
    for _ in range(500):
        deep = [deep]
    for act in (apply, verify):
        with pytest.raises(PolicyDenied, match="nested over 64"):
            act(redact("a.b"), {"a": deep})


def test_apply_leaves_its_input_alone() -> None:
    record = {"a": {"b": 1, "c": 12}, "d": [{"c": 13}]}
    done = apply(Obligations(redact=frozenset({"a.b"}), generalize={"a.c": 5, "d.c": 5}), record)
    assert record == {"a": {"b": 1, "c": 12}, "d": [{"c": 13}]}
    assert done == {"a": {"c": 10}, "d": [{"c": 15}]}


@pytest.mark.parametrize(
    ("a", "b", "merged"),
    [
        (redact("a"), redact("a.b", "c"), redact("a", "c")),
        (Obligations(generalize={"x": 4}), Obligations(generalize={"x": 6}), Obligations(generalize={"x": 12})),
        (Obligations(generalize={"x": 0.1}), Obligations(generalize={"x": 0.15}), Obligations(generalize={"x": 0.3})),
        (Obligations(generalize={"x.y": 4}), redact("x"), redact("x")),
        (Obligations(generalize={"x": 999_999_937}), Obligations(generalize={"x": 1e9}), redact("x")),
        (Obligations(min_distance_to_private=0.1), Obligations(min_distance_to_private=0.2),
         Obligations(min_distance_to_private=0.2)),
        (Obligations(retain_ms=5), Obligations(retain_ms=3), Obligations(retain_ms=3)),
        (Obligations(onward=Onward.WITH_CONSENT), Obligations(), Obligations(onward=Onward.WITH_CONSENT)),
        (Obligations(onward=Onward.WITH_CONSENT), Obligations(onward=Onward.NEVER), Obligations(onward=Onward.NEVER)),
        (Obligations(rates=(Rate(1, 2, "a"),)), Obligations(rates=(Rate(1, 2, "b"), Rate(1, 2, "a"))),
         Obligations(rates=(Rate(1, 2, "a"), Rate(1, 2, "b")))),
        (Obligations(review=ReviewTerms(2, False, 0.7)), Obligations(review=ReviewTerms(3, True, 0.1)),
         Obligations(review=ReviewTerms(3, True, 0.7))),
    ],
)  # fmt: skip
def test_the_strictest_wins(a: Obligations, b: Obligations, merged: Obligations) -> None:
    assert merge(a, b) == merge(b, a) == merged
    assert covers(merged, a)
    assert covers(merged, b)


@pytest.mark.parametrize(
    ("strict", "loose", "covered"),
    [
        (redact("a"), redact("a.b"), True),
        (redact("a.b"), redact("a"), False),
        (redact("x"), Obligations(generalize={"x": 5}), True),
        (Obligations(generalize={"x": 10}), Obligations(generalize={"x": 5}), True),
        (Obligations(generalize={"x": 7}), Obligations(generalize={"x": 5}), False),
        (Obligations(), Obligations(retain_ms=5), False),
        (Obligations(retain_ms=5), Obligations(), True),
        (Obligations(), Obligations(min_distance_to_private=0.0), True),
        (Obligations(onward=Onward.NEVER), Obligations(onward=Onward.WITH_CONSENT), True),
        (Obligations(), Obligations(onward=Onward.WITH_CONSENT), False),
        (Obligations(), Obligations(review=ReviewTerms(2)), False),
        (Obligations(), Obligations(rates=(Rate(1, 2, "a"),)), True),  # each side's own business
    ],
)
def test_covers(strict: Obligations, loose: Obligations, covered: bool) -> None:
    assert covers(strict, loose) is covered


@pytest.mark.parametrize("grid", [0, -1, math.nan, math.inf, 1e10, 1e-7, 0.12345678])
def test_a_grid_out_of_range_is_refused(grid: float) -> None:
    with pytest.raises(ConfigError, match="a grid must be"):
        Obligations(generalize={"x": grid})
    with pytest.raises(AgreementError, match="a grid must be"):
        from_terms(agreement_pb2.Obligations(generalize={"x": grid}))


@pytest.mark.invariant("S3")
@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (agreement_pb2.Obligations(onward="sometimes"), "onward is 'sometimes'"),
        (agreement_pb2.Obligations(redact=[""]), "empty path"),
        (agreement_pb2.Obligations(min_distance_to_private=math.nan), "finite number"),
        (agreement_pb2.Obligations(min_distance_to_private=-1), "at least 0"),
    ],
)
def test_terms_that_make_no_sense_are_refused(message: agreement_pb2.Obligations, problem: str) -> None:
    with pytest.raises(AgreementError, match=problem):
        from_terms(message)


def test_terms_without_a_word_about_onward_mean_never() -> None:
    assert from_terms(agreement_pb2.Obligations()) == Obligations(onward=Onward.NEVER)


def test_terms_carry_the_review_beside_them() -> None:
    review = agreement_pb2.ReviewTerms(eligible=4, faulty=1, quorum=3, min_score=7000)
    read = from_terms(to_terms(Obligations()), review)
    assert read.review == ReviewTerms(3, True, 0.7)
    assert covers(read, Obligations(review=ReviewTerms(2, True, 0.7)))
    with pytest.raises(AgreementError, match="min_score"):
        from_terms(to_terms(Obligations()), agreement_pb2.ReviewTerms(min_score=10_001))


def test_what_is_written_of_a_time_shorter_than_a_second_stays_a_limit() -> None:
    assert from_terms(to_terms(Obligations(retain_ms=1500))).retain_ms == 1000
    assert from_terms(to_terms(Obligations(retain_ms=1))).retain_ms == 1000


@pytest.mark.parametrize(("score", "wire"), [(0.0, 0), (0.7, 7000), (0.29, 2900), (0.70001, 7001), (1.0, 10_000)])
def test_scores_on_the_wire(score: float, wire: int) -> None:
    assert to_score(score) == wire


def test_as_json() -> None:
    assert to_json(Obligations(onward=Onward.NEVER)) == {"onward": "never"}
    full = Obligations(
        redact=frozenset({"b", "a"}),
        generalize={"x": 5},
        min_distance_to_private=0.1,
        rates=(Rate(1, 2, "r"),),
        retain_ms=3,
        review=ReviewTerms(2),
    )
    assert to_json(full) == {
        "redact": ["a", "b"],
        "generalize": {"x": 5.0},
        "min_distance_to_private": 0.1,
        "rate": [{"records": 1, "per_ms": 2, "rule": "r"}],
        "retain_ms": 3,
        "review": {"quorum": 2, "distinct_organizations": True, "min_score": 0.0},
        "onward": "allowed",
    }
