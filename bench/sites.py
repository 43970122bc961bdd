"""Arms `processes` and `processes-models`: the demo's nodes and workers as processes of their own, over libp2p."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from comity.client import Client
from comity_node.demo import scenario
from comity_node.demo.homes import Home
from comity_node.demo.processes import Processes, Running

_ROOT = Path(__file__).resolve().parent.parent
#: Of /proc/PID/stat, after the name: user and system time, own and of children that ended (man 5 proc_pid_stat).
_CPU_FIELDS = slice(11, 15)


class Site(Processes):
    """The demo's processes as a `journey.Site`: four hospitals with models, and the member that turns bad."""

    def __init__(self, homes: Sequence[Home]) -> None:
        """Own the processes of `homes`; `start` starts them."""
        super().__init__(homes)
        self.homes = homes

    def __enter__(self) -> Self:
        return self

    def start(self) -> float:
        """Start all; return the seconds until everybody is linked with everybody and knows everybody's agents."""
        return scenario.start(self.homes, self, lambda line: None)

    def submit(self, document: Mapping[str, Any]) -> str:
        """Submit a workflow at the first organization."""
        with Client(self.homes[0].control) as client:
            return client.submit_workflow(document)

    def cpu_seconds(self) -> float | None:
        """Return the processor time of all nodes and workers; None where there is no /proc."""
        spent = [_cpu_seconds(running.process.pid) for running in self._running.values()]
        known = [each for each in spent if each is not None]
        return sum(known) if spent and len(known) == len(spent) else None


class InstantSite(Site):
    """The same five organizations, all of them honest, with agents that cost next to nothing."""

    def start_node(self, organization: str) -> Running:
        """Start the node of an organization as a user does."""
        home = self._homes[organization]
        command = ["-m", "comity_node.cli", "--home", str(home.path), "node", "run"]
        return self._start(f"{organization} node", command, home.log / "node.log", {})

    def start_worker(self, organization: str) -> Running:
        """Start an instant worker."""
        home = self._homes[organization]
        environment = {"COMITY_DEMO_DATA": str(home.data), "PYTHONPATH": str(_ROOT)}
        command = ["-m", "comity.worker", "bench.instant:agent", "--control", home.control]
        return self._start(f"{organization} worker", command, home.log / "worker.log", environment)


def _cpu_seconds(pid: int) -> float | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    ticks = text.rpartition(")")[2].split()[_CPU_FIELDS]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
