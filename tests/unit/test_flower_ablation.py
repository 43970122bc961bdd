"""The comparison over seeds: one small seed, whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from comity.flower.scoring import Validation
from comity_node.demo.ablation import (
    SeedResult,
    SeedRun,
    Workload,
    poison,
    run_ablation,
    run_seed,
    shared_scale,
    simulate,
    summarize,
)
from comity_node.demo.data import breast_cancer, split
from comity_node.demo.training import Hyperparameters

NAMES = ("a.example", "b.example", "c.example", "d.example", "bad.example")
SMALL = Workload(records=20, batch=20)


@pytest.fixture(scope="module")
def run() -> SeedRun:
    return simulate(breast_cancer(), NAMES, 3, workload=SMALL)


def test_everybody_offers_and_a_quorum_certifies_good_rows_only(run: SeedRun) -> None:
    assert {name: len(rows) for name, rows in run.offered.items()} == dict.fromkeys(NAMES, 20)
    honest = [len(run.certified[name]) for name in run.honest]
    assert run.honest == NAMES[:4]
    assert sum(honest) >= 70
    assert len(run.certified[run.bad]) <= 2


def test_nobody_trains_on_the_test_set(run: SeedRun) -> None:
    held = {row.tobytes() for row in run.test.rows}
    for rows in (*run.private.values(), *run.offered.values(), *run.certified.values(), run.poison):
        assert not held & {row.tobytes() for row in rows.rows}


def test_the_scale_is_made_of_certified_rows_or_else_of_declared_ranges(run: SeedRun) -> None:
    certified = np.concatenate([rows.rows for rows in run.certified.values()])
    np.testing.assert_allclose(shared_scale(run).apply(certified).mean(axis=0), 0, atol=1e-9)
    few = {name: type(rows)(rows.rows[:2], rows.labels[:2]) for name, rows in run.certified.items()}
    bare = SeedRun(run.fields, run.ranges, run.private, run.offered, few, run.poison, run.bad, run.server, run.test)
    assert shared_scale(bare).center[0] == sum(run.ranges[run.fields[0]]) / 2


def test_scoring_saves_what_a_poisoner_ruins(run: SeedRun) -> None:
    result = run_seed(run, 3, Hyperparameters(rounds=2))
    arms = result.arms
    assert arms["poisoned_scored"].auc > 0.95 > 0.8 > arms["poisoned_unscored"].auc
    assert arms["federated_unreviewed_flood"].auc < 0.8
    assert arms["federated_certified"].auc > 0.95
    assert arms["local_worst"].auc <= arms["local_mean"].auc
    assert (result.refused_bad, result.refused_honest) == (2, 0)
    again = run_seed(run, 3, Hyperparameters(rounds=2))
    assert {name: round(one.auc, 6) for name, one in again.arms.items()} == {
        name: round(one.auc, 6) for name, one in arms.items()
    }


def test_a_poisoner_has_four_times_its_rows_all_wrongly_labelled() -> None:
    part = split(breast_cancer(), organizations=5, seed=1).parts[4]
    bad = poison(part, 1)
    assert len(bad) == 4 * len(part)
    assert abs(bad.labels.mean() - (1 - part.labels.mean())) < 0.15


def test_the_report_gives_mean_and_spread() -> None:
    def result(seed: int, auc: float) -> SeedResult:
        return SeedResult(seed, {"local_mean": Validation(0.1, auc, 0.9)}, 1, 0, 3, {"a.example": 5})

    report = summarize([result(0, 0.9), result(1, 0.8)])
    assert json.loads(json.dumps(report)) == report
    (arm,) = report["arms"]
    assert arm["auc"] == {"mean": 0.85, "sd": 0.0707, "low": 0.8, "high": 0.9}
    assert report["scoring"] == {"rounds": 6, "refused_bad": 2, "refused_honest": 0}


def test_an_ablation_tells_of_each_seed() -> None:
    heard: list[int] = []
    report = run_ablation(
        breast_cancer(),
        NAMES,
        [5],
        workload=Workload(records=10, batch=10, repair_rounds=0),
        parameters=Hyperparameters(rounds=1),
        on_seed=lambda one: heard.append(one.seed),
    )
    assert heard == report["seeds"] == [5]
    assert len(report["arms"]) == 10
