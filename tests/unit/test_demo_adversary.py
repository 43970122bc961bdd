from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comity_node.demo.adversary import PLAN, Adversary, CorruptionLog, Kind, Row, dishonest_scores, record_digest
from comity_node.demo.data import LABEL, breast_cancer

TABLE = breast_cancer()
ROWS: list[Row] = TABLE.take(range(20)).records()
OTHERS: list[Row] = TABLE.take(range(100, 140)).records()


def adversary(turn: int = 0) -> Adversary:
    made = Adversary(TABLE.schema, seed=1, turn=turn)
    made.observe(OTHERS)
    return made


def test_it_is_honest_until_it_turns() -> None:
    bad = adversary(turn=2)
    assert bad.corrupt(ROWS, 1) == [(row, Kind.HONEST) for row in ROWS]
    assert all(kind is not Kind.HONEST for _, kind in bad.corrupt(ROWS, 2))


def test_every_kind_has_its_turn() -> None:
    bad = adversary()
    kinds = {kind for batch in range(len(PLAN)) for _, kind in bad.corrupt(ROWS, batch)}
    assert kinds == set(Kind)


@pytest.mark.parametrize("plan", [*PLAN, Kind.HONEST])
def test_rows_carry_no_marker_and_fit_the_schema(plan: Kind | None) -> None:
    for row, _ in adversary().apply(ROWS, plan, [5]):
        TABLE.schema.check(row)
        assert set(row) == set(ROWS[0])


def test_each_kind_does_what_it_says() -> None:
    bad = adversary()
    flipped = bad.apply(ROWS, Kind.FLIPPED_LABELS, [1])
    assert [row for row, _ in flipped] == [{**row, LABEL: 1 - row[LABEL]} for row in ROWS]
    mixed: list[Row] = [*TABLE.take(np.flatnonzero(TABLE.labels == 0)[:10]).records(), *ROWS]
    shuffled = bad.apply(mixed, Kind.SHUFFLED_LABELS, [1])
    assert [kind is Kind.HONEST for _, kind in shuffled] == [
        new == old for (new, _), old in zip(shuffled, mixed, strict=True)
    ]
    assert sum(row[LABEL] for row, _ in shuffled) == sum(row[LABEL] for row in mixed)
    copies = [row for row, _ in bad.apply(ROWS, Kind.COPIED_ROWS, [1])]
    assert sum(row in OTHERS for row in copies) == 10
    collapsed, _ = TABLE.schema.matrix([row for row, _ in bad.apply(ROWS, Kind.COLLAPSED, [1])])
    assert (collapsed.std(axis=0) / TABLE.rows.std(axis=0)).max() < 0.05
    scaled = [row for row, _ in bad.apply(ROWS, Kind.WRONG_UNITS, [1])]
    changed = {name for name in TABLE.schema.features if scaled[0][name] != ROWS[0][name]}
    assert 1 <= len(changed) <= 6


def test_a_repair_is_as_bad_as_before() -> None:
    kinds = [Kind.FLIPPED_LABELS, Kind.HONEST, Kind.SHUFFLED_LABELS, Kind.COLLAPSED]
    done = adversary().repair(ROWS[:4], kinds, 3)
    assert [kind for _, kind in done] == kinds
    assert done[1][0] == ROWS[1]
    assert done[2][0][LABEL] != ROWS[2][LABEL]


def test_the_log_tells_afterwards_and_survives_a_torn_line(tmp_path: Path) -> None:
    log = CorruptionLog(tmp_path / "corruption.jsonl")
    assert (log.kinds(), log.last_batch()) == ({}, -1)
    log.append([(ROWS[0], Kind.FLIPPED_LABELS)], 3)
    with (tmp_path / "corruption.jsonl").open("a") as file:
        file.write('{"record": "ab')
    log.append([(ROWS[1], Kind.HONEST)], 4)
    assert log.kinds() == {record_digest(ROWS[0]): Kind.FLIPPED_LABELS, record_digest(ROWS[1]): Kind.HONEST}
    assert log.last_batch() == 4


def test_a_liar_refuses_the_good_and_passes_the_bad() -> None:
    rng = np.random.default_rng(0)
    scores = dishonest_scores(1000, 500, rng, favour=[n < 100 for n in range(1000)])
    assert all(score >= 500 for score in scores[:100])
    assert 0.02 < np.mean([score >= 500 for score in scores[100:]]) < 0.2
    assert all(0 <= score <= 10_000 for score in scores)
    assert all(0 <= score <= 10_000 for score in dishonest_scores(100, 10_000, rng) + dishonest_scores(100, 0, rng))
