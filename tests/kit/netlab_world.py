"""Two linked peers in a lab, a load between them, and what came of it: the ground of every scenario."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.consortium import Consortium
from kit.netlab import NetLab
from kit.netlab_journal import Ack, Verdict, compare, read_acks
from kit.netlab_links import Peers, link

LOAD = "load"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the phases of a scenario take, in seconds, and how lively the links are.

    Attributes:
        calm_s: of load before and after a fault.
        outage_s: of a partition or an asymmetric cut.
        frozen_s: of a frozen process.
        ping_every_s: see `LinkLimits`.
        dead_after_s: see `LinkLimits`.
        recover_s: at most, from the end of a fault to the first answer.
    """

    calm_s: float = 2.0
    outage_s: float = 10.0
    frozen_s: float = 12.0
    ping_every_s: float = 3.0
    dead_after_s: float = 10.0
    recover_s: float = 30.0

    @property
    def limits(self) -> dict[str, float]:
        """For `LinkLimits`."""
        return {"ping_every_s": self.ping_every_s, "dead_after_s": self.dead_after_s}


@dataclass(slots=True)
class Outcome:
    """What a scenario came to.

    Attributes:
        name: of the scenario.
        acked: requests that the client counted.
        seconds: from the first of them to the last.
        p50_ms: latency, from the first attempt to the answer.
        p99_ms: the same.
        longest_ms: the same.
        attempts: sends for each counted request, on average.
        repeated: requests that the server saw again.
        verdict: of the two journals.
        wrong: answers that did not belong to their request.
        errors: what the client's requests ran into, by kind.
        reconnects: of the client's link.
        growth: bytes by which each process grew under load, at its highest.
        detected_s: from the fault until the client knew, if it had to.
        recovered_s: from the end of the fault to the first answer, if there was one.
        figures: what else the scenario measures.
        wire: what the lab counted, by site.
    """

    name: str
    acked: int
    seconds: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    attempts: float
    repeated: int
    verdict: Verdict
    wrong: list[str]
    errors: dict[str, int]
    reconnects: int
    growth: dict[str, int]
    detected_s: float | None = None
    recovered_s: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    wire: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Counted requests a second, over the whole of it."""
        return self.acked / self.seconds if self.seconds else 0.0


class World:
    """Two linked peers in a lab, and the load between them."""

    def __init__(self, name: str, directory: Path, lab: NetLab, consortium: Consortium, pace: Pace) -> None:
        """Made by `world`."""
        self.name, self.lab, self.pace = name, lab, pace
        self._peers = Peers(directory, consortium, limits=pace.limits)
        self._errors: Counter[str] = Counter()
        self._downs: list[float] = []
        self._reconnects = 0
        self.fault_at = self.healed_at = 0.0

    def start(self, *, client_nat: str | None = None) -> None:
        """Start a client and a server, and link them."""
        self.client = self._peers.add(self.lab, "client", nat=client_nat, listen=client_nat is None)
        self.server = self._peers.add(self.lab, "server")
        for peer in (self.server, self.client):
            peer.start(wait=False)
        for peer in (self.server, self.client):
            peer.wait_up()
        link(self.client, self.server)
        self._before = {peer.site.name: peer.ask("report")["memory"] for peer in (self.client, self.server)}

    def load(self, **settings: Any) -> None:
        """Let the client send requests until `finish`."""
        self.client.ask("load", name=LOAD, peer_id=self.server.peer_id, **settings)

    def acks(self) -> list[Ack]:
        """What the client has counted so far."""
        return read_acks(self.client.acks)

    def run_for(self, seconds: float) -> None:
        """Let it run; that the load goes on is judged by what it counts."""
        time.sleep(seconds)

    def fault(self, begin: Callable[[], None]) -> None:
        """Do harm, and note when."""
        begin()
        self.fault_at = time.monotonic()

    def heal(self, end: Callable[[], None]) -> None:
        """Undo it, and wait until requests are answered again; bounded by `recover_s`."""
        self.healed_at = time.monotonic()
        end()
        self.wait_for_answer(self.healed_at)

    def wait_for_answer(self, since: float) -> None:
        """Wait until a request is counted that was answered after `since`."""
        deadline = time.monotonic() + self.pace.recover_s
        while not any(ack.ended > since for ack in self.acks()[-64:]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: no answer within {self.pace.recover_s:g} s of the end of the fault")
            time.sleep(0.05)

    def note(self) -> dict[str, Any]:
        """Note what the client alone knows, before it is killed or judged; returns its report."""
        report = self.client.ask("report")
        self._errors.update(report["errors"])
        self._downs += [at for at, state, _ in report["states"] if state != "connected" and at > self.fault_at]
        self._reconnects += report["reconnects"][self.server.peer_id]
        return report

    def finish(self, *, grown: bool = True, **figures: float) -> Outcome:
        """End the load, and judge."""
        ended = self.client.ask("unload", name=LOAD)
        report, served = self.note(), self.server.ask("report")
        acks = self.acks()
        latencies = [(ack.ended - ack.began) * 1000 for ack in acks]
        p50, p99 = percentiles(latencies)
        after = [ack.ended for ack in acks if ack.ended > self.healed_at] if self.healed_at else []
        growth = {
            peer.site.name: each["most_memory"] - self._before[peer.site.name]
            for peer, each in ((self.client, report), (self.server, served))
        }
        return Outcome(
            name=self.name,
            acked=len(acks),
            seconds=acks[-1].ended - acks[0].began if acks else 0.0,
            p50_ms=p50,
            p99_ms=p99,
            longest_ms=max(latencies, default=0.0),
            attempts=sum(ack.attempts for ack in acks) / max(len(acks), 1),
            repeated=served["repeated"],
            verdict=compare(self.client.acks, self.server.served),
            wrong=ended["wrong"],
            errors=dict(self._errors),
            reconnects=self._reconnects,
            growth=growth if grown else {},
            detected_s=self._downs[0] - self.fault_at if self.fault_at and self._downs else None,
            recovered_s=min(after) - self.healed_at if after else None,
            figures=figures,
            wire=self.lab.stats(),
        )


def percentiles(latencies: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile; zeros of none."""
    if len(latencies) < 2:
        return (latencies[0], latencies[0]) if latencies else (0.0, 0.0)
    return statistics.median(latencies), statistics.quantiles(latencies, n=100, method="inclusive")[98]


@contextmanager
def world(name: str, directory: Path, consortium: Consortium, pace: Pace, seed: int) -> Iterator[World]:
    """Make a lab for one scenario."""
    with NetLab(seed=seed) as lab:
        yield World(name, directory, lab, consortium, pace)
