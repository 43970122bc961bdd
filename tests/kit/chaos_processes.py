"""Plays a fault plan with real processes: nodes and workers as a user starts them, `kill -9`, SIGSTOP and SIGCONT.

Of a plan's faults those are played that happen to a process: `kill`, `stop`, `freeze` and `worker`, each at a time
since the work began. What came of it, the same checker reads from the same journals.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from comity.bundle import load_bundle
from comity.client import Client
from comity.errors import ControlError
from comity.trust import TrustStore
from comity_node.demo.data import breast_cancer
from comity_node.demo.homes import Home, make_homes
from comity_node.demo.policies import DATASET, PURPOSE
from comity_node.demo.processes import Processes, Running, answers, wait_until
from comity_node.network import now_ms
from kit.chaos_plan import Fault, Kind, On, Plan
from kit.chaos_world import Played
from kit.lab import policy

_ROOT = Path(__file__).resolve().parents[2]
#: Where the agents of these processes are found.
_PATHS = (str(_ROOT), str(_ROOT / "tests"))
PATIENCE_S = 60.0
#: What can be done to a process.
OF_PROCESSES = frozenset({Kind.KILL, Kind.STOP, Kind.FREEZE, Kind.WORKER})
_FINAL = "('certified', 'rejected', 'undecided', 'refused')"
_LOOK_S = 0.05


class Site(Processes):
    """The first organizations of the demo, honest, with the agents of `kit.chaos_agent`."""

    def __init__(self, homes: Sequence[Home], work_s: float) -> None:
        """Own the processes of `homes`; an agent's call takes `work_s` seconds."""
        super().__init__(homes)
        self.homes = homes
        self._work_s = work_s

    def start_node(self, organization: str) -> Running:
        """Start the node of an organization as a user does."""
        home = self._homes[organization]
        command = ["-m", "comity_node.cli", "--home", str(home.path), "node", "run"]
        return self._start(f"{organization} node", command, home.log / "node.log", {})

    def start_worker(self, organization: str) -> Running:
        """Start the worker of an organization."""
        home = self._homes[organization]
        environment = {
            "COMITY_DEMO_DATA": str(home.data),
            "COMITY_CHAOS_WORK_S": str(self._work_s),
            "PYTHONPATH": os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), *_PATHS]),
        }
        command = ["-m", "comity.worker", "kit.chaos_agent:agent", "--control", home.control]
        return self._start(f"{organization} worker", command, home.log / "worker.log", environment)

    def running(self, organization: str, what: str) -> Running:
        """Return the "node" or the "worker" of an organization."""
        return self._running[f"{organization} {what}"]

    def meet(self) -> None:
        """Start everything, and wait until everybody knows everybody's agents."""
        for home in self.homes:
            self.start_node(home.organization)
        for home in self.homes:
            self.start_worker(home.organization)
        everybody = len(self.homes)

        def met() -> bool:
            return all(answers(home, lambda client: len(client.agents()) >= everybody) for home in self.homes)

        wait_until("the organizations find each other", met, timeout_s=PATIENCE_S, check=self.check)

    def submit(self, plan: Plan) -> str:
        """Submit the workflow of a plan at the first organization and wait until it is agreed upon."""
        document = {
            "name": "chaos",
            "purpose": PURPOSE,
            "dataset": DATASET,
            "records_per_organization": plan.records,
            "batch_records": plan.batch,
            "repair_rounds": 0,
            "min_score": 500,
            "lease_seconds": plan.lease_s,
            "minimum_participants": len(self.homes),
        }
        with Client(self.homes[0].control) as client:
            workflow_id: str = client.submit_workflow(document)

            def agreed() -> bool:
                seen = client.workflow(workflow_id)
                assert seen.state != "failed", seen.reason
                return seen.state in ("running", "done")

            wait_until("the organizations agree", agreed, timeout_s=PATIENCE_S, check=self.check)
        return workflow_id


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an organization is: its own tasks that are decided, batches that it has judged, records that it has."""

    decided: int
    judged: int
    records: int


def progress(home: Home) -> Progress:
    """Read from a database how far its organization is."""
    with closing(sqlite3.connect(f"file:{home.path / 'node.db'}?mode=ro", uri=True)) as connection:
        counts = [
            connection.execute(sql).fetchone()[0]
            for sql in (
                f"SELECT count(*) FROM tasks WHERE state IN {_FINAL}",
                "SELECT count(*) FROM inbox WHERE state = 'done'",
                "SELECT count(*) FROM records",
            )
        ]
    return Progress(*counts)


def at_end(homes: Sequence[Home], tasks: int) -> bool:
    """Whether every organization has decided so many tasks, holds the same records, and owes nobody a message."""
    seen = [progress(home) for home in homes]
    certified = sum(_count(home, "SELECT count(*) FROM tasks WHERE state = 'certified'") for home in homes)
    return (
        all(each.decided == tasks and each.records == certified for each in seen)
        and not any(_count(home, "SELECT count(*) FROM outbox WHERE state IN ('pending', 'sent')") for home in homes)
        and not any(_count(home, "SELECT count(*) FROM workflows WHERE state = 'running'") for home in homes)
        and not any(_count(home, "SELECT count(*) FROM inbox WHERE state = 'held'") for home in homes)
    )


def _count(home: Home, sql: str) -> int:
    with closing(sqlite3.connect(f"file:{home.path / 'node.db'}?mode=ro", uri=True)) as connection:
        count: int = connection.execute(sql).fetchone()[0]
        return count


def wait_for(what: str, ready: Callable[[], bool], site: Site, timeout_s: float = PATIENCE_S) -> float:
    """Wait until `ready`, looking often; returns how many seconds that took."""
    begun = time.monotonic()
    while not ready():
        site.check()
        assert time.monotonic() - begun < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_LOOK_S)
    return time.monotonic() - begun


@contextmanager
def site(directory: Path, organizations: int, work_s: float = 0.25) -> Iterator[Site]:
    """Run organizations that know each other, in a directory of their own."""
    with tempfile.TemporaryDirectory(prefix="comity") as sockets:
        homes, _ = make_homes(directory / "organizations", Path(sockets), breast_cancer(), seed=0)
        for home in homes:
            (home.path / "policy.yaml").write_text(policy(home.organization))
        running = Site(homes[:organizations], work_s)
        with running:
            running.meet()
            yield running


def strike(running: Site, fault: Fault) -> Callable[[], object]:
    """Do to a process what a fault says, at once; returns what mends it."""
    organization = running.homes[fault.who].organization
    if fault.kind is Kind.WORKER:
        running.kill(running.running(organization, "worker"))
        return lambda: running.start_worker(organization)
    node = running.running(organization, "node")
    if fault.kind is Kind.FREEZE:
        node.process.send_signal(signal.SIGSTOP)
        return lambda: node.process.send_signal(signal.SIGCONT)
    if fault.kind is Kind.STOP:
        node.process.send_signal(signal.SIGTERM)
        node.process.wait(PATIENCE_S)
    else:
        running.kill(node)
    return lambda: running.start_node(organization)


def play_processes(plan: Plan, directory: Path) -> Played:
    """Play a plan's faults of processes, and return what came of it."""
    faults = [fault for fault in plan.faults if fault.kind in OF_PROCESSES and fault.on is On.TIME]
    hit: Counter[str] = Counter()
    with site(directory, plan.organizations) as running:
        begun = time.monotonic()
        workflow_id = running.submit(plan)
        work = sorted(faults, key=lambda fault: fault.at)
        mends: list[tuple[float, Callable[[], object]]] = []
        since = time.monotonic()
        while work or mends:
            now_s = time.monotonic() - since
            if work and work[0].at / 1000 <= now_s:
                fault = work.pop(0)
                mends.append((now_s + fault.for_ms / 1000, strike(running, fault)))
                hit[fault.kind] += 1
            for due in [each for each in mends if each[0] <= now_s]:
                mends.remove(due)
                due[1]()
            time.sleep(_LOOK_S)
        wait_for("everything is decided", lambda: at_end(running.homes, plan.records), running)
        return over(running, plan, directory, hit, (workflow_id,), time.monotonic() - begun)


def over(
    running: Site,
    plan: Plan,
    directory: Path,
    hit: Mapping[str, int],
    submitted: Sequence[str] = (),
    took_s: float = 0.0,
) -> Played:
    """End the processes of a site in `directory`, and return what the checker reads."""
    home = running.homes[0]
    trust = TrustStore(load_bundle(home.path / "consortium.json", now_ms=now_ms(), own_ca=None))
    names = tuple(home.organization for home in running.homes)
    running.stop()
    return Played(
        plan=plan,
        directory=directory / "organizations",
        trust=trust,
        chains={},
        names=names,
        left=(),
        submitted=tuple(submitted),
        open=(),
        took_s=took_s,
        hit=dict(hit),
        trace=(),
    )


def ready(home: Home) -> bool:
    """Whether a node answers on its control API."""
    try:
        with Client(home.control) as client:
            return bool(client.status().organization)
    except ControlError:
        return False
