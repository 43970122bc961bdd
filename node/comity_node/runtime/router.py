"""Whom to ask: one router for reviews and for the steps of flows.

Of those who may be asked (whom policy and agreement let, which the caller says), two are drawn at random and the
cheaper one is asked (power of two choices; Mitzenmacher, 2001): nobody runs to the one that looks best. What somebody
costs is the time that its answer is expected to take, times what is under way there, and its price, over its
reliability. Bounded by a window a peer, a breaker, and a small budget that goes to whom least is known of
(`protocol.routing`). Awards of the market (`protocol.market`) are the odds with which the two are drawn.

Who is far more often wrong than right is asked only when nobody else has room (and within that budget): no speed and no
price makes up for it.

The router learns from what its own node has seen. Beside that it hears from peers how long their work would take now
(`protocol.load`): this is added to what they cost, for some seconds. So somebody whose answers go elsewhere, and of
whom nothing is seen for that reason, is not sent more while its back-end stands still.

No I/O; chance and time are passed in: `now_s` is always of the same monotonic clock, so that nobody is shut out, or
believed for too long, because a wall clock was set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from comity_node.protocol.load import Hint
from comity_node.protocol.routing import Estimate, Tally, Times, Track, Tuning, jain

#: The skill of those who review records.
REVIEW: Final = "review"
#: Peers and skills, each pair one, that are remembered; beyond them one that nothing is under way at is forgotten.
_MAX_TRACKS: Final = 4096
#: Skills whose awards and usual times are remembered, and workflows that are counted.
_MAX_SKILLS: Final = 256
_MAX_WORKFLOWS: Final = 1024
_LEAST_SHARE: Final = 1e-6
#: Answers from which on it is known what is late.
_LEAST_TIMES: Final = 8


class Candidate(NamedTuple):
    """Somebody who may be asked.

    Attributes:
        organization: who.
        reachable: whether a node of it is linked.
        reliability: the mean of its Beta posterior, 0 to 1.
        price: of one row, in the unit in which cards, bids and awards name theirs.
    """

    organization: str
    reachable: bool = True
    reliability: float = 0.5
    price: float = 0.0


@dataclass(frozen=True, slots=True)
class PeerView:
    """What the router knows of one peer and one skill.

    Attributes:
        skill: which.
        organization: who.
        expected_s: seconds in which it is expected to answer.
        known: how many answers' worth that rests on.
        outstanding: what is under way.
        window: what may be.
        circuit: closed, open or half-open.
        answers: good ones so far.
        failures: what was not answered in time, so far.
        busy: how often it said that it was.
        price: that was last named for it.
        award: its share by the market; 0 without one.
    """

    skill: str
    organization: str
    expected_s: float
    known: float
    outstanding: int
    window: int
    circuit: str
    answers: int
    failures: int
    busy: int
    price: float
    award: float


@dataclass(frozen=True, slots=True)
class RouterView:
    """What the router knows, and how fair it has been lately: Jain's index over organizations and over workflows."""

    peers: tuple[PeerView, ...]
    organizations: float
    workflows: float


class Router:
    """Remembers how peers answered, and says whom to ask next."""

    def __init__(self, random: Random, tuning: Tuning | None = None) -> None:
        """Draw with `random`, so that a test can repeat the draw."""
        self._random = random
        self._tuning = tuning or Tuning()
        self._tracks: dict[tuple[str, str], Track] = {}
        self._usual: dict[str, tuple[Estimate, Times]] = {}
        self._awards: dict[str, tuple[Mapping[str, float], float]] = {}
        self._hints: dict[str, Hint] = {}
        self._credit = 0.0
        self._organizations = Tally(_MAX_TRACKS)
        self._workflows = Tally(_MAX_WORKFLOWS)

    # -- whom to ask -----------------------------------------------------------------------------------------------

    def pick(self, skill: str, candidates: Sequence[Candidate], now_s: float) -> str | None:
        """Return whom to ask now; None if nobody of them can take more: ask again when something has ended.

        Args:
            skill: that is needed.
            candidates: who may be asked, each once.
            now_s: the time, in seconds of a monotonic clock.
        """
        usable: list[Candidate] = []
        for each in candidates:
            if not each.reachable:
                continue
            track = self._seen(skill, each.organization, now_s)
            if track is None:
                usable.append(each)
            elif track.open_to_all(now_s) and track.window.free:
                if not track.breaker.closed:
                    return each.organization  # a probe that is due; its back-off says how often that can be
                usable.append(each)
        if not usable:
            return None
        explored = self._explore(skill, usable, now_s)
        trusted = [each for each in usable if each.reliability >= self._tuning.distrusted]
        picked = (explored or self._better_of_two(skill, trusted or usable, now_s)).organization
        if (hint := self._hints.get(picked)) is not None:
            hint.sent += 1
        return picked

    def draw(self, candidates: Sequence[Candidate], count: int, now_s: float, skill: str = REVIEW) -> list[str]:
        """Return at most `count` organizations, in the order in which to ask them.

        Those that answer and have room come first, then those of them that are distrusted, then those that have no
        room, then those whose circuit is open, then the unreachable.
        """
        tiers: dict[int, list[Candidate]] = {}
        for each in sorted(candidates, key=lambda one: one.organization):
            tiers.setdefault(self._tier(skill, each, now_s), []).append(each)
        order: list[Candidate] = []
        explored = self._explore(skill, [*tiers.get(0, ()), *tiers.get(1, ())], now_s)
        if explored is not None:
            order.append(explored)
        for number in sorted(tiers):
            left = [each for each in tiers[number] if each is not explored]
            while left and len(order) < count:
                order.append(best := self._better_of_two(skill, left, now_s))
                left.remove(best)
        return [each.organization for each in order[:count]]

    def late_after_s(self, skill: str) -> float | None:
        """Return after how many seconds an answer is late: 19 of 20 came sooner. None while that is not known."""
        usual = self._usual.get(skill)
        return usual[1].quantile(0.95, _LEAST_TIMES) if usual else None

    def weights(self, skill: str, shares: Mapping[str, float], until_s: float) -> None:
        """Draw by these shares (they sum to 1) until then; an empty mapping ends that at once."""
        self._awards.pop(skill, None)
        if shares:
            if len(self._awards) >= _MAX_SKILLS:
                del self._awards[next(iter(self._awards))]
            self._awards[skill] = (dict(shares), until_s)

    # -- what has become of it -------------------------------------------------------------------------------------

    def asked(self, skill: str, organization: str, now_s: float, workflow: str = "") -> None:
        """Note that somebody was asked."""
        self._track(skill, organization).begin(now_s)
        self._organizations.add(organization, now_s)
        if workflow:
            self._workflows.add(workflow, now_s)

    def answered(self, skill: str, organization: str, now_s: float, after_s: float, good: bool = True) -> None:
        """Note an answer after so many seconds; without `good` it was none, or came too late."""
        track, after_s = self._track(skill, organization), max(0.0, after_s)
        if not good:
            track.failed(now_s, after_s, self._random)
            return
        track.answered(now_s, after_s)
        estimate, times = self._usual_of(skill)
        estimate.add(after_s, now_s)
        times.add(after_s)

    def busy(self, skill: str, organization: str, now_s: float, retry_after_s: float) -> None:
        """Note that somebody has too much to do, and wants to be asked again in so many seconds."""
        self._track(skill, organization).turned_away(now_s, retry_after_s)

    def quiet(self, organization: str, now_s: float, retry_after_s: float) -> None:
        """Note that somebody takes nothing at all for so many seconds, whatever the skill; no request ends by that."""
        for (_, one), track in self._tracks.items():
            if one == organization:
                track.hold_back(now_s, retry_after_s)

    def hinted(self, organization: str, now_s: float, wait_s: float) -> None:
        """Note that somebody says that work it gets now would take it so many seconds."""
        if organization not in self._hints and len(self._hints) >= _MAX_TRACKS:
            del self._hints[next(iter(self._hints))]
        self._hints[organization] = Hint(wait_s, now_s, self._tuning.hint_half_life_s)

    def released(self, skill: str, organization: str, now_s: float, after_s: float) -> None:
        """Note that somebody will not answer, and not for want of time: its policy said no, or it was called off."""
        self._track(skill, organization).released(now_s, after_s)

    def overtaken(self, skill: str, organization: str, now_s: float, after_s: float) -> None:
        """Note that somebody else has answered first; who was late by then has failed."""
        late_s = self.late_after_s(skill)
        if late_s is not None and after_s > late_s:
            self.answered(skill, organization, now_s, after_s, good=False)
        else:
            self.released(skill, organization, now_s, after_s)

    def answers(self, skill: str) -> dict[str, int]:
        """Return how many good answers each organization has given so far."""
        return {organization: track.answers for (one, organization), track in self._tracks.items() if one == skill}

    def snapshot(self, now_s: float) -> RouterView:
        """Return what is known: for `comity top`, and for tests."""
        peers = tuple(
            PeerView(
                skill=skill,
                organization=organization,
                expected_s=track.expected_s(now_s, self._usual_s(skill, now_s)),
                known=track.estimate.weight(now_s),
                outstanding=track.outstanding,
                window=track.window.size,
                circuit=track.breaker.state(now_s).value,
                answers=track.answers,
                failures=track.failures,
                busy=track.busy,
                price=track.price,
                award=self._shares(skill, now_s).get(organization, 0.0),
            )
            for (skill, organization), track in sorted(self._tracks.items())
        )
        return RouterView(
            peers,
            jain(list(self._organizations.shares(now_s).values())),
            jain(list(self._workflows.shares(now_s).values())),
        )

    # -- weighing --------------------------------------------------------------------------------------------------

    def _tier(self, skill: str, candidate: Candidate, now_s: float) -> int:
        if not candidate.reachable:
            return 4
        track = self._seen(skill, candidate.organization, now_s)
        if track is not None and not track.open_to_all(now_s):
            return 3
        if track is not None and not track.window.free:
            return 2
        return int(candidate.reliability < self._tuning.distrusted)

    def _seen(self, skill: str, organization: str, now_s: float) -> Track | None:
        track = self._tracks.get((skill, organization))
        if track is not None:
            track.tidy(now_s)
        return track

    def _explore(self, skill: str, usable: Sequence[Candidate], now_s: float) -> Candidate | None:
        """Spend the budget, if there is any, on whom least is known of and nothing is under way at.

        Who has said just now how loaded it is need not be asked in order to know that.
        """
        self._credit = min(1.0, self._credit + self._tuning.explore)
        if self._credit < 1.0 or len(usable) < 2:
            return None
        found, least = None, (math.inf, 0.0)
        for each in usable:
            track, hint = self._tracks.get((skill, each.organization)), self._hints.get(each.organization)
            if (track is not None and track.outstanding) or (hint is not None and hint.fresh(now_s)):
                continue
            known = (track.estimate.weight(now_s) if track is not None else 0.0, self._random.random())
            if known < least:
                found, least = each, known
        if found is not None:
            self._credit = 0.0
        return found

    def _better_of_two(self, skill: str, usable: Sequence[Candidate], now_s: float) -> Candidate:
        if len(usable) == 1:
            return usable[0]
        shares = self._shares(skill, now_s)
        odds = [max(shares.get(each.organization, 0.0), _LEAST_SHARE) for each in usable] if shares else None
        first = self._one_of(usable, odds)
        rest = [*usable[:first], *usable[first + 1 :]]
        second = self._one_of(rest, [*odds[:first], *odds[first + 1 :]] if odds else None)
        one, other = usable[first], rest[second]
        scale, usual_s = len(usable), self._usual_s(skill, now_s)
        costs = [
            self._cost(
                skill, each, now_s, usual_s,
                max(shares.get(each.organization, 0.0), 0.01) * scale if shares else None,
            )
            for each in (one, other)
        ]  # fmt: skip
        return other if costs[1] < costs[0] else one

    def _one_of(self, among: Sequence[Candidate], odds: Sequence[float] | None) -> int:
        if odds is None:
            return int(self._random.random() * len(among))
        return self._random.choices(range(len(among)), odds)[0]

    def _cost(
        self, skill: str, candidate: Candidate, now_s: float, usual_s: float, strength: float | None
    ) -> float:  # fmt: skip
        """Return what it costs to ask somebody, in seconds.

        `strength` is what was awarded to it beside an even share, None without awards: its price is in it already.
        """
        track = self._tracks.get((skill, candidate.organization))
        waiting, expected_s = 1.0, usual_s
        if track is not None:
            track.price = candidate.price
            waiting += track.outstanding / (strength or 1.0)
            expected_s = track.expected_s(now_s, usual_s)
        reliability = max(candidate.reliability, self._tuning.least_reliability)
        price_s = candidate.price * self._tuning.price_s if strength is None else 0.0
        hint_s = 0.0
        if (hint := self._hints.get(candidate.organization)) is not None:
            hint_s = hint.at(now_s) * (1.0 + hint.sent)
        return (expected_s * waiting + hint_s + price_s) / reliability

    def _shares(self, skill: str, now_s: float) -> Mapping[str, float]:
        shares, until_s = self._awards.get(skill, ({}, 0.0))
        return shares if now_s < until_s else {}

    def _usual_s(self, skill: str, now_s: float) -> float:
        usual = self._usual.get(skill)
        return usual[0].mean(now_s, self._tuning.first_s) if usual else self._tuning.first_s

    def _usual_of(self, skill: str) -> tuple[Estimate, Times]:
        if skill not in self._usual:
            if len(self._usual) >= _MAX_SKILLS:
                del self._usual[next(iter(self._usual))]
            self._usual[skill] = (Estimate(32.0, 4 * self._tuning.half_life_s), Times())
        return self._usual[skill]

    def _track(self, skill: str, organization: str) -> Track:
        key = (skill, organization)
        track = self._tracks.get(key)
        if track is None:
            if len(self._tracks) >= _MAX_TRACKS:
                idle = (each for each, one in self._tracks.items() if not one.outstanding)
                del self._tracks[next(idle, next(iter(self._tracks)))]
            track = self._tracks[key] = Track(self._tuning)
        return track
