"""What the benchmarks stand on: their common form, fair turns, and a reading of the journals that counts everything."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from bench import common, journey
from bench.common import Ratio, cell, compare, compare_all, interleave, rate, table, write
from bench.instant import InstantSkills
from bench.memory import InMemory
from comity_node.demo.data import breast_cancer
from comity_node.demo.homes import ORGANIZATIONS, make_homes
from comity_node.demo.scenario import Size
from comity_node.storage.connections import connect_readonly
from comity_node.validators.schema import FieldSpec, Schema


def test_a_cell_is_the_median_with_the_lowest_and_the_highest() -> None:
    made = cell("bulk", "secured", [300.0, 100.0, 250.0], "MB/s")
    assert (made.value, made.spread, made.runs) == (250.0, (100.0, 300.0), 3)


@pytest.mark.parametrize(("runs", "unit"), [([], "MB/s"), ([1.0], "parsecs")])
def test_no_cell_of_nothing_or_of_a_unit_that_points_nowhere(runs: Sequence[float], unit: str) -> None:
    with pytest.raises(ValueError, match=r"no runs|better, or less"):
        cell("bulk", "secured", runs, unit)


@pytest.mark.parametrize(
    ("unit", "ours", "peer", "wanted"),
    [("records/s", 30.0, 10.0, 3.0), ("records/s", 10.0, 30.0, 1 / 3), ("ms", 5.0, 20.0, 4.0), ("s", 20.0, 5.0, 0.25)],
)
def test_over_1_is_better_whichever_way_the_unit_points(unit: str, ours: float, peer: float, wanted: float) -> None:
    made = compare(cell("work", "mine", [ours], unit), cell("work", "theirs", [peer], unit))
    assert (made.work, made.arm, made.peer) == ("work", "mine", "theirs")
    assert made.ratio == pytest.approx(wanted)


@pytest.mark.parametrize(
    "peer",
    [cell("bulk", "b", [1.0], "s"), cell("connect", "b", [1.0], "ms"), cell("connect", "b", [0.0], "s")],
    ids=["another work", "another unit", "zero"],
)
def test_what_cannot_be_compared_is_not(peer: common.Cell) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(cell("connect", "a", [1.0], "s"), peer)


def test_compare_all_pairs_the_works_that_both_have() -> None:
    cells = [
        cell("connect", "a", [1.0], "ms"), cell("bulk", "a", [8.0], "MB/s"), cell("open", "a", [1.0], "messages/s"),
        cell("bulk", "b", [4.0], "MB/s"), cell("connect", "b", [3.0], "ms"), cell("seal", "b", [1.0], "messages/s"),
    ]  # fmt: skip
    assert compare_all(cells, "a", "b") == [Ratio("connect", "a", "b", 3.0), Ratio("bulk", "a", "b", 2.0)]


def test_arms_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def arm(name: str) -> int:
        order.append(name)
        return len(order)

    results = interleave({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3)
    assert order == ["a", "b"] * 4
    assert results == {"a": [3, 5, 7], "b": [4, 6, 8]}


@pytest.mark.parametrize("cost_s", [1e-4, 0.02, 7.0])
def test_a_rate_counts_calls_by_the_clock(cost_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0

    def work() -> None:
        nonlocal now_s
        now_s += cost_s

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    assert rate(work, seconds=1.0, count=5) == pytest.approx(5 / cost_s)
    assert 101.0 <= now_s <= 101.5 + cost_s


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell("bulk", "secured", [300.0, 100.0, 200.0], "MB/s"), cell("bulk", "py-libp2p-stock", [50.0], "MB/s")]
    path = write("links", cells, [compare(*cells)], out=tmp_path / "bench-out")
    assert path == tmp_path / "bench-out" / "links.json"
    result = json.loads(path.read_text())
    machine = result.pop("machine")
    assert result == {
        "cells": [
            {"work": "bulk", "arm": "secured", "value": 200.0, "unit": "MB/s", "spread": [100.0, 300.0], "runs": 3},
            {"work": "bulk", "arm": "py-libp2p-stock", "value": 50.0, "unit": "MB/s", "spread": [50, 50], "runs": 1},
        ],
        "ratios": [{"work": "bulk", "arm": "secured", "peer": "py-libp2p-stock", "ratio": 4.0}],
    }
    assert list(machine) == ["cpus", "platform", "python", "versions"]
    assert machine["versions"]["trio"]
    texts = [machine["platform"], machine["python"], *machine["versions"].values()]
    assert not [text for text in texts if "/" in text or text == platform.node()]
    printed = capsys.readouterr().out
    assert "4.00x" in printed
    assert str(path) in printed


def test_a_figure_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write("links", [cell("bulk", "secured", [float("nan")], "MB/s")], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_table_lines_up() -> None:
    lines = table([cell("bulk", "secured", [1234.5], "MB/s"), cell("a-long-name", "x", [0.0123], "s")]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["bulk", "secured", "1,234", "1,234", "1,234", "MB/s", "1"],
        ["a-long-name", "x", "0.0123", "0.0123", "0.0123", "s", "1"],
    ]
    assert len({line.index(unit) for line, unit in zip(lines, ("unit", "MB/s", "s  "), strict=True)}) == 1


def test_rates_count_from_the_agreement() -> None:
    first = journey.Journal({"certified": 8, "rejected": 2}, 3_000, 40, 5_000, 50, 8, 4, 6_000)
    second = journey.Journal({"certified": 4, "refused": 6}, 2_000, 16, 2_000, 26, 4, 8, 11_000)
    assert journey.rates([first, second], 500, 1_000) == {
        "negotiate": 0.5,
        "records-decided": 10.0,  # 20 in 2 s
        "reviews": 14.0,  # 56 in 4 s
        "hops": 8.8,  # 50 + 26 + 12 in 10 s
        "certified-delivered": 1.2,  # 12 in 10 s
    }


def test_instant_agents_make_rows_of_the_schema_and_pass_only_such() -> None:
    schema = Schema("label", {"x": FieldSpec("number", -3.0, 5.0), "label": FieldSpec("integer", 0, 1)})
    skills = InstantSkills(schema)
    made = skills.call("generate", {"count": 20, "seed": 1})["records"]
    assert len(made) == 20
    assert not any(schema.problem(record) for record in made)
    assert made == skills.call("generate", {"count": 20, "seed": 1})["records"]
    reviews = skills.call("review", {"records": [made[0], {"x": 1.0}]})["reviews"]
    assert [review["score"] > 5_000 for review in reviews] == [True, False]


def test_five_organizations_in_memory_and_all_that_they_did_is_counted(tmp_path: Path) -> None:
    size = Size(records=4, batch=2)
    homes, _ = make_homes(tmp_path / "homes", tmp_path, breast_cancer(), seed=0)
    with InMemory(homes) as site:
        values = journey.run(site, size)
        (workflow_id,) = {row for home in homes for row in workflows(home.path / "node.db")}
    assert values.keys() == journey.UNITS.keys()
    assert all(value > 0 for value in values.values())
    for home in homes:
        with closing(connect_readonly(home.path / "node.db")) as database:
            read = journey.read_journal(database, workflow_id, home.organization)
        others = len(ORGANIZATIONS) - 1
        assert read.tasks == {"certified": size.records}
        assert (read.own, read.others) == (size.records, others * size.records)
        # A quorum of three is asked first; the fourth only for a batch with which somebody is late.
        assert size.records * (1 + 3) <= read.hops <= size.records * (1 + others)
        assert 3 * size.records <= read.reviews <= others * size.records


def workflows(file: Path) -> list[str]:
    with closing(connect_readonly(file)) as database:
        return [row[0] for row in database.execute("SELECT workflow_id FROM workflows")]
