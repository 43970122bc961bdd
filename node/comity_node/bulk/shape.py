"""Obligations and schemas on record batches: what `policy.obligations` and `validators.schema` do to one record.

Those two define what has to come out; here it is done a column at a time, because a transfer has too many rows to make
a mapping of each. Wherever a column's arithmetic could differ from theirs in the last digit, theirs is used, value by
value. Columns are flat, so a path of a policy names a column, or nothing at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from comity.errors import AgreementError, InvalidRecord, PolicyDenied
from comity_node.admission.noise import NoiseSource
from comity_node.bulk import forms
from comity_node.bulk.ipc import ARROW_ERRORS
from comity_node.policy import obligations as duties
from comity_node.policy.model import Obligations
from comity_node.policy.obligations import Pseudonym
from comity_node.protocol.bulk_manifest import Column
from comity_node.validators.schema import Schema

_FLOATS = ("float", "double")
_INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
_NUMBERS = frozenset((*_FLOATS, *_INTEGERS))
#: What is smaller is exact in a float64, in millionths of the grid's unit, too.
_EXACT = 2.0**52
_UNIT = 1_000_000
#: An integer below it, and its neighbour on the largest grid, have room in 64 bits as millionths.
_MOST_INTEGER = 2**62 // _UNIT


def generalized(obligations: Obligations, columns: Sequence[Column]) -> dict[str, float]:
    """Return the grids of the columns that have to be rounded.

    Raises:
        PolicyDenied: one of them holds no numbers, or lies below a path that should hold them.
    """
    grids: dict[str, float] = {}
    for column in columns:
        parts = column.name.split(".")
        for path in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if path not in obligations.generalize:
                continue
            if column.name != path or column.type not in _NUMBERS:
                raise PolicyDenied(f"the field {path!r} is to be rounded, but {column.name!r} is no number")
            grids[path] = obligations.generalize[path]
    return grids


def exposed(obligations: Obligations, columns: Sequence[Column]) -> list[str]:
    """Return the columns that have to be redacted, sorted."""
    return sorted(column.name for column in columns if duties.is_under(column.name, obligations.redact))


def texts(obligations: Obligations) -> frozenset[str]:
    """Return the columns that are text once they have been masked or hashed, whatever the schema says of them."""
    return obligations.hash | obligations.mask.keys()


class Shaper:
    """Brings the batches of one table into the form that is owed: redacted, masked, hashed, with noise, rounded.

    Args:
        obligations: what is owed.
        columns: of the table.
        pseudonym: makes the pseudonyms of hashed columns.

    Attributes:
        noise: what was drawn so far.

    Raises:
        PolicyDenied: a column holds other values than its form is for.
        InvalidRecord: nothing is left of the table.
    """

    def __init__(self, obligations: Obligations, columns: Sequence[Column], pseudonym: Pseudonym | None = None) -> None:
        gone = set(exposed(obligations, columns))
        kept = [column for column in columns if column.name not in gone]
        if not kept:
            raise InvalidRecord("every column of the table has to be redacted: nothing is left to send")
        self._names = [column.name for column in kept]
        self._forms = forms.forms_of(obligations, kept)
        self._pseudonym = pseudonym
        self.noise = NoiseSource()
        self._grids = {name: grid for name, grid in generalized(obligations, kept).items() if name not in self._forms}
        #: What comes out.
        self.columns = tuple(Column(each.name, self._type(each)) for each in kept)
        self.schema = arrow_schema(self.columns)

    def _type(self, column: Column) -> str:
        if (form := self._forms.get(column.name)) is not None:
            return forms.type_of(form, column)
        grid = self._grids.get(column.name)
        if grid is None:
            return column.type
        return "int64" if column.type in _INTEGERS and grid == int(grid) else "double"

    def apply(self, batch: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
        """Return the batch brought under the obligations; what comes out passes `verify`.

        Raises:
            PolicyDenied: a value that is to be rounded is no finite number.
        """
        columns = []
        for name, field in zip(self._names, self.schema, strict=True):
            column, grid, form = batch.column(name), self._grids.get(name), self._forms.get(name)
            if form is not None:
                column = forms.apply(form, name, column, field.type, self._pseudonym, self.noise.draw)
            columns.append(column if grid is None else _rounded(name, column, grid, field.type))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def arrow_schema(columns: Sequence[Column]) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    """Return the Arrow schema of columns."""
    return pa.schema([pa.field(column.name, _arrow_type(column.type)) for column in columns])


def verify(grids: Mapping[str, float], batch: Any) -> None:  # noqa: ANN401  (pyarrow ships no types)
    """Check that columns were rounded to their grids.

    Raises:
        PolicyDenied: a value is not on its grid.
    """
    for name, grid in grids.items():
        column = batch.column(name).drop_null()
        if not len(column):
            continue
        values = _doubles(column)
        on_grid = _round_floats(values, grid)
        with np.errstate(invalid="ignore"):
            doubtful = ~(np.abs(values - on_grid) <= duties.GRID_TOLERANCE * np.abs(values))
        owed = Obligations(generalize={name: grid})
        for index in np.flatnonzero(doubtful):  # by the definition: it raises, or knows better
            duties.verify(owed, {name: column[int(index)].as_py()})


def check_schema(schema: Schema, batch: Any) -> None:  # noqa: ANN401  (pyarrow ships no types)
    """Refuse a batch with a row that does not fit its dataset's schema (`Schema.problem`, for all rows at once).

    Raises:
        InvalidRecord: a column is missing or unknown, or a value is missing, out of range or of the wrong type.
    """
    for name, spec in schema.fields.items():
        column = batch.column(name)
        if column.null_count:
            raise InvalidRecord(f"{name!r} has rows without a value")
        if len(column):
            limits = pc.min_max(column)
            low, high = limits["min"].as_py(), limits["max"].as_py()
            if not (spec.minimum <= low and high <= spec.maximum) or _has_nan(column):
                raise InvalidRecord(f"{name!r} has values outside {spec.minimum:g} to {spec.maximum:g}")
            if spec.type == "integer" and str(column.type) in _FLOATS and _has_fraction(column):
                raise InvalidRecord(f"{name!r} has values that are no integers")


def check_columns(schema: Schema, columns: Sequence[Column]) -> None:
    """Refuse columns that are not those of a dataset's schema.

    Raises:
        InvalidRecord: one is missing, unknown, or holds no numbers.
    """
    names = {column.name for column in columns}
    if unknown := sorted(names - set(schema.fields)):
        raise InvalidRecord(f"{unknown[0]!r} is no field of the schema")
    if missing := [name for name in schema.fields if name not in names]:
        raise InvalidRecord(f"{missing[0]!r} is missing")
    if other := [column.name for column in columns if column.type not in _NUMBERS]:
        raise InvalidRecord(f"{other[0]!r} holds no numbers")


def matrix(batch: Any, names: Collection[str]) -> NDArray[np.float64]:  # noqa: ANN401  (pyarrow ships no types)
    """Return columns without nulls as rows x columns, in the order of `names`."""
    return np.column_stack([_doubles(batch.column(name)) for name in names])


def check_declared(needed: Obligations, declared: Obligations, columns: Sequence[Column], kind: str) -> None:
    """Refuse a manifest whose sender has not done to the rows what the receiver's side asks for.

    Raises:
        PolicyDenied: a field is there that must not be, is rounded less, or a promise is missing.
    """
    if open_ := exposed(needed, columns):
        raise PolicyDenied(f"the field {open_[0]!r} has to be redacted before it comes here")
    if kind == "certified":
        return  # each row's own proof says what was done to it
    forms.check_declared(needed, declared, columns)
    for name, grid in generalized(needed, columns).items():
        both = duties.merge(Obligations(generalize={name: grid}), declared)
        if both.generalize.get(name) != declared.generalize.get(name):
            raise PolicyDenied(f"the field {name!r} has to be rounded to multiples of {grid:g} before it comes here")
    distance = needed.min_distance_to_private or 0.0
    if (declared.min_distance_to_private or 0.0) < distance:
        raise PolicyDenied(f"the sender does not attest that no row is closer than {distance:g} to a private one")
    if needed.review is not None:
        raise PolicyDenied("a review is asked for, and only certified records have had one")


def read_declared(message: Any) -> Obligations:  # noqa: ANN401  (a protobuf message)
    """Return the obligations that a manifest states.

    Raises:
        PolicyDenied: they make no sense.
    """
    try:
        return duties.from_terms(message)
    except AgreementError as error:
        raise PolicyDenied(f"the manifest's obligations: {error}") from error


def _rounded(name: str, column: Any, grid: float, kind: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    """Return a column rounded to multiples of `grid`, as `duties.apply` does it with one value."""
    valid = np.asarray(column.is_valid())
    whole = kind == pa.int64()
    if str(column.type) in _INTEGERS:
        out, sure = _round_integers(_integers(column), round(grid * _UNIT), whole=whole)
    else:
        out = _round_floats(_doubles(column), grid)
        sure = np.isfinite(out)
    out = np.where(valid & sure, out, out.dtype.type(0))
    owed = Obligations(generalize={name: grid})
    for index in np.flatnonzero(valid & ~sure):
        value = duties.apply(owed, {name: column[int(index)].as_py()})[name]
        if whole and not -(2**63) <= value < 2**63:
            raise PolicyDenied(f"the field {name!r} has a value that cannot be rounded to {grid:g} in 64 bits")
        out[index] = value
    return pa.array(out, kind, mask=~valid)


def _round_floats(values: NDArray[np.float64], grid: float) -> NDArray[np.float64]:
    """Round to multiples of `grid` what numpy rounds as Python does; NaN for all else."""
    units = round(grid * _UNIT)
    with np.errstate(all="ignore"):
        counts = np.rint(values / grid)
        return np.where(np.abs(counts) * units < _EXACT, counts * units / _UNIT + 0.0, np.nan)


def _round_integers(values: NDArray[np.int64], units: int, *, whole: bool) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Round integers to multiples of `units` millionths, of two the even one; and say which results are exact."""
    sure = (-_MOST_INTEGER < values) & (values < _MOST_INTEGER)
    scaled = np.where(sure, values, 0) * _UNIT
    counts, rest = np.divmod(scaled, units)
    counts += (2 * rest > units) | ((2 * rest == units) & (counts & 1 == 1))
    multiples = counts * units
    if whole:
        return multiples // _UNIT, sure
    return multiples / _UNIT, sure & (np.abs(multiples) < _EXACT)


def _integers(column: Any) -> NDArray[np.int64]:  # noqa: ANN401  (pyarrow ships no types)
    """Return a column of integers as int64; nulls are 0, and what does not fit is one that does not round."""
    filled = pc.fill_null(column, 0) if column.null_count else column
    values = filled.to_numpy(zero_copy_only=False)
    if values.dtype == np.uint64:
        values = np.minimum(values, np.uint64(2**63 - 1))
    return np.asarray(values, dtype=np.int64)


def _doubles(column: Any) -> NDArray[np.float64]:  # noqa: ANN401  (pyarrow ships no types)
    """Return a column as float64; nulls are 0. Integers over 2^53 lose digits, and are over every bound used here."""
    filled = pc.fill_null(column, 0) if column.null_count else column
    try:
        return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.float64)
    except ARROW_ERRORS as error:
        raise InvalidRecord(f"a column cannot be read as numbers: {error}") from error


def _has_nan(column: Any) -> bool:  # noqa: ANN401  (pyarrow ships no types)
    return str(column.type) in _FLOATS and bool(pc.any(pc.is_nan(column)).as_py())


def _has_fraction(column: Any) -> bool:  # noqa: ANN401  (pyarrow ships no types)
    return not bool(pc.all(pc.equal(pc.floor(column), column)).as_py())


def _arrow_type(name: str) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    return {"date32[day]": pa.date32()}.get(name) or pa.type_for_alias(name)
