"""Obligations and schemas on columns are those on records: the same values, the same refusals."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from comity.errors import ComityError, InvalidRecord, PolicyDenied
from comity_node.bulk import shape
from comity_node.bulk.ipc import columns_of
from comity_node.policy import obligations as duties
from comity_node.policy.obligations import Obligations
from comity_node.validators.schema import FieldSpec, Schema

GRIDS = st.one_of(
    st.integers(1, 10**9).map(float),
    st.sampled_from([0.1, 0.25, 0.3, 0.4, 0.5, 2.5, 0.000001, 0.7, 12.5]),
    st.integers(1, 10**12).map(lambda units: units / 1_000_000),
)
INTEGERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-1000, 1000), st.integers(-(2**50), 2**50))
FLOATS = st.one_of(st.floats(allow_nan=True), st.floats(-1e6, 1e6), st.integers(-4000, 4000).map(lambda n: n / 4))


def by_record(owed: Obligations, values: list[Any]) -> list[Any] | type[ComityError]:
    try:
        return [duties.apply(owed, {"x": value, "y": 1})["x"] for value in values]
    except PolicyDenied as error:
        return type(error)


def by_column(owed: Obligations, values: list[Any], kind: pa.DataType) -> list[Any] | type[ComityError]:
    batch = pa.record_batch({"x": pa.array(values, kind), "y": pa.array([1] * len(values))})
    try:
        shaped = shape.Shaper(owed, columns_of(batch.schema)).apply(batch)
        found: list[Any] = shaped.column("x").to_pylist()
    except PolicyDenied as error:
        return type(error)
    shape.verify(dict(owed.generalize), shaped)
    return found


@given(GRIDS, st.lists(st.none() | FLOATS, min_size=1, max_size=20))
def test_floats_round_as_records_do(grid: float, values: list[float | None]) -> None:
    owed = Obligations(generalize={"x": grid})
    assert by_column(owed, values, pa.float64()) == by_record(owed, values)


@given(GRIDS, st.lists(st.none() | INTEGERS, min_size=1, max_size=20))
@example(5.0, [-(2**63)])
@example(0.5, [-(2**63), 2**63 - 1])
def test_integers_round_as_records_do(grid: float, values: list[int | None]) -> None:
    owed = Obligations(generalize={"x": grid})
    expected = by_record(owed, values)
    if isinstance(expected, list) and any(one is not None and not -(2**63) <= one < 2**63 for one in expected):
        expected = PolicyDenied if grid == int(grid) else expected
    assert by_column(owed, values, pa.int64()) == expected


@given(GRIDS, st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=10))
def test_unsigned_integers_round_as_records_do(grid: float, values: list[int]) -> None:
    owed = Obligations(generalize={"x": grid})
    expected = by_record(owed, values)
    assert isinstance(expected, list)
    if grid == int(grid) and any(one >= 2**63 for one in expected):
        assert by_column(owed, values, pa.uint64()) is PolicyDenied
    else:
        assert by_column(owed, values, pa.uint64()) == expected


@given(GRIDS, st.lists(st.none() | FLOATS, min_size=1, max_size=20))
def test_the_receiver_sees_what_is_off_its_grid(grid: float, values: list[float | None]) -> None:
    owed = Obligations(generalize={"x": grid})
    batch = pa.record_batch({"x": pa.array(values, pa.float64())})
    refused = False
    for value in values:
        try:
            duties.verify(owed, {"x": value})
        except PolicyDenied:
            refused = True
    if refused:
        with pytest.raises(PolicyDenied):
            shape.verify({"x": grid}, batch)
    else:
        shape.verify({"x": grid}, batch)


PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(".".join)


@given(st.sets(PATHS, min_size=1, max_size=5), st.sets(PATHS, max_size=4))
def test_the_same_columns_are_redacted(names: set[str], redact: set[str]) -> None:
    owed = Obligations(redact=frozenset(redact))
    record = {name: 1 for name in sorted(names)}
    batch = pa.record_batch({name: pa.array([1]) for name in record})
    expected = duties.apply(owed, record)
    if not expected:
        with pytest.raises(InvalidRecord):
            shape.Shaper(owed, columns_of(batch.schema))
        return
    assert shape.Shaper(owed, columns_of(batch.schema)).apply(batch).to_pylist() == [expected]
    assert shape.exposed(owed, columns_of(batch.schema)) == sorted(set(record) - set(expected))


SCHEMA = Schema("label", {"x": FieldSpec("number", -10.0, 10.0), "label": FieldSpec("integer", 0, 1)})


@given(
    st.lists(st.none() | st.floats(-11, 11) | st.just(float("nan")), min_size=1, max_size=5),
    st.sampled_from([0.0, 1.0, 0.5, 2.0]),
)
def test_a_batch_fits_a_schema_if_each_row_does(values: list[float | None], label: float) -> None:
    batch = pa.record_batch({"x": pa.array(values, pa.float64()), "label": pa.array([label] * len(values))})
    problems = [SCHEMA.problem(row) for row in batch.to_pylist()]
    if any(problems):
        with pytest.raises(InvalidRecord):
            shape.check_schema(SCHEMA, batch)
    else:
        shape.check_schema(SCHEMA, batch)


@pytest.mark.parametrize("kind", [pa.string(), pa.bool_(), pa.date32()])
def test_what_is_no_number_is_not_rounded(kind: pa.DataType) -> None:
    batch = pa.record_batch({"x": pa.array([None], kind)})
    with pytest.raises(PolicyDenied, match="no number"):
        shape.Shaper(Obligations(generalize={"x": 5}), columns_of(batch.schema))
