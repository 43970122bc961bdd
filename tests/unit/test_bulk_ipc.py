"""Arrow streams from strangers: what is larger, other or more than was declared is refused before it is looked at."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from comity.errors import InvalidRecord
from comity_node.bulk.ipc import MAX_BODY, StreamReader, columns_of, read_head
from comity_node.protocol.bulk_manifest import Column

COLUMNS = (Column("x", "int64"), Column("s", "string"))
SCHEMA = pa.schema([("x", pa.int64()), ("s", pa.string())])


def batch(rows: int = 3) -> Any:
    return pa.record_batch([pa.array(range(rows), pa.int64()), pa.array(["ab"] * rows)], schema=SCHEMA)


def stream(*batches: Any, schema: Any = SCHEMA, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for each in batches:
            writer.write_batch(each)
    return sink.getvalue()


def read(data: bytes, rows: int, columns: Sequence[Column] = COLUMNS) -> list[dict[str, Any]]:
    reader = StreamReader(io.BytesIO(data).read, columns, rows)
    return [row for each in reader.batches() for row in each.to_pylist()]


def test_what_was_written_is_read() -> None:
    assert read(stream(batch(3), batch(2)), 5) == [*batch(3).to_pylist(), *batch(2).to_pylist()]


def test_columns_are_said_as_arrow_says_them() -> None:
    assert columns_of(SCHEMA) == COLUMNS


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_rows_are_refused(codec: str) -> None:
    # A page of zeros is a few bytes on the wire; what it becomes shows only when it is unpacked.
    bomb = pa.record_batch([pa.array([0] * 100_000), pa.array([""] * 100_000)], schema=SCHEMA)
    with pytest.raises(InvalidRecord, match="compressed"):
        read(stream(bomb, compression=codec), 100_000)


@pytest.mark.parametrize(
    ("data", "rows", "match"),
    [
        (stream(batch(3)), 2, "more than is taken"),
        (stream(batch(3)), 4, "lacks 1 of the rows"),
        (stream(batch(3)) + b"x", 3, "behind the end"),
        (stream(batch(3))[:-8], 3, "middle of a message"),
        (stream(batch(3))[:-20], 3, "middle of a message"),
        (b"", 0, "middle of a message"),
        (b"PAR1" * 10, 3, "no continuation marker"),
        (struct.pack("<II", 0xFFFFFFFF, 0), 0, "begin with a schema"),
        (struct.pack("<II", 0xFFFFFFFF, 2**31), 0, "bytes of metadata"),
        (struct.pack("<II", 0xFFFFFFFF, 64) + bytes(64), 0, "begin with a schema"),
        (struct.pack("<II", 0xFFFFFFFF, 64) + b"\xff" * 64, 0, "point outside"),
    ],
)
def test_a_stream_that_is_none_is_refused(data: bytes, rows: int, match: str) -> None:
    with pytest.raises(InvalidRecord, match=match):
        read(data, rows)


@pytest.mark.parametrize(
    "columns",
    [COLUMNS[:1], (Column("x", "int32"), COLUMNS[1]), (Column("y", "int64"), COLUMNS[1]), COLUMNS[::-1]],
)
def test_other_columns_than_declared_are_refused(columns: Sequence[Column]) -> None:
    with pytest.raises(InvalidRecord, match="other columns"):
        read(stream(batch()), 3, columns)


def test_dictionaries_are_refused() -> None:
    words = pa.record_batch({"x": pa.array(["a", "b"]).dictionary_encode()})
    with pytest.raises(InvalidRecord, match="other columns"):
        read(stream(words, schema=words.schema), 2)
    # The same with a schema of ours before it, so that the dictionary is the second message.
    ours, theirs = stream(), stream(words, schema=words.schema)
    with pytest.raises(InvalidRecord, match="no record batch"):
        read(ours[:-8] + theirs[len(stream(schema=words.schema)) - 8 :], 2)


def messages(data: bytes) -> list[tuple[int, int]]:
    """Where the metadata of each message stand, and how long they are."""
    found, at = [], 0
    while (length := struct.unpack_from("<I", data, at + 4)[0]) != 0:
        found.append((at + 8, length))
        at += 8 + length + read_head(data[at + 8 : at + 8 + length]).body
    return found


@pytest.mark.invariant("S7")
def test_a_batch_of_columns_without_values_cannot_claim_rows_without_end() -> None:
    data = bytearray(stream(batch(3)))
    start, length = messages(bytes(data))[1]
    at = bytes(data[start : start + length]).index(struct.pack("<q", 3))
    data[start + at : start + at + 8] = struct.pack("<q", 2**60)
    with pytest.raises(InvalidRecord, match="more than is taken"):
        read(bytes(data), 2**62)


@pytest.mark.invariant("S7")
def test_a_body_of_gigabytes_is_not_read() -> None:
    data = bytearray(stream(batch(3)))
    start, length = messages(bytes(data))[1]
    body = read_head(bytes(data[start : start + length])).body
    at = bytes(data[start : start + length]).index(struct.pack("<q", body))
    data[start + at : start + at + 8] = struct.pack("<q", MAX_BODY + 8)
    asked: list[int] = []
    source = io.BytesIO(bytes(data))

    def count(size: int) -> bytes:
        asked.append(size)
        return source.read(size)

    with pytest.raises(InvalidRecord, match="more than is taken"):
        list(StreamReader(count, COLUMNS, 3).batches())
    assert max(asked) < 4096


@pytest.mark.invariant("S6")
def test_offsets_that_point_outside_are_found() -> None:
    data = bytearray(stream(batch(3)))
    at = bytes(data).rindex(struct.pack("<iiii", 0, 2, 4, 6))
    data[at + 4 : at + 8] = struct.pack("<i", 1_000_000)
    with pytest.raises(InvalidRecord, match="cannot be read"):
        read(bytes(data), 3)


@pytest.mark.invariant("S6")
def test_text_that_is_no_text_is_found() -> None:
    data = stream(batch(3)).replace(b"ababab", b"\xff\xfe\xff\xfe\xff\xfe")
    with pytest.raises(InvalidRecord, match="cannot be read"):
        read(data, 3)


def test_every_single_spoilt_byte_is_an_error_or_a_table_of_the_same_shape() -> None:
    whole = stream(batch(3))
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 0xFF
        try:
            rows = read(bytes(data), 3)
        except InvalidRecord:
            continue
        assert len(rows) == 3
        assert all(set(row) == {"x", "s"} for row in rows)
