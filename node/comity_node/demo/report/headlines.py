"""What came out, in plain sentences, each made from the report's numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comity_node.demo.report.facts import BAD, ENDS, HONEST
from comity_node.demo.report.text import decimal, kind_name, listed, percent, plural, signed

Report = Mapping[str, Any]

#: What people ask first, in their order: what was changed, and in each case arm, baseline and circumstance.
_QUESTIONS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Adding the others' certified rows",
        (
            ("local_certified_mean", "local_mean", "for a hospital that trains alone"),
            ("local_certified_worst", "local_worst", "for the worst hospital that trains alone"),
            ("federated_certified", "federated", "in federated training"),
        ),
    ),
    ("Training together instead of alone", (("federated", "local_mean", "for the mean hospital"),)),
    (
        "Leaving out the review of rows",
        (
            ("federated_unreviewed", "federated_certified", "as it was offered"),
            (
                "federated_unreviewed_flood",
                "federated_certified",
                "when the bad one floods with flipped labels, four times its rows",
            ),
        ),
    ),
    (
        "Letting the bad one train along on flipped labels",
        (
            ("poisoned_unscored", "federated", "with its updates unscored"),
            ("poisoned_scored", "federated", "with all updates scored"),
        ),
    ),
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


def comparisons(report: Report) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return what was changed, in which circumstance, and the difference in AUC, for each comparison that was made."""
    found = {
        (arm["arm"], one["baseline"]): one["auc"]
        for arm in report["federated"]["ablation"]["arms"]
        for one in arm["compared"]
    }
    return [
        (change, case, found[arm, base])
        for change, cases in _QUESTIONS
        for arm, base, case in cases
        if (arm, base) in found
    ]


def verdict(difference: Mapping[str, Any]) -> str:
    """Say in a few words whether a difference is one."""
    if difference["within_noise"] is None:
        return "one seed cannot tell"
    if not difference["higher_in"] and not difference["lower_in"]:
        return "no difference in any seed"
    if difference["within_noise"]:
        return "within the noise"
    return "higher, beyond the noise" if difference["mean"] > 0 else "lower, beyond the noise"


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
    if found["not_tried"]:
        text += f" Not tried in this run: {listed([kind_name(kind) for kind in found['not_tried']])}."
    if found["certified_unlogged"]:
        text += f" {found['certified_unlogged']} certified rows of the bad organization are not in its own log."
    return text


def _good_rows(report: Report) -> str:
    good = report["records"]["good_rows"]
    lost = [f"{good[end]} {end}" + (" by policy" if end == "refused" else "") for end in ENDS[1:]]
    return (
        f"Of {plural(good['offered'], 'row')} that the honest organizations offered, not certified: "
        f"{good['not_certified']} ({percent(good['not_certified'], good['offered'])}), that is {listed(lost)}. This is "
        "the price of review and policy, though not every row of an honest organization is a good one."
    )


def _reliability(report: Report) -> list[str]:
    known = [one for one in report["reliability"]["summary"] if one["median"] is not None]
    honest = [one["median"] for one in known if one["role"] == HONEST]
    bad = [one for one in known if one["role"] == BAD]
    if not honest or not bad:
        return []
    low, high = decimal(min(honest), 2), decimal(max(honest), 2)
    others = low if low == high else f"{low} to {high}"
    text = listed([f"{one['organization']} {decimal(one['median'], 2)}" for one in bad])
    stands_out = max(one["median"] for one in bad) < min(honest)
    told = "stands out" if stands_out else "does not stand out"
    return [
        f"Reliability as the honest organizations see it (median): {text}, the honest ones {others}. "
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
    changes: dict[str, list[str]] = {}
    for change, case, one in comparisons(report):
        changes.setdefault(change, []).append(f"{signed(one['mean'])} {case} ({verdict(one)})")
    return [
        f"{change} changed AUC, over {plural(seeds, 'seed')}, by {listed(parts)}." for change, parts in changes.items()
    ]
