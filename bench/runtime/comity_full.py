"""Arm `comity-full`: a home and four organizations, each a node and a worker as processes of their own.

Everything is as users have it: a workflow is submitted over the control API, negotiated and signed by all; tokens go
over libp2p, encrypted and signed, each decided on by both policies, with journal and audit log on disk; agents are in
workers. What is timed goes from the first row that the home's agent lets in to the last one that is over in the home's
journal; starting the processes and negotiating come before.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from bench.links.processes import _cpu_seconds
from bench.runtime import flows
from bench.runtime.admission import Admission
from bench.runtime.central import Run
from bench.runtime.full_agents import key_of
from bench.runtime.homes import DATASET, PURPOSE, make_homes, organizations
from comity.client import Client
from comity.errors import AgentFailed, ControlError, DeadlineExceeded
from comity_node.demo.homes import Home
from comity_node.demo.processes import Processes, Running
from comity_node.storage.connections import connect_readonly

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_START_S: Final = 60.0
_RUN_S: Final = 60.0
_POLL_S: Final = 0.05
_CONCURRENCY: Final = 64
_ENDED: Final = ("done", "failed")


class Site(Processes):
    """The organizations' nodes and workers."""

    def __init__(self, homes: Sequence[Home], agent: str, environment: Mapping[str, str]) -> None:
        """Serve `agent` at each of `homes`."""
        super().__init__(homes)
        self.homes = homes
        self._agent = agent
        self._environment = environment

    def start(self, *, concurrency: int = _CONCURRENCY) -> None:
        """Start all; wait until everybody is linked with everybody and knows everybody's agents.

        Raises:
            AgentFailed: a process ended.
            DeadlineExceeded: they did not find each other in time.
        """
        for home in self.homes:
            self._start(f"{home.organization} node", self._node(home), home.log / "node.log", {})
        for site, home in enumerate(self.homes):
            environment = {**self._environment, "COMITY_BENCH_SITE": str(site - 1), "PYTHONPATH": str(_ROOT)}
            command = ["-m", "comity.worker", self._agent, "--control", home.control]
            command += ["--concurrency", str(concurrency)]
            self._start(f"{home.organization} worker", command, home.log / "worker.log", environment)
        wait_until("the organizations find each other", self._meshed, self.check, _START_S)

    def cpu_seconds(self) -> float:
        """Return the processor time of all nodes and workers."""
        return sum(_cpu_seconds(each.process.pid) for each in self._running.values())

    def cpu_by_process(self) -> dict[str, float]:
        """Return the processor time of each process, by its name."""
        return {name: _cpu_seconds(each.process.pid) for name, each in self._running.items()}

    def node(self, organization: str) -> Running:
        """Return the process of an organization's node."""
        return self._running[f"{organization} node"]

    def _node(self, home: Home) -> list[str]:
        return ["-m", "comity_node.cli", "--home", str(home.path), "node", "run", "--log-level", "warning"]

    def _meshed(self) -> bool:
        return all(self._sees_all(home) for home in self.homes)

    def _sees_all(self, home: Home) -> bool:
        try:
            with Client(home.control) as client:
                linked = sum(peer.state == "connected" for peer in client.peers())
                return linked >= len(self.homes) - 1 and len(client.agents()) >= len(self.homes)
        except ControlError:
            return False


def wait_until(what: str, ready: Any, check: Any, seconds: float) -> None:  # noqa: ANN401  (two callables)
    """Poll until `ready()`.

    Raises:
        DeadlineExceeded: it took too long.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        check()
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{what}: not after {seconds:g} s")
        time.sleep(_POLL_S)


def document(flow: Mapping[str, Any], count: int, participants: Sequence[str]) -> dict[str, Any]:
    """Return the workflow that is submitted."""
    return {
        "name": "rows",
        "purpose": PURPOSE,
        "dataset": DATASET,
        "participants": list(participants),
        "minimum_participants": len(participants),
        "records_per_organization": count,
        "homes": "initiator",
        "flow": dict(flow),
    }


def submit(home: Home, wanted: Mapping[str, Any], site: Processes, seconds: float = _RUN_S) -> str:
    """Submit a workflow and wait until all its tasks are over; return its id.

    Raises:
        AgentFailed: there was no agreement, or a process ended.
        DeadlineExceeded: it is not over in time.
    """
    with Client(home.control) as client:
        workflow_id = client.submit_workflow(wanted)

        def over() -> bool:
            found = client.workflow(workflow_id)
            if found.state == "failed":
                raise AgentFailed(f"no agreement: {found.reason}")
            return found.state in _ENDED

        wait_until("the workflow", over, site.check, seconds)
    return workflow_id


@dataclass(frozen=True, slots=True)
class Ends:
    """How a workflow's tasks ended: how many how, why (those that are not done), and times in seconds since 1970."""

    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    opened: float
    over: float


def ends(home: Home, workflow_id: str) -> Ends:
    """Read from the home's journal how a workflow's tasks ended."""
    with closing(connect_readonly(home.path / "node.db")) as database:
        (digest,) = database.execute(
            "SELECT agreement_digest FROM workflows WHERE workflow_id = ?", (workflow_id,)
        ).fetchone()
        rows = database.execute(
            "SELECT ending, reason, opened_ms, updated_ms FROM journeys WHERE agreement_digest = ?", (digest,)
        ).fetchall()
    return Ends(
        Counter(str(row[0]) for row in rows),
        Counter(str(row[1]) for row in rows if row[1]),
        min(row[2] for row in rows) / 1000,
        max(row[3] for row in rows) / 1000,
    )


class ComityFull:
    """The arm; its processes run for as long as the block lasts."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="comity-bench-")))
        self._admission = self._stack.enter_context(Admission(directory))
        self._directory = directory
        self._site: Site | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, run: Run) -> float:
        """Run once.

        Raises:
            RuntimeError: a row was lost.
        """
        site = self._site or self._start(run.backend)
        count, home = len(run.rows), site.homes[0]
        self._admission.begin(run.case.in_flight, count)
        key = key_of(run.case.work, run.shape, run.case.control_ms)
        flow = flows.flow(run.case.work, entry=key)
        workflow_id = submit(home, document(flow, count, organizations()), site)
        found = ends(home, workflow_id)
        if found.counts.get("done", 0) != count:
            raise RuntimeError(f"{run.case.name}: {count} rows, but {found.counts}: {found.reasons}")
        return found.over - self._admission.began

    def cpu_seconds(self) -> float:
        """Return the processor time of all nodes and workers."""
        return self._site.cpu_seconds() if self._site else 0.0

    def _start(self, backend: str) -> Site:
        sockets = self._directory / "s"
        for each in (sockets, self._directory / "homes"):
            each.mkdir()
        homes = make_homes(self._directory / "homes", sockets, organizations())
        environment = {"COMITY_BENCH_BACKEND": backend, "COMITY_BENCH_ADMISSION": self._admission.path}
        site = Site(homes, "bench.runtime.full_agents:agent", environment)
        self._stack.enter_context(site)
        site.start()
        self._site = site
        return site
