"""How many messages one organization may send: a bucket of tokens each, filled at a steady rate.

Invariant
  S7  what an organization sends beyond its pace costs this node opening the envelope and saying so, and nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """Messages per second that an organization may send for ever, and how many at once after a pause.

    Attributes:
        per_second: tokens that a bucket gains in a second.
        burst: tokens that it holds at most, and at first.
        retry_after_ms: the least time that a sender whose bucket is empty is told to wait.
    """

    per_second: float = 5_000.0
    burst: int = 10_000
    retry_after_ms: int = 100


class Pace:
    """The buckets of all organizations; their number is that of the consortium's members."""

    def __init__(self, limits: PaceLimits | None = None) -> None:
        """Give every organization a full bucket."""
        self._limits = limits or PaceLimits()
        self._buckets: dict[str, tuple[float, int]] = {}

    def take(self, organization: str, now_ms: int) -> int:
        """Take a token of an attested organization's bucket; returns 0, or the milliseconds to wait if it is empty."""
        limits = self._limits
        tokens, at_ms = self._buckets.get(organization, (float(limits.burst), now_ms))
        gained = max(0, now_ms - at_ms) * limits.per_second / 1000  # none when the clock was set back
        tokens = min(float(limits.burst), tokens + gained)
        short = 1.0 - tokens
        self._buckets[organization] = (tokens if short > 0 else tokens - 1.0, now_ms)
        return max(limits.retry_after_ms, math.ceil(short / limits.per_second * 1000)) if short > 0 else 0
