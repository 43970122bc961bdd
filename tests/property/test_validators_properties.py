from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from comity.errors import ConfigError, InvalidRecord, ModelError
from comity_node.validators.calibrate import Tail, binomial_tail, closest_of
from comity_node.validators.distance import closest
from comity_node.validators.onnxcheck import check_model
from comity_node.validators.runtime import load_array
from comity_node.validators.schema import FieldSpec, Schema

finite = st.floats(-1e6, 1e6, allow_nan=False)
SCHEMA = Schema("label", {"a": FieldSpec("number", -10, 10), "label": FieldSpec("integer", 0, 1)})


@given(hnp.arrays(np.float64, st.integers(10, 200), elements=finite), st.lists(st.floats(-1e7, 1e7), min_size=2))
def test_p_values_fall_as_the_statistic_grows_and_stay_in_range(values: np.ndarray, points: list[float]) -> None:
    tail = Tail.fit(values)
    found = tail.p_value(np.sort(np.array(points)))
    assert np.all((found >= 0) & (found <= 1))
    assert np.all(np.diff(found) <= 1e-12)
    assert Tail.from_json(tail.to_json()) == tail


@pytest.mark.parametrize("size", [80, 2000])
def test_p_values_of_good_rows_are_uniform_on_average(size: int) -> None:
    # One sample of a few thousand strays by 0.01 and more, so the mean over many is what can be held to account.
    levels = (0.01, 0.05, 0.2, 0.5)
    shares = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = Tail.fit(rng.gamma(4.0, size=size)).p_value(rng.gamma(4.0, size=2000))
        shares.append([(found < level).mean() for level in levels])
    for share, level in zip(np.mean(shares, axis=0), levels, strict=True):
        assert 0.85 * level < share < 1.15 * level


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.just(3)), elements=st.floats(-5, 5)),
    hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-5, 5)),
)
def test_the_closest_row_is_found(rows: np.ndarray, reference: np.ndarray) -> None:
    slow = [min(math.dist(row, other) for other in reference) for row in rows]
    np.testing.assert_allclose(closest(rows, reference), slow, atol=1e-6)


@given(st.floats(0, 1), st.integers(0, 5000))
def test_more_rows_make_a_close_one_likelier(p: float, count: int) -> None:
    fewer, more = closest_of(np.array([p]), count)[0], closest_of(np.array([p]), count + 1)[0]
    assert 0.0 <= more <= 1.0
    assert count == 0 or fewer <= more + 1e-12


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.5))
def test_binomial_tail_is_the_sum_of_its_terms(hits: int, trials: int, rate: float) -> None:
    direct = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(hits, trials + 1))
    assert binomial_tail(min(hits, trials + 1), trials, rate) == pytest.approx(min(1.0, direct), abs=1e-9)


@pytest.mark.invariant("S6")
@given(st.binary(max_size=300))
def test_bytes_that_are_no_model_or_array_raise_our_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        check_model(data)
    with pytest.raises(ModelError):
        load_array(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["a", "label", "x"]), json_values))
def test_a_record_is_refused_or_becomes_finite_numbers(record: dict[str, object]) -> None:
    try:
        rows, labels = SCHEMA.matrix([record])
    except InvalidRecord:
        return
    assert np.isfinite(rows).all()
    assert labels[0] in (0, 1)


@given(json_values)
def test_a_schema_is_refused_with_our_error_or_read_back(value: object) -> None:
    try:
        schema = Schema.from_json(value)
    except ConfigError:
        return
    assert Schema.from_json(schema.to_json()) == schema


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(finite, st.floats(1, 1e6)), min_size=1, max_size=5))
def test_a_schema_reads_back(ranges: dict[str, tuple[float, float]]) -> None:
    fields = {name: FieldSpec("number", low, low + width) for name, (low, width) in ranges.items()}
    schema = Schema("label", {**fields, "label": FieldSpec("integer", 0, 1, personal=True)})
    assert Schema.from_json(schema.to_json()) == schema
