"""The model and the data: scikit-learn's logistic regression on standardized rows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.csv
import pyarrow.parquet
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from comity.client import Client
from comity.errors import ConfigError
from comity.flower.data import Scale, records_to_arrays
from comity.flower.validation import COEFFICIENTS, INTERCEPT

Arrays = dict[str, npt.NDArray[Any]]
Rows = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def initial_model(width: int) -> Arrays:
    """Return the model that a federation over `width` fields starts from."""
    return {COEFFICIENTS: np.zeros(width), INTERCEPT: np.zeros(1)}


def fit(
    model: Mapping[str, npt.NDArray[Any]], rows: Rows, labels: Labels, *, iterations: int, inverse_regularization: float
) -> Arrays:
    """Train on from `model` for at most `iterations` steps of the solver; rows of one class only leave it as it is."""
    if len(np.unique(labels)) < 2:
        return {name: np.array(array) for name, array in model.items()}
    regression = LogisticRegression(C=inverse_regularization, max_iter=iterations, warm_start=True)
    regression.classes_ = np.array([0, 1])
    regression.coef_ = np.array(model[COEFFICIENTS]).reshape(1, -1)
    regression.intercept_ = np.array(model[INTERCEPT])
    with warnings.catch_warnings():
        # A round is meant to stop early.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(rows, labels)
    return {COEFFICIENTS: regression.coef_[0].copy(), INTERCEPT: regression.intercept_.copy()}


def read_rows(path: Path, scale: Scale) -> tuple[Rows, Labels]:
    """Read a Parquet or CSV file; return standardized rows (n, d) and labels (n,)."""
    table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    missing = {*scale.fields, scale.label} - set(table.column_names)
    if missing:
        raise ConfigError(f"the columns {sorted(missing)} are missing", file=str(path))
    columns = [table.column(name).to_numpy().astype(np.float64) for name in scale.fields]
    return scale.apply(np.column_stack(columns)), table.column(scale.label).to_numpy().astype(np.int64)


def certified_rows(dataset: str, agreement: str, scale: Scale) -> tuple[Rows, Labels]:
    """Ask the node for the certified records of other organizations; return them like `read_rows`."""
    with Client() as node:
        own = node.status().organization
        found = [record.fields for record in node.records(dataset=dataset, agreement=agreement) if record.author != own]
    rows, labels = records_to_arrays(found, scale.fields, scale.label)
    return scale.apply(rows), labels


def environment_path(name: str) -> Path:
    """Return the path that an environment variable holds: data stay out of messages and of the app's bundle."""
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set; it names a file of this organization")
    return Path(value)
