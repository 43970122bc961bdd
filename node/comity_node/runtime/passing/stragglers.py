"""How long steps take away from home: what is far above it is a straggler (hedged requests: Dean and Barroso, 2013).

What ends first is what is short: at the beginning the times that are known are too small wherever they differ much, as
those of dialogues do. So nothing is far above them until there have been two such times to see one in.
"""

from __future__ import annotations

from collections.abc import Hashable

_SAMPLES = 128
_EVERY = 16
_LEAST = 16
#: Kinds of steps that are known: a task has as many as its flow has steps, and a node has 1,000 agreements.
_MAX_KINDS = 4096


class _Times:
    __slots__ = ("count", "p95_s", "samples", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.samples: list[float] = []
        self.count = 0
        self.p95_s: float | None = None


class Percentiles:
    """The 95th percentile of the last 128 times of each kind; of too many kinds the one first heard of is forgotten."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._times: dict[Hashable, _Times] = {}

    def add(self, kind: Hashable, after_s: float, now_s: float) -> None:
        """Learn that one that is over now took `after_s` seconds."""
        times = self._times.get(kind)
        if times is None:
            if len(self._times) >= _MAX_KINDS:
                del self._times[next(iter(self._times))]
            times = self._times[kind] = _Times(now_s - after_s)
        if len(times.samples) < _SAMPLES:
            times.samples.append(after_s)
        else:
            times.samples[times.count % _SAMPLES] = after_s
        times.count += 1
        if times.count >= _LEAST and times.count % _EVERY == 0:
            ordered = sorted(times.samples)
            times.p95_s = ordered[int(len(ordered) * 0.95)]

    def p95_s(self, kind: Hashable) -> float | None:
        """Return the 95th percentile; None: too few are known."""
        times = self._times.get(kind)
        return None if times is None else times.p95_s

    def is_far_above(self, kind: Hashable, age_s: float, now_s: float, factor: float) -> bool:
        """Tell whether what began `age_s` ago takes more than `factor` times the 95th percentile of its kind."""
        times = self._times.get(kind)
        if times is None or times.p95_s is None:
            return False
        far_s = times.p95_s * factor
        return age_s > far_s and now_s - times.since_s > 2.0 * far_s
