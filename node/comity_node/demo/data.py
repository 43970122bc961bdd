"""The demo's data: real patients, a held-out test set, and an uneven split over the organizations.

Nothing that is published is measured on private rows: the schema's ranges of the breast-cancer data are declared from
what the measurements can be at all, and those of a user's own file are rounded outward to powers of ten, which tells
the order of magnitude of the largest value and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from comity.errors import ConfigError
from comity_node.validators.schema import FieldSpec, Labels, Matrix, Schema, Vector

LABEL = "label"
PRIVATE_FILE = "private.parquet"
SCHEMA_FILE = "schema.json"
TEST_FILE = "test.parquet"

_MAX_ROWS = 200_000
_MAX_BYTES = 256 * 1024 * 1024
_MAX_DRAWS = 100

# Declared ranges of Wolberg's cell-nucleus measurements: radius and texture, areas and perimeters in pixels of an image
# of at most 640 x 400, ratios and fractal dimensions below 1; standard errors and "worst" values share their measure's.
_DECLARED = {
    "radius": 100.0,
    "texture": 255.0,
    "perimeter": 1000.0,
    "area": 20000.0,
    "smoothness": 1.0,
    "compactness": 5.0,
    "concavity": 5.0,
    "concave_points": 1.0,
    "symmetry": 2.0,
    "fractal_dimension": 1.0,
}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with a binary label: `rows` is n x features in the schema's order, `labels` is n of 0 or 1."""

    schema: Schema
    rows: Matrix
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Sequence[int] | np.ndarray[Any, Any]) -> Table:
        """Return the rows at `index`."""
        chosen = np.asarray(index, dtype=np.int64)
        return Table(self.schema, self.rows[chosen], self.labels[chosen])

    def records(self) -> list[dict[str, float | int]]:
        """Return the rows as flat JSON objects."""
        return to_records(self.schema, self.rows, self.labels)


@dataclass(frozen=True, slots=True)
class Split:
    """The held-out test set, which nobody trains on, and one part per organization."""

    test: Table
    parts: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Unevenness:
    """How unlike the organizations are.

    Attributes:
        concentration: Dirichlet parameter of each class's shares; smaller is more uneven.
        skew: weight of what kind of patient a row is (`_habit_axis`) against chance, 0 to 1, when it is given away.
        min_rows: rows that each organization gets at least.
        min_class: rows of each class that each organization gets at least.
    """

    concentration: float = 4.0
    skew: float = 0.35
    min_rows: int = 50
    min_class: int = 12


def to_records(schema: Schema, rows: Matrix, labels: Labels) -> list[dict[str, float | int]]:
    """Return rows (n x features) and labels (n) as flat JSON objects, integers where the schema says so."""
    integers = [spec.type == "integer" for name, spec in schema.fields.items() if name != schema.label]
    records: list[dict[str, float | int]] = []
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        values = [int(v) if whole else v for v, whole in zip(row, integers, strict=True)]
        records.append({**dict(zip(schema.features, values, strict=True)), schema.label: label})
    return records


def breast_cancer() -> Table:
    """Return the Wisconsin diagnostic breast-cancer data (569 x 30) that scikit-learn ships; label 1 is malignant."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in data.feature_names]
    fields = {name: FieldSpec("number", 0.0, _DECLARED[_measure(name)]) for name in names}
    schema = Schema(LABEL, {**fields, LABEL: FieldSpec("integer", 0, 1)})
    return Table(schema, np.asarray(data.data, dtype=np.float64), 1 - np.asarray(data.target, dtype=np.int64))


def _measure(name: str) -> str:
    return name.removeprefix("mean_").removeprefix("worst_").removesuffix("_error")


def read_table(path: Path, label: str) -> Table:
    """Read a user's CSV or Parquet file with numeric columns and the binary label `label`.

    The label's two values, sorted, become 0 and 1. Spaces in names become underscores.

    Raises:
        ConfigError: no such file or column, a column that is not numeric or has gaps, or a label that is not binary.
    """
    table = _read_arrow(path)
    if label not in table.column_names:
        raise ConfigError(f"no column {label!r}; there are: {', '.join(table.column_names[:40])}", file=str(path))
    if not 100 <= table.num_rows <= _MAX_ROWS:
        raise ConfigError(f"{table.num_rows} rows; the demo takes 100 to {_MAX_ROWS}", file=str(path))
    names = [name for name in table.column_names if name != label]
    renamed = [name.strip().replace(" ", "_") for name in names]
    if not names or len(set(renamed)) != len(names) or LABEL in renamed:
        raise ConfigError(f"columns other than the label need distinct names, none of them {LABEL!r}", file=str(path))
    columns = [_numeric(table.column(name), name, path) for name in names]
    fields = {new: _rounded_range(column) for new, column in zip(renamed, columns, strict=True)}
    schema = Schema(LABEL, {**fields, LABEL: FieldSpec("integer", 0, 1)})
    return Table(schema, np.column_stack(columns), _binary(table.column(label), label, path))


def _read_arrow(path: Path) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"the file is over {_MAX_BYTES >> 20} MiB", file=str(path))
        if path.suffix.lower() in (".parquet", ".pq"):
            return pyarrow.parquet.read_table(path)
        if path.suffix.lower() == ".csv":
            return pyarrow.csv.read_csv(path)
    except OSError as error:
        raise ConfigError(f"cannot read the data: {error.strerror or error}", file=str(path)) from error
    except pa.ArrowException as error:
        raise ConfigError(f"cannot read the data: {str(error).splitlines()[0]}", file=str(path)) from error
    raise ConfigError("the data must be a .csv or a .parquet file", file=str(path))


def _numeric(column: Any, name: str, path: Path) -> Vector:  # noqa: ANN401
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise ConfigError(f"column {name!r} is {kind}, not numeric; leave it out or encode it", file=str(path))
    values = np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    gaps = int((~np.isfinite(values)).sum())
    if gaps:
        raise ConfigError(f"column {name!r} has {gaps} missing or infinite values; fill or drop them", file=str(path))
    if np.ptp(values) == 0:
        raise ConfigError(f"column {name!r} has only one value; leave it out", file=str(path))
    return values


def _binary(column: Any, name: str, path: Path) -> Labels:  # noqa: ANN401
    values = column.to_pylist()
    kinds = set(values)
    if None in kinds or len(kinds) != 2:
        raise ConfigError(f"label {name!r} needs exactly two values and no gaps, it has {len(kinds)}", file=str(path))
    _, one = sorted(kinds)
    return np.array([int(value == one) for value in values], dtype=np.int64)


def _rounded_range(values: Vector) -> FieldSpec:
    whole = bool(np.all(values == np.round(values))) and float(np.abs(values).max()) < 2**53
    low, high = -_power_of_ten(-float(values.min())), _power_of_ten(float(values.max()))
    return FieldSpec("integer" if whole else "number", low, high if high > low else low + 1.0)


def _power_of_ten(bound: float) -> float:
    """Return the power of ten that is at least twice `bound`, or 0 for a bound that is not positive."""
    return 10.0 ** math.ceil(math.log10(2.0 * bound)) if bound > 0 else 0.0


def split(
    table: Table, *, organizations: int = 5, seed: int = 0, test_share: float = 0.28, uneven: Unevenness | None = None
) -> Split:
    """Hold a stratified test set back and divide the rest unevenly: in the classes' shares and in the kind of patients.

    Raises:
        ConfigError: there are not enough rows of a class for the minima.
    """
    how = uneven or Unevenness()
    rng = np.random.default_rng([seed, 0x5B117])
    held: list[int] = []
    kept: list[Labels] = []
    for label in (0, 1):
        index = rng.permutation(np.flatnonzero(table.labels == label))
        cut = round(test_share * len(index))
        held += index[:cut].tolist()
        kept.append(index[cut:])
    place = _habit_axis(table.rows, table.labels)
    owned: list[list[int]] = [[] for _ in range(organizations)]
    sequence = rng.permutation(organizations).tolist()
    for index, shares in zip(kept, _shares(rng, [len(index) for index in kept], organizations, how), strict=True):
        order = _ordered(rng, index, place, how.skew)
        start = 0
        for who in sequence:
            owned[who] += order[start : start + shares[who]].tolist()
            start += shares[who]
    return Split(table.take(held), tuple(table.take(rng.permutation(rows)) for rows in owned))


def _shares(rng: np.random.Generator, totals: list[int], organizations: int, how: Unevenness) -> list[list[int]]:
    """Draw how many rows of each class (outer) each organization (inner) gets, within the minima."""
    spare = [total - how.min_class * organizations for total in totals]
    if min(spare) < 0 or sum(totals) < how.min_rows * organizations:
        least = f"{how.min_rows} rows and {how.min_class} of each class"
        raise ConfigError(f"not enough rows: {totals} of the classes, and {organizations} organizations need {least}")
    for attempt in range(_MAX_DRAWS):
        flatter = how.concentration * 1.05**attempt
        shares = [how.min_class + _divide(rng, rest, organizations, flatter) for rest in spare]
        if (shares[0] + shares[1]).min() >= how.min_rows:
            break
    else:
        shares = _even(totals, organizations)
    return [part.tolist() for part in shares]


def _even(totals: list[int], organizations: int) -> list[Labels]:
    """Divide each class evenly; where one class's remainder ends, the next one's begins, so that sums are even too."""
    first, shares = 0, []
    for total in totals:
        base, extra = divmod(total, organizations)
        part = np.full(organizations, base, dtype=np.int64)
        part[(first + np.arange(extra)) % organizations] += 1
        shares.append(part)
        first += extra
    return shares


def _divide(rng: np.random.Generator, rest: int, organizations: int, concentration: float) -> Labels:
    weights = rng.dirichlet([concentration] * organizations)
    part = np.floor(weights * rest).astype(np.int64)
    part[np.argsort(part)[: rest - int(part.sum())]] += 1
    return part


def _habit_axis(rows: Matrix, labels: Labels) -> Vector:
    """Return each row's place, as a rank 0 to 1, on the main axis along which patients differ but classes do not.

    It stands for what makes hospitals differ apart from who is ill: the patients' age, the microscope, the habits.
    """
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    means = np.stack([standard[labels == label].mean(axis=0) for label in (0, 1)])
    within = standard - means[labels]
    apart = means[1] - means[0]
    apart /= np.linalg.norm(apart)
    within -= np.outer(within @ apart, apart)
    _, vectors = np.linalg.eigh(within.T @ within)
    ranks: Vector = np.argsort(np.argsort(within @ vectors[:, -1])) / max(1, len(rows) - 1)
    return ranks


def _ordered(rng: np.random.Generator, index: Labels, place: Vector, skew: float) -> Labels:
    chance = rng.permutation(len(index)) / max(1, len(index) - 1)
    local = np.argsort(np.argsort(place[index])) / max(1, len(index) - 1)
    ordered: Labels = index[np.argsort(skew * local + (1 - skew) * chance)]
    return ordered


def write_table(path: Path, table: Table) -> None:
    """Write a table as Parquet: one float64 column a feature, the label as int64."""
    columns = {name: table.rows[:, i] for i, name in enumerate(table.schema.features)}
    pyarrow.parquet.write_table(pa.table({**columns, table.schema.label: table.labels}), path)


def load_table(path: Path, schema: Schema) -> Table:
    """Read what `write_table` wrote.

    Raises:
        ConfigError: the file is missing, unreadable or has other columns than the schema.
    """
    table = _read_arrow(path)
    missing = [name for name in schema.fields if name not in table.column_names]
    if missing:
        raise ConfigError(f"column {missing[0]!r} of the schema is missing", file=str(path))
    rows = np.column_stack([_numeric_or_constant(table.column(name)) for name in schema.features])
    return Table(schema, rows, np.asarray(table.column(schema.label).to_numpy(), dtype=np.int64))


def _numeric_or_constant(column: Any) -> Vector:  # noqa: ANN401
    return np.asarray(column.to_numpy(), dtype=np.float64)


def write_split(parts: Split, directories: Mapping[str, Path], test_directory: Path) -> None:
    """Write each organization's rows and schema to its own directory, and the test set to another.

    Args:
        parts: what `split` returned.
        directories: organization to directory, in the order of `parts.parts`.
        test_directory: where `test.parquet` and its schema go; no organization's.

    Raises:
        ConfigError: there are more or fewer organizations than parts.
    """
    if len(directories) != len(parts.parts):
        raise ConfigError(f"{len(directories)} directories for {len(parts.parts)} parts")
    for directory, part in zip(directories.values(), parts.parts, strict=True):
        directory.mkdir(parents=True, exist_ok=True)
        write_table(directory / PRIVATE_FILE, part)
        part.schema.save(directory / SCHEMA_FILE)
        (directory / PRIVATE_FILE).chmod(0o600)
    test_directory.mkdir(parents=True, exist_ok=True)
    write_table(test_directory / TEST_FILE, parts.test)
    parts.test.schema.save(test_directory / SCHEMA_FILE)
