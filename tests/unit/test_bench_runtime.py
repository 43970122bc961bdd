"""The benchmark of the runtime: what it draws, what its model says, and how its figures are made."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from bench.common import cell
from bench.runtime import __main__ as command
from bench.runtime import (
    arms,
    ceiling,
    central,
    draws,
    flows,
    grid,
    inflight,
    model,
    page,
    paired,
    result,
    runner,
)
from bench.runtime.admission import Admission, Door
from bench.runtime.client import BackendProcess
from bench.runtime.comity_memory import Through, feed
from bench.runtime.grid import Case
from bench.runtime.journal import NAME as GRID_JOURNAL
from bench.runtime.trio_client import TrioClerk
from bench.runtime.works import MODEL, ROLES, SURVIVAL, TOOL, WORKS, Hop, Row, Shape, draw_rows
from comity_node.protocol.flow import Done, Goes, advance, begin, current, read_flow, work_of
from comity_node.runtime.passing.world import MemorySink, MemoryWorld


def _shape(kind: str = "lognormal-1", seed: int = 1) -> Shape:
    return Shape(seed, kind, 0.012)


@pytest.mark.parametrize("kind", draws.LATENCIES)
def test_every_latency_has_mean_one(kind: str) -> None:
    drawn = [draws.latency(kind, 7, row) for row in range(20_000)]
    assert min(drawn) > 0
    assert fmean(drawn) == pytest.approx(1.0, rel=0.06)


def test_draws_depend_on_their_key_alone() -> None:
    first = draw_rows("fixed", _shape(), 5)
    assert draw_rows("fixed", _shape(), 50)[:5] == first
    assert draw_rows("fixed", _shape(seed=2), 5) != first
    assert _shape().seconds(3, 1) == first[3][1].seconds
    assert _shape().seconds(3, 1, attempt=1) != first[3][1].seconds


def test_all_arms_of_a_repeat_see_the_same_rows() -> None:
    same = {runner.draw(Case("tools", "pareto-2.1", ratio), 3, grid.ROWS)[1] for ratio in grid.RATIOS}
    assert len(same) == 1
    assert runner.draw(Case("tools", "pareto-2.1", 1), 4, grid.ROWS)[1] not in same


def test_shapes_of_the_workloads() -> None:
    rows = {work: draw_rows(work, _shape(), 4000) for work in WORKS}
    assert all(len(row) == 3 for row in rows["fixed"])
    turns = [len(row) for row in rows["dialogue"]]
    assert max(turns) == 20
    assert fmean(turns) == pytest.approx(5.85, abs=0.3)  # a geometric number of mean 6, cut at 20
    through = sum(
        len(row) == 4 and draws.unit("keep", 1, number, 4) < SURVIVAL**0.25 for number, row in enumerate(rows["funnel"])
    )
    assert through / 4000 == pytest.approx(SURVIVAL, abs=0.012)
    for row in rows["tools"]:
        assert [hop.pool for hop in row] == [MODEL] + [TOOL, MODEL] * (len(row) // 2)
    for work, drawn in rows.items():
        assert {hop.role for row in drawn for hop in row} == set(range(ROLES[work]))


def test_stragglers_are_slower_only_now_and_then() -> None:
    slow = Shape(1, "constant", 0.01, stragglers=True)
    seconds = [slow.seconds(row, 0) for row in range(5000)]
    assert set(seconds) == {0.01, 0.2}
    assert seconds.count(0.2) / 5000 == pytest.approx(0.02, abs=0.006)


def _brute(rows: Sequence[Row], in_flight: int, slots: Sequence[int], control: int) -> float:
    """Row by row, told as a clock that ticks: all of it in whole units of time."""
    now, decided = 0, 0
    left, free = list(range(len(rows))), list(slots)
    deciding: list[tuple[int, int, int]] = []
    waiting: list[tuple[int, int]] = []
    working: list[tuple[int, int, int]] = []
    ready = [(left.pop(0), 0) for _ in range(min(in_flight, len(left)))]
    while True:
        for ended in [each for each in working if each[0] == now]:
            working.remove(ended)
            _, row, hop = ended
            free[rows[row][hop].pool] += 1
            if hop + 1 < len(rows[row]):
                ready.append((row, hop + 1))
            elif left:
                ready.append((left.pop(0), 0))
        for row, hop in ready:
            decided = max(now, decided) + control
            deciding.append((decided, row, hop))
        ready = []
        for each in [each for each in deciding if each[0] == now]:
            deciding.remove(each)
            waiting.append(each[1:])
        for row, hop in list(waiting):
            if free[rows[row][hop].pool]:
                free[rows[row][hop].pool] -= 1
                waiting.remove((row, hop))
                working.append((now + int(rows[row][hop].seconds), row, hop))
        if not working and not waiting and not deciding:
            return now
        now += 1


def _small() -> Iterator[tuple[tuple[Row, ...], int, tuple[int, int]]]:
    """Cases of a few rows with times in whole units, no two of which end together by chance too often."""
    for seed in range(60):
        count, in_flight = 1 + seed % 6, 1 + seed % 3
        rows = tuple(
            tuple(
                Hop(0, int(draws.unit("pool", seed, row, hop) * 2), 1 + int(draws.unit("t", seed, row, hop) * 97))
                for hop in range(1 + int(draws.unit("n", seed, row) * 4))
            )
            for row in range(count)
        )
        yield rows, in_flight, (1 + seed % 2, 1)


@pytest.mark.parametrize("control", [0, 3])
def test_the_model_agrees_with_a_ticking_clock(control: int) -> None:
    for rows, in_flight, slots in _small():
        assert model.row_level(rows, in_flight, slots, control) == pytest.approx(
            _brute(rows, in_flight, slots, control)
        )


def test_a_barrier_waits_for_the_slowest_of_each_stage() -> None:
    rows = ((Hop(0, 0, 5.0), Hop(0, 0, 1.0)), (Hop(0, 0, 1.0), Hop(0, 0, 7.0)), (Hop(0, 0, 2.0),))
    assert model.barrier(rows, 2, 2, (2, 1)) == 5 + 7 + 2
    assert model.barrier(rows, 3, 3, (3, 1)) == 5 + 7
    assert model.row_level(rows, 2, (2, 1)) == 8
    assert model.bound(rows, (2, 1)) == 8
    for each, in_flight, slots in _small():
        row = model.row_level(each, in_flight, slots)
        assert model.bound(each, slots) <= row + 1e-9
        assert model.barrier(each, 1, 1, slots) == pytest.approx(sum(hop.seconds for one in each for hop in one))


def test_nothing_is_gained_where_all_is_constant() -> None:
    said = runner.modelled(Case("fixed", "constant", 2), 2, grid.ROWS)
    assert said.gain("central-batch-C") == pytest.approx(1.0, abs=0.05)
    assert runner.modelled(Case("fixed", "lognormal-1", 1), 2, grid.ROWS).gain("central-batch-C") > 2


def test_the_interval_of_a_ratio() -> None:
    exact = paired.ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert (exact.value, exact.low, exact.high) == (2.0, 2.0, 2.0)  # pairs stay together
    loose = paired.ratio([2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 1.0, 2.0])
    assert loose.value == pytest.approx(8 / 6)
    assert loose.low < loose.value < loose.high
    with pytest.raises(ValueError, match="pairs"):
        paired.ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="pairs"):
        paired.ratio([0.0], [1.0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for trial in range(100):
        noise = [0.8 + 0.4 * draws.unit("noise", trial, run) for run in range(40)]
        found = paired.ratio([3.0 * each for each in noise[:20]], noise[20:], resamples=300, seed=trial)
        held += found.low <= 3.0 <= found.high
    assert held >= 85


def test_percentiles_lie_between_their_neighbours() -> None:
    assert paired.percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert paired.percentile([1.0, 2.0], 0.25) == 1.25
    assert paired.percentile([4.0], 0.975) == 4.0


def test_the_steady_window_leaves_out_both_ends() -> None:
    done = [each / 100 for each in range(100)]
    slow_ends = [-5.0, *done, 9.0]
    assert runner.steady(slow_ends) == pytest.approx(100.0, rel=0.05)


def test_the_grid_is_what_was_fixed() -> None:
    assert set(grid.DEFAULT) <= set(grid.FULL)
    assert len(set(grid.FULL)) == len(grid.FULL)
    plain = {(case.work, case.latency, case.ratio) for case in grid.FULL}
    assert plain >= {(work, kind, ratio) for work in WORKS for kind in draws.LATENCIES for ratio in grid.RATIOS}
    fixed = grid.digest(grid.DEFAULT, grid.ROWS, 10)
    assert fixed == grid.digest(grid.DEFAULT, dict(grid.ROWS), 10) != grid.digest(grid.DEFAULT, grid.ROWS, 11)


@pytest.mark.parametrize("arm", central.ARMS)
def test_an_arm_does_every_hop_once_and_takes_no_less_than_the_model(arm: str, tmp_path: Path) -> None:
    case = Case("tools", "lognormal-0.5", 2)
    shape = Shape(5, case.latency, 0.003)
    rows = draw_rows(case.work, shape, 24)
    with BackendProcess(tmp_path) as backend:
        backend.begin((grid.SLOTS, grid.TOOL_SLOTS))
        makespan = central.measure(arm, central.Run(case, shape, rows, backend.path))
        done = backend.end()
    assert makespan >= model.bound(rows, (grid.SLOTS, grid.TOOL_SLOTS)) * 0.98
    assert len(done) == central.totals(rows) if arm != "central-row-hedged" else len(done) >= central.totals(rows)
    assert done == sorted(done)


def test_a_stalled_site_answers_when_its_stall_is_over(tmp_path: Path) -> None:
    case = Case("fixed", "constant", 1, stall=True)
    shape = Shape(5, case.latency, 0.001)
    rows = draw_rows(case.work, shape, 16)
    with BackendProcess(tmp_path) as backend:
        backend.begin((grid.SLOTS, grid.TOOL_SLOTS), (1, 0.0, 0.25))
        stalled = central.measure("central-row", central.Run(case, shape, rows, backend.path))
        backend.begin((grid.SLOTS, grid.TOOL_SLOTS))
        free = central.measure("central-row", central.Run(case, shape, rows, backend.path))
    assert stalled >= 0.2 > free


def test_a_decision_that_costs_is_paid_one_hop_after_the_other(tmp_path: Path) -> None:
    case = Case("fixed", "constant", 8, control_ms=2.0)
    shape = Shape(5, case.latency, 0.001)
    rows = draw_rows(case.work, shape, 20)
    with BackendProcess(tmp_path) as backend:
        backend.begin((grid.SLOTS, grid.TOOL_SLOTS))
        central_s = central.measure("central-row", central.Run(case, shape, rows, backend.path))
        backend.begin((grid.SLOTS, grid.TOOL_SLOTS))
        brokers_s = central.measure("brokers", central.Run(case, shape, rows, backend.path))
    assert central_s >= 60 * 0.002
    assert brokers_s < central_s


def test_a_small_run_writes_the_result(tmp_path: Path) -> None:
    command.main(["--quick", "--parts", "grid", "--arms", "central-row", "central-batch-C", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "runtime.json").read_text())
    assert {each["work"] for each in content["models"]} == {case.name for case in grid.QUICK}
    assert {each["arm"] for each in content["cells"]} == {"central-row", "central-batch-C"}
    for each in content["ratios"]:
        assert each["low"] <= each["ratio"] <= each["high"]
        assert each["effect"] == "scheduling"
        assert each["model"] > 1


def test_a_grid_that_was_broken_off_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--parts", "grid", "--arms", "central-row", "--out", str(tmp_path)]
    command.main(options)
    before = json.loads((tmp_path / "runtime.json").read_text())
    written = tmp_path / GRID_JOURNAL
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(lines[:2]) + lines[2][:40])  # killed while it wrote the second case
    capsys.readouterr()
    command.main([*options, "--resume"])
    said = capsys.readouterr().out
    assert [line.endswith(": done before") for line in said.splitlines() if line.startswith("[")] == [True, False]
    after = json.loads((tmp_path / "runtime.json").read_text())
    assert [each["work"] for each in after["models"]] == [each["work"] for each in before["models"]]
    first = [each for each in before["cells"] if each["work"].startswith(f"{grid.QUICK[0].name} ")]
    assert first == after["cells"][: len(first)] != []
    with pytest.raises(ValueError, match="is of another grid"):
        command.main([*options, "--repeats", "1", "--resume"])


def test_flows_lead_through_the_hops_that_were_drawn() -> None:
    for work in WORKS:
        flow = read_flow(flows.flow(work, entry="first"))
        rows = draw_rows(work, _shape(), 60)
        script = flows.Script(rows)
        for number, row in enumerate(rows):
            cursor, state = begin(flow, 1), dict[str, Any]()
            came = advance(flow, cursor, state, {"state": flows.first_state(number)}, 1, by=flows.HOME)
            for hop in row:
                assert isinstance(came, Goes)
                step = current(flow, came.cursor)
                assert step.skill == flows.skill(hop.role)
                sites = [site for site in range(grid.SITES) if step.skill in flows.skills_at(site)]
                assert len(sites) == 2
                work_of_step = work_of(flow, came.cursor, came.state)["state"]
                assert script.hop(work_of_step) == hop
                came = advance(flow, came.cursor, came.state, script.answer(work_of_step), 1)
            assert isinstance(came, Done)


@pytest.mark.parametrize("arm", ["comity-memory", "comity-memory-home"])
def test_comity_in_memory_does_every_hop(arm: str, tmp_path: Path) -> None:
    case = Case("tools", "lognormal-0.5", 2)
    shape = Shape(5, case.latency, 0.003)
    rows = draw_rows(case.work, shape, 24)
    with BackendProcess(tmp_path) as backend, arms.MAKERS[arm]() as running:
        backend.begin((grid.SLOTS, grid.TOOL_SLOTS))
        makespan = running.measure(central.Run(case, shape, rows, backend.path))
        done = backend.end()
    assert makespan >= model.bound(rows, (grid.SLOTS, grid.TOOL_SLOTS)) * 0.98
    assert len(done) >= central.totals(rows)


def test_comity_in_memory_lets_a_row_in_when_anothers_last_step_is_answered() -> None:
    opened: list[int] = []

    async def open_rows(home: str, rows: Sequence[Any]) -> None:
        opened.append(len(rows))

    async def main() -> None:
        through = Through()
        world = cast(MemoryWorld, SimpleNamespace(sinks={flows.HOME: MemorySink()}, open=open_rows))
        case, shape = Case("fixed", "constant", 1), _shape("constant")
        run = central.Run(case, shape, draw_rows(case.work, shape, case.in_flight + 3), "")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed, world, run, through)
            for row in (0, 0, 1):  # a row may be done once more
                await trio.testing.wait_all_tasks_blocked()
                through.add(row)

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match=r"10 of 11 rows were let in, 2 did .* 0 are home")):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert opened == [8, 1, 1]


def test_a_decision_of_the_arm_in_memory_takes_no_less_than_it_costs() -> None:
    async def main() -> float:
        clerk, began = TrioClerk(0.0012), time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(clerk.decide)
        return time.monotonic() - began

    assert trio.run(main) >= 20 * 0.0012, "one after the other"


def test_rows_are_let_in_as_others_are_done(tmp_path: Path) -> None:
    async def main(admission: Admission) -> None:
        loop = asyncio.get_running_loop()
        _, door = await loop.create_unix_connection(Door, admission.path)
        first = [await door.enter(), await door.enter()]
        third = asyncio.ensure_future(door.enter())
        _, other = await loop.create_unix_connection(Door, admission.path)
        fourth = asyncio.ensure_future(other.enter())
        assert not (await asyncio.wait([third], timeout=0.05))[0]
        other.done(first[1])
        assert await third == 2
        assert not fourth.done()
        admission.widen(3)
        assert await fourth == 3
        for each in (door, other):
            each.close()

    with Admission(tmp_path) as admission:
        admission.begin(2, 10)
        asyncio.run(main(admission))
        assert admission.began > 0


def test_many_tasks_in_memory_come_home() -> None:
    found = inflight.in_memory(300)
    assert found["until all are home"][0] > 0


def test_the_ceiling_counts_every_hop() -> None:
    assert all(each.value > 0 and each.unit in ("hops/s", "steps/s") for each in ceiling.memory_cells(1, scale=0.02))


class _Broken:
    def measure(self, run: central.Run) -> float:
        raise RuntimeError("a row was lost")

    def cpu_seconds(self) -> float:
        return 0.0


def test_an_arm_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    case = Case("funnel", "constant", 2)
    with BackendProcess(tmp_path) as backend:
        able: dict[str, runner.Arm] = {"brokers": _Broken(), "central-row": runner.Central("central-row")}
        runs, failed = runner.run_case(case, able, backend, 2, {"funnel": 8})
    assert failed == {"brokers": "a row was lost"}
    assert list(runs) == ["central-row"]
    assert len(runs["central-row"].makespan) == 2


def test_the_page_has_every_case(tmp_path: Path) -> None:
    case = grid.QUICK[0]
    runs = {arm: runner.Runs([1.0, 2.0], [10.0, 20.0], [1.0, 1.0]) for arm in ("central-row", "central-batch-50")}
    said = runner.modelled(case, 2, grid.ROWS)
    one = result.of_case(case.name, runner.cells(case, runs), runner.compare(case, runs, said), said, {})
    part = result.of_grid([one], "abc")
    more = result.of_cells([cell("ceiling 1,000 under way", "Ray", [5.0], "hops/s")])
    text = page.publish(result.joined([part, more]), tmp_path).read_text()
    assert f"| {case.name} | 1.500 | 1.500 |" in text
    assert "| ceiling 1,000 under way | Ray | 5 |" in text
    assert "<!--" not in text
    for name in ("scheduling", "topology", "comity", "ceiling"):
        assert (tmp_path / "benchmarks" / f"{name}.svg").read_text().startswith("<svg ")
