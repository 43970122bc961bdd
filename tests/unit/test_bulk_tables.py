"""Tables on their way out: formats, types, and what they must not carry along."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from comity.errors import ConfigError, InvalidRecord
from comity_node.bulk import tables
from comity_node.bulk.tables import open_table, slices, travelling

TABLE = pa.table({"n": [1, 2, 3], "x": [1.5, None, 2.5], "s": ["a", "b", None]})


def rows(path: Path, **options: Any) -> list[dict[str, Any]]:
    table = open_table(path, **options)
    try:
        return [row for batch in table.batches for row in batch.to_pylist()]
    finally:
        table.close()


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    pyarrow.feather.write_feather(TABLE, str(tmp_path / "t.feather"), compression="lz4")
    with pa.ipc.new_stream(str(tmp_path / "t.arrows"), TABLE.schema) as writer:
        writer.write_table(TABLE)
    for name in ("t.parquet", "t.feather", "t.arrows"):
        assert rows(tmp_path / name) == TABLE.to_pylist(), name
    (tmp_path / "t.CSV").write_text("n,x\n1,1.5\n2,\n")
    assert rows(tmp_path / "t.CSV") == [{"n": 1, "x": 1.5}, {"n": 2, "x": None}]
    assert rows(tmp_path / "t.CSV", types={"n": "double"})[0] == {"n": 1.0, "x": 1.5}


def test_how_many_rows_there_are_is_known_where_the_file_says_so(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("n\n1\n")
    assert open_table(tmp_path / "t.parquet").rows == 3
    assert open_table(tmp_path / "t.csv").rows is None


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.xlsx", b"", "no table by its name"),
        ("t.parquet", b"no parquet at all", "cannot be read as a table"),
        ("t.arrow", b"ARROW1 and then nothing", "cannot be read as a table"),
        ("t.arrow", b"", "cannot be read as a table"),
        ("t.csv", b"", "cannot be read as a table"),
        ("t.csv", b"a,b\n1\n1,2,3\n", "cannot be read as a table"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=match) as caught:
        rows(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        open_table(tmp_path / "t.csv")
    (tmp_path / "d.parquet").mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        open_table(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("kind", "travels_as"),
    [
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.large_string(), "string"),
        (pa.string_view(), "string"),
        (pa.binary(4), "binary"),
        (pa.large_binary(), "binary"),
        (pa.float16(), "float"),
        (pa.date64(), "date32[day]"),
        (pa.timestamp("us", tz="UTC"), "timestamp[us]"),
        (pa.uint8(), "uint8"),
    ],
)
def test_types_that_travel_as_another(kind: Any, travels_as: str) -> None:
    assert str(travelling(pa.schema([("x", kind)])).field("x").type) == travels_as


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (pa.struct([("a", pa.int64())]), "nested"),
        (pa.list_(pa.int64()), "nested"),
        (pa.map_(pa.string(), pa.int64()), "nested"),
        (pa.decimal128(10, 2), "decimal128"),
        (pa.duration("s"), "duration"),
        (pa.time64("us"), "time64"),
        (pa.null(), "null"),
    ],
)
def test_types_that_do_not_travel(kind: Any, match: str) -> None:
    with pytest.raises(InvalidRecord, match=match):
        travelling(pa.schema([("x", kind)]))


@pytest.mark.parametrize("name", ["", "a..b", ".a", "x" * 300])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidRecord, match="no column name"):
        travelling(pa.schema([(name, pa.int64())]))


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRecord, match="two columns 'x'"):
        travelling(pa.schema([("x", pa.int64()), ("x", pa.int64())]))


def _hidden(kind: Any, values: list[Any]) -> Any:
    """An array whose second value is null, with the value still in its buffer."""
    whole = pa.array(values, kind)
    return pa.Array.from_buffers(kind, 3, [pa.py_buffer(b"\x05"), *whole.buffers()[1:]])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), ["a", "secret", "c"]),
        (pa.binary(), [b"a", b"secret", b"c"]),
        (pa.float64(), [1.0, 987654.25, 3.0]),
        (pa.int32(), [1, 98765432, 3]),
        (pa.timestamp("us"), [1, 9876543210, 3]),
        (pa.bool_(), [True, True, False]),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_what_is_hidden_under_a_null_stays_here(tmp_path: Path, kind: Any, values: list[Any], offset: int) -> None:
    array = _hidden(kind, values)
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), pa.schema([("x", kind)])) as writer:
        writer.write_batch(pa.record_batch([array], names=["x"]).slice(offset))
    table = open_table(tmp_path / "t.arrow")
    (batch,) = table.batches
    batch.validate(full=True)
    assert batch.column("x").to_pylist() == array.slice(offset).to_pylist()
    out = io.BytesIO()
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
    secret = pa.array([values[1]], kind).buffers()[-1].to_pybytes()[: 6 if kind in (pa.string(), pa.binary()) else 8]
    if kind != pa.bool_():
        assert secret.rstrip(b"\0") in (tmp_path / "t.arrow").read_bytes(), "it was there"
        assert secret.rstrip(b"\0") not in out.getvalue()


def test_metadata_stay_here(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("x", pa.int64(), metadata={"author": "ann"})], metadata={"path": "notes"})
    pq.write_table(pa.table({"x": [1]}, schema=schema), tmp_path / "t.parquet")
    (batch,) = open_table(tmp_path / "t.parquet").batches
    assert batch.schema.metadata is None
    assert batch.schema.field("x").metadata is None


@pytest.mark.invariant("S7")
def test_batches_are_cut_to_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_BYTES", 1000)
    monkeypatch.setattr(tables, "MAX_BATCH_BYTES", 2000)
    batch = pa.record_batch({"s": ["x" * 10] * 500 + ["y" * 1500] * 3})
    pieces = list(slices(batch))
    assert [row for piece in pieces for row in piece.to_pylist()] == batch.to_pylist()
    assert max(piece.nbytes for piece in pieces) <= 2000
    with pytest.raises(InvalidRecord, match="a row of"):
        list(slices(pa.record_batch({"s": ["x" * 5000]})))
