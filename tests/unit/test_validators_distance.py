from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comity.errors import ConfigError, InvalidRecord
from comity_node.demo.data import PRIVATE_FILE, SCHEMA_FILE, Table, to_records, write_table
from comity_node.validators.distance import PrivateReference
from comity_node.validators.memory import SeenRows
from comity_node.validators.schema import FieldSpec, Schema

SCHEMA = Schema(
    "label",
    {"a": FieldSpec("number", -1e9, 1e9), "b": FieldSpec("number", -1e9, 1e9), "label": FieldSpec("integer", 0, 1)},
)


def reference() -> PrivateReference:
    return PrivateReference(SCHEMA, np.array([[0.0, 100.0], [2.0, 300.0]]))


def record(a: float, b: float) -> dict[str, float]:
    return {"a": a, "b": b, "label": 1}


def test_distance_is_the_root_mean_square_in_standard_deviations() -> None:
    # The standard deviations of the two columns are 1 and 100.
    found = reference().distances([record(0, 100), record(1, 100), record(3, 400), record(0.3, 140)])
    np.testing.assert_allclose(found, [0.0, np.sqrt(0.5), 1.0, np.sqrt((0.09 + 0.16) / 2)], atol=1e-12)


def test_a_column_far_from_zero_loses_no_precision() -> None:
    rows = np.array([[1e9 + n, n] for n in range(50)], dtype=float)
    found = PrivateReference(SCHEMA, rows).distances_of(rows + np.array([[1e-3, 0.0]]))
    np.testing.assert_allclose(found, 1e-3 / rows[:, 0].std() / np.sqrt(2), rtol=1e-2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidRecord, match="'b' is missing"):
        reference().distances([{"a": 1.0, "label": 0}])


def test_load(tmp_path: Path) -> None:
    table = Table(SCHEMA, np.array([[0.0, 100.0], [2.0, 300.0]]), np.array([0, 1]))
    write_table(tmp_path / PRIVATE_FILE, table)
    SCHEMA.save(tmp_path / SCHEMA_FILE)
    loaded = PrivateReference.load(tmp_path / PRIVATE_FILE)
    assert loaded.distances(to_records(SCHEMA, table.rows, table.labels)).tolist() == [0.0, 0.0]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the schema"):
        PrivateReference.load(tmp_path / PRIVATE_FILE)
    with pytest.raises(ConfigError, match="cannot read the private rows"):
        PrivateReference.load(tmp_path / PRIVATE_FILE, SCHEMA)
    (tmp_path / PRIVATE_FILE).write_bytes(b"PAR1 not")
    with pytest.raises(ConfigError, match="cannot read the private rows"):
        PrivateReference.load(tmp_path / PRIVATE_FILE, SCHEMA)
    write_table(tmp_path / PRIVATE_FILE, Table(SCHEMA, np.array([[0.0, np.nan], [2.0, 3.0]]), np.array([0, 1])))
    with pytest.raises(ConfigError, match="missing or infinite"):
        PrivateReference.load(tmp_path / PRIVATE_FILE, SCHEMA)


@pytest.mark.invariant("S7")
def test_memory_is_bounded_by_author_and_nobody_pushes_out_another(tmp_path: Path) -> None:
    seen = SeenRows(2, tmp_path / "seen.sqlite", limit=5)
    seen.add(np.array([[9.0, 9.0]]), "quiet", ["q"])
    for n in range(20):
        seen.add(np.array([[n, n]], dtype=float), "loud", [str(n)])
    assert len(seen) == 6
    assert seen.distances(np.array([[9.0, 9.0]]), "other", ["x"])[0] == 0.0
    assert seen.distances(np.array([[1.0, 1.0]]), "other", ["x"])[0] > 5
    seen.close()
    reopened = SeenRows(2, tmp_path / "seen.sqlite", limit=5)
    assert len(reopened) == 6


def test_rows_of_the_same_task_do_not_count() -> None:
    seen = SeenRows(2)
    seen.add(np.array([[1.0, 1.0], [5.0, 5.0]]), "h", ["t1", "t2"])
    near = np.array([[1.0, 1.0]])
    assert seen.distances(near, "h", ["t1"])[0] == pytest.approx(np.sqrt(32))
    assert seen.distances(near, "h", ["t2"])[0] == 0.0
    assert seen.distances(near, "other", ["t1"])[0] == 0.0
    assert np.isinf(SeenRows(2).distances(near, "h", ["t1"])[0])
