"""How close a synthetic row sits to a private one: the measure behind `min_distance_to_private`.

Only the producer's own node can measure this: to a receiver, a copy of a private row looks like a good row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from comity.errors import ConfigError
from comity_node.validators.schema import Matrix, Schema, Vector

_CHUNK = 2_000_000  # distances held at a time


class PrivateReference:
    """One organization's private rows, standardized, to measure distances to.

    The distance of two rows is the root mean square over the features of their differences in units of each feature's
    standard deviation over the private rows. 0 is a copy; two unrelated rows are about 1.4 apart, whatever the number
    of features.

    Args:
        schema: names the features and their order.
        rows: the private rows (n x features).

    Raises:
        ConfigError: there are fewer than two rows.
    """

    def __init__(self, schema: Schema, rows: Matrix) -> None:
        if len(rows) < 2:
            raise ConfigError(f"a private reference needs at least two rows, not {len(rows)}")
        self._schema = schema
        spread = rows.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0) * np.sqrt(rows.shape[1])
        self._centre = rows.mean(axis=0)
        self._rows = (rows - self._centre) / self._scale

    @classmethod
    def load(cls, parquet: Path, schema: Schema | None = None) -> PrivateReference:
        """Read private rows from a Parquet file.

        Args:
            parquet: the private rows; columns that the schema does not name are left alone.
            schema: what a record looks like; by default `schema.json` beside the file.

        Raises:
            ConfigError: a file is missing or unreadable, or lacks a field.
        """
        known = schema or Schema.load(parquet.with_name("schema.json"))
        try:
            table = pyarrow.parquet.read_table(parquet, columns=list(known.features))
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"cannot read the private rows: {error}", file=str(parquet)) from error
        missing = [name for name in known.features if name not in table.column_names]
        if missing:
            raise ConfigError(f"the private rows have no column {missing[0]!r}", file=str(parquet))
        columns = [np.asarray(table.column(name).to_numpy(), dtype=np.float64) for name in known.features]
        rows = np.column_stack(columns)
        if not np.isfinite(rows).all():
            raise ConfigError("the private rows have missing or infinite values", file=str(parquet))
        return cls(known, rows)

    def distances(self, records: Sequence[Mapping[str, Any]]) -> Vector:
        """Return each record's distance to the closest private row (one float64 a record).

        Raises:
            InvalidRecord: a record does not fit the schema.
        """
        return self.distances_of(self._schema.matrix(records)[0])

    def distances_of(self, rows: Matrix) -> Vector:
        """Return the distance of each of `rows` (m x features, in schema order) to the closest private row."""
        return closest((rows - self._centre) / self._scale, self._rows)


def closest(rows: Matrix, reference: Matrix) -> Vector:
    """Return each row's Euclidean distance to the closest row of `reference`; infinite when that is empty.

    The closest row is found by |a|^2 - 2ab + |b|^2, which is fast and loses small distances; its distance is then
    computed from the differences. Both matrices must be centred and of unit scale, which keeps the search exact to
    about 1e-7.
    """
    out = np.full(len(rows), np.inf)
    if not len(reference):
        return out
    squares = np.einsum("ij,ij->i", reference, reference)
    step = max(1, _CHUNK // len(reference))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        nearest = np.argmin(squares[None, :] - 2.0 * (block @ reference.T), axis=1)
        out[start : start + step] = np.sqrt(np.square(block - reference[nearest]).sum(axis=1))
    return out
