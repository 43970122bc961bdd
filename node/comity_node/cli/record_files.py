"""Certified records as files: JSON Lines with everything, Parquet with one column a field."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from comity.client import Record
from comity.errors import ConfigError

_BATCH = 4096
#: Columns beside the fields; no field of a schema begins with an underscore and a word of ours.
TASK, AUTHOR, DATASET, SCORE = "comity_task_id", "comity_author", "comity_dataset", "comity_score"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path` that takes its place at the end, if nothing failed."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write one JSON object a line, with the record under `fields`; returns how many.

    Raises:
        ConfigError: the file cannot be written; the one that was there is left as it was.
    """
    written = 0
    with replacing(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(_everything(record), ensure_ascii=False) + "\n")
            written += 1
        file.flush()
        os.fsync(file.fileno())
    return written


def write_parquet(path: Path, records: Iterable[Record]) -> int:
    """Write one row a record, one column a field, and who made it; returns how many.

    Goes over the records once and holds one batch in memory: the rows wait in a temporary file until the columns' types
    are known. A field that is missing from a record is null there.

    Raises:
        ConfigError: the file cannot be written, or a field has values of types that do not go together.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        written, kinds = _spool(records, spool)
        schema = _schema(kinds, path)
        spool.seek(0)
        with replacing(path) as scratch, pq.ParquetWriter(scratch, schema) as writer:
            for rows in _batches(spool):
                writer.write_table(_table(rows, schema))
    return written


def _everything(record: Record) -> dict[str, object]:
    return {
        "task_id": record.task_id,
        "author": record.author,
        "dataset": record.dataset,
        "score": record.score,
        "record_digest": record.record_digest,
        "agreement_digest": record.agreement_digest,
        "fields": record.fields,
    }


def _spool(records: Iterable[Record], spool: IO[str]) -> tuple[int, dict[str, set[type]]]:
    kinds: dict[str, set[type]] = {TASK: {str}, AUTHOR: {str}, DATASET: {str}, SCORE: {int}}
    written = 0
    for record in records:
        written += 1
        row: dict[str, object] = dict(record.fields)
        for name, value in row.items():
            if name in (TASK, AUTHOR, DATASET, SCORE):
                raise ConfigError(
                    f"record {record.task_id} has a field {name!r}, which the export needs; use JSON Lines"
                )
            if value is not None:
                kinds.setdefault(name, set()).add(type(value))
            else:
                kinds.setdefault(name, set())
        row |= {TASK: record.task_id, AUTHOR: record.author, DATASET: record.dataset, SCORE: record.score}
        spool.write(json.dumps(row) + "\n")
    return written, kinds


def _schema(kinds: Mapping[str, set[type]], path: Path) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    import pyarrow as pa

    types: dict[frozenset[type], Callable[[], Any]] = {
        frozenset(): pa.null,
        frozenset({int}): pa.int64,
        frozenset({float}): pa.float64,
        frozenset({int, float}): pa.float64,
        frozenset({str}): pa.string,
        frozenset({bool}): pa.bool_,
    }
    columns = []
    for name, found in kinds.items():
        if frozenset(found) not in types:
            names = " and ".join(sorted(kind.__name__ for kind in found))
            raise ConfigError(f"the field {name!r} holds {names}; use JSON Lines", file=str(path))
        columns.append((name, types[frozenset(found)]()))
    return pa.schema(columns)


def _batches(spool: IO[str]) -> Iterator[list[dict[str, Any]]]:
    while lines := list(islice(spool, _BATCH)):
        yield [json.loads(line) for line in lines]


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    import pyarrow as pa

    columns = [pa.array([row.get(column.name) for row in rows], type=column.type) for column in schema]
    return pa.Table.from_arrays(columns, schema=schema)
