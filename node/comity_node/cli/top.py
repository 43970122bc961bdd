"""`comity top`: how the node is, once a second."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from comity.client import Client, Peer, Status, Workflow
from comity.errors import ControlError
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, UsageError, extra, fields, printable, size, table
from comity_node.cli.node_client import CONTROL, connected

if TYPE_CHECKING:
    from rich.live import Live

#: States of tasks that are over: what is finished in a second is counted by them.
_OVER = frozenset(
    {"certified", "rejected", "undecided", "expired", "cancelled", "refused", "dropped", "failed", "completed"}
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A node at one moment.

    Attributes:
        at_s: when, by a clock that only goes forward.
        now_ms: when, in milliseconds since the Unix epoch.
        status: who it is, and what it has counted.
        peers: its links.
        workflows: those that are not over, and what has become of their tasks.
    """

    at_s: float
    now_ms: int
    status: Status
    peers: tuple[Peer, ...]
    workflows: tuple[Workflow, ...]


def look(node: Client, clock_s: Callable[[], float] = time.monotonic) -> Sample:
    """Ask a node how it is.

    Raises:
        ControlError: it does not answer.
    """
    status, peers, workflows = node.status(), node.peers(), node.workflows()
    open_ones = tuple(each for each in workflows if each.state in ("negotiating", "running"))
    return Sample(clock_s(), time.time_ns() // 1_000_000, status, peers, open_ones)


def rate(now: float, before: float, seconds: float) -> float:
    """Return how much was added in a second; 0 after a restart, which begins to count anew."""
    return max(0.0, now - before) / seconds if seconds > 0 else 0.0


def to_json(sample: Sample, before: Sample | None) -> dict[str, Any]:
    """Return what is shown as one JSON value."""
    return {
        "status": asdict(sample.status),
        "peers": [asdict(each) for each in sample.peers],
        "workflows": [
            {
                "workflow_id": each.workflow_id, "state": each.state, "tasks": dict(each.tasks),
                "journeys": dict(each.journeys), "holders": dict(each.holders),
                "per_second": _finished_rate(each, sample, before),
            }
            for each in sample.workflows
        ],
        "audit_per_second": _audit_rate(sample, before),
    }  # fmt: skip


def to_text(sample: Sample, before: Sample | None, limit: int) -> str:
    """Return what is shown to a person; at most `limit` lines of each table."""
    parts = [fields(dict(_facts(sample, before)))]
    parts += [f"! {printable(line)}" for line in sample.status.warnings]
    for title, rows, headings in _tables(sample, before):
        if rows:
            more = f"\n... and {len(rows) - limit} more" if len(rows) > limit else ""
            parts.append(f"{title}\n{table(rows[:limit], headings)}{more}")
    return "\n\n".join(parts)


def _facts(sample: Sample, before: Sample | None) -> Iterator[tuple[str, object]]:
    status = sample.status
    yield "node", f"{status.node} of {status.consortium}, epoch {status.bundle_epoch}, comity {status.version}"
    up_s = max(0, sample.now_ms - status.started_ms) // 1000
    yield "up", f"{up_s // 86400} d {up_s // 3600 % 24:02}:{up_s // 60 % 60:02}:{up_s % 60:02}"
    held, out = (status.counters.get(name, 0) for name in ("passing.custody", "passing.outgoing"))
    yield "tasks", f"{status.counters.get('passing.open', 0)} own on their way, {held} of others here, {out} leaving"
    names = ("passing.taken_over", "passing.hedged", "passing.called_twice")
    overrun, given, called = (status.counters.get(name, 0) for name in names)
    yield "done twice", f"{overrun} after their lease, {given} given to a second one, {called} calls of own agents"
    yield "messages", f"{status.counters.get('outbox', 0)} wait to be delivered"
    yield "audit log", f"{status.audit_entries} entries, {_audit_rate(sample, before):.1f}/s"
    yield "database", size(status.database_bytes)
    fair = f"{status.fair_organizations:.2f} of organizations, {status.fair_workflows:.2f} of workflows"
    yield "fairness", f"{fair} (Jain; 1 is even)"


def _tables(sample: Sample, before: Sample | None) -> Iterator[tuple[str, list[tuple[object, ...]], tuple[str, ...]]]:
    yield (
        "PEERS",
        [
            (
                each.organization or each.peer_id[:16], each.state, each.path or each.reason or "-",
                f"{each.round_trip_ms:.1f} ms" if each.round_trip_ms else "-", each.in_flight, each.waiting,
                size(each.queued_bytes), _peer_rate(each, sample, before),
            )
            for each in sample.peers
        ],
        ("ORGANIZATION", "STATE", "PATH", "ROUND TRIP", "CALLS", "WAIT", "QUEUE", "MESSAGES/S"),
    )  # fmt: skip
    yield (
        "WORKERS",
        [
            (load.skill, load.workers, load.running, load.free, load.waiting, f"{load.waiting_ms / 1000:.1f} s")
            for load in sample.status.loads
        ],
        ("SKILL", "WORKERS", "RUNNING", "FREE", "WAITING", "OLDEST"),
    )
    yield (
        "WORKFLOWS",
        [
            (
                each.workflow_id, each.state, _counts(each.journeys), _counts(each.tasks), _counts(each.holders),
                f"{_finished_rate(each, sample, before):.1f}",
            )
            for each in sample.workflows
        ],
        ("WORKFLOW", "STATE", "ON THEIR WAY", "RECORDS", "HELD BY", "ENDED/S"),
    )  # fmt: skip
    yield (
        "ROUTER",
        [
            (
                one.skill, one.organization, f"{one.expected_ms:.0f} ms", f"{one.outstanding}/{one.window}",
                one.circuit, one.answers, one.failures, one.busy, f"{one.reliability:.2f}",
                f"{one.share:.0%}" if one.share else "-",
            )
            for one in sample.status.router
        ],
        ("SKILL", "ORGANIZATION", "EXPECTED", "UNDER WAY", "CIRCUIT", "GOOD", "FAILED", "BUSY", "RELIABLE", "SHARE"),
    )  # fmt: skip


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "-"


def _audit_rate(sample: Sample, before: Sample | None) -> float:
    if before is None:
        return 0.0
    return rate(sample.status.audit_entries, before.status.audit_entries, sample.at_s - before.at_s)


def _peer_rate(peer: Peer, sample: Sample, before: Sample | None) -> str:
    last = next((each for each in before.peers if each.peer_id == peer.peer_id), None) if before is not None else None
    if before is None or last is None:
        return "-"
    return f"{rate(_messages(peer), _messages(last), sample.at_s - before.at_s):.1f}"


def _messages(peer: Peer) -> int:
    return peer.messages_sent + peer.messages_received


def _finished_rate(workflow: Workflow, sample: Sample, before: Sample | None) -> float:
    if before is None:
        return 0.0
    last = next((each for each in before.workflows if each.workflow_id == workflow.workflow_id), None)
    if last is None:
        return 0.0
    return rate(_finished(workflow), _finished(last), sample.at_s - before.at_s)


def _finished(workflow: Workflow) -> int:
    counts = (*workflow.tasks.items(), *workflow.journeys.items())
    return sum(count for state, count in counts if state in _OVER)


def _top(context: Context, arguments: argparse.Namespace) -> int:
    if not 0.1 <= arguments.interval <= 3600:
        raise UsageError("--interval is 0.1 to 3600 seconds")
    with connected(context, arguments) as node:
        if arguments.once or context.json:
            before = look(node)
            time.sleep(arguments.interval)  # without two looks there are no rates
            sample = look(node)
            context.emit(to_json(sample, before), to_text(sample, before, arguments.rows))
            return 0
        with extra("node"):
            from rich.live import Live
        with Live(screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            watch(partial(look, node), partial(_draw, live), arguments.interval, arguments.rows, time.sleep)
    return 0


def watch(
    ask: Callable[[], Sample], draw: Callable[[str], None], interval_s: float, rows: int,
    sleep: Callable[[float], None],
) -> None:  # fmt: skip
    """Draw how the node is, again and again, until Ctrl-C; while it does not answer, that is what is drawn."""
    before: Sample | None = None
    last = "the node has not answered yet"
    try:
        while True:
            try:
                sample = ask()
            except ControlError as error:
                draw(f"! the node does not answer: {printable(str(error))}\n\nBefore that:\n\n{last}")
                before = None
            else:
                last = to_text(sample, before, rows)
                draw(last)
                before = sample
            sleep(interval_s)
    except KeyboardInterrupt:
        return


def _draw(live: Live, text: str) -> None:
    from rich.text import Text

    live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)


COMMAND = Command(
    "top",
    "watch the node: peers, workers, workflows, router, audit log",
    _top,
    (
        argument("--once", action="store_true", help="look twice, one interval apart, print that, and end"),
        argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between looks (%(default)s)"),
        argument("--rows", type=int, default=20, metavar="COUNT", help="lines of each table at most (%(default)s)"),
        *CONTROL,
    ),
    description=(
        "Show, once a second, how the node is: its links, what waits for its workers, how the tasks of open workflows"
        " get on and who has them, what the router has seen of the others, how fast the audit log grows, and what"
        " somebody should see to. Ctrl-C ends it. It goes on when the node goes away and comes back. With --json or"
        " --once it looks twice and ends."
    ),
)
