"""Whom to ask: reviewers drawn by what it pays to ask them.

Reachable ones come before the unreachable; among them a weighted draw without replacement (Efraimidis and Spirakis,
2006), with weight reliability / (expected answer time x (1 + batches already there)). A draw, not a ranking: everybody
keeps getting some work, so that a slow or badly judged reviewer can show that it has become better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

_EWMA = 0.2
_UNKNOWN_MS = 1_000.0
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reviewer that may be asked: reliability is the mean of its Beta posterior, 0..1."""

    organization: str
    reachable: bool
    reliability: float


class Router:
    """Remembers how long reviewers took, and draws the next ones."""

    def __init__(self, random: Random) -> None:
        """Draw with `random`, so that a test can repeat the draw."""
        self._random = random
        self._answer_ms: dict[str, float] = {}
        self._outstanding: dict[str, int] = {}

    def asked(self, organization: str) -> None:
        """Note that a batch went to a reviewer."""
        self._outstanding[organization] = self._outstanding.get(organization, 0) + 1

    def answered(self, organization: str, after_ms: float) -> None:
        """Note that a reviewer answered a batch, or that its lease ran out after `after_ms`."""
        self._outstanding[organization] = max(0, self._outstanding.get(organization, 0) - 1)
        known = self._answer_ms.get(organization)
        self._answer_ms[organization] = after_ms if known is None else known + _EWMA * (after_ms - known)

    def expected_ms(self, organization: str) -> float:
        """Return the expected answer time of a reviewer in milliseconds."""
        return self._answer_ms.get(organization, _UNKNOWN_MS)

    def weight(self, candidate: Candidate) -> float:
        """Return how much it pays to ask this reviewer (relative; above 0)."""
        busy = 1 + self._outstanding.get(candidate.organization, 0)
        return max(candidate.reliability / (max(self.expected_ms(candidate.organization), 1.0) * busy), _LEAST_WEIGHT)

    def draw(self, candidates: Sequence[Candidate], count: int) -> list[str]:
        """Return at most `count` organizations to ask, in the order in which to ask them."""
        keyed = [
            (not candidate.reachable, self._random.expovariate(self.weight(candidate)), candidate.organization)
            for candidate in sorted(candidates, key=lambda each: each.organization)
        ]
        return [organization for _, _, organization in sorted(keyed)[:count]]
