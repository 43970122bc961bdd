"""Obligations are a lattice, and what is done to a record is what is checked on it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity.digest import canonical_json
from comity.errors import PolicyDenied
from comity_node.policy.obligations import (
    Obligations,
    Onward,
    Rate,
    ReviewTerms,
    apply,
    covers,
    from_terms,
    merge,
    merge_all,
    to_score,
    to_terms,
    verify,
)

#: A busy machine is no failure.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=250)

PATHS = ["age", "name", "notes", "notes.free_text", "notes.free_text.line", "visits.cost"]
GRIDS = st.sampled_from([1e-6, 0.001, 0.1, 0.15, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 12.5, 999_999_937.0, 1e9])

reviews = st.builds(ReviewTerms, st.integers(1, 9), st.booleans(), st.sampled_from([0.0, 0.29, 0.7, 0.7001, 1.0]))
obligations = st.builds(
    Obligations,
    redact=st.frozensets(st.sampled_from(PATHS), max_size=3),
    generalize=st.dictionaries(st.sampled_from(PATHS), GRIDS, max_size=4),
    min_distance_to_private=st.none() | st.sampled_from([0.0, 0.1, 0.15, 3.0]),
    rates=st.lists(st.builds(Rate, st.integers(0, 3), st.integers(1, 3), st.sampled_from("ab")), max_size=3).map(tuple),
    retain_ms=st.none() | st.integers(1, 100).map(lambda seconds: seconds * 1000),
    review=st.none() | reviews,
    onward=st.sampled_from(Onward),
)

numbers = st.none() | st.integers(-(10**7), 10**7) | st.floats(-1e7, 1e7)
texts = st.text(max_size=5)
records = st.fixed_dictionaries(
    {"label": st.integers(0, 1)},
    optional={
        "age": numbers,
        "name": texts,
        "notes": texts | st.fixed_dictionaries({}, optional={"free_text": texts, "kept": texts}),
        "notes.free_text": texts | st.fixed_dictionaries({}, optional={"line": texts}),
        "notes.free_text.line": texts,
        "visits.cost": numbers,
        "visits": st.lists(st.fixed_dictionaries({"cost": numbers, "ward": texts}), max_size=3),
    },
)


@given(obligations, obligations, obligations)
@PATIENT
def test_merge_is_idempotent_commutative_and_associative(a: Obligations, b: Obligations, c: Obligations) -> None:
    assert merge(a, a) == a
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, Obligations()) == a


@given(obligations, obligations, obligations)
@PATIENT
def test_covers_is_the_order_of_merge(a: Obligations, b: Obligations, c: Obligations) -> None:
    both = merge(a, b)
    assert covers(both, a)
    assert covers(both, b)
    assert covers(a, a)
    assert covers(a, Obligations())
    if covers(c, a) and covers(c, b):
        assert covers(c, both)
    if covers(a, b) and covers(b, c):
        assert covers(a, c)


@given(st.lists(obligations, max_size=4))
@PATIENT
def test_merging_many_covers_each(parts: list[Obligations]) -> None:
    assert all(covers(merge_all(parts), part) for part in parts)


def numeric_only(duties: Obligations) -> Obligations:
    """Leave the grids of fields that are numbers in `records`."""
    grids = {path: grid for path, grid in duties.generalize.items() if path in ("age", "visits.cost")}
    return Obligations(redact=duties.redact, generalize=grids)


@pytest.mark.invariant("S1")
@given(obligations, obligations, records)
@PATIENT
def test_what_is_applied_passes_each_sides_check(a: Obligations, b: Obligations, record: dict[str, Any]) -> None:
    a, b = numeric_only(a), numeric_only(b)
    before = json.dumps(record)
    done = apply(merge(a, b), record)
    for duties in (a, b, merge(a, b)):
        verify(duties, done)
        verify(duties, json.loads(canonical_json(done)))
    assert json.dumps(record) == before
    assert apply(merge(a, b), done) == done


@pytest.mark.invariant("S1")
@given(records, obligations)
@PATIENT
def test_nothing_but_what_was_asked_for_changes(record: dict[str, Any], duties: Obligations) -> None:
    duties = numeric_only(duties)
    done = apply(duties, record)
    assert done["label"] == record["label"]
    touched = {path.split(".")[0] for path in (*duties.redact, *duties.generalize)}
    for name in record:
        if name.split(".")[0] in touched:
            continue
        assert done[name] == record[name]


@given(st.integers(-(10**9), 10**9) | st.floats(-1e12, 1e12), GRIDS)
@PATIENT
def test_rounding_goes_to_the_nearest_multiple(number: float, grid: float) -> None:
    duties = Obligations(generalize={"x": grid})
    rounded = apply(duties, {"x": number})["x"]
    assert abs(rounded - number) <= grid / 2 * (1 + 1e-9) + 1e-12 * abs(number)
    if isinstance(number, int) and grid == int(grid):
        assert isinstance(rounded, int)
        assert rounded % int(grid) == 0


@given(st.integers(1, 10**6), GRIDS, st.floats(0.01, 0.99))
@PATIENT
def test_a_value_off_the_grid_is_noticed(multiple: int, grid: float, off: float) -> None:
    value = (multiple + off) * grid
    with pytest.raises(PolicyDenied, match="multiples"):
        verify(Obligations(generalize={"x": grid}), {"x": value})


@given(obligations)
@PATIENT
def test_what_an_agreement_carries_is_never_looser(duties: Obligations) -> None:
    message = to_terms(duties)
    back = from_terms(type(message).FromString(message.SerializeToString()))
    visible = Obligations(
        redact=duties.redact,
        generalize=duties.generalize,
        min_distance_to_private=duties.min_distance_to_private,
        retain_ms=duties.retain_ms,
        onward=duties.onward,
    )
    assert covers(back, visible)
    assert back == visible


@given(st.floats(0, 1))
@PATIENT
def test_a_score_never_gets_looser_on_the_wire(score: float) -> None:
    assert 0 <= to_score(score) <= 10_000
    assert to_score(score) / 10_000 >= score - 1e-9
