"""Peers that answer under a virtual clock, and a home that asks them through a router."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from random import Random

from comity_node.runtime.router import Candidate, Router


class Place:
    """A home that keeps `load` requests under way among peers, which work on `slots` requests at once each."""

    def __init__(self, names: Sequence[str], *, seed: int = 1, load: int = 6, router: Router | None = None) -> None:
        self.random = Random(seed)
        self.router = router or Router(Random(seed + 1))
        self.names = list(names)
        self.load = load
        self.takes_s = dict.fromkeys(names, 0.2)
        self.price = dict.fromkeys(names, 0.0)
        self.reliability = dict.fromkeys(names, 0.8)
        self.slots = dict.fromkeys(names, 8)
        self.dead: set[str] = set()
        self.timeout_s = 1.0
        self.now_s = 1000.0
        self.asked: Counter[str] = Counter()
        self.times: list[tuple[float, str]] = []
        self.busy_answers = 0
        self._under_way: Counter[str] = Counter()
        self._due: list[tuple[float, int, str, float, str]] = []
        self._number = itertools.count()

    def run(self, seconds: float) -> Counter[str]:
        """Let time pass; returns who was asked how often."""
        self.asked = Counter()
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            while sum(self._under_way.values()) < self.load and self._ask():
                pass
            if not self._due:
                self.now_s += 0.05
                continue
            at_s, _, name, began_s, what = heapq.heappop(self._due)
            self.now_s = max(self.now_s, at_s)
            self._end(name, began_s, what)
        return self.asked

    def share(self, name: str) -> float:
        """What share of the last `run` somebody was asked for."""
        return self.asked[name] / sum(self.asked.values())

    def outstanding(self, name: str) -> int:
        return self._under_way[name]

    def _ask(self) -> bool:
        candidates = [Candidate(each, True, self.reliability[each], self.price[each]) for each in self.names]
        name = self.router.pick("work", candidates, self.now_s)
        if name is None:
            return False
        self.router.asked("work", name, self.now_s)
        self.asked[name] += 1
        self.times.append((self.now_s, name))
        self._under_way[name] += 1
        if name in self.dead:
            self._later(self.timeout_s, name, "lost")
        elif self._under_way[name] > self.slots[name]:
            self._later(0.001, name, "busy")
        else:
            self._later(self.takes_s[name] * self.random.lognormvariate(0, 0.25), name, "done")
        return True

    def _later(self, after_s: float, name: str, what: str) -> None:
        heapq.heappush(self._due, (self.now_s + after_s, next(self._number), name, self.now_s, what))

    def _end(self, name: str, began_s: float, what: str) -> None:
        self._under_way[name] -= 1
        if what == "busy":
            self.busy_answers += 1
            self.router.busy("work", name, self.now_s, 0.05)
        else:
            self.router.answered("work", name, self.now_s, self.now_s - began_s, good=what == "done")
