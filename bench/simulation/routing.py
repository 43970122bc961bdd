"""How evenly the router spreads batches over reviewers, and how long answers take, as organizations become more.

Each organization is a home with a `runtime.router.Router` of its own, which knows of others what it has seen itself,
and a reviewer with one worker and a queue. Who may review for whom is drawn once, as agreements do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from random import Random

from bench.simulation.world import Clock, Figure, Figures, jain
from comity.certificate import QuorumRule
from comity_node.runtime.router import Candidate, Router


@dataclass(frozen=True, slots=True)
class RoutingWorld:
    """What homes ask for, and how fast reviewers are.

    Attributes:
        eligible: reviewers of each home.
        asked: of them, for each batch.
        enough: answers that a batch waits for.
        batches: of each home.
        load: how busy reviewers are on average: 1 is all the time.
        median_ms: of a reviewer's time for a batch, which is lognormal over reviewers.
        sigma: of its logarithm.
        jitter: of the logarithm of one batch's time.
        latency_ms: of a message, one way, from and to.
        homes: that are simulated in all, at least: small worlds are simulated several times, anew.
        learns: whether routers are told of what they have asked and how long it took.
    """

    eligible: int
    asked: int
    enough: int
    batches: int = 12
    load: float = 0.5
    median_ms: float = 200.0
    sigma: float = 0.5
    jitter: float = 0.25
    latency_ms: tuple[int, int] = (10, 100)
    homes: int = 1000
    learns: bool = True


def by_quorum(eligible: int = 12) -> RoutingWorld:
    """Return the world in which as many are asked as `runtime.offering` asks: a quorum, and f more."""
    rule = QuorumRule.of(eligible)
    return RoutingWorld(eligible, rule.quorum + rule.faulty, rule.quorum, batches=6)


def few(learns: bool) -> RoutingWorld:
    """Return the world in which 3 of 24 are asked, and all three have to answer."""
    return RoutingWorld(24, 3, 3, learns=learns)


class _Reviewer:
    """One worker and its queue."""

    def __init__(self, mean_ms: float) -> None:
        self.mean_ms, self.free_ms, self.batches = mean_ms, 0.0, 0


class _Home:
    def __init__(self, name: int, random: Random, eligible: list[int]) -> None:
        self.router = Router(random)
        self.candidates = [Candidate(str(number), True, 0.5) for number in eligible]
        self.name = name


class _Net:
    def __init__(self, count: int, random: Random, world: RoutingWorld) -> None:
        self.clock, self.random, self.world = Clock(), random, world
        draw = self.random.lognormvariate
        self.reviewers = [_Reviewer(world.median_ms * draw(0, world.sigma)) for _ in range(count)]
        self.homes = [self._home(number, count) for number in range(count)]
        self.took_ms: list[float] = []
        self.offers = 0
        mean_ms = sum(one.mean_ms for one in self.reviewers) / count
        gap_ms = world.asked * mean_ms / world.load
        for home in self.homes:
            at_ms = self.random.random() * gap_ms
            for number in range(world.batches):
                self.clock.after(round(at_ms + number * gap_ms), partial(self._offer, home))

    def _home(self, number: int, count: int) -> _Home:
        others = self.random.sample(range(count - 1), min(self.world.eligible, count - 1))
        return _Home(number, Random(self.random.random()), [one + (one >= number) for one in others])

    def _offer(self, home: _Home) -> None:
        began_ms, left = self.clock.now_ms, deque(range(self.world.enough))
        for name in home.router.draw(home.candidates, self.world.asked):
            self.offers += 1
            if self.world.learns:
                home.router.asked(name)
            self.clock.after(self._way_ms(), partial(self._arrive, home, name, began_ms, left))

    def _arrive(self, home: _Home, name: str, began_ms: int, left: deque[int]) -> None:
        reviewer, world = self.reviewers[int(name)], self.world
        reviewer.batches += 1
        takes_ms = reviewer.mean_ms * self.random.lognormvariate(0, world.jitter)
        reviewer.free_ms = max(reviewer.free_ms, self.clock.now_ms) + takes_ms
        wait_ms = round(reviewer.free_ms - self.clock.now_ms) + self._way_ms()
        self.clock.after(wait_ms, partial(self._answer, home, name, began_ms, left))

    def _answer(self, home: _Home, name: str, began_ms: int, left: deque[int]) -> None:
        after_ms = self.clock.now_ms - began_ms
        if self.world.learns:
            home.router.answered(name, after_ms)
        if left:
            left.pop()
            if not left:
                self.took_ms.append(after_ms)

    def _way_ms(self) -> int:
        return self.random.randint(*self.world.latency_ms)


def measure(part: str, count: int, seed: int, world: RoutingWorld) -> list[Figure]:
    """Simulate `count` organizations, each of which has batches reviewed."""
    nets = [_Net(count, Random(f"{seed}/{count}/{again}"), world) for again in range(max(1, world.homes // count))]
    for net in nets:
        net.clock.drain()
    loads = [[float(one.batches) for one in net.reviewers] for net in nets]
    busy = [[one.batches * one.mean_ms for one in net.reviewers] for net in nets]
    offers = sum(net.offers for net in nets) / (len(nets) * count * world.batches)
    took_ms = [each for net in nets for each in net.took_ms]
    figures = Figures(part, count)
    figures.one("asked-of-eligible", "share", world.asked / min(world.eligible, count - 1))
    figures.one("offers", "messages", offers)
    figures.mean("batches-reviewed", "batches", [load for each in loads for load in each])
    figures.mean("busiest-reviewer-batches", "times the mean", [max(each) * count / sum(each) for each in loads])
    figures.mean("busiest-reviewer-time", "times the mean", [max(each) * count / sum(each) for each in busy])
    figures.mean("fairness", "Jain's index", [jain(each) for each in loads])
    figures.quantile("time-median", "ms", took_ms, 0.5)
    figures.quantile("time-99-percent", "ms", took_ms, 0.99)
    return figures.all
