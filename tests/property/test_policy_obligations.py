"""Obligations are a lattice, and what is done to a record is what is checked on it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity.digest import canonical_json
from comity.errors import PolicyDenied
from comity_node.policy.obligations import (
    Approval,
    Budget,
    KAnonymity,
    Noise,
    Obligations,
    Onward,
    Quota,
    Rate,
    ReviewTerms,
    apply,
    covers,
    from_terms,
    merge,
    merge_all,
    pseudonyms,
    resolve,
    shared,
    to_score,
    to_terms,
    too_rare,
    verify,
    verify_batch,
)

#: A busy machine is no failure.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)

PATHS = ["age", "name", "notes", "notes.free_text", "notes.free_text.line", "visits.cost"]
GRIDS = st.sampled_from([1e-6, 0.001, 0.1, 0.15, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 12.5, 999_999_937.0, 1e9])

reviews = st.builds(ReviewTerms, st.integers(1, 9), st.booleans(), st.sampled_from([0.0, 0.29, 0.7, 0.7001, 1.0]))
noises = st.builds(
    Noise, st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([-20.0, -0.5, 0.0]), st.sampled_from([0.25, 3.0, 20.0])
)
rules = st.sampled_from("ab")
obligations = st.builds(
    Obligations,
    mask=st.dictionaries(st.sampled_from(PATHS), st.integers(0, 4), max_size=3),
    hash=st.frozensets(st.sampled_from(PATHS), max_size=2),
    noise=st.dictionaries(st.sampled_from(PATHS), noises | st.just(Noise(1, 5, 6)), max_size=2),
    drop_personal=st.booleans(),
    k_anonymity=st.none() | st.builds(KAnonymity, st.integers(2, 4), st.frozensets(st.sampled_from(PATHS), min_size=1)),
    quotas=st.lists(st.builds(Quota, st.integers(0, 3), rules), max_size=2).map(tuple),
    budgets=st.lists(
        st.builds(Budget, st.sampled_from([0.5, 1.0]), st.sampled_from([(), ("recipient",)]), rules), max_size=2
    ).map(tuple),
    notify=st.frozensets(st.sampled_from(["dpo", "desk"])),
    approvals=st.lists(st.builds(Approval, st.integers(1, 3), rules), max_size=3).map(tuple),
    expire_ms=st.none() | st.integers(1, 10**13),
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


def fitting(duties: Obligations) -> Obligations:
    """Leave the forms that suit the types of fields in `records`."""
    numeric, texts = ("age", "visits.cost"), ("name", "notes.free_text.line", "visits.ward")
    return Obligations(
        redact=duties.redact,
        generalize={path: grid for path, grid in duties.generalize.items() if path in numeric},
        noise={path: noise for path, noise in duties.noise.items() if path in numeric},
        mask={path: kept for path, kept in duties.mask.items() if path in texts},
        hash=frozenset(path for path in duties.hash if path in texts),
    )


def shaped(duties: Obligations, record: dict[str, Any], noise: float = 0.0) -> dict[str, Any] | None:
    """Apply obligations; None where a whole number has no value within the bounds of its noise."""
    try:
        return apply(duties, record, pseudonym=pseudonyms(bytes(16)), noise=lambda _, value, __: value + noise)
    except PolicyDenied as error:
        assert "no value within its bounds" in str(error)  # noqa: PT017
        return None


@pytest.mark.invariant("S1")
@given(obligations, obligations, records, st.floats(-1e9, 1e9))
@PATIENT
def test_what_is_applied_passes_each_sides_check(
    a: Obligations, b: Obligations, record: dict[str, Any], noise: float
) -> None:
    a, b = fitting(a), fitting(b)
    both = merge(a, b)
    before = json.dumps(record)
    done = shaped(both, record, noise)
    assert json.dumps(record) == before
    if done is None:
        return
    for duties in (a, b, both):
        verify(duties, done)
        verify(duties, json.loads(canonical_json(done)))
    if not both.hash:
        assert shaped(both, done) == done


@pytest.mark.invariant("S1")
@given(obligations, obligations, records)
@PATIENT
def test_what_satisfies_the_stricter_satisfies_the_looser(
    a: Obligations, b: Obligations, record: dict[str, Any]
) -> None:
    a, b = fitting(a), fitting(b)
    if covers(a, b) and (done := shaped(a, record)) is not None:
        verify(b, done)


@given(obligations, st.lists(records, max_size=8))
@PATIENT
def test_without_the_rare_rows_the_others_are_anonymous(duties: Obligations, rows: list[dict[str, Any]]) -> None:
    duties = Obligations(k_anonymity=duties.k_anonymity)
    rare = too_rare(duties, rows)
    verify_batch(duties, [row for position, row in enumerate(rows) if position not in rare])
    if rare:
        with pytest.raises(PolicyDenied, match="share their identifying values"):
            verify_batch(duties, rows)


@given(obligations, st.frozensets(st.sampled_from(PATHS)))
@PATIENT
def test_dropping_personal_fields_is_redacting_them(duties: Obligations, personal: frozenset[str]) -> None:
    resolved = resolve(duties, personal)
    assert not resolved.drop_personal
    assert covers(resolved, Obligations(redact=personal if duties.drop_personal else frozenset()))
    assert resolved == merge(resolved, duties if not duties.drop_personal else resolved)


@pytest.mark.invariant("S1")
@given(records, obligations)
@PATIENT
def test_nothing_but_what_was_asked_for_changes(record: dict[str, Any], duties: Obligations) -> None:
    duties = fitting(duties)
    if (done := shaped(duties, record)) is None:
        return
    assert done["label"] == record["label"]
    paths = (*duties.redact, *duties.generalize, *duties.noise, *duties.mask, *duties.hash)
    touched = {path.split(".")[0] for path in paths}
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
    visible = replace(shared(resolve(duties, frozenset())), review=None)
    assert covers(back, visible)
    assert back == visible


@given(st.floats(0, 1))
@PATIENT
def test_a_score_never_gets_looser_on_the_wire(score: float) -> None:
    assert 0 <= to_score(score) <= 10_000
    assert to_score(score) / 10_000 >= score - 1e-9
