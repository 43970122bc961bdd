"""Held-out validation by ONNX Runtime, and rows as arrays."""

from __future__ import annotations

import numpy as np
import pytest

from comity.errors import ConfigError, InvalidRecord
from comity.flower.data import Scale, records_to_arrays
from comity.flower.validation import LogisticValidator, predict

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(50, 4))
LABELS = (ROWS[:, 0] > 0).astype(int)
ARRAYS = {"coefficients": np.array([2.0, 0, 0, 0]), "intercept": np.zeros(1)}


def test_onnx_runs_the_logistic_regression() -> None:
    weights, bias = RNG.normal(size=4), np.array([0.3])
    found = predict(weights, bias, ROWS.astype(np.float32))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(ROWS @ weights + bias))), atol=1e-5)


def test_a_good_model_scores_high_and_its_opposite_low() -> None:
    validator = LogisticValidator(ROWS, LABELS)
    assert validator(ARRAYS).auc == 1.0
    assert validator({**ARRAYS, "coefficients": -ARRAYS["coefficients"]}).auc == 0.0


@pytest.mark.parametrize(
    "arrays",
    [{}, {"coefficients": np.zeros(4)}, {**ARRAYS, "coefficients": np.zeros(5)}, {**ARRAYS, "intercept": np.zeros(2)}],
)
def test_other_arrays_are_no_logistic_regression(
    arrays: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> None:
    with pytest.raises(InvalidRecord):
        LogisticValidator(ROWS, LABELS)(arrays)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [(ROWS, LABELS[1:]), (ROWS[0], LABELS), (ROWS * np.nan, LABELS), (ROWS, LABELS * 0), (ROWS, LABELS * 2)],
)
def test_held_out_rows_must_be_usable(
    rows: np.ndarray[tuple[int, ...], np.dtype[np.float64]], labels: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> None:
    with pytest.raises(InvalidRecord):
        LogisticValidator(rows, labels)


def test_records_become_rows_in_the_order_of_the_fields() -> None:
    rows, labels = records_to_arrays([{"b": 2, "a": 1.5, "y": 1}, {"a": 3, "b": 4, "y": 0}], ["a", "b"], "y")
    assert rows.tolist() == [[1.5, 2.0], [3.0, 4.0]]
    assert labels.tolist() == [1, 0]
    assert records_to_arrays([], ["a", "b"], "y")[0].shape == (0, 2)


@pytest.mark.parametrize(
    "record", [{"y": 1}, {"a": "1", "y": 1}, {"a": True, "y": 1}, {"a": float("inf"), "y": 1}, {"a": 1, "y": 2}]
)
def test_a_record_that_does_not_fit_is_named(record: dict[str, object]) -> None:
    with pytest.raises(InvalidRecord, match="record 1"):
        records_to_arrays([{"a": 1, "y": 1}, record], ["a"], "y")


def test_a_scale_travels_in_a_train_message() -> None:
    scale = Scale.of_rows(["a", "b"], "y", np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert scale.apply(np.array([[1.0, 5.0]])).tolist() == [[-1.0, 0.0]]
    assert Scale.from_config(["a", "b"], "y", scale.to_config()) == scale
    assert Scale.of_ranges({"a": (0.0, 6.0)}, "y").apply(np.array([[6.0]])).tolist() == [[3.0]]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"center": [0.0], "scale": [1.0]},
        {"center": [0.0, 0.0], "scale": [1.0, 0.0]},
        {"center": [0.0, float("nan")], "scale": [1.0, 1.0]},
        {"center": ["0", "0"], "scale": [1.0, 1.0]},
    ],
)
def test_a_scale_that_does_not_fit_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Scale.from_config(["a", "b"], "y", config)
