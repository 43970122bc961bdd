"""The ceiling in full: two nodes and their workers; every hop is signed, decided on twice, and journaled twice."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench import hops
from bench.common import Cell, cell
from bench.runtime import flows
from bench.runtime.ceiling import ping_pong
from bench.runtime.comity_full import Ends, Site, document, ends, submit
from bench.runtime.homes import make_homes
from comity_node.demo.homes import Home

FULL: Final = "Comity in full"
#: Without workers: what is measured is the two nodes, and what is between them.
NODES: Final = "Comity in full, agents inside the nodes"
_AGENT: Final = "bench.runtime.ceiling_agents:agent"
_PAIR: Final = (flows.HOME, flows.ORGANIZATIONS[0])
_CONCURRENCY: Final = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: tasks, hops a second, and processor time of each process for a hop, in microseconds."""

    rate: float
    cpu: Mapping[str, float]
    ends: Ends


class Pair:
    """Two organizations that pass tasks to and fro, for as long as the block lasts."""

    def __enter__(self) -> Pair:
        self._stack = ExitStack()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="comity-bench-")))
        for name in ("s", "homes"):
            (directory / name).mkdir()
        self.homes: Sequence[Home] = make_homes(directory / "homes", directory / "s", _PAIR)
        self.site = Site(self.homes, _AGENT, {})
        self._stack.enter_context(self.site)
        self.site.start(concurrency=_CONCURRENCY)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, tasks: int, turns: int) -> Measured:
        """Have tasks go to and fro; the time is from the first that is opened to the last that is over.

        Raises:
            RuntimeError: a task did not come to its end.
        """
        before = self.site.cpu_by_process()
        workflow_id = submit(self.homes[0], document(ping_pong("others", turns), tasks, _PAIR), self.site)
        after = self.site.cpu_by_process()
        found = ends(self.homes[0], workflow_id)
        if found.counts.get("done", 0) != tasks:
            raise RuntimeError(f"{tasks} tasks, but {found.counts}: {found.reasons}")
        count = tasks * (turns + turns % 2)  # with the last one home
        spent = {name: (after[name] - before[name]) / count * 1e6 for name in after}
        return Measured(count / (found.over - found.opened), spent, found)


def full_cells(repeats: int, tasks: int, turns: int, say: Callable[[str], None]) -> list[Cell]:
    """Measure hops a second between two nodes in full, and what a hop costs each process."""
    with Pair() as pair:
        pair.run(max(8, tasks // 10), 4)
        runs = [pair.run(tasks, turns) for _ in range(repeats)]
        one = [pair.run(1, 40) for _ in range(repeats)]
    cells = [
        cell("ceiling 1,000 under way", FULL, [each.rate for each in runs], "hops/s"),
        cell("ceiling one after the other", FULL, [each.rate for each in one], "hops/s"),
    ]
    for name in runs[0].cpu:
        cells.append(cell(f"ceiling cpu of {name}", FULL, [each.cpu[name] for each in runs], "us/hop"))
    say(f"in full: {cells[0].value:,.0f} hops/s; " + ", ".join(f"{c.work} {c.value:.0f} us/hop" for c in cells[2:]))
    return cells


def node_cells(repeats: int, tasks: int, turns: int, say: Callable[[str], None]) -> list[Cell]:
    """Measure hops a second between two nodes that answer for their agents themselves (`bench.hops`)."""
    with tempfile.TemporaryDirectory(prefix="comity-bench-") as directory:
        homes = hops.make_homes(Path(directory))
        runs = [hops.measure(homes, tasks, turns) for _ in range(repeats)]
    say(f"without workers: {median(each['hops_per_s'] for each in runs):,.0f} hops/s")
    return [
        cell("ceiling 1,000 under way", NODES, [each["hops_per_s"] for each in runs], "hops/s"),
        cell("ceiling cpu of the home", NODES, [each["us_home"] for each in runs], "us/hop"),
        cell("ceiling cpu of the other", NODES, [each["us_other"] for each in runs], "us/hop"),
    ]
