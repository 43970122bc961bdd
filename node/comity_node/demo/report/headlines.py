"""What came out, in plain sentences, each made from the report's numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comity_node.demo.report.facts import BAD, ENDS, HONEST
from comity_node.demo.report.text import decimal, kind_name, listed, percent, plural, signed

Report = Mapping[str, Any]

#: The comparisons that answer the questions that people ask first, in their order: arm, baseline, question.
_QUESTIONS = (
    ("local_certified_mean", "local_mean", "Certified rows for a hospital that trains alone"),
    ("local_certified_worst", "local_worst", "Certified rows for the worst hospital that trains alone"),
    ("federated", "local_mean", "Training together instead of alone"),
    ("federated_certified", "federated", "Certified rows added to federated training"),
    ("federated_unreviewed", "federated_certified", "Leaving out the review of rows"),
    ("federated_unreviewed_flood", "federated_certified", "Leaving out review while the bad one floods the others"),
    ("poisoned_unscored", "federated_certified", "Letting the bad one's update in unscored"),
    ("poisoned_scored", "poisoned_unscored", "Scoring updates, against letting all in"),
    ("poisoned_scored", "federated_certified", "What the bad one still costs when updates are scored"),
)


def headlines(report: Report) -> list[str]:
    """Return the facts, most important first."""
    return [
        _accounting(report),
        _corrupted(report),
        _good_rows(report),
        *_reliability(report),
        *_live(report),
        *_comparison(report),
    ]


def comparisons(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    """Return each question that the comparison over seeds answers, with the difference in AUC."""
    found = {
        (arm["arm"], one["baseline"]): one["auc"]
        for arm in report["federated"]["ablation"]["arms"]
        for one in arm["compared"]
    }
    return [(question, found[arm, base]) for arm, base, question in _QUESTIONS if (arm, base) in found]


def verdict(difference: Mapping[str, Any]) -> str:
    """Say in a few words whether a difference is one."""
    if difference["within_noise"] is None:
        return "one seed cannot tell"
    if difference["within_noise"]:
        return "within the noise"
    return "higher" if difference["mean"] > 0 else "lower"


def _accounting(report: Report) -> str:
    organizations, totals = report["organizations"].values(), report["records"]["totals"]
    bad = sum(one["role"] == BAD for one in organizations)
    ends = listed([f"{totals[end]} {end}" for end in ENDS])
    text = (
        f"{len(organizations)} organizations, {bad} of them bad, offered {plural(totals['offered'], 'synthetic row')}: "
        f"{ends}."
    )
    if report["records"]["adds_up"]:
        return f"{text} The numbers add up, for each organization and in all."
    return f"{text} THE NUMBERS DO NOT ADD UP: {report['records']['rule']} does not hold."


def _corrupted(report: Report) -> str:
    found = report["records"]["corruption"]
    made, passed = found["corrupted_made"], found["corrupted_certified"]
    if not made:
        return "No corrupted row was made, so this run says nothing of how well review catches them."
    if not passed:
        text = f"None of the {plural(made, 'corrupted row')} that the bad organization made was certified in this run."
    else:
        kinds = [f"{one['certified']} {kind_name(one['kind'])} ({one['why']})" for one in found["certified_kinds"]]
        text = f"{passed} of {plural(made, 'corrupted row')} ({percent(passed, made)}) got certified: {listed(kinds)}."
    if found["certified_unlogged"]:
        text += f" {found['certified_unlogged']} certified rows of the bad organization are not in its own log."
    return text


def _good_rows(report: Report) -> str:
    good = report["records"]["good_rows"]
    lost = [f"{good[end]} {end}" + (" by policy" if end == "refused" else "") for end in ENDS[1:]]
    return (
        f"Of {plural(good['offered'], 'row')} that the honest organizations offered, {good['not_certified']} "
        f"({percent(good['not_certified'], good['offered'])}) were not certified: {listed(lost)}. That is the price of "
        "review, though not each of them was a good row."
    )


def _reliability(report: Report) -> list[str]:
    known = [one for one in report["reliability"]["summary"] if one["median"] is not None]
    honest = [one["median"] for one in known if one["role"] == HONEST]
    bad = [one for one in known if one["role"] == BAD]
    if not honest or not bad:
        return []
    low, high = decimal(min(honest), 2), decimal(max(honest), 2)
    text = listed([f"{one['organization']} {decimal(one['median'], 2)}" for one in bad])
    stands_out = max(one["median"] for one in bad) < min(honest)
    told = "stands out" if stands_out else "does not stand out"
    return [
        f"Reliability as the honest organizations see it (median): {text}, the honest ones {low} to {high}. "
        f"The bad one {told} by it."
    ]


def _live(report: Report) -> list[str]:
    live = report["federated"]["live"]
    if not live["rounds"]:
        return ["No federated training was run live."]
    admitted, refused, scores = live["admitted"], live["refused"], live["held_out"]
    seconds = "" if live["seconds"] is None else f" in {live['seconds']:.0f} s"
    text = (
        f"Flower trained {plural(len(live['rounds']), 'round')} live{seconds}: of the honest organizations' updates "
        f"{admitted[HONEST]} were admitted and {refused[HONEST]} refused, of the bad one's {admitted[BAD]} were "
        f"admitted and {refused[BAD]} refused."
    )
    if scores["auc"] is not None:
        text += (
            f" The final model has AUC {decimal(scores['auc'])} and accuracy {decimal(scores['accuracy'])} on "
            f"{plural(scores['rows'], 'held-out row')}."
        )
    return [text]


def _comparison(report: Report) -> list[str]:
    seeds = len(report["federated"]["ablation"]["seeds"])
    if not seeds:
        return ["The arms were not compared over seeds."]
    parts = [f"{question}: {signed(one['mean'])} ({verdict(one)})" for question, one in comparisons(report)]
    return [f"AUC, paired over {plural(seeds, 'seed')}. {'. '.join(parts)}."] if parts else []
