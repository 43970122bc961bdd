"""Which tokens are given back while agents stand still, and how many of those whose calls have begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity_node.protocol.flow import begin
from comity_node.protocol.token import Token
from comity_node.runtime.passing.giving import Giving
from comity_node.runtime.passing.limits import PassingLimits
from comity_node.runtime.passing.ports import Pact
from comity_node.runtime.passing.visit import Call, Visit
from kit.passing import A, trip

#: Two calls may be given up at once.
TWO = PassingLimits(window=20, call_hedge_share=0.1)
BOTH = {"s0": 4.0, "s1": 4.0}


def here(what: str, **step: Any) -> list[Visit]:
    """Visits that came at 0 s, the oldest first: 0 and 1 wait for a skill, a and b are such whose call has begun."""
    pact, found = Pact(bytes(32), trip(("others", "others"), **step)), []
    for number, letter in enumerate(what):
        token = Token(number.to_bytes(16, "big"), bytes(32), A, "peer", 1, 1, b"", b"", (), 10**9)
        visit = Visit(token, pact, begin(pact.flow, 0), {}, 0.0)
        visit.step = pact.flow.steps["s1" if letter in "1b" else "s0"]
        if letter in "ab":
            Call([visit], 0.0, 100.0)
        found.append(visit)
    return found


def given_back(giving: Giving, visits: Sequence[Visit], now_s: float, overdue: dict[str, float] = BOTH) -> list[int]:
    """The places of those that go, which are dead then."""
    places = []
    for visit in giving.chosen([each for each in visits if not each.dead], overdue, now_s, lambda each: True):
        visit.kill()
        places.append(visits.index(visit))
    return places


@pytest.mark.invariant("R3")
@pytest.mark.parametrize(
    ("what", "go"),
    [
        ("0101", [3, 2, 1, 0]),  # all that wait
        ("aaaa", [3, 2]),  # two of those that have begun, the newest
        ("ab", []),  # the oldest of each skill shows when answers come again
        ("abab", [3, 2]),
        ("baaa0", [4, 3, 2]),
    ],
)
def test_what_waits_goes_and_of_what_has_begun_a_few_but_the_oldest_of_each_skill(what: str, go: list[int]) -> None:
    assert given_back(Giving(TWO), here(what), 100.0) == go


def test_what_has_come_just_now_or_needs_another_skill_or_that_nobody_else_can_do_stays() -> None:
    visits = here("0101")
    assert given_back(Giving(TWO), visits, 3.9) == []
    assert given_back(Giving(TWO), visits, 4.0, {"s1": 4.0}) == [3, 1]
    assert given_back(Giving(TWO), here("0101"), 100.0, {}) == []
    assert not list(Giving(TWO).chosen(here("0a1b"), BOTH, 100.0, lambda each: False))


@pytest.mark.parametrize("step", [{"hedge": False}, {"lease": "box", "release": "box"}])
def test_of_steps_with_effects_only_what_waits_goes(step: dict[str, Any]) -> None:
    assert given_back(Giving(TWO), here("aa0aa1", **step), 100.0) == [5, 2]


@pytest.mark.invariant("R4")
@given(st.lists(st.floats(0.0, 50.0), max_size=20), st.sampled_from([0.0, 0.01, 0.1]))
def test_no_more_calls_are_given_up_than_a_share_in_the_time_after_which_they_are_overdue(
    pauses: list[float], share: float
) -> None:
    giving, visits, now_s, gone = Giving(PassingLimits(window=20, call_hedge_share=share)), here("a" * 200), 1000.0, 0
    began_s = now_s
    for pause_s in pauses:
        now_s += pause_s
        gone += len(given_back(giving, visits, now_s))
        assert gone <= (max(1.0, 20 * share) + 20 * share * (now_s - began_s) / 4.0 if share else 0) + 1e-6
