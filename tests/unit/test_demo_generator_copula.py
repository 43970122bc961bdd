from __future__ import annotations

import numpy as np
import pytest

from comity.errors import ConfigError
from comity_node.demo.data import LABEL, Table, breast_cancer, split
from comity_node.demo.generator import AVOID_DISTANCE, Generator
from comity_node.validators.distance import PrivateReference
from comity_node.validators.schema import FieldSpec, Schema


@pytest.fixture(scope="module")
def table() -> Table:
    return split(breast_cancer(), seed=0).parts[0]


@pytest.fixture(scope="module")
def generator(table: Table) -> Generator:
    return Generator(table)


def test_rows_fit_the_schema_and_the_seed_decides(generator: Generator) -> None:
    rows = generator.sample(50, 7)
    generator.schema.matrix(rows)
    assert rows == generator.sample(50, 7)
    assert rows != generator.sample(50, 8)
    assert generator.sample(0, 7) == []


@pytest.mark.invariant("S4")
def test_no_private_row_is_copied_or_sat_upon(table: Table, generator: Generator) -> None:
    rows = generator.sample(500, 1)
    distances = PrivateReference(table.schema, table.rows).distances(rows)
    assert distances.min() >= AVOID_DISTANCE
    made, _ = table.schema.matrix(rows)
    same = np.array([np.isin(made[:, n], table.rows[:, n]).mean() for n in range(30)])
    assert same.max() < 0.02  # a value of few digits is met by chance now and then, a row never


def test_means_spreads_and_correlations_are_kept(table: Table, generator: Generator) -> None:
    made, labels = table.schema.matrix(generator.sample(3000, 2))
    assert abs(labels.mean() - table.labels.mean()) < 0.03
    for label in (0, 1):
        real, fake = table.rows[table.labels == label], made[labels == label]
        spread = real.std(axis=0)
        assert np.abs((fake.mean(axis=0) - real.mean(axis=0)) / spread).max() < 0.25
        assert np.median(fake.std(axis=0) / spread) == pytest.approx(1.0, abs=0.15)
    radius, perimeter = (table.schema.features.index(name) for name in ("mean_radius", "mean_perimeter"))
    assert np.corrcoef(made[:, radius], made[:, perimeter])[0, 1] > 0.97


def test_a_repair_keeps_the_label_and_moves_to_the_middle(table: Table, generator: Generator) -> None:
    rows = generator.sample(400, 3)
    implausible = generator.repair(rows, [["density: area_error is too large"]] * 400, 4)
    crowded = generator.repair(rows, [["copy: too close to a row that came before"]] * 400, 4)
    assert [row[LABEL] for row in implausible] == [row[LABEL] for row in rows]
    assert all(a != b for a, b in zip(rows, implausible, strict=True))
    tight, labels = table.schema.matrix(implausible)
    wide, _ = table.schema.matrix(crowded)
    benign = labels == 0
    assert np.median(tight[benign].std(axis=0) / wide[benign].std(axis=0)) < 0.85


def test_integers_stay_whole() -> None:
    rng = np.random.default_rng(0)
    schema = Schema(
        LABEL,
        {"visits": FieldSpec("integer", 0, 100), "x": FieldSpec("number", -10, 10), LABEL: FieldSpec("integer", 0, 1)},
    )
    rows = np.column_stack([rng.poisson(3, 100), rng.normal(size=100)]).astype(float)
    made = Generator(Table(schema, rows, (np.arange(100) % 2))).sample(100, 1)
    assert all(isinstance(row["visits"], int) for row in made)
    schema.matrix(made)


def test_too_few_rows(table: Table) -> None:
    few = table.take(np.concatenate([np.flatnonzero(table.labels == 0), np.flatnonzero(table.labels == 1)[:4]]))
    with pytest.raises(ConfigError, match="class 1 has 4"):
        Generator(few)
