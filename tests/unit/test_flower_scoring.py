"""Who is let into an average, and how much it weighs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from comity.flower.scoring import Thresholds, Update, Validation, Verdict, judge, validate

GOOD = Validation(loss=0.2, auc=0.98, accuracy=0.95)
ORIGIN = np.zeros(8)
DIRECTION = np.ones(8)


def honest(number: int, *, weight: float = 100.0, validation: Validation | None = GOOD) -> Update:
    noise = np.random.default_rng(number).normal(0, 0.2, 8)
    return Update(f"o{number}.example", DIRECTION + noise, weight, validation)


def judged_last(*updates: Update, thresholds: Thresholds | None = None, current: Validation | None = None) -> Verdict:
    return judge(updates, origin=ORIGIN, current=current, thresholds=thresholds)[-1]


FOUR = [honest(number) for number in range(4)]


def test_honest_updates_have_full_weight() -> None:
    assert [verdict.trust for verdict in judge(FOUR, origin=ORIGIN)] == [1.0] * 4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Update("bad.example", -DIRECTION, 100, GOOD), "direction"),
        (Update("bad.example", DIRECTION * 100, 100, GOOD), "norm"),
        (Update("bad.example", DIRECTION * np.nan, 100, GOOD), "not finite"),
        (Update("bad.example", DIRECTION, 100, Validation(0.2, 0.3, 0.5)), "worse than guessing"),
        (Update("bad.example", DIRECTION, 100, Validation(0.2, 0.9, 0.9)), "AUC 0.900 against 0.980"),
        (Update("bad.example", DIRECTION, 100, Validation(2.0, 0.98, 0.5)), "log-loss"),
        (Update("bad.example", DIRECTION, 100, Validation(float("nan"), 0.98, 0.5)), "log-loss"),
    ],
)
def test_a_bad_update_is_refused_and_the_honest_are_not(bad: Update, reason: str) -> None:
    verdicts = judge([*FOUR, bad], origin=ORIGIN)
    assert verdicts[-1].trust == 0.0
    assert any(reason in one for one in verdicts[-1].reasons)
    assert [verdict.trust for verdict in verdicts[:-1]] == [1.0] * 4


def test_a_far_update_adds_no_more_than_the_bound() -> None:
    limits = Thresholds(hard_distance=1e9)
    near = judged_last(*FOUR, Update("far.example", DIRECTION * 5, 100, GOOD), thresholds=limits)
    far = judged_last(*FOUR, Update("far.example", DIRECTION * 500, 100, GOOD), thresholds=limits)
    assert near.distance is not None
    assert far.distance is not None
    assert near.trust * near.distance == pytest.approx(limits.soft_distance)
    assert far.trust * far.distance == pytest.approx(limits.soft_distance)


def test_a_weight_that_only_its_author_knows_does_not_buy_the_average() -> None:
    verdict = judged_last(*FOUR, honest(5, weight=1e12))
    assert verdict.trust * 1e12 == pytest.approx(400.0)
    assert "weight" in verdict.reasons[0]


def test_two_liars_of_five_do_not_make_an_honest_one_the_outlier() -> None:
    liars = [Update(f"bad{n}.example", -DIRECTION, 100, Validation(3.0, 0.05, 0.1)) for n in range(2)]
    verdicts = judge([*FOUR[:3], *liars], origin=ORIGIN)
    assert [verdict.trust > 0 for verdict in verdicts] == [True, True, True, False, False]


def test_with_few_others_the_current_model_is_the_reference() -> None:
    worse = honest(1, validation=Validation(0.3, 0.8, 0.8))
    assert judged_last(honest(0), worse, current=GOOD).trust == 0.0
    assert judged_last(honest(0), worse).trust == 1.0


def test_few_held_out_rows_give_the_benefit_of_the_doubt() -> None:
    labels = np.array([1] * 8 + [0] * 12)
    scores = np.linspace(0.9, 0.1, 20)
    scores[7], scores[15] = scores[15], scores[7]
    chance = validate(scores, labels)
    assert chance.auc < GOOD.auc - Thresholds().max_auc_drop
    assert judged_last(*FOUR, honest(5, validation=chance)).trust == 1.0
    many = validate(np.tile(scores, 500), np.tile(labels, 500))
    assert many.auc == pytest.approx(chance.auc)
    assert judged_last(*FOUR, honest(5, validation=many)).trust == 0.0


def test_without_validation_direction_and_norm_still_count() -> None:
    blind = [Update(one.organization, one.parameters, one.weight) for one in FOUR]
    assert judged_last(*blind, Update("bad.example", -DIRECTION, 100)).trust == 0.0


def test_members_that_agree_exactly_are_not_far_from_each_other() -> None:
    same = [Update(f"o{n}.example", DIRECTION, 100, GOOD) for n in range(4)]
    assert [verdict.trust for verdict in judge(same, origin=ORIGIN)] == [1.0] * 4


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 200)
    probabilities = np.round(np.clip(rng.normal(0.3 + 0.3 * labels, 0.2), 0.1, 0.9), 1)
    found = validate(probabilities, labels)
    assert found.auc == pytest.approx(roc_auc_score(labels, probabilities))
    assert found.loss == pytest.approx(log_loss(labels, probabilities))
    assert found.accuracy == pytest.approx(np.mean((probabilities >= 0.5) == labels))
    assert validate(probabilities, np.ones(200)).auc == 0.5
