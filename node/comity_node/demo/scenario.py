"""The demo's steps, each a function over running organizations: what a test drives, too."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from comity.client import Client, Workflow
from comity.errors import AgentFailed, ControlError
from comity_node.demo.adversary import CorruptionLog, Kind
from comity_node.demo.bad_node import REPLAYS
from comity_node.demo.homes import BAD, Home
from comity_node.demo.participants import CORRUPTION_FILE
from comity_node.demo.policies import DATASET, PURPOSE
from comity_node.demo.processes import Processes, answers, wait_until
from comity_node.storage.connections import connect_readonly

_START_S = 120.0
_NEGOTIATE_S = 60.0
_WORK_S = 180.0
_SPREAD_S = 60.0
FINAL = ("certified", "rejected", "undecided", "refused")

Show = Callable[[dict[str, dict[str, int]]], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How much the demo does."""

    records: int = 70
    batch: int = 10
    repair_rounds: int = 1
    min_score: int = 500
    lease_seconds: int = 20


def workflow(size: Size) -> dict[str, Any]:
    """Return the workflow document that the first hospital submits."""
    return {
        "name": "synthetic tumours",
        "purpose": PURPOSE,
        "dataset": DATASET,
        "records_per_organization": size.records,
        "batch_records": size.batch,
        "repair_rounds": size.repair_rounds,
        "min_score": size.min_score,
        "lease_seconds": size.lease_seconds,
        "minimum_participants": 5,
    }


def start(homes: Sequence[Home], processes: Processes, say: Say) -> float:
    """Start all nodes and workers; wait until everybody is linked with everybody and knows everybody's agents."""
    for home in homes:
        processes.start_node(home.organization)
    for home in homes:
        processes.start_worker(home.organization)
    waiting = list(homes)

    def meshed() -> bool:
        for home in list(waiting):
            if not answers(home, lambda client: len(client.agents()) >= len(homes)):
                return False
            waiting.remove(home)
            with Client(home.control) as client:
                links = sum(peer.state == "connected" for peer in client.peers())
            say(f"{home.organization}: linked with {links} others, all attested; cards of {len(homes)} agents")
        return True

    return wait_until("the organizations find each other", meshed, timeout_s=_START_S, check=processes.check)


def negotiate(homes: Sequence[Home], processes: Processes, size: Size, say: Say) -> tuple[str, Workflow]:
    """Submit the workflow at the first organization and wait for the agreement.

    Raises:
        AgentFailed: the negotiation failed; the message says why.
    """
    shown = 0
    found: list[Workflow] = []
    with Client(homes[0].control) as client:
        workflow_id = client.submit_workflow(workflow(size))

        def agreed() -> bool:
            nonlocal shown
            seen = client.workflow(workflow_id)
            for step in seen.steps[shown:]:
                say(f"{step.organization} {step.step}: {step.detail}")
            shown = len(seen.steps)
            if seen.state == "failed":
                raise AgentFailed(f"no agreement: {seen.reason}")
            if seen.state in ("running", "done"):
                found.append(seen)
            return bool(found)

        wait_until("the organizations agree", agreed, timeout_s=_NEGOTIATE_S, check=processes.check)
    return workflow_id, found[0]


def task_counts(homes: Sequence[Home], workflow_id: str) -> dict[str, dict[str, int]]:
    """Return how many tasks each organization has in each state; none while its node does not answer."""
    counts: dict[str, dict[str, int]] = {}
    for home in homes:
        try:
            with Client(home.control) as client:
                counts[home.organization] = dict(client.workflow(workflow_id).tasks)
        except ControlError:
            counts[home.organization] = {}
    return counts


def decided(counts: dict[str, dict[str, int]], size: Size) -> bool:
    """Tell whether every task of everybody has ended."""
    return all(sum(states.get(state, 0) for state in FINAL) == size.records for states in counts.values())


def work(homes: Sequence[Home], processes: Processes, workflow_id: str, size: Size, show: Show) -> float:
    """Wait until every task has ended and every certified record is with everybody; returns the seconds."""

    def done() -> bool:
        counts = task_counts(homes, workflow_id)
        show(counts)
        return decided(counts, size)

    seconds = wait_until("every record is decided", done, timeout_s=_WORK_S, check=processes.check)

    def spread() -> bool:
        counts = task_counts(homes, workflow_id)
        certified = sum(states.get("certified", 0) for states in counts.values())
        return all(
            answers(home, lambda client: client.status().counters.get("records", 0) == certified) for home in homes
        )

    return seconds + wait_until("certified records reach everybody", spread, timeout_s=_SPREAD_S, check=processes.check)


def organization_report(home: Home, workflow_id: str) -> dict[str, Any]:
    """Return what one organization did: offered, refused, certified, rejected, and by what."""
    with Client(home.control) as client:
        seen, status = client.workflow(workflow_id), client.status()
        peers = client.peers()
        agents = client.agents()
    tasks = dict(seen.tasks)
    return {
        "offered": sum(tasks.values()),
        **{state: tasks.get(state, 0) for state in FINAL},
        "refused_by": dict(seen.refused_by),
        "rejected_by": dict(seen.rejected_by),
        "repaired": seen.repaired,
        "refused_messages": {
            key.removeprefix("refused."): count
            for key, count in sorted(status.counters.items())
            if key.startswith("refused.")
        },
        "records_held": status.counters.get("records", 0),
        "bytes_sent": sum(peer.bytes_sent for peer in peers),
        "bytes_received": sum(peer.bytes_received for peer in peers),
        "messages_sent": sum(peer.messages_sent for peer in peers),
        "messages_received": sum(peer.messages_received for peer in peers),
        "reconnects": sum(peer.reconnects for peer in peers),
        "reliability_of_others": {
            agent.organization: {
                "agreed": agent.agreed,
                "disagreed": agent.disagreed,
                "reliability": round(agent.reliability, 4),
            }
            for agent in agents
            if agent.organization != home.organization
        },
    }


def corruption_report(bad: Home, witness: Home) -> dict[str, Any]:
    """Return, for each kind of corruption, how many rows were made and how many of them got certified.

    Read from the bad worker's own log and the certified records that an honest organization holds.
    """
    with Client(witness.control) as client:
        certified = {record.record_digest for record in client.records(author=BAD)}
    made: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for digest, kind in CorruptionLog(bad.data / CORRUPTION_FILE).kinds().items():
        made[kind.value] += 1
        passed[kind.value] += digest in certified
    replays = bad.path / REPLAYS
    return {
        "rows": {kind: {"made": made[kind], "certified": passed[kind]} for kind in sorted(made)},
        "corrupted_certified": sum(count for kind, count in passed.items() if kind != Kind.HONEST),
        "replays": json.loads(replays.read_text()) if replays.exists() else {},
    }


def count_votes(homes: Sequence[Home]) -> int:
    """Return how many reviews of single rows all homes together have received."""
    total = 0
    for home in homes:
        with closing(connect_readonly(home.path / "node.db")) as connection:
            total += int(connection.execute("SELECT count(*) FROM votes").fetchone()[0])
    return total
