"""From what the demo has seen to the report: plain JSON with one field for each question.

organizations   what became of each one's rows, and what it refused of others
records         the sums, whether they add up, what became of corrupted rows and of good ones
reliability     what each one has learned about the others
federated       the live run, and the comparison over seeds
timings         seconds, messages, bytes, rates
verify          commands that prove a record and a log, and what they said
negotiation, machine
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comity.errors import AgentFailed
from comity_node.demo.adversary import Kind
from comity_node.demo.report import arms
from comity_node.demo.report.text import clean, finite, largest

if TYPE_CHECKING:
    from comity.client import NegotiationStep
    from comity_node.demo.ablation import SeedResult

HONEST, BAD = "honest", "bad"
#: How a row's journey ends; `offered` is their sum.
ENDS = ("certified", "rejected", "undecided", "refused")
_TRAFFIC = ("bytes_sent", "bytes_received", "messages_sent", "messages_received")
_OUTPUT_LINES = 12

#: How a corrupted row can pass although its batch is corrupted, by what was done to it.
_WHY: Mapping[str, str] = {
    "flipped_labels": "a row near the border between the classes is plausible with either label, and row-level review "
    "sees label noise only where the reviewers' models are sure",
    "shuffled_labels": "a row near the border between the classes is plausible with either label, and a batch test "
    "sees label noise only when there is more of it than the models' own errors",
    "copied_rows": "a copy is found only by a reviewer that has seen the original",
    "wrong_units": "the values stayed within what the reviewers' own rows make plausible",
    "collapsed": "a row of a collapsed batch looks like any other to a reviewer that has not seen its likes",
}
_WHY_UNKNOWN = "nothing explains it; look at the record's reviews with `comity records show`"


@dataclass(frozen=True, slots=True)
class Verification:
    """A command that a reader can run again, and what it said when the demo ran it."""

    what: str
    command: str
    passed: bool
    output: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the demo has seen.

    Attributes:
        organizations: of each, in the order of the report, what `scenario.organization_report` returned.
        roles: of each, "honest" or "bad".
        private_rows: of each, how many real rows it holds.
        negotiation: the steps of the workflow's negotiation.
        corruption: what `scenario.corruption_report` returned.
        flower: what `federation.train` returned.
        held_out: what `held_out_score` returned of that run's model; empty when it was not scored.
        ablation: the results of `ablation.run_seed`, one a seed; `ablation.run_ablation` hands them to `on_seed`.
        timings: seconds of each step, in order; "work" is the one in which rows are made, reviewed and certified.
        verify: the commands that were run.
        machine: what `machine` returned.
        data: what the rows are, in a few words.
        reviews: how many reviews of single rows were made, None when nobody counted.
        total_s: seconds from start to end; None is the sum of the steps.
    """

    organizations: Mapping[str, Mapping[str, Any]]
    roles: Mapping[str, str]
    private_rows: Mapping[str, int]
    negotiation: Sequence[NegotiationStep]
    corruption: Mapping[str, Any]
    flower: Mapping[str, Any]
    held_out: Mapping[str, Any]
    ablation: Sequence[SeedResult]
    timings: Mapping[str, float]
    verify: Sequence[Verification]
    machine: Mapping[str, Any]
    data: str = ""
    reviews: int | None = None
    total_s: float | None = None


def build(inputs: Inputs) -> dict[str, Any]:
    """Return the report as plain JSON. It says whether the numbers add up; see `check`."""
    organizations = {name: _organization(inputs, name) for name in inputs.organizations}
    return {
        "data": clean(inputs.data),
        "organizations": organizations,
        "records": _records(organizations, inputs.corruption),
        "reliability": _reliability(inputs),
        "federated": {
            "live": _live(inputs.flower, inputs.held_out, inputs.roles),
            "ablation": arms.summarize(inputs.ablation),
        },
        "timings": _timings(inputs, organizations),
        "verify": [_verification(one) for one in inputs.verify],
        "negotiation": [
            {"organization": clean(one.organization), "step": clean(one.step), "detail": clean(one.detail)}
            for one in inputs.negotiation
        ],
        "machine": dict(inputs.machine),
    }


_FIELDS: Mapping[str, type] = {
    "organizations": dict,
    "records": dict,
    "reliability": dict,
    "federated": dict,
    "timings": dict,
    "verify": list,
    "negotiation": list,
    "machine": dict,
}


def check(report: Mapping[str, Any]) -> None:
    """Check a report: its fields, that the numbers add up, and that what was to be verified was and passed.

    Raises:
        AgentFailed: the first thing that is wrong.
    """
    for name, kind in _FIELDS.items():
        if not isinstance(report.get(name), kind) or (name != "negotiation" and not report[name]):
            raise AgentFailed(f"the report has no {name}")
    for name, organization in report["organizations"].items():
        missing = [field for field in ("role", "private_rows", "offered", *ENDS) if field not in organization]
        if missing:
            raise AgentFailed(f"the report says nothing of {missing[0]} at {name}")
        _check_sum(name, organization)
    totals = report["records"]["totals"]
    for field in ("offered", *ENDS):
        if totals[field] != sum(one[field] for one in report["organizations"].values()):
            raise AgentFailed(f"{totals[field]} rows {field} in all is not the sum of the organizations")
    _check_sum("all organizations", totals)
    failed = [one["what"] for one in report["verify"] if not one["passed"]]
    if failed:
        raise AgentFailed(f"not verified: {'; '.join(failed)}")


def _check_sum(name: str, counts: Mapping[str, Any]) -> None:
    if counts["offered"] != sum(counts[end] for end in ENDS):
        parts = " + ".join(f"{counts[end]} {end}" for end in ENDS)
        raise AgentFailed(f"{name}: the rows do not add up: {counts['offered']} offered is not {parts}")


def _organization(inputs: Inputs, name: str) -> dict[str, Any]:
    seen = inputs.organizations[name]
    return {
        "role": inputs.roles[name],
        "private_rows": int(inputs.private_rows[name]),
        "offered": int(seen["offered"]),
        **{end: int(seen[end]) for end in ENDS},
        "adds_up": _adds_up(seen),
        "refused_by": largest(seen["refused_by"]),
        "rejected_by": largest(seen["rejected_by"]),
        "repaired": int(seen["repaired"]),
        "refused_messages": largest(seen["refused_messages"]),
        "records_held": int(seen["records_held"]),
        **{key: int(seen[key]) for key in _TRAFFIC},
        "reconnects": int(seen["reconnects"]),
    }


def _adds_up(counts: Mapping[str, Any]) -> bool:
    return bool(counts["offered"] == sum(counts[end] for end in ENDS))


def _records(organizations: Mapping[str, Mapping[str, Any]], corruption: Mapping[str, Any]) -> dict[str, Any]:
    def sums(role: str | None) -> dict[str, Any]:
        chosen = [one for one in organizations.values() if role in (None, one["role"])]
        counts = {field: sum(one[field] for one in chosen) for field in ("offered", *ENDS)}
        return {**counts, "adds_up": _adds_up(counts) and all(one["adds_up"] for one in chosen)}

    honest = sums(HONEST)
    lost = honest["offered"] - honest["certified"]
    return {
        "totals": sums(None),
        "adds_up": sums(None)["adds_up"],
        "rule": "offered = " + " + ".join(ENDS),
        "by_role": {HONEST: honest, BAD: sums(BAD)},
        "good_rows": {
            "offered": honest["offered"],
            "not_certified": lost,
            "share_not_certified": finite(lost / honest["offered"]) if honest["offered"] else None,
            **{end: honest[end] for end in ENDS[1:]},
        },
        "corruption": _corruption(corruption, sums(BAD)["certified"]),
    }


def _corruption(seen: Mapping[str, Any], certified_of_bad: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"kind": clean(kind, 80), "made": int(one["made"]), "certified": int(one["certified"])}
        for kind, one in seen["rows"].items()
    ]
    corrupted = [one for one in kinds if one["kind"] != HONEST]
    passed = [one for one in corrupted if one["certified"]]
    return {
        "kinds": kinds,
        "corrupted_made": sum(one["made"] for one in corrupted),
        "corrupted_certified": sum(one["certified"] for one in corrupted),
        "certified_kinds": [
            {"kind": one["kind"], "certified": one["certified"], "why": _WHY.get(one["kind"], _WHY_UNKNOWN)}
            for one in passed
        ],
        "not_tried": [kind.value for kind in Kind if kind.value not in seen["rows"]],
        "certified_unlogged": max(0, certified_of_bad - sum(one["certified"] for one in kinds)),
        "replays": largest(seen.get("replays", {})),
    }


def _reliability(inputs: Inputs) -> dict[str, Any]:
    seen_by = {
        viewer: {
            clean(other, 80): {
                "agreed": finite(one["agreed"], 2),
                "disagreed": finite(one["disagreed"], 2),
                "mean": finite(one["reliability"]),
            }
            for other, one in seen["reliability_of_others"].items()
        }
        for viewer, seen in inputs.organizations.items()
    }
    summary = []
    for name in inputs.organizations:
        judges = [viewer for viewer in seen_by if inputs.roles[viewer] == HONEST and name in seen_by[viewer]]
        means = [float(seen_by[viewer][name]["mean"] or 0.0) for viewer in judges]
        summary.append(
            {
                "organization": name,
                "role": inputs.roles[name],
                "judges": len(judges),
                "median": finite(statistics.median(means)) if means else None,
                "min": finite(min(means)) if means else None,
                "max": finite(max(means)) if means else None,
            }
        )
    return {"seen_by": seen_by, "summary": summary}


def _live(flower: Mapping[str, Any], held_out: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    rounds: list[dict[str, Any]] = [
        {
            "round": int(one["round"]),
            "admitted": [_update(entry) for entry in one["admitted"]],
            "refused": [_update(entry) for entry in one["refused"]],
            "validation": {"auc": finite(one["auc"]), "accuracy": finite(one["accuracy"])},
        }
        for one in flower.get("rounds", [])
    ]
    admitted = [entry for one in rounds for entry in one["admitted"]]
    refused = [entry for one in rounds for entry in one["refused"]]

    def count(entries: Iterable[Mapping[str, Any]], role: str) -> int:
        return sum(roles.get(entry["organization"]) == role for entry in entries)

    return {
        "rounds": rounds,
        "admitted": {"all": len(admitted), HONEST: count(admitted, HONEST), BAD: count(admitted, BAD)},
        "refused": {"all": len(refused), HONEST: count(refused, HONEST), BAD: count(refused, BAD)},
        "held_out": {
            "auc": finite(held_out.get("auc")),
            "accuracy": finite(held_out.get("accuracy")),
            "rows": int(held_out.get("rows", 0)),
        },
        "seconds": finite(flower.get("seconds"), 1),
    }


def _update(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "organization": clean(entry["organization"], 80),
        "reasons": [clean(reason) for reason in entry["reasons"][:10]],
        "private_examples": int(entry["private_examples"]),
        "certified_examples": int(entry["certified_examples"]),
        **{key: finite(entry.get(key)) for key in ("trust", "weight", "cosine", "distance", "auc", "accuracy")},
    }


def _timings(inputs: Inputs, organizations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    steps = {f"{name.removesuffix('_s')}_s": finite(seconds, 2) for name, seconds in inputs.timings.items()}
    total = inputs.total_s if inputs.total_s is not None else sum(inputs.timings.values())
    work = steps.get("work_s")
    ended = sum(one[end] for one in organizations.values() for end in ENDS[:3])
    timings: dict[str, Any] = {
        "steps": steps,
        "total_s": finite(total, 2),
        "messages": sum(one["messages_sent"] for one in organizations.values()),
        "sent_bytes": sum(one["bytes_sent"] for one in organizations.values()),
        "records_decided_per_s": finite(ended / work, 2) if work else None,
    }
    if inputs.reviews is not None:
        timings["reviews"] = inputs.reviews
        timings["reviews_per_s"] = finite(inputs.reviews / work, 2) if work else None
    return timings


def _verification(one: Verification) -> dict[str, Any]:
    lines = one.output.strip().splitlines()
    shown = [clean(line) for line in lines[:_OUTPUT_LINES]]
    if len(lines) > _OUTPUT_LINES:
        shown.append(f"… {len(lines) - _OUTPUT_LINES} more lines")
    return {"what": clean(one.what), "command": one.command, "passed": bool(one.passed), "output": "\n".join(shown)}
