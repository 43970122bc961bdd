"""Tables of this organization that are to be sent: Parquet, Arrow and CSV files, read in bounded batches.

Only flat columns of a closed list of types travel. On the way out a table loses whatever it carries beside its values:
metadata of file, schema and columns, dictionaries, and the values that some writers leave behind under nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from comity.errors import ConfigError, InvalidRecord
from comity_node.bulk.ipc import ARROW_ERRORS, columns_of
from comity_node.protocol.bulk_manifest import MAX_FIELDS, MAX_NAME, TYPES, Column

#: Bytes of values in one batch, about; rows in one batch at most.
BATCH_BYTES: Final = 2 * 1024 * 1024
BATCH_ROWS: Final = 16_384
#: Bytes of one batch that are sent: one row that is larger is refused.
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
_CSV_BLOCK: Final = 1024 * 1024
_BUFFER: Final = 256 * 1024
_SUFFIXES: Final = {
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow",
    ".feather": "arrow", ".csv": "csv",
}  # fmt: skip
_ARROW_FILE = b"ARROW1"


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be read once, in batches of `columns`; `close` it afterwards.

    Attributes:
        columns: after what cannot travel as it is was turned into what can (dictionaries into their values).
        batches: the record batches; runs in a thread.
        rows: how many there are, if the file says so without being read.
    """

    columns: tuple[Column, ...]
    batches: Iterator[Any]
    close: Callable[[], None]
    rows: int | None = None


def open_table(path: Path, types: Mapping[str, str] | None = None) -> Table:
    """Open a Parquet (.parquet), Arrow (.arrow, .feather) or CSV (.csv) file.

    Args:
        path: the file.
        types: column types that a CSV file's columns have, by name; of others they are guessed from its first MiB.

    Raises:
        ConfigError: it is not there, not of these formats, or cannot be read.
        InvalidRecord: a column is of a type that does not travel.
    """
    form = _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise ConfigError(f"is no table by its name: it ends in none of {', '.join(sorted(_SUFFIXES))}", file=str(path))
    with _reading(path):
        if not path.is_file():
            raise ConfigError("there is no such file", file=str(path))
        if form == "parquet":
            return _parquet(path)
        return _arrow(path) if form == "arrow" else _csv(path, types or {})


def travelling(schema: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    """Return the schema in which rows of this schema travel.

    Raises:
        InvalidRecord: a column is of a type that does not travel, or has no name.
    """
    if not 1 <= len(schema) <= MAX_FIELDS:
        raise InvalidRecord(f"the table has {len(schema)} columns; 1 to {MAX_FIELDS} can be sent")
    fields = [pa.field(each.name, _travelling(each)) for each in schema]
    names = [field.name for field in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidRecord(f"the table has two columns {twice[0]!r}")
    return pa.schema(fields)


def plain(batch: Any, schema: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    """Return a batch in the schema that `travelling` gave, with nothing left under its nulls.

    Raises:
        InvalidRecord: a value does not fit the type in which it travels.
    """
    try:
        columns = [_plain(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=schema)
    except ARROW_ERRORS as error:
        raise InvalidRecord(f"a value cannot be sent: {error}") from error


def slices(batch: Any) -> Iterator[Any]:  # noqa: ANN401  (pyarrow ships no types)
    """Yield a batch in pieces of at most `BATCH_ROWS` rows and about `BATCH_BYTES` bytes.

    Raises:
        InvalidRecord: one row alone is larger than `MAX_BATCH_BYTES`.
    """
    if batch.num_rows == 0:
        return
    per_row = max(1, batch.nbytes // batch.num_rows)
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // per_row))
    for start in range(0, batch.num_rows, step):
        piece = batch.slice(start, step)
        if piece.nbytes <= MAX_BATCH_BYTES:
            yield piece
        elif piece.num_rows == 1:
            raise InvalidRecord(f"a row of {piece.nbytes} bytes; at most {MAX_BATCH_BYTES}")
        else:
            half = piece.num_rows // 2
            yield from slices(piece.slice(0, half))
            yield from slices(piece.slice(half))


def _travelling(field: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    if not 0 < len(field.name) <= MAX_NAME or not all(field.name.split(".")):
        raise InvalidRecord(f"{field.name[:80]!r} is no column name: 1 to {MAX_NAME} characters, names joined by dots")
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        kind = pa.string()
    elif pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        kind = pa.binary()
    elif pa.types.is_float16(kind):
        kind = pa.float32()
    elif pa.types.is_date64(kind):
        kind = pa.date32()
    elif pa.types.is_timestamp(kind) and kind.tz is not None:
        kind = pa.timestamp(kind.unit)
    if str(kind) not in TYPES:
        what = "nested: make a column of each field" if pa.types.is_nested(kind) else f"of the type {kind}"
        raise InvalidRecord(f"the column {field.name!r} cannot be sent: it is {what}")
    return kind


def _plain(column: Any, kind: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type != kind:
        column = column.cast(kind)
    return _scrubbed(column, kind) if column.null_count else column


def _scrubbed(column: Any, kind: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    """Return the column with nothing under its nulls: some writers leave there what the null was to hide."""
    zeros = {pa.bool_(): False, pa.string(): "", pa.binary(): b""}
    if kind not in zeros:
        column = column.view({8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[kind.bit_width])
    filled = pc.fill_null(column, zeros.get(kind, 0))
    valid = pc.is_valid(column)  # both are new arrays, which begin at their buffers' first bit
    return pa.Array.from_buffers(kind, len(column), [valid.buffers()[1], *filled.buffers()[1:]])


def _parquet(path: Path) -> Table:
    file = pq.ParquetFile(path, memory_map=False, buffer_size=_BUFFER, pre_buffer=False)
    schema = travelling(file.schema_arrow)
    step = max(64, min(BATCH_ROWS, BATCH_BYTES // (8 * len(schema))))
    read = file.iter_batches(batch_size=step, use_threads=False)
    return Table(columns_of(schema), _each(path, read, schema), file.close, file.metadata.num_rows)


def _arrow(path: Path) -> Table:
    source = pa.OSFile(str(path))
    if source.read(len(_ARROW_FILE)) == _ARROW_FILE:
        reader = pa.ipc.open_file(source)
        read = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        source.seek(0)
        reader = pa.ipc.open_stream(source)
        read = iter(reader)
    schema = travelling(reader.schema)
    return Table(columns_of(schema), _each(path, map(_validated, read), schema), source.close)


def _validated(batch: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    """Return a batch whose every offset was checked: Arrow believes a file, and reads wherever it says."""
    batch.validate(full=True)
    return batch


def _csv(path: Path, types: Mapping[str, str]) -> Table:
    reader = pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.type_for_alias(kind) for name, kind in types.items()}
        ),
    )
    schema = travelling(reader.schema)
    return Table(columns_of(schema), _each(path, iter(reader), schema), reader.close)


def _each(path: Path, read: Iterator[Any], schema: Any) -> Iterator[Any]:  # noqa: ANN401  (pyarrow ships no types)
    while True:
        with _reading(path):
            batch = next(read, None)
        if batch is None:
            return
        for piece in slices(batch):
            yield plain(piece, schema)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except ARROW_ERRORS as error:
        raise ConfigError(f"cannot be read as a table: {str(error)[:300]}", file=str(path)) from error
