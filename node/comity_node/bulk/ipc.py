"""Arrow IPC streams from strangers, one bounded message at a time.

The encapsulated message format (https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format) is read
by hand as far as its lengths go: continuation marker, metadata length, and of the metadata's FlatBuffer the kind of
message, the body's length, the number of rows and whether the buffers are compressed. What is larger than it may be is
refused before it is read; compressed buffers, whose true size only decompression shows, dictionaries, tensors and
anything behind the end are refused altogether. What passes goes to Arrow, which checks the rest, down to every offset
(`validate(full=True)`), before a value is looked at (S6, S7).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.ipc

from comity.errors import InvalidRecord
from comity_node.protocol.bulk_manifest import Column

#: Bytes of one message's metadata, and of one record batch.
MAX_METADATA: Final = 1024 * 1024
MAX_BODY: Final = 32 * 1024 * 1024
#: Rows of one record batch: a batch of columns without values may declare any number.
MAX_BATCH_ROWS: Final = 1024 * 1024

_PREFIX = struct.Struct("<II")
_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _RECORD_BATCH = 1, 3
#: Positions of fields in the tables of Message.fbs.
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
_BATCH_LENGTH, _BATCH_COMPRESSION = 0, 3
#: What pyarrow raises for bytes that are no Arrow, beside MemoryError for a size that cannot be.
ARROW_ERRORS: Final = (pa.ArrowException, ValueError, TypeError, KeyError, NotImplementedError, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class _Head:
    """What the metadata of a message says about its size."""

    kind: int
    body: int
    rows: int


class StreamReader:
    """Reads the record batches of a stream.

    Args:
        read: returns the next so many bytes, fewer only at the end.
        columns: what the schema has to say, names and types, in this order.
        rows: how many rows there have to be.
    """

    def __init__(self, read: Callable[[int], bytes], columns: Sequence[Column], rows: int) -> None:
        self._read = read
        self._columns = columns
        self._rows_left = rows
        self._schema: Any = None

    def batches(self) -> Iterator[Any]:
        """Yield the record batches, each validated in full.

        Raises:
            InvalidRecord: the bytes are no such stream, or one that is refused; the message says why.
        """
        first = self._next_message()
        if first is None or first[0].kind != _SCHEMA:
            raise InvalidRecord("the rows do not begin with a schema")
        self._schema = self._read_schema(first[1])
        while (message := self._next_message()) is not None:
            head, data = message
            if head.kind != _RECORD_BATCH:
                raise InvalidRecord("the rows hold an Arrow message that is no record batch")
            yield self._read_batch(head, data)
        if self._rows_left:
            raise InvalidRecord(f"the table lacks {self._rows_left} of the rows that the manifest declares")
        if self._read(1):
            raise InvalidRecord("there are bytes behind the end of the Arrow stream")

    def _next_message(self) -> tuple[_Head, bytearray] | None:
        prefix = self._exactly(_PREFIX.size)
        marker, length = _PREFIX.unpack(prefix)
        if marker != _CONTINUATION:
            raise InvalidRecord("the rows are no Arrow IPC stream: no continuation marker")
        if length == 0:
            return None
        if length > MAX_METADATA or length % 8:
            raise InvalidRecord(f"an Arrow message with {length} bytes of metadata; at most {MAX_METADATA}")
        metadata = self._exactly(length)
        head = read_head(metadata)
        if head.body > MAX_BODY or head.rows > min(MAX_BATCH_ROWS, self._rows_left):
            raise InvalidRecord(f"an Arrow message of {head.body} bytes and {head.rows} rows is more than is taken")
        message = bytearray(_PREFIX.size + length + head.body)
        message[: _PREFIX.size] = prefix
        message[_PREFIX.size : _PREFIX.size + length] = metadata
        message[_PREFIX.size + length :] = self._exactly(head.body)
        return head, message

    def _exactly(self, count: int) -> bytes:
        data = self._read(count) if count else b""
        if len(data) != count:
            raise InvalidRecord("the Arrow stream ends in the middle of a message")
        return data

    def _read_schema(self, message: bytearray) -> Any:  # noqa: ANN401  (pyarrow ships no types)
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(message))
            found = columns_of(schema)
        except ARROW_ERRORS as error:
            raise InvalidRecord(f"the schema of the rows cannot be read: {_short(error)}") from error
        if list(found) != list(self._columns):
            raise InvalidRecord("the rows have other columns than the manifest declares")
        return schema.remove_metadata()

    def _read_batch(self, head: _Head, message: bytearray) -> Any:  # noqa: ANN401  (pyarrow ships no types)
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.BufferReader(pa.py_buffer(message))), self._schema)
            batch.validate(full=True)
        except ARROW_ERRORS as error:
            raise InvalidRecord(f"a record batch cannot be read: {_short(error)}") from error
        if batch.num_rows != head.rows:
            raise InvalidRecord("a record batch has another number of rows than it declares")
        self._rows_left -= batch.num_rows
        return batch


def read_head(metadata: bytes) -> _Head:
    """Read what a message's metadata says about its size.

    Raises:
        InvalidRecord: it is no FlatBuffer of a Message, or has compressed buffers or negative lengths.
    """
    try:
        message = _table(metadata, 0)
        kind = _scalar(metadata, message, _HEADER_TYPE, "<B")
        body = _scalar(metadata, message, _BODY_LENGTH, "<q")
        rows = 0
        if kind == _RECORD_BATCH:
            at = _field(metadata, message, _HEADER)
            if not at:
                raise InvalidRecord("an Arrow record batch without a header")
            batch = _table(metadata, at)
            rows = _scalar(metadata, batch, _BATCH_LENGTH, "<q")
            if _field(metadata, batch, _BATCH_COMPRESSION):
                raise InvalidRecord("the rows are compressed, which hides their size; send them uncompressed")
    except struct.error as error:
        raise InvalidRecord("the metadata of an Arrow message point outside of it") from error
    if body < 0 or rows < 0:
        raise InvalidRecord("an Arrow message of negative size")
    return _Head(kind, body, rows)


def columns_of(schema: Any) -> tuple[Column, ...]:  # noqa: ANN401  (pyarrow ships no types)
    """Return names and types of a schema's columns as a manifest says them."""
    return tuple(Column(field.name, str(field.type)) for field in schema)


def _table(data: bytes, at: int) -> tuple[int, int, int]:
    """Follow the offset at `at` to a table; returns its place, its vtable's place and the vtable's size.

    FlatBuffers internals: https://flatbuffers.dev/internals/
    """
    table = at + struct.unpack_from("<I", data, at)[0]
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0 or table < 0:
        raise struct.error
    return table, vtable, struct.unpack_from("<H", data, vtable)[0]


def _field(data: bytes, table: tuple[int, int, int], position: int) -> int:
    """Return where a field of a table stands, 0 if it is not there."""
    place, vtable, size = table
    entry = 4 + 2 * position
    if entry + 2 > size:
        return 0
    offset = struct.unpack_from("<H", data, vtable + entry)[0]
    return place + offset if offset else 0


def _scalar(data: bytes, table: tuple[int, int, int], position: int, form: str) -> int:
    at = _field(data, table, position)
    return int(struct.unpack_from(form, data, at)[0]) if at else 0


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
