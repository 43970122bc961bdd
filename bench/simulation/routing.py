"""How evenly the router spreads batches over reviewers, and how long answers take, as organizations become more.

Each organization is a home with a router of its own, which knows of others what it has seen itself, and a reviewer with
one worker and a queue. Who may review for whom is drawn once, as agreements do. In the world `slow` some reviewers
become slower in the middle third of the time, and as fast as before in the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from random import Random

from bench.simulation.choosers import CHOOSERS, Chooser
from bench.simulation.world import Clock, Figure, Figures, jain
from comity.certificate import QuorumRule


@dataclass(frozen=True, slots=True)
class RoutingWorld:
    """What homes ask for, and how fast reviewers are.

    Attributes:
        eligible: reviewers of each home.
        asked: of them, for each batch, at first.
        enough: answers that a batch waits for.
        more: that may be asked beside those who are late.
        batches: of each home.
        load: how busy reviewers would be on average if just those were asked whose answers a batch waits for.
        median_ms: of a reviewer's time for a batch, which is lognormal over reviewers.
        sigma: of its logarithm.
        jitter: of the logarithm of one batch's time.
        latency_ms: of a message, one way, from and to.
        homes: that are simulated in all, at least: small worlds are simulated several times, anew.
        chooser: how it is chosen whom to ask: a name of `choosers.CHOOSERS`.
        slow: share of the reviewers that become slower for a time.
        times: how many times slower.
    """

    eligible: int
    asked: int
    enough: int
    more: int = 0
    batches: int = 12
    load: float = 0.5
    median_ms: float = 200.0
    sigma: float = 0.5
    jitter: float = 0.25
    latency_ms: tuple[int, int] = (10, 100)
    homes: int = 1000
    chooser: str = "adaptive"
    slow: float = 0.0
    times: float = 10.0


def by_quorum(eligible: int = 12) -> RoutingWorld:
    """Return the world of `runtime.offering`: a quorum is asked, and up to f more beside who is late."""
    rule = QuorumRule.of(eligible)
    return RoutingWorld(eligible, rule.quorum, rule.quorum, more=rule.faulty, batches=12)


def all_at_once(eligible: int = 12) -> RoutingWorld:
    """Return the world in which a quorum and f more are asked at once, by the router that nodes had before."""
    rule = QuorumRule.of(eligible)
    return RoutingWorld(eligible, rule.quorum + rule.faulty, rule.quorum, batches=12, chooser="weighted")


def few(chooser: str = "adaptive") -> RoutingWorld:
    """Return the world in which 3 of 24 are asked, and all three have to answer."""
    return RoutingWorld(24, 3, 3, chooser=chooser)


def slowing(chooser: str = "adaptive") -> RoutingWorld:
    """Return the world in which one of ten reviewers is ten times slower for a third of the time."""
    return RoutingWorld(24, 3, 3, batches=60, load=0.3, sigma=0.25, chooser=chooser, slow=0.1)


class _Reviewer:
    """One worker and its queue."""

    def __init__(self, mean_ms: float, slows: bool) -> None:
        self.mean_ms, self.slows = mean_ms, slows
        self.free_ms, self.batches, self.busy_ms = 0.0, 0, 0.0
        #: Batches that wait or are worked on, and the most of them at once after the slow time.
        self.queue, self.longest = 0, 0


class _Home:
    def __init__(self, router: Chooser, eligible: list[int]) -> None:
        self.router = router
        self.eligible = [str(number) for number in eligible]


@dataclass(slots=True)
class _Batch:
    began_ms: int
    left: int
    asked: set[str] = field(default_factory=set)
    out: dict[str, int] = field(default_factory=dict)


class _Net:
    def __init__(self, count: int, random: Random, world: RoutingWorld) -> None:
        self.clock, self.random, self.world = Clock(), random, world
        draw = self.random.lognormvariate
        slow = set(random.sample(range(count), round(world.slow * count)))
        self.reviewers = [_Reviewer(world.median_ms * draw(0, world.sigma), number in slow) for number in range(count)]
        self.homes = [self._home(count, number) for number in range(count)]
        self.took_ms: list[float] = []
        self.took_slow_ms: list[float] = []
        self.offers = 0
        #: Offers in the slow time, and in the last tenth of the time after it; of them those to reviewers that slow.
        self.slow_offers, self.late_offers = [0, 0], [0, 0]
        mean_ms = sum(one.mean_ms for one in self.reviewers) / count
        gap_ms = world.enough * mean_ms / world.load
        self.began_ms, self.lasts_ms = self.clock.now_ms, world.batches * gap_ms
        for home in self.homes:
            at_ms = self.random.random() * gap_ms
            for number in range(world.batches):
                self.clock.after(round(at_ms + number * gap_ms), partial(self._offer, home))

    def _home(self, count: int, number: int) -> _Home:
        others = self.random.sample(range(count - 1), min(self.world.eligible, count - 1))
        router: Chooser = CHOOSERS[self.world.chooser](Random(self.random.random()))
        return _Home(router, [one + (one >= number) for one in others])

    def _past(self) -> float:
        """How much of the time has passed, 0 to 1 and a little."""
        return (self.clock.now_ms - self.began_ms) / self.lasts_ms

    def _offer(self, home: _Home) -> None:
        batch = _Batch(self.clock.now_ms, self.world.enough)
        self._ask(home, batch, self.world.asked)

    def _ask(self, home: _Home, batch: _Batch, count: int) -> None:
        now_ms, past = self.clock.now_ms, self._past()
        unasked = [name for name in home.eligible if name not in batch.asked]
        late_s = home.router.late_after_s() if self.world.more else None
        for name in home.router.order(unasked, count, now_ms / 1000):
            slows = self.reviewers[int(name)].slows
            if 1 / 3 <= past < 2 / 3:
                self.slow_offers[slows] += 1
            elif past >= 0.9:
                self.late_offers[slows] += 1
            self.offers += 1
            batch.asked.add(name)
            batch.out[name] = now_ms
            home.router.asked(name, now_ms / 1000)
            self.clock.after(self._way_ms(), partial(self._arrive, home, name, batch, past))
            if late_s is not None:
                self.clock.after(round(late_s * 1000), partial(self._late, home, name, batch))

    def _late(self, home: _Home, name: str, batch: _Batch) -> None:
        if batch.left and name in batch.out and len(batch.asked) < self.world.asked + self.world.more:
            self._ask(home, batch, 1)

    def _arrive(self, home: _Home, name: str, batch: _Batch, past: float) -> None:
        reviewer, world = self.reviewers[int(name)], self.world
        reviewer.batches += 1
        reviewer.queue += 1
        now = self._past()
        if now >= 2 / 3:
            reviewer.longest = max(reviewer.longest, reviewer.queue)
        slower = world.times if reviewer.slows and 1 / 3 <= now < 2 / 3 else 1.0
        takes_ms = reviewer.mean_ms * slower * self.random.lognormvariate(0, world.jitter)
        reviewer.busy_ms += takes_ms
        reviewer.free_ms = max(reviewer.free_ms, self.clock.now_ms) + takes_ms
        work_ms = round(reviewer.free_ms - self.clock.now_ms)
        self.clock.after(work_ms, partial(self._done, reviewer))
        self.clock.after(work_ms + self._way_ms(), partial(self._answer, home, name, batch, past))

    def _done(self, reviewer: _Reviewer) -> None:
        reviewer.queue -= 1

    def _answer(self, home: _Home, name: str, batch: _Batch, past: float) -> None:
        now_ms = self.clock.now_ms
        home.router.answered(name, now_ms / 1000, (now_ms - batch.out.pop(name)) / 1000)
        if batch.left:
            batch.left -= 1
            if not batch.left:
                self.took_ms.append(now_ms - batch.began_ms)
                if 1 / 3 <= past < 2 / 3:
                    self.took_slow_ms.append(now_ms - batch.began_ms)

    def _way_ms(self) -> int:
        return self.random.randint(*self.world.latency_ms)


def measure(part: str, count: int, seed: int, world: RoutingWorld) -> list[Figure]:
    """Simulate `count` organizations, each of which has batches reviewed."""
    nets = [_Net(count, Random(f"{seed}/{count}/{again}"), world) for again in range(max(1, world.homes // count))]
    for net in nets:
        net.clock.drain()
    loads = [[float(one.batches) for one in net.reviewers] for net in nets]
    busy = [[one.busy_ms for one in net.reviewers] for net in nets]
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
    if world.slow:
        _disturbed(figures, nets)
    return figures.all


def _disturbed(figures: Figures, nets: list[_Net]) -> None:
    """Add what became of those that were slow for a time, as times what they would have of equal shares."""
    slow_ms = [each for net in nets for each in net.took_slow_ms]
    figures.quantile("time-median-while-slow", "ms", slow_ms, 0.5)
    figures.quantile("time-99-percent-while-slow", "ms", slow_ms, 0.99)
    for name, counts in (
        ("share-while-slow", [net.slow_offers for net in nets]),
        ("share-after-return", [net.late_offers for net in nets]),
    ):
        whole, theirs = sum(map(sum, counts)), sum(count[1] for count in counts)
        figures.one(name, "times an equal share", theirs / whole / nets[0].world.slow)
    slow = [one.longest for net in nets for one in net.reviewers if one.slows]
    others = [one.longest for net in nets for one in net.reviewers if not one.slows]
    figures.quantile("longest-queue-after-return", "batches", slow, 0.99)
    figures.quantile("longest-queue-of-others", "batches", others, 0.99)
