"""What a router knows of one peer and one skill: how long it takes, what is under way, and whether it answers at all.

No I/O, no clock and no randomness: seconds of any monotonic clock and a source of chance are passed in.

* An `Estimate` of the answer time fades: without news it turns to what is usual for the skill, so that nobody is judged
  for ever by what was long ago. A sample far off the mean halves what is remembered, so that a change shows in a few
  answers. What is under way for longer than the mean counts at once, without waiting for its answer.
* A `Breaker` stops asking somebody who does not answer, and lets one probe through after a back-off with jitter.
* A window (`comity.pacing`) bounds what is under way; after a breaker closes it begins at one again: no herd.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from comity.pacing import AimdWindow

#: Requests of one peer and skill whose beginning is remembered; of more only the number.
_MAX_BEGUN: Final = 1024
_FAR_OFF: Final = 3.0


class Chance(Protocol):
    """A source of randomness, such as `random.Random`."""

    def random(self) -> float:
        """Return a number from 0 to below 1."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a router weighs.

    Attributes:
        first_s: the answer time that is expected of the first peer of a skill, in seconds.
        memory: answers that an estimate remembers at most.
        half_life_s: seconds after which half of what is remembered counts no more.
        explore: the share of picks that goes to whom least is known of, whatever it costs.
        failures: in a row, after which a circuit opens.
        backoff_s: from then to the first probe, at most; twice as long after each probe that fails.
        longest_backoff_s: that it grows to; for longer nobody is left alone at its own wish either.
        window_first: requests that may be under way at a peer at first.
        window_cap: requests that may ever be under way at a peer.
        price_s: seconds of waiting that one unit of price outweighs.
        least_reliability: below which somebody's reliability is not rated.
        distrusted: below which somebody is asked only when nobody else has room, however fast it answers.
        forgotten_s: after which a request that nobody has spoken of again is not under way any more.
        hint_half_life_s: after which half is believed of what somebody said of its load, or later (`load.Hint`).
    """

    first_s: float = 1.0
    memory: float = 8.0
    half_life_s: float = 30.0
    explore: float = 0.05
    failures: int = 3
    backoff_s: float = 1.0
    longest_backoff_s: float = 60.0
    window_first: float = 16.0
    window_cap: float = 4_096.0
    price_s: float = 1.0
    least_reliability: float = 0.05
    distrusted: float = 0.25
    forgotten_s: float = 3_600.0
    hint_half_life_s: float = 1.0


class Estimate:
    """An exponentially weighted mean whose weight fades with time."""

    __slots__ = ("_at_s", "_half_life_s", "_mean", "_memory", "_weight")

    def __init__(self, memory: float, half_life_s: float) -> None:
        """Know nothing yet; see `Tuning` for the arguments."""
        self._memory, self._half_life_s = memory, half_life_s
        self._mean = self._weight = 0.0
        self._at_s = 0.0

    def weight(self, now_s: float) -> float:
        """Return how many answers' worth is known."""
        if not self._weight:
            return 0.0
        return float(self._weight * 0.5 ** (max(0.0, now_s - self._at_s) / self._half_life_s))

    def mean(self, now_s: float, usual: float) -> float:
        """Return the mean; the less is known, the nearer to what is usual."""
        weight = self.weight(now_s)
        return (weight * self._mean + usual) / (weight + 1.0)

    def add(self, value: float, now_s: float) -> None:
        """Learn a value."""
        weight = self.weight(now_s)
        if weight and not self._mean / _FAR_OFF <= value <= self._mean * _FAR_OFF:
            weight /= 2.0
        self._mean += (value - self._mean) / (weight + 1.0)
        self._weight = min(weight + 1.0, self._memory)
        self._at_s = max(self._at_s, now_s)

    def forget(self) -> None:
        """Know nothing any more."""
        self._mean = self._weight = 0.0


class Circuit(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    #: One probe is due, or under way.
    HALF_OPEN = "half-open"


class Breaker:
    """Opens after failures in a row; then lets one probe through, and closes when that is answered."""

    __slots__ = ("_failures", "_opened", "_probing", "_tuning", "_until_s")

    def __init__(self, tuning: Tuning) -> None:
        """Begin closed."""
        self._tuning = tuning
        self._failures = self._opened = 0
        self._until_s = 0.0
        self._probing = False

    def state(self, now_s: float) -> Circuit:
        """Return what it lets through now."""
        if not self._opened:
            return Circuit.CLOSED
        return Circuit.HALF_OPEN if self._probing or now_s >= self._until_s else Circuit.OPEN

    @property
    def closed(self) -> bool:
        """Whether it lets everything through."""
        return not self._opened

    def allows(self, now_s: float) -> bool:
        """Tell whether somebody may be asked now."""
        return not self._opened or (not self._probing and now_s >= self._until_s)

    def began(self) -> None:
        """Note a request: while it is not closed, that is the probe."""
        self._probing = bool(self._opened)

    def succeeded(self) -> bool:
        """Note an answer; returns whether it closes the circuit."""
        closes = bool(self._opened)
        self._failures = self._opened = 0
        self._probing = False
        return closes

    def failed(self, now_s: float, chance: Chance) -> None:
        """Note that nothing came back in time: enough of it opens the circuit, or keeps it open for longer.

        What was asked before the circuit opened and fails after it is not another reason to wait longer.
        """
        self._failures += 1
        if self._opened and not self._probing:
            return
        if self._probing or self._failures >= self._tuning.failures:
            longest = min(self._tuning.longest_backoff_s, self._tuning.backoff_s * 2.0 ** min(self._opened, 32))
            self._opened += 1
            self._probing = False
            self._until_s = now_s + longest * (0.5 + 0.5 * chance.random())

    def released(self) -> None:
        """Note that a request ended without a word about whether anybody is there."""
        self._probing = False


@dataclass(slots=True)
class Track:
    """What is known of one peer and one skill.

    Attributes:
        tuning: of the router.
        estimate: of its answer time, in seconds.
        window: of what may be under way.
        breaker: whether it is asked at all.
        not_before_s: when it wants to be asked again: it said that it was busy.
        answers: good ones so far.
        failures: what was asked and not answered in time, so far.
        busy: how often it said so.
        price: that was last named for it.
    """

    tuning: Tuning
    estimate: Estimate = field(init=False)
    window: AimdWindow = field(init=False)
    breaker: Breaker = field(init=False)
    not_before_s: float = 0.0
    answers: int = 0
    failures: int = 0
    busy: int = 0
    price: float = 0.0
    _begun: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.estimate = Estimate(self.tuning.memory, self.tuning.half_life_s)
        self.window = AimdWindow(first=self.tuning.window_first, cap=self.tuning.window_cap)
        self.breaker = Breaker(self.tuning)

    @property
    def outstanding(self) -> int:
        """Requests that are under way."""
        return self.window.outstanding

    def expected_s(self, now_s: float, usual_s: float) -> float:
        """Return the answer time to expect: the estimate, or the age of what is under way for longer."""
        expected = self.estimate.mean(now_s, usual_s)
        return max(expected, now_s - self._begun[0]) if self._begun else expected

    def open_to_all(self, now_s: float) -> bool:
        """Tell whether it answers, and does not want to be left alone for now."""
        return self.not_before_s <= now_s and self.breaker.allows(now_s)

    def tidy(self, now_s: float) -> None:
        """Forget what nobody has spoken of again for so long: it takes no room, and a probe is not waited for."""
        if not self._begun or now_s - self._begun[0] <= self.tuning.forgotten_s:
            return
        while self._begun and now_s - self._begun[0] > self.tuning.forgotten_s:
            self._begun.pop(0)
            self.window.released()
        if not self._begun:
            while self.window.outstanding:  # those whose beginning was not remembered
                self.window.released()
            self.breaker.released()

    def begin(self, now_s: float) -> None:
        """Note that it was asked."""
        self.tidy(now_s)
        self.window.begin()
        self.breaker.began()
        if len(self._begun) < _MAX_BEGUN:
            insort(self._begun, now_s)

    def answered(self, now_s: float, after_s: float) -> None:
        """Note a good answer."""
        self._end(now_s - after_s)
        self.answers += 1
        self.window.succeeded()
        if self.breaker.succeeded():
            self.estimate.forget()
            self.window.restart()
        self.estimate.add(max(after_s, 0.0), now_s)

    def failed(self, now_s: float, after_s: float, chance: Chance) -> None:
        """Note that nothing good came back after so long."""
        self._end(now_s - after_s)
        self.failures += 1
        self.window.overloaded(now_s, after_s)
        self.breaker.failed(now_s, chance)
        self.estimate.add(max(after_s, 0.0), now_s)

    def turned_away(self, now_s: float, retry_after_s: float) -> None:
        """Note that it said it is busy: it is there, and has too much."""
        if self._begun:
            self._begun.pop()  # a busy one says so at once: it was the last one asked
        self.window.released()
        self.breaker.released()
        self.hold_back(now_s, retry_after_s)

    def hold_back(self, now_s: float, retry_after_s: float) -> None:
        """Note that it takes nothing for so long; what is under way stays so."""
        self.busy += 1
        self.window.shrink(now_s)
        wait_s = max(0.0, min(self.tuning.longest_backoff_s, retry_after_s))
        self.not_before_s = max(self.not_before_s, now_s + wait_s)

    def released(self, now_s: float, after_s: float) -> None:
        """Note that a request ended without a word about time or load."""
        self._end(now_s - after_s)
        self.window.released()
        self.breaker.released()

    def _end(self, began_s: float) -> None:
        """Forget the request that began nearest to then."""
        if self._begun:
            at = bisect_left(self._begun, began_s)
            near = [each for each in (at - 1, at) if 0 <= each < len(self._begun)]
            self._begun.pop(min(near, key=lambda each: abs(self._begun[each] - began_s)))


class Tally:
    """Counts whose past fades: who got how much lately."""

    __slots__ = ("_counts", "_half_life_s", "_most")

    def __init__(self, most: int, half_life_s: float = 60.0) -> None:
        """Count for at most `most` names; beyond them whose count is oldest is forgotten."""
        self._most, self._half_life_s = most, half_life_s
        self._counts: dict[str, tuple[float, float]] = {}

    def add(self, name: str, now_s: float) -> None:
        """Count one more."""
        count = self._faded(name, now_s)
        self._counts.pop(name, None)  # the newest stands last
        if len(self._counts) >= self._most:
            del self._counts[next(iter(self._counts))]
        self._counts[name] = (count + 1.0, now_s)

    def shares(self, now_s: float) -> dict[str, float]:
        """Return what each has of the whole."""
        counts = {name: self._faded(name, now_s) for name in self._counts}
        whole = sum(counts.values())
        return {name: count / whole for name, count in counts.items()} if whole else {}

    def _faded(self, name: str, now_s: float) -> float:
        count, at_s = self._counts.get(name, (0.0, now_s))
        return float(count * 0.5 ** (max(0.0, now_s - at_s) / self._half_life_s))


class Times:
    """The last answer times of a skill, for their quantiles."""

    __slots__ = ("_last",)

    def __init__(self, most: int = 128) -> None:
        """Remember the last `most`."""
        self._last: deque[float] = deque(maxlen=most)

    def add(self, value: float) -> None:
        """Remember one."""
        self._last.append(value)

    def quantile(self, share: float, least: int) -> float | None:
        """Return the time that `share` of them do not exceed; None while there are fewer than `least`."""
        if len(self._last) < least:
            return None
        ordered = sorted(self._last)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def jain(loads: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all have the same, 1/n if one has all (Jain, Chiu and Hawe, 1984)."""
    squares = sum(load * load for load in loads)
    return sum(loads) ** 2 / (len(loads) * squares) if squares else 1.0
