"""The model and the data: scikit-learn's logistic regression on standardized rows."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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

#: With fewer certified records than this, the constants come from the schema's declared ranges.
_ENOUGH_ROWS = 50


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a data set, in order, with their declared ranges, and the column with the class (0 or 1)."""

    ranges: Mapping[str, tuple[float, float]]
    label: str

    @classmethod
    def load(cls, path: Path) -> Layout:
        """Read the data set's published schema."""
        try:
            schema = json.loads(path.read_bytes())
            label = str(schema["label"])
            fields = {name: (float(spec["min"]), float(spec["max"])) for name, spec in schema["fields"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"no schema: {error!r}", file=str(path)) from error
        return cls({name: bounds for name, bounds in fields.items() if name != label}, label)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns without the class."""
        return tuple(self.ranges)


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


def read_rows(path: Path, layout: Layout) -> tuple[Rows, Labels]:
    """Read a Parquet or CSV file; return rows (n, d) as they are and labels (n,)."""
    table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    missing = {*layout.fields, layout.label} - set(table.column_names)
    if missing:
        raise ConfigError(f"the columns {sorted(missing)} are missing", file=str(path))
    columns = [table.column(name).to_numpy().astype(np.float64) for name in layout.fields]
    return np.column_stack(columns), table.column(layout.label).to_numpy().astype(np.int64)


def certified_rows(node: Client, dataset: str, agreement: str, layout: Layout) -> tuple[Rows, Labels]:
    """Ask a node for the certified records of other organizations; return them like `read_rows`."""
    own = node.status().organization
    found = [one.fields for one in node.records(dataset=dataset, agreement=agreement) if one.author != own]
    return records_to_arrays(found, layout.fields, layout.label)


def shared_scale(rows: Rows, layout: Layout) -> Scale:
    """Return the constants for everybody, from certified rows if there are enough of them."""
    if len(rows) < _ENOUGH_ROWS:
        return Scale.of_ranges(layout.ranges, layout.label)
    return Scale.of_rows(layout.fields, layout.label, rows)


def environment_path(name: str) -> Path:
    """Return the path that an environment variable holds: data stay out of messages and of the app's bundle."""
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set; it names a file of this organization")
    return Path(value)
