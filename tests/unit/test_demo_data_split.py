from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from comity.errors import ConfigError
from comity_node.demo.data import (
    PRIVATE_FILE,
    SCHEMA_FILE,
    TEST_FILE,
    Table,
    Unevenness,
    breast_cancer,
    load_table,
    read_table,
    split,
    write_split,
)
from comity_node.validators.schema import Schema


@pytest.fixture(scope="module")
def table() -> Table:
    return breast_cancer()


def keys(table: Table) -> set[bytes]:
    return {row.tobytes() for row in table.rows}


def test_breast_cancer_is_what_scikit_learn_ships(table: Table) -> None:
    assert table.rows.shape == (569, 30)
    assert int(table.labels.sum()) == 212  # malignant
    assert "worst_fractal_dimension" in table.schema.features
    table.schema.matrix(table.records())


@pytest.mark.parametrize("seed", range(4))
def test_the_test_set_is_held_out_and_the_rest_is_divided_within_the_minima(table: Table, seed: int) -> None:
    parts = split(table, seed=seed)
    pieces = [keys(parts.test), *(keys(part) for part in parts.parts)]
    assert sum(len(piece) for piece in pieces) == len(set().union(*pieces)) == 569
    assert abs(parts.test.labels.mean() - table.labels.mean()) < 0.01
    assert 0.25 <= len(parts.test) / 569 <= 0.30
    how = Unevenness()
    for part in parts.parts:
        assert len(part) >= how.min_rows
        assert np.bincount(part.labels, minlength=2).min() >= how.min_class


def test_the_parts_are_uneven_in_labels_and_features(table: Table) -> None:
    shares, gaps, even = [], [], []
    for seed in range(5):
        uneven = split(table, seed=seed).parts
        shares.append(np.ptp([part.labels.mean() for part in uneven]))
        gaps.append(_largest_gap(uneven))
        even.append(_largest_gap(split(table, seed=seed, uneven=Unevenness(concentration=1e6, skew=0.0)).parts))
    assert np.mean(shares) > 0.08
    assert np.mean(gaps) > 1.3 * np.mean(even)


def _largest_gap(parts: tuple[Table, ...]) -> float:
    """Return the largest difference of two parts' means of a feature within a class, in standard deviations."""
    spread = np.vstack([part.rows for part in parts]).std(axis=0)
    means = np.stack([part.rows[part.labels == 0].mean(axis=0) for part in parts])
    return float((np.ptp(means, axis=0) / spread).max())


def test_the_same_seed_gives_the_same_split(table: Table) -> None:
    one, two, other = split(table, seed=3), split(table, seed=3), split(table, seed=4)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(one.parts, two.parts, strict=True))
    assert keys(one.test) != keys(other.test)


def test_minima_that_cannot_be_met_are_refused(table: Table) -> None:
    with pytest.raises(ConfigError, match="not enough rows"):
        split(table, uneven=Unevenness(min_class=40))
    with pytest.raises(ConfigError, match="not enough rows"):
        split(table, uneven=Unevenness(min_rows=90))
    tight = split(table, uneven=Unevenness(min_rows=82, min_class=30))
    assert min(len(part) for part in tight.parts) >= 82


@pytest.mark.invariant("S4")
def test_each_organization_gets_its_own_rows_and_no_others(table: Table, tmp_path: Path) -> None:
    parts = split(table, seed=1)
    homes = {f"h{n}": tmp_path / f"h{n}" for n in range(5)}
    write_split(parts, homes, tmp_path / "held-out")
    for home, part in zip(homes.values(), parts.parts, strict=True):
        assert {file.name for file in home.iterdir()} == {PRIVATE_FILE, SCHEMA_FILE}
        assert (home / PRIVATE_FILE).stat().st_mode & 0o077 == 0
        again = load_table(home / PRIVATE_FILE, Schema.load(home / SCHEMA_FILE))
        np.testing.assert_array_equal(again.rows, part.rows)
        np.testing.assert_array_equal(again.labels, part.labels)
    assert len(load_table(tmp_path / "held-out" / TEST_FILE, table.schema)) == len(parts.test)
    with pytest.raises(ConfigError, match="1 directories for 5 parts"):
        write_split(parts, {"h0": tmp_path}, tmp_path)


def test_schemas_of_all_parts_are_equal_and_tell_nothing_of_a_row(table: Table) -> None:
    schemas = {str(part.schema.to_json()) for part in split(table).parts}
    assert len(schemas) == 1
    for column, name in enumerate(table.schema.features):
        spec = table.schema.fields[name]
        assert spec.minimum == 0.0
        assert spec.maximum > 1.5 * table.rows[:, column].max()


def write_csv(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def good_rows(count: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    return [f"{rng.integers(18, 90)},{rng.normal(-3, 2):.3f},{'yes' if n % 3 else 'no'}" for n in range(count)]


def test_a_users_csv_and_parquet(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "mine.csv", "age,blood value,outcome", good_rows())
    table = read_table(path, "outcome")
    assert table.schema.features == ("age", "blood_value")
    assert [table.schema.fields[name].type for name in table.schema.fields] == ["integer", "number", "integer"]
    age, blood = table.schema.fields["age"], table.schema.fields["blood_value"]
    assert (age.minimum, age.maximum) == (0.0, 1000.0)
    assert (blood.minimum, blood.maximum) == (-100.0, 10.0)
    assert int(table.labels.sum()) == 133  # "yes" is the later of the two
    pyarrow.parquet.write_table(pa.table({"age": table.rows[:, 0], "sick": table.labels}), tmp_path / "mine.parquet")
    assert read_table(tmp_path / "mine.parquet", "sick").schema.features == ("age",)


BAD_FILES = {
    "no such column": ("age,x,y", good_rows(), "no column 'outcome'"),
    "text column": ("age,name,outcome", [f"1{n},bob,{n % 2}" for n in range(200)], "'name' is string, not numeric"),
    "gaps": ("age,x,outcome", [*good_rows(), ",1.0,yes"], "'age' has 1 missing"),
    "one value": ("age,x,outcome", [f"7,{n},{n % 2}" for n in range(200)], "'age' has only one value"),
    "three labels": ("age,x,outcome", [f"{n},{n},{n % 3}" for n in range(200)], "exactly two values"),
    "label with gaps": ("age,x,outcome", [f"{n},{n},{n % 2 if n else ''}" for n in range(200)], "no gaps"),
    "few rows": ("age,x,outcome", good_rows(20), "20 rows"),
    "same names": ("a b,a_b,outcome", good_rows(), "distinct names"),
    "ragged": ("age,x,outcome", [*good_rows(), "1"], "cannot read the data"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_with_file_and_reason(tmp_path: Path, name: str) -> None:
    header, rows, reason = BAD_FILES[name]
    path = write_csv(tmp_path / "mine.csv", header, rows)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_table(path, "outcome")
    assert caught.value.file == str(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1nothing")
    (tmp_path / "a.xlsx").write_bytes(b"")
    for name, reason in (
        ("none.csv", "No such file"),
        ("a.parquet", "cannot read"),
        ("a.xlsx", r"\.csv or a \.parquet"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_table(tmp_path / name, "y")
