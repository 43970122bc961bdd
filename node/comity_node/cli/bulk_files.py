"""Received tables as files: an Arrow IPC stream in, Parquet, Arrow or CSV out, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comity.errors import ConfigError
from comity_node.cli.record_files import replacing

FORMATS = (".parquet", ".arrow", ".csv")


class Pieces:
    """Pieces of bytes as a file that can be read once: what pyarrow reads from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.closed = False

    def read(self, count: int = -1) -> bytes:
        """Return the next `count` bytes, fewer only at the end; all of them without a count."""
        parts, missing = [], count
        while missing:
            piece = self._rest or next(self._pieces, b"")
            if not piece:
                break
            taken = piece if missing < 0 else piece[:missing]
            self._rest = piece[len(taken) :]
            parts.append(taken)
            missing -= len(taken) if missing > 0 else 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def close(self) -> None:
        """Read no more."""
        self.closed = True


def write(path: Path, pieces: Iterator[bytes]) -> int:
    """Write a table to `path`, in the format of its ending; returns the rows.

    Raises:
        ConfigError: the ending is none of `FORMATS`, or the file cannot be written; the one that was there stays.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"ends in none of {', '.join(FORMATS)}", file=str(path))
    import pyarrow as pa
    import pyarrow.ipc

    rows = 0
    try:
        reader = pa.ipc.open_stream(pa.PythonFile(Pieces(pieces), mode="r"))
        with replacing(path) as scratch, _writer(path.suffix.lower(), scratch, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
    except pa.ArrowException as error:  # bytes that are no text in a CSV file, above all
        raise ConfigError(
            f"cannot be written ({str(error)[:200]}); .parquet and .arrow hold every column", file=str(path)
        ) from error
    return rows


def _writer(form: str, path: Path, schema: Any) -> Any:  # noqa: ANN401  (pyarrow ships no types)
    if form == ".parquet":
        import pyarrow.parquet as pq

        return pq.ParquetWriter(path, schema)
    if form == ".csv":
        import pyarrow.csv

        return pyarrow.csv.CSVWriter(path, schema)
    import pyarrow as pa

    return pa.ipc.new_file(str(path), schema)
