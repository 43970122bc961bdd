from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comity.client import NegotiationStep
from comity.errors import AgentFailed
from comity.flower.data import Scale
from comity.flower.scoring import Validation
from comity_node.demo.ablation import SeedResult
from comity_node.demo.data import breast_cancer, write_table
from comity_node.demo.report import (
    Inputs,
    Verification,
    build,
    check,
    held_out_score,
    machine,
    page,
    summary_lines,
    write,
)
from comity_node.demo.report.arms import BASELINES, LABELS

HONEST = ("mercy.example", "stlukes.example", "hope.example", "charite.example")
BAD = "quick.example"
EVERYBODY = (*HONEST, BAD)
ATTACK = "<script>alert('1')</script>\x1b[31m"

MEANS = {
    "local_mean": 0.988,
    "local_worst": 0.981,
    "local_certified_mean": 0.990,
    "local_certified_worst": 0.987,
    "federated": 0.994,
    "federated_certified": 0.9938,
    "federated_unreviewed": 0.986,
    "federated_unreviewed_flood": 0.71,
    "poisoned_unscored": 0.36,
    "poisoned_scored": 0.9935,
}


def organization(name: str, certified: int, rejected: int, undecided: int, refused: int) -> dict[str, Any]:
    reliable = {other: 0.41 if other == BAD else 0.93 for other in EVERYBODY if other != name}
    return {
        "offered": certified + rejected + undecided + refused,
        "certified": certified,
        "rejected": rejected,
        "undecided": undecided,
        "refused": refused,
        "refused_by": {"offer-synthetic-tumours": refused},
        "rejected_by": {"density": rejected - 1, ATTACK: 1},
        "repaired": 6,
        "refused_messages": {"replayed": 4, "wrong_audience": 2},
        "records_held": 190,
        "bytes_sent": 1_400_000,
        "bytes_received": 1_200_000,
        "messages_sent": 210,
        "messages_received": 190,
        "reconnects": 0,
        "reliability_of_others": {
            other: {"agreed": 120.0, "disagreed": 8.5, "reliability": mean} for other, mean in reliable.items()
        },
    }


def update(name: str, *reasons: str) -> dict[str, Any]:
    admitted = not reasons
    return {
        "node": "77",
        "organization": name,
        "admitted": admitted,
        "trust": 1.0 if admitted else 0.0,
        "weight": 230.0 if admitted else 0.0,
        "reasons": list(reasons),
        "private_examples": 90,
        "certified_examples": 140,
        "cosine": 0.97 if admitted else -0.9,
        "distance": 1.1 if admitted else 8.0,
        "auc": 0.99 if admitted else 0.02,
        "loss": 0.1,
        "accuracy": 0.96,
    }


def seed_result(seed: int, means: Mapping[str, float] = MEANS) -> SeedResult:
    rng = np.random.default_rng(seed)
    arms = {
        arm: Validation(loss=0.2, auc=mean + 0.002 * float(rng.standard_normal()), accuracy=mean - 0.03)
        for arm, mean in means.items()
    }
    return SeedResult(seed, arms, refused_bad=3, refused_honest=0, rounds=3, certified=dict.fromkeys(EVERYBODY, 45))


def inputs() -> Inputs:
    one_round = {
        "admitted": [update(name) for name in HONEST],
        "refused": [update(BAD, f"validation: AUC 0.020 is worse than guessing {ATTACK}")],
        "auc": 0.994,
        "loss": 0.1,
        "accuracy": 0.965,
    }
    return Inputs(
        organizations={
            **{name: organization(name, 49, 6, 3, 2) for name in HONEST},
            BAD: organization(BAD, 12, 40, 8, 0),
        },
        roles={**dict.fromkeys(HONEST, "honest"), BAD: "bad"},
        private_rows=dict.fromkeys(EVERYBODY, 90),
        negotiation=[
            NegotiationStep(1, HONEST[0], "proposed", "60 rows each, distance 0.12"),
            NegotiationStep(2, HONEST[3], "countered", f"distance 0.16 {ATTACK}"),
            NegotiationStep(3, HONEST[0], "concluded", "signed by 5"),
        ],
        corruption={
            "rows": {
                "collapsed": {"made": 20, "certified": 0},
                "flipped_labels": {"made": 30, "certified": 2},
                "honest": {"made": 20, "certified": 10},
                "wrong_units": {"made": 20, "certified": 0},
            },
            "corrupted_certified": 2,
            "replays": {"again: replayed": 12, "elsewhere: wrong_audience": 12},
        },
        flower={"rounds": [{"round": number, **one_round} for number in (1, 2, 3)], "seconds": 71.2},
        held_out={"auc": 0.9931, "accuracy": 0.9649, "loss": 0.1, "rows": 114},
        ablation=[seed_result(seed) for seed in range(5)],
        timings={"start": 9.1, "negotiate": 1.2, "work": 41.5, "train": 88.0, "ablation (rest)": 12.5},
        verify=[
            Verification("one record's provenance", "comity records verify p.json --bundle b.json", True, "ok\n5 hops"),
            Verification("one audit log", "comity audit verify --home h", True, "ok\n" * 40),
        ],
        machine=machine(),
        data="Wisconsin breast cancer (569 patients)",
        reviews=1150,
        total_s=170.5,
    )


class WellFormed(HTMLParser):
    """Fails on a tag that is not closed in its place; collects what could load or run something."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loading: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        names = {name for name, _ in attrs}
        if tag in ("script", "link", "iframe", "img", "object", "image", "use") or any(
            name in ("src", "href", "xlink:href", "data", "action") or name.startswith("on") for name in names
        ):
            self.loading.append(f"{tag} {sorted(names)}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> WellFormed:
    parser = WellFormed()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


def test_the_report_has_every_field_and_passes_its_own_check() -> None:
    report = build(inputs())
    check(report)
    assert set(report) >= {"organizations", "records", "reliability", "federated", "timings", "verify"}
    assert report["records"]["totals"]["offered"] == 300
    assert report["records"]["good_rows"]["not_certified"] == 44
    assert report["records"]["corruption"]["corrupted_certified"] == 2
    assert report["records"]["corruption"]["certified_unlogged"] == 0
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_the_rates_are_over() -> None:
    timings = build(inputs())["timings"]
    decided = 4 * 58 + 60
    assert timings["records_decided_per_s"] == pytest.approx(decided / 41.5, abs=0.01)
    assert timings["reviews_per_s"] == pytest.approx(1150 / 41.5, abs=0.01)
    assert timings["messages"] == 5 * 210
    assert "reviews" not in build(replace(inputs(), reviews=None))["timings"]


def test_rows_that_vanish_fail_the_check_and_are_shouted_about() -> None:
    made = inputs()
    organizations = {name: dict(one) for name, one in made.organizations.items()}
    organizations[HONEST[1]]["offered"] += 1
    report = build(replace(made, organizations=organizations))
    assert report["records"]["adds_up"] is False
    assert report["organizations"][HONEST[0]]["adds_up"] is True
    with pytest.raises(AgentFailed, match=r"stlukes\.example: the rows do not add up: 61 offered"):
        check(report)
    assert "DO NOT ADD UP" in page(report)
    assert any("DO NOT ADD UP" in line for line in summary_lines(report))


def test_two_errors_that_cancel_out_are_still_found() -> None:
    made = inputs()
    organizations = {name: dict(one) for name, one in made.organizations.items()}
    organizations[HONEST[1]]["offered"] += 1
    organizations[HONEST[2]]["offered"] -= 1
    report = build(replace(made, organizations=organizations))
    assert report["records"]["adds_up"] is False


@pytest.mark.parametrize("field", ["organizations", "records", "reliability", "federated", "timings", "verify"])
def test_a_missing_field_fails_the_check(field: str) -> None:
    report = build(inputs())
    del report[field]
    with pytest.raises(AgentFailed, match=field):
        check(report)


def test_a_total_that_is_not_the_sum_fails_the_check() -> None:
    report = build(inputs())
    report["records"]["totals"]["certified"] += 1
    with pytest.raises(AgentFailed, match="not the sum"):
        check(report)


def test_a_verification_that_failed_fails_the_check() -> None:
    made = inputs()
    broken = replace(made.verify[1], passed=False)
    report = build(replace(made, verify=[made.verify[0], broken]))
    assert "FAILED" in page(report)
    with pytest.raises(AgentFailed, match="not verified: one audit log"):
        check(report)


def test_what_peers_wrote_is_text_everywhere() -> None:
    report = build(inputs())
    html = page(report)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    lines = summary_lines(report)
    assert all(line.isprintable() for line in lines)
    assert "\x1b" not in html
    assert "\\u001b" not in json.dumps(report)


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = page(build(inputs()))
    parsed = read(html)
    assert parsed.loading == []
    assert {"svg", "table", "style"} <= parsed.seen
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"@import|url\(", html)


def test_a_peer_with_many_names_costs_a_bounded_page() -> None:
    made = inputs()
    organizations = {name: dict(one) for name, one in made.organizations.items()}
    organizations[HONEST[0]]["rejected_by"] = {f"axis{number}" * 100: 1 for number in range(1000)}
    counts = build(replace(made, organizations=organizations))["organizations"][HONEST[0]]["rejected_by"]
    assert len(counts) == 21
    assert sum(counts.values()) == 1000
    assert max(map(len, counts)) <= 80


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write(build(inputs()), tmp_path / "a")]
    again = [path.read_bytes() for path in write(build(inputs()), tmp_path / "b" / "c")]
    assert first == again
    assert json.loads(first[0]) == build(inputs())


def test_which_kinds_got_certified_and_why() -> None:
    report = build(inputs())
    (kind,) = report["records"]["corruption"]["certified_kinds"]
    assert kind["kind"] == "flipped_labels"
    assert "label noise" in kind["why"]
    assert "2 of 70 corrupted rows (2.9 %) got certified: 2 flipped labels" in " ".join(summary_lines(report)).replace(
        "   ", " "
    )


def test_kinds_that_were_not_tried_are_named() -> None:
    report = build(inputs())
    assert report["records"]["corruption"]["not_tried"] == ["shuffled_labels", "copied_rows"]
    assert "Not tried in this run: shuffled labels and copied rows." in page(report)


def test_none_certified_is_said_too() -> None:
    none = {"rows": {"collapsed": {"made": 5, "certified": 0}, "honest": {"made": 4, "certified": 3}}, "replays": {}}
    report = build(replace(inputs(), corruption=none))
    assert report["records"]["corruption"]["certified_unlogged"] == 9
    text = page(report)
    assert "None of the 5 corrupted rows" in text
    assert "9 certified rows of the bad organization are not in its own log" in text


def compared(report: Mapping[str, Any], arm: str, baseline: str, metric: str = "auc") -> dict[str, Any]:
    (one,) = (one for one in report["federated"]["ablation"]["arms"] if one["arm"] == arm)
    (found,) = (each for each in one["compared"] if each["baseline"] == baseline)
    return dict(found[metric])


def test_differences_are_paired_by_seed_and_say_whether_they_are_noise() -> None:
    means = [
        {"local_mean": 0.8, "federated": 0.9, "federated_certified": 0.9 + d, "poisoned_scored": 0.9}
        for d in (0.01, -0.01, 0.002)
    ]
    results = [
        SeedResult(seed, {arm: Validation(0.1, auc, 0.9) for arm, auc in one.items()}, 0, 0, 3, {})
        for seed, one in enumerate(means)
    ]
    report = build(replace(inputs(), ablation=results))
    noise = compared(report, "federated_certified", "federated")
    assert noise["mean"] == pytest.approx(0.002 / 3, abs=1e-4)
    assert (noise["higher_in"], noise["lower_in"], noise["n"]) == (2, 1, 3)
    assert noise["within_noise"] is True
    assert "within the noise" in noise["sentence"]
    assert compared(report, "federated_certified", "federated", "accuracy")["within_noise"] is True
    real = compared(report, "federated", "local_mean")
    assert real["within_noise"] is False
    assert "higher, by more than the noise" in real["sentence"]
    same = compared(report, "poisoned_scored", "federated")
    assert same["within_noise"] is True
    assert "no difference in any seed" in same["sentence"]


def test_one_seed_cannot_tell() -> None:
    report = build(replace(inputs(), ablation=[seed_result(0)]))
    one = compared(report, "poisoned_unscored", "federated")
    assert one["within_noise"] is None
    assert one["sd"] is None
    read(page(report))
    assert summary_lines(report)


def test_every_arm_of_the_ablation_has_a_name_and_a_baseline_that_exists() -> None:
    assert set(LABELS) == set(MEANS)
    assert {base for bases in BASELINES.values() for base in bases} | set(BASELINES) == set(LABELS)


def test_a_run_in_which_little_happened_still_gives_a_page(tmp_path: Path) -> None:
    empty = {name: organization(name, 0, 1, 0, 0) | {"reliability_of_others": {}} for name in EVERYBODY}
    made = replace(
        inputs(),
        organizations=empty,
        corruption={"rows": {}, "corrupted_certified": 0, "replays": {}},
        flower={"rounds": [], "seconds": float("nan")},
        held_out={},
        ablation=[],
        negotiation=[],
        timings={},
        reviews=None,
        total_s=None,
    )
    report = build(made)
    _, html = write(report, tmp_path)
    read(html.read_text(encoding="utf-8"))
    assert "No corrupted row was made" in html.read_text(encoding="utf-8")
    assert any("not compared over seeds" in line for line in summary_lines(report))


def test_an_update_that_nobody_signed_has_no_organization() -> None:
    made = inputs()
    rounds = [{**made.flower["rounds"][0], "refused": [update("", "the member sent no update")]}]
    report = build(replace(made, flower={"rounds": rounds, "seconds": 5.0}))
    live = report["federated"]["live"]
    assert live["refused"] == {"all": 1, "honest": 0, "bad": 0}
    assert "unknown" in page(report)


def test_the_machine_is_described_without_its_name_or_paths() -> None:
    facts = machine()
    assert set(facts) == {"cpus", "platform", "python", "packages"}
    assert "/" not in json.dumps(facts)


def test_the_live_model_is_scored_on_the_held_out_rows(tmp_path: Path) -> None:
    table = breast_cancer()
    write_table(tmp_path / "test.parquet", table)
    table.schema.save(tmp_path / "schema.json")
    # The fields in another order than the file's, to see that each coefficient meets its own.
    fields = list(reversed(table.schema.features))
    scale = Scale.of_rows(fields, table.schema.label, table.rows[:, ::-1])
    away = table.rows[table.labels == 1].mean(axis=0) - table.rows[table.labels == 0].mean(axis=0)
    flower = {
        "model": {"coefficients": (away[::-1] / np.array(scale.scale)).tolist(), "intercept": [0.0]},
        "standardization": {"fields": fields, "label": table.schema.label, **scale.to_config()},
    }
    scores = held_out_score(flower, tmp_path / "test.parquet", tmp_path / "schema.json")
    assert scores["rows"] == 569
    assert scores["auc"] > 0.97
