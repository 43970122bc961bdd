"""How loaded somebody is, as it says itself: what a holder tells who brings it work, and what that one makes of it.

No I/O and no clock: seconds of any monotonic clock are passed in.

A `Load` counts the calls under way and learns how long calls take. What tells a back-end that stands still from a slow
answer are the answers that are missing: with `n` calls under way and `u` seconds that calls usually take, one answer is
due every `u / n` seconds. The call-seconds since the last answer, over `u`, are therefore how many answers should have
come; a few of them may be missing by chance (four, if calls last exponentially, in one case of fifty), and each further
one counts as a call that has to be made first. One straggler among calls that are answered changes nothing. Each skill
has a `Load` of its own (`Loads`): where some take milliseconds and others minutes, the slow ones are not late.

A `Hint` is such a figure of somebody else. It is a claim, and can only make its peer dearer than the own record of it
says, never cheaper: who always says 0 stands where those stand who say nothing, who says too much is asked less, for
seconds, and for a minute at most. So a liar gains traffic that others would have got for being idle, or the absence of
traffic; how well it serves is in the own record as ever.
"""

from __future__ import annotations

from typing import Final

#: No hint says more, whoever gives it; in seconds.
MAX_WAIT_S: Final = 60.0
#: Answers that may be missing before a back-end seems to stand still.
_MISSING: Final = 4.0
#: Calls whose times are remembered, and how many times the usual one of them counts at most: what stood still once
#: says little of how long calls take.
_MEMORY: Final = 8
_FAR_OFF: Final = 4.0
#: Half-lives after which nothing is left of a hint.
_FORGOTTEN: Final = 8.0
#: What a call may take before any was answered, in seconds; until then nothing is said but that answers are missing.
_FIRST_S: Final = 1.0
#: Skills whose calls are counted; beyond them one that nothing is under way of is forgotten.
_MAX_SKILLS: Final = 256


class _Usual:
    """How long calls take.

    Attributes:
        answers: calls that is known of, as far as they are remembered.
        usual_s: the usual time of them.
    """

    __slots__ = ("answers", "usual_s")

    def __init__(self) -> None:
        self.answers = 0
        self.usual_s = _FIRST_S

    def learn(self, after_s: float) -> None:
        """Note that a call was answered after so many seconds."""
        after_s = max(0.0, after_s)
        if self.answers:
            after_s = min(after_s, _FAR_OFF * self.usual_s)
        if self.answers < _MEMORY:
            self.answers += 1
        self.usual_s += (after_s - self.usual_s) / self.answers


class Load(_Usual):
    """What is under way at own agents of one sort, and how many answers are missing."""

    __slots__ = ("_at_s", "_owed_s", "_running")

    def __init__(self) -> None:
        """Begin idle."""
        super().__init__()
        self._running = 0
        #: Call-seconds since the last answer, up to `_at_s`.
        self._owed_s = self._at_s = 0.0

    @property
    def running(self) -> int:
        """Calls that are under way."""
        return self._running

    def began(self, now_s: float) -> None:
        """Note that an agent is called."""
        self._pass(now_s)
        self._running += 1

    def answered(self, now_s: float, after_s: float) -> None:
        """Note that a call was answered after so many seconds."""
        self.left(now_s)
        self._owed_s = 0.0
        self.learn(after_s)

    def left(self, now_s: float) -> None:
        """Note that a call failed or is not waited for any longer: that is no sign that answers come."""
        self._pass(now_s)
        if self._running:
            self._running -= 1

    @property
    def patience_s(self) -> float:
        """Seconds after which a call is overdue while no answers seem to come; 0 while that is not known."""
        return _FAR_OFF * self.usual_s if self.answers else 0.0

    def missing_s(self, now_s: float) -> float:
        """Return how long those calls would take whose answers are missing, but for as many as may be by chance."""
        self._pass(now_s)
        return max(0.0, self._owed_s - _MISSING * self.usual_s)

    def overdue_s(self, now_s: float) -> float | None:
        """Return after how many seconds a call is overdue while no answers seem to come at all; None: they come."""
        self._pass(now_s)
        stands_still = self.answers and self._owed_s > 2.0 * _MISSING * self.usual_s
        return self.patience_s if stands_still else None

    def _pass(self, now_s: float) -> None:
        if now_s > self._at_s:
            self._owed_s += self._running * (now_s - self._at_s)
            self._at_s = now_s


class Loads:
    """What is under way at all own agents, by skill."""

    __slots__ = ("_all", "_of", "_running")

    def __init__(self) -> None:
        """Begin idle."""
        self._running = 0
        self._all = _Usual()
        self._of: dict[str, Load] = {}

    def began(self, skill: str, now_s: float) -> None:
        """Note that an agent is called."""
        self._running += 1
        self._load(skill).began(now_s)

    def answered(self, skill: str, now_s: float, after_s: float) -> None:
        """Note that a call was answered after so many seconds."""
        self._ended()
        self._all.learn(after_s)
        self._load(skill).answered(now_s, after_s)

    def left(self, skill: str, now_s: float) -> None:
        """Note that a call failed or is not waited for any longer: that is no sign that answers come."""
        self._ended()
        self._load(skill).left(now_s)

    def wait_s(self, now_s: float, waiting: int, window: int) -> float:
        """Return in how many seconds a call that comes now would be answered, at most `MAX_WAIT_S`.

        Answers that are missing count if they are of every skill that something is under way of.

        Args:
            now_s: the time.
            waiting: calls that wait for their turn.
            window: calls that are made at once, at most.
        """
        busy = [load for load in self._of.values() if load.running] or self._of.values()
        missing_s = min((load.missing_s(now_s) for load in busy), default=0.0)
        queued_s = self._all.usual_s * (1.0 + (self._running + waiting) / window) if self._all.answers else 0.0
        return min(MAX_WAIT_S, queued_s + missing_s)

    def overdue(self, now_s: float) -> dict[str, float]:
        """Return the skills of which no answers seem to come, and after how many seconds a call of each is overdue."""
        found = {skill: load.overdue_s(now_s) for skill, load in self._of.items()}
        return {skill: after_s for skill, after_s in found.items() if after_s is not None}

    def patience_s(self) -> float:
        """Return after how many seconds a call of any skill can be overdue at the soonest, if its answers go on so."""
        known = [load.patience_s for load in self._of.values() if load.patience_s > 0.0]
        return min(known, default=0.0)

    def _ended(self) -> None:
        self._running = max(0, self._running - 1)

    def _load(self, skill: str) -> Load:
        load = self._of.get(skill)
        if load is None:
            if len(self._of) >= _MAX_SKILLS:
                idle = (each for each, one in self._of.items() if not one.running)
                del self._of[next(idle, next(iter(self._of)))]
            load = self._of[skill] = Load()
        return load


class Hint:
    """How long somebody else says that it would take; believed less and less.

    Attributes:
        sent: what was sent there since, of which it cannot have known when it said so.
    """

    __slots__ = ("_at_s", "_half_life_s", "_wait_s", "sent")

    def __init__(self, wait_s: float, now_s: float, half_life_s: float) -> None:
        """Hear `wait_s` now: half of it is believed after `half_life_s`, or an eighth of it, whichever is later.

        After eight times as long nothing of it is. What is no number is 0.
        """
        self._wait_s = min(MAX_WAIT_S, wait_s) if wait_s > 0.0 else 0.0
        self._at_s = now_s
        self._half_life_s = max(half_life_s, self._wait_s / _FORGOTTEN)
        self.sent = 0

    def at(self, now_s: float) -> float:
        """Return what is left of it: from 0 to `MAX_WAIT_S` seconds."""
        half_lives = max(0.0, now_s - self._at_s) / self._half_life_s
        return self._wait_s * 0.5**half_lives if half_lives < _FORGOTTEN else 0.0

    def fresh(self, now_s: float) -> bool:
        """Tell whether more than half of it is believed still."""
        return now_s - self._at_s < self._half_life_s
