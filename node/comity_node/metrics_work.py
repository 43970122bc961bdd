"""What Prometheus asks a node about its work: tasks, hops, agents, reviews and the router.

Labels have names of organizations and skills that are in signed agreements, and words of our own: there are as many as
`_MAX_PEERS` pairs of the router and the skills that `runtime.watched` tells apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from comity_node.runtime.router import PeerView
from comity_node.runtime.watched import BOUNDS, CallTimes

#: Pairs of an organization and a skill whose figures are given; the router may know of more.
_MAX_PEERS: Final = 1_024
_CIRCUITS: Final = ("closed", "half-open", "open")


class Queue(Protocol):
    """What there is to do for the workers of one skill (`control.workers.SkillQueue`)."""

    @property
    def skill(self) -> str:
        """Which one."""

    @property
    def workers(self) -> int:
        """That offer it."""

    @property
    def running(self) -> int:
        """Calls that a worker has."""

    @property
    def free(self) -> int:
        """Calls that the workers would take at once."""

    @property
    def waiting(self) -> int:
        """Calls that wait for a worker."""


@dataclass(frozen=True, slots=True)
class JournalCounts:
    """What is counted in the journal, now and then.

    Attributes:
        tasks: own records, by state.
        journeys: own tasks on their way, by state.
        reviews: votes that came, by "accept" and "reject".
        certificates: own certified records.
        outbox: messages that wait, by organization.
    """

    tasks: Mapping[str, int] = field(default_factory=dict)
    journeys: Mapping[str, int] = field(default_factory=dict)
    reviews: Mapping[str, int] = field(default_factory=dict)
    certificates: int = 0
    outbox: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkReading:
    """A node's work at one moment.

    Attributes:
        journal: what is on disk.
        passing: what is where now, and hops so far, by dotted name (`runtime.core.Runtime.counters`).
        router: peers that the router knows.
        queues: what waits for own workers.
        calls: how long agents took, by skill.
    """

    journal: JournalCounts = field(default_factory=JournalCounts)
    passing: Mapping[str, int] = field(default_factory=dict)
    router: Sequence[PeerView] = ()
    queues: Sequence[Queue] = ()
    calls: Mapping[str, CallTimes] = field(default_factory=dict)


def collect_work(reading: WorkReading) -> Iterator[Metric]:
    """Return every metric about work."""
    journal, passing = reading.journal, reading.passing
    yield _gauge("comity_tasks", "Own records, by state.", "state", journal.tasks)
    yield _gauge("comity_journeys", "Own tasks on their way, by state.", "state", journal.journeys)
    yield _gauge("comity_outbox_messages", "Messages that wait for an organization.", "organization", journal.outbox)
    yield _gauge("comity_votes", "Votes on own records that are kept.", "verdict", journal.reviews)
    yield GaugeMetricFamily("comity_certificates", "Own certified records that are kept.", value=journal.certificates)
    places = {name: passing.get(f"passing.{name}", 0) for name in ("open", "custody", "waiting", "running", "outgoing")}
    yield _gauge("comity_tokens", "Tasks under way, by where they are here.", "place", places)
    hops = {name: passing.get(f"hops.{name}", 0) for name in ("out", "in", "out_refused", "in_refused")}
    yield _counter("comity_hops", "Tasks that came and went, and were refused.", "way", hops)
    texts = {name: passing.get(f"payloads.{name}", 0) for name in ("sent", "saved", "missing")}
    yield _counter("comity_payload_bytes", "Bytes of long texts of tasks, by how they went over.", "way", texts)
    yield CounterMetricFamily(
        "comity_lease_takeovers", "Tasks whose lease ran out.", value=passing.get("passing.taken_over", 0)
    )
    yield CounterMetricFamily(
        "comity_hedges", "Stragglers that a second one was asked for.", value=passing.get("passing.hedged", 0)
    )
    yield CounterMetricFamily(
        "comity_calls_made_twice",
        "Calls of own agents that were made a second time.",
        value=passing.get("passing.called_twice", 0),
    )
    yield from _queues(reading.queues)
    yield from _router(reading.router)
    yield from _calls(reading.calls)


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        metric.add_metric((key,), value)
    return metric


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = CounterMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        metric.add_metric((key,), value)
    return metric


_QUEUES: Final[tuple[tuple[str, str, Callable[[Queue], float]], ...]] = (
    ("workers", "Workers that offer a skill.", lambda queue: queue.workers),
    ("agent_calls_waiting", "Calls that wait for a worker.", lambda queue: queue.waiting),
    ("agent_calls_running", "Calls that a worker has.", lambda queue: queue.running),
    ("agent_credits", "Calls that the workers would take at once.", lambda queue: queue.free),
)
_PEERS: Final[tuple[tuple[str, str, Callable[[PeerView], float]], ...]] = (
    ("outstanding", "What is under way at an organization.", lambda peer: peer.outstanding),
    ("window", "What may be under way there.", lambda peer: peer.window),
    ("expected_seconds", "In which it is expected to answer.", lambda peer: peer.expected_s),
)


def _queues(queues: Sequence[Queue]) -> Iterator[Metric]:
    for name, text, value in _QUEUES:
        yield _gauge(f"comity_{name}", text, "skill", {queue.skill: value(queue) for queue in queues})


def _router(peers: Sequence[PeerView]) -> Iterator[Metric]:
    labels = ("organization", "skill")
    for name, text, value in _PEERS:
        metric = GaugeMetricFamily(f"comity_router_{name}", text, labels=labels)
        for peer in peers[:_MAX_PEERS]:
            metric.add_metric((peer.organization, peer.skill), value(peer))
        yield metric
    circuits = GaugeMetricFamily(
        "comity_router_circuit", "1 at the state that a circuit is in.", labels=(*labels, "state")
    )
    for peer in peers[:_MAX_PEERS]:
        for state in _CIRCUITS:
            circuits.add_metric((peer.organization, peer.skill, state), peer.circuit == state)
    yield circuits


def _calls(calls: Mapping[str, CallTimes]) -> Iterator[Metric]:
    times = HistogramMetricFamily("comity_agent_call_seconds", "How long agents took.", labels=("skill",))
    failed = CounterMetricFamily("comity_agent_call_failures", "Calls without an answer.", labels=("skill",))
    for skill, each in sorted(calls.items()):
        below, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), each.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        times.add_metric((skill,), buckets, each.sum_s)
        failed.add_metric((skill,), each.failed)
    yield times
    yield failed
