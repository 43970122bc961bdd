"""What peers say of their load: how it weighs in a pick, what a liar gets by it, and how it is forgotten."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from comity_node.protocol.load import Loads
from comity_node.protocol.routing import Tuning
from comity_node.runtime.router import Candidate, Router

A, B = "a.example", "b.example"
BOTH = [Candidate(A, True, 0.8), Candidate(B, True, 0.8)]


def picks(router: Router, now_s: float, candidates: Sequence[Candidate] = BOTH, count: int = 400) -> Counter[str]:
    """Who is picked how often, where nobody hears what became of it."""
    return Counter(name for _ in range(count) if (name := router.pick("work", candidates, now_s)) is not None)


def stuck(usual_s: float = 1.0, running: int = 2) -> Loads:
    """Agents that have answered all along; then, at 100 s, as many calls begin, and stay."""
    load = Loads()
    for number in range(20):
        load.began("work", number)
        load.answered("work", number + usual_s, usual_s)
    for _ in range(running):
        load.began("work", 100.0)
    return load


@pytest.mark.invariant("R3")
def test_agents_that_answer_say_how_long_they_take_and_those_that_stand_still_say_so() -> None:
    load = stuck()
    assert load.wait_s(101.0, 0, 64) == pytest.approx(1.0, abs=0.05)
    assert load.overdue(101.0) == {}
    assert load.wait_s(110.0, 0, 64) > 15.0, "eighteen answers are missing by then, four of which may be"
    assert load.overdue(110.0) == {"work": pytest.approx(4.0)}
    assert load.wait_s(1e6, 0, 64) == 60.0
    load.answered("work", 1e6, 1e6)
    assert load.overdue(1e6) == {}
    assert load.wait_s(1e6, 0, 64) < 2.0, "what stood still once says little of how long calls take"


@pytest.mark.invariant("R3")
def test_no_call_is_overdue_before_the_time_until_which_nobody_has_to_look() -> None:
    load = Loads()
    assert load.patience_s() == 0.0, "nothing is known yet"
    for number in range(20):
        load.began("slow", float(number))
        load.answered("slow", number + 1.0, 1.0)
        load.began("quick", float(number))
        load.answered("quick", number + 0.25, 0.25)
    assert load.patience_s() == pytest.approx(1.0), "four times what the quicker ones take"
    load.began("slow", 100.0)
    load.began("quick", 100.0)
    found = load.overdue(110.0)
    assert found.keys() == {"slow", "quick"}
    assert min(found.values()) == load.patience_s()


def test_one_straggler_among_calls_that_are_answered_is_nothing() -> None:
    load = stuck(running=1)
    for number in range(100, 150):
        load.began("work", float(number))
        load.answered("work", number + 1.0, 1.0)
        assert load.overdue(number + 1.0) == {}
        assert load.wait_s(number + 1.0, 0, 64) < 1.1


def test_calls_that_fail_or_are_called_off_are_no_sign_that_answers_come() -> None:
    load = stuck()
    load.left("work", 120.0)
    load.left("work", 120.0)
    assert load.wait_s(120.0, 0, 64) > 30.0
    assert load.overdue(120.0)


def test_agents_that_never_answered_say_nothing_until_answers_are_missing() -> None:
    load = Loads()
    load.began("work", 0.0)
    assert load.wait_s(3.0, 0, 64) == 0.0
    assert load.wait_s(30.0, 0, 64) > 20.0


@pytest.mark.invariant("R3")
def test_each_skill_is_late_by_what_is_usual_for_it() -> None:
    load = stuck()
    load.began("slow", 100.0)
    load.answered("slow", 130.0, 30.0)
    load.began("slow", 130.0)
    assert load.overdue(160.0) == {"work": pytest.approx(4.0)}, "an answer of another skill does not hide it"
    assert load.wait_s(160.0, 0, 64) < 10.0, "nor is the whole node late, as long as something is answered"
    assert set(load.overdue(1000.0)) == {"work", "slow"}
    assert load.wait_s(1000.0, 0, 64) == 60.0


def test_calls_of_so_many_skills_are_counted_and_of_those_under_way_first() -> None:
    load = stuck()
    for number in range(5_000):
        load.began(f"s{number}", 200.0)
        load.answered(f"s{number}", 200.1, 0.1)
    assert len(load._of) == 256
    assert "work" in load.overdue(300.0)


def heard(**wait_s: float) -> Callable[[Router], None]:
    """Have a router hear at 100 s what some say."""

    def hear(router: Router) -> None:
        for name, claim_s in wait_s.items():
            router.hinted(f"{name}.example", 100.0, claim_s)

    return hear


def first_picks(hear: Callable[[Router], None], now_s: float, tuning: Tuning | None = None) -> Counter[str]:
    """Whom 400 routers pick first that have heard the same."""
    counts: Counter[str] = Counter()
    for seed in range(400):
        router = Router(Random(seed), tuning)
        hear(router)
        counts += picks(router, now_s, count=1)
    return counts


@pytest.mark.invariant("R3")
def test_who_says_that_it_stands_still_is_passed_over_until_that_is_forgotten() -> None:
    assert first_picks(heard(a=20.0, b=0.1), 100.1) == {B: 400}
    assert first_picks(heard(a=20.0, b=0.1), 119.0) == {B: 400}
    assert 150 < first_picks(heard(a=20.0, b=0.1), 120.1)[A] < 250, "after eight times an eighth of it"


@pytest.mark.invariant("R3")
def test_the_budget_for_exploring_does_not_go_to_who_has_just_said_that_it_stands_still() -> None:
    def explored(now_s: float) -> int:
        router = Router(Random(1), Tuning(explore=1.0))
        heard(a=8.0, b=0.1)(router)
        router.pick("work", BOTH, now_s)
        return picks(router, now_s, count=20)[A]

    assert explored(100.5) == 0
    assert explored(102.0) > 0, "later it may be asked again, to hear how it is"


def test_who_is_loaded_for_a_moment_gets_its_share_again_within_two_seconds() -> None:
    def hear(router: Router) -> None:
        heard(a=0.5, b=0.2)(router)
        router.hinted(B, 102.0, 0.2)

    assert first_picks(heard(a=0.5, b=0.2), 100.0) == {B: 400}
    assert first_picks(hear, 102.0) == {A: 400}


def test_what_is_sent_before_a_word_comes_back_is_spread() -> None:
    router = Router(Random(1))
    heard(a=1.0, b=1.1)(router)
    assert 8 <= picks(router, 100.0, count=20)[A] <= 12


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("claim_s", [0.0, -5.0, math.nan, -math.inf])
def test_who_says_that_it_is_idle_gains_nothing_over_its_record(claim_s: float) -> None:
    def after(hint: Callable[[Router], Any]) -> list[str | None]:
        router = Router(Random(3), Tuning(explore=0.0))
        for _ in range(20):
            for name, took_s in ((A, 5.0), (B, 0.5)):
                router.asked("work", name, 100.0 - took_s)
                router.answered("work", name, 100.0, took_s)
        hint(router)
        return [router.pick("work", BOTH, 100.0) for _ in range(100)]

    assert after(lambda router: router.hinted(A, 100.0, claim_s)) == after(lambda router: None)


@pytest.mark.parametrize("claim_s", [1e300, math.inf])
def test_who_says_too_much_is_asked_less_and_for_a_minute_at_most(claim_s: float) -> None:
    assert first_picks(heard(a=claim_s), 100.1) == {B: 400}
    assert 150 < first_picks(heard(a=claim_s), 160.1)[A] < 250
    router = Router(Random(4))
    heard(a=claim_s)(router)
    assert picks(router, 100.1, [Candidate(A)]) == {A: 400}, "where nobody else is, it is asked all the same"


def test_hints_of_so_many_are_remembered() -> None:
    router = Router(Random(5))
    for number in range(5_000):
        router.hinted(f"o{number}.example", float(number), 1.0)
    assert len(router._hints) == 4_096
    assert "o0.example" not in router._hints
