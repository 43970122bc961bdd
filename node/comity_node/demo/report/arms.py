"""The comparison of ways to train: spread of each arm over the seeds, and paired differences between arms."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comity_node.demo.report.text import decimal, finite, signed

if TYPE_CHECKING:
    from comity_node.demo.ablation import SeedResult

METRICS = ("auc", "accuracy")
_SHOWN = {"auc": "AUC", "accuracy": "accuracy"}

#: What each arm is, in words; arms that are not here go by their own name.
LABELS: Mapping[str, str] = {
    "local_mean": "local only, mean hospital",
    "local_worst": "local only, worst hospital",
    "local_certified_mean": "local + certified, mean hospital",
    "local_certified_worst": "local + certified, worst hospital",
    "federated": "federated",
    "federated_certified": "federated + certified",
    "federated_unreviewed": "federated + everything unreviewed",
    "federated_unreviewed_flood": "federated + unreviewed flood",
    "poisoned_unscored": "bad update, unscored",
    "poisoned_scored": "bad update, scored",
}

#: What each arm is compared with: the arm that differs from it in one thing.
BASELINES: Mapping[str, tuple[str, ...]] = {
    "local_certified_mean": ("local_mean",),
    "local_certified_worst": ("local_worst",),
    "federated": ("local_mean",),
    "federated_certified": ("federated",),
    "federated_unreviewed": ("federated_certified",),
    "federated_unreviewed_flood": ("federated_certified",),
    "poisoned_unscored": ("federated",),
    "poisoned_scored": ("federated", "poisoned_unscored"),
}


def label(arm: str) -> str:
    """Return an arm in words."""
    return LABELS.get(arm, arm.replace("_", " "))


def summarize(results: Sequence[SeedResult]) -> dict[str, Any]:
    """Return every arm's spread over the seeds and its paired differences; empty lists when nothing was run."""
    names = list(results[0].arms) if results else []
    values = {
        arm: {metric: [float(getattr(one.arms[arm], metric)) for one in results] for metric in METRICS} for arm in names
    }
    return {
        "seeds": [one.seed for one in results],
        "arms": [
            {
                "arm": arm,
                "label": label(arm),
                **{metric: spread(values[arm][metric]) for metric in METRICS},
                "compared": [
                    {"baseline": base, **{metric: difference(arm, base, metric, values) for metric in METRICS}}
                    for base in BASELINES.get(arm, ())
                    if base in values
                ],
            }
            for arm in names
        ],
        "scoring": {
            "rounds": sum(one.rounds for one in results),
            "refused_bad": sum(one.refused_bad for one in results),
            "refused_honest": sum(one.refused_honest for one in results),
        },
        "certified": [{"seed": one.seed, "rows": dict(one.certified)} for one in results],
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (None for one value), least, largest, and the values themselves."""
    return {
        "mean": finite(statistics.fmean(values)),
        "sd": finite(statistics.stdev(values)) if len(values) > 1 else None,
        "min": finite(min(values)),
        "max": finite(max(values)),
        "values": [finite(value) for value in values],
    }


def difference(arm: str, base: str, metric: str, values: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Return the difference of two arms, paired by seed, and in a sentence whether it is within the noise.

    Within the noise means |mean| < 2 * sd / sqrt(n), or no difference in any seed; None when one seed cannot tell.
    """
    pairs = zip(values[arm][metric], values[base][metric], strict=True)
    differences = [one - other for one, other in pairs]
    mean, count = statistics.fmean(differences), len(differences)
    sd = statistics.stdev(differences) if count > 1 else None
    within: bool | None = None
    if sd is not None:
        within = not any(differences) or abs(mean) < 2 * sd / math.sqrt(count)
    return {
        "mean": finite(mean),
        "sd": finite(sd),
        "higher_in": sum(one > 0 for one in differences),
        "lower_in": sum(one < 0 for one in differences),
        "n": count,
        "within_noise": within,
        "sentence": _sentence(f"{label(arm)} against {label(base)}: {_SHOWN[metric]}", mean, sd, count, within),
    }


def _sentence(what: str, mean: float, sd: float | None, count: int, within: bool | None) -> str:
    if sd is None:
        return f"{what} {signed(mean)} in one seed, which cannot tell a difference from noise."
    found = f"{what} {signed(mean)} (sd {decimal(sd, 4)}, {count} paired seeds)"
    if within:
        return f"{found}: within the noise." if sd or mean else f"{found}: no difference in any seed."
    return f"{found}: {'higher' if mean > 0 else 'lower'}, by more than the noise."
