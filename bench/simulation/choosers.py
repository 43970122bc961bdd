"""Ways of choosing whom to ask, behind one face: the node's router, and what it is compared with."""

# ruff: noqa: D102  (what each method does stands in Chooser)

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from comity_node.runtime.router import REVIEW, Candidate, Router

_EWMA = 0.2
_UNKNOWN_S = 1.0


class Chooser(Protocol):
    """Whom to ask, and what has become of it."""

    def order(self, names: Sequence[str], count: int, now_s: float) -> list[str]:
        """Return at most `count` of `names`, in the order in which to ask them."""

    def asked(self, name: str, now_s: float) -> None:
        """Note that somebody was asked."""

    def answered(self, name: str, now_s: float, after_s: float) -> None:
        """Note an answer."""

    def late_after_s(self) -> float | None:
        """Return after how long another one is asked; None: never."""


class Adaptive:
    """The node's router: `comity_node.runtime.router`."""

    def __init__(self, random: Random) -> None:
        self._router = Router(random)

    def order(self, names: Sequence[str], count: int, now_s: float) -> list[str]:
        return self._router.draw([Candidate(name) for name in names], count, now_s)

    def asked(self, name: str, now_s: float) -> None:
        self._router.asked(REVIEW, name, now_s)

    def answered(self, name: str, now_s: float, after_s: float) -> None:
        self._router.answered(REVIEW, name, now_s, after_s)

    def late_after_s(self) -> float | None:
        return self._router.late_after_s(REVIEW)


class _Counting:
    """What the others share: how much is under way at whom, and never anybody beside them."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._outstanding: Counter[str] = Counter()

    def asked(self, name: str, now_s: float) -> None:
        self._outstanding[name] += 1

    def answered(self, name: str, now_s: float, after_s: float) -> None:
        self._outstanding[name] -= 1

    def late_after_s(self) -> float | None:
        return None


class Weighted(_Counting):
    """A weighted draw without replacement, by an average over answers that does not fade (Efraimidis, Spirakis, 2006).

    The router that a node had before this one.
    """

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._answer_s: dict[str, float] = {}

    def order(self, names: Sequence[str], count: int, now_s: float) -> list[str]:
        keyed = [(self._random.expovariate(self._weight(name)), name) for name in sorted(names)]
        return [name for _, name in sorted(keyed)[:count]]

    def answered(self, name: str, now_s: float, after_s: float) -> None:
        super().answered(name, now_s, after_s)
        known = self._answer_s.get(name)
        self._answer_s[name] = after_s if known is None else known + _EWMA * (after_s - known)

    def _weight(self, name: str) -> float:
        return 0.5 / (self._answer_s.get(name, _UNKNOWN_S) * (1 + self._outstanding[name]))


class LeastOutstanding(_Counting):
    """Whoever has the least of this home under way; among equals at random."""

    def order(self, names: Sequence[str], count: int, now_s: float) -> list[str]:
        keyed = [(self._outstanding[name], self._random.random(), name) for name in sorted(names)]
        return [name for _, _, name in sorted(keyed)[:count]]


class Blind(_Counting):
    """Anybody."""

    def order(self, names: Sequence[str], count: int, now_s: float) -> list[str]:
        return self._random.sample(sorted(names), min(count, len(names)))


CHOOSERS: dict[str, Callable[[Random], Chooser]] = {
    "adaptive": Adaptive,
    "weighted": Weighted,
    "least": LeastOutstanding,
    "blind": Blind,
}
