"""The router under a virtual clock: what happens to shares when peers slow down, return, join, die or cost more."""

from __future__ import annotations

from random import Random

import pytest

from comity_node.protocol.routing import Breaker, Circuit, Estimate, Tally, Times, Track, Tuning, jain
from comity_node.runtime.router import Candidate, PeerView, Router
from comity_node.runtime.router_flows import FlowRouting
from kit.market_place import Place

FOUR = ("a.example", "b.example", "c.example", "d.example")
A = FOUR[0]


def view(place: Place, name: str) -> PeerView:
    return next(each for each in place.router.snapshot(place.now_s).peers if each.organization == name)


def test_equals_get_equal_shares() -> None:
    place = Place(FOUR)
    place.run(30)
    assert all(place.share(name) == pytest.approx(0.25, abs=0.04) for name in FOUR)
    assert place.router.snapshot(place.now_s).organizations > 0.98


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("seed", range(3))
def test_who_becomes_ten_times_slower_loses_its_share_within_two_seconds(seed: int) -> None:
    place = Place(FOUR, seed=seed)
    place.run(20)
    place.takes_s[A] = 2.0
    place.run(2)
    assert place.share(A) < 0.15, "it takes one of its own answers to be seen"
    place.run(20)
    assert place.share(A) < 0.06, "the explore budget, and now and then a draw of two slow ones"


@pytest.mark.invariant("R3")
@pytest.mark.parametrize("seed", range(3))
def test_who_returns_regains_its_share_and_nobody_runs_to_it(seed: int) -> None:
    place = Place(FOUR, seed=seed)
    place.run(10)
    place.takes_s[A] = 2.0
    place.run(30)
    place.takes_s[A] = 0.2
    most, regained_s = 0, None
    for number in range(300):
        place.run(0.1)
        most = max(most, place.outstanding(A))
        if number % 10 == 9 and regained_s is None:
            recent = [name for at_s, name in place.times if at_s > place.now_s - 1]
            regained_s = number / 10 if recent.count(A) > 0.18 * len(recent) else None
    assert regained_s is not None
    assert regained_s <= 10
    assert most <= 4, "never more than a fair share and its double"
    place.run(10)
    assert place.share(A) == pytest.approx(0.25, abs=0.06)


def test_who_joins_is_tried_within_the_budget_and_then_has_its_share() -> None:
    place = Place(FOUR[1:])
    place.run(20)
    place.names.append(A)
    place.takes_s[A], place.slots[A] = 0.2, 8
    place.price[A], place.reliability[A] = 0.0, 0.8
    before = len(place.times)
    place.run(3)
    assert A in [name for _, name in place.times[before : before + 25]], "one of 20 picks is for the unknown"
    place.run(10)
    assert place.share(A) == pytest.approx(0.25, abs=0.06)


def test_who_joins_and_is_bad_costs_no_more_than_the_budget() -> None:
    place = Place(FOUR)
    place.takes_s[A] = 5.0
    place.run(40)
    assert place.share(A) < 0.06


@pytest.mark.invariant("R3")
def test_a_dead_one_gets_probes_only_and_returns_one_by_one() -> None:
    place = Place(FOUR)
    place.run(10)
    place.dead.add(A)
    place.run(5)
    assert view(place, A).circuit != "closed"
    place.run(120)
    probes = place.asked[A]
    assert 2 <= probes <= 12, "the back-off doubles up to a minute, with jitter"
    assert view(place, A).window == 1
    place.dead.clear()
    before = len(place.times)
    place.run(70)
    assert view(place, A).circuit == "closed"
    back = [at_s for at_s, name in place.times[before:] if name == A]
    assert sum(at_s < back[0] + 0.1 for at_s in back) == 1, "the probe alone, until it is answered"
    place.run(10)
    assert place.share(A) == pytest.approx(0.25, abs=0.06)


def test_all_dead_means_nobody_is_asked_and_work_goes_on_when_they_return() -> None:
    place = Place(FOUR[:2])
    place.dead.update(FOUR)
    place.run(30)
    assert sum(place.asked.values()) < 60
    place.dead.clear()
    place.run(70)
    assert place.share(A) > 0.3


def test_busy_answers_shrink_the_window_to_what_fits() -> None:
    place = Place(FOUR[:1], load=40)
    place.slots[A] = 5
    place.run(20)
    assert 2 <= view(place, A).window <= 8
    before = place.busy_answers
    place.run(20)
    assert place.busy_answers - before < 0.2 * place.asked[A]
    assert view(place, A).circuit == "closed", "who says that it is busy is not dead"


def test_the_dearer_and_the_less_reliable_get_less() -> None:
    place = Place(FOUR)
    place.price[A] = 1.0
    place.run(30)
    assert place.share(A) < 0.1
    place = Place(FOUR)
    place.reliability[A] = 0.1
    place.run(30)
    assert place.share(A) < 0.1


def test_awards_are_odds_and_end_in_time() -> None:
    place = Place(FOUR, load=4)
    place.router.weights("work", {FOUR[0]: 0.6, FOUR[1]: 0.3, FOUR[2]: 0.1}, place.now_s + 60)
    place.run(59)
    shares = [place.share(name) for name in FOUR]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(0.55, abs=0.12)
    assert shares[3] < 0.06, "who has no award has the explore budget"
    place.run(1)
    place.run(30)
    assert place.share(FOUR[3]) == pytest.approx(0.25, abs=0.06)


def test_the_unreachable_are_not_picked_and_a_full_window_means_nobody() -> None:
    router = Router(Random(1), Tuning(window_first=2))
    assert router.pick("work", [Candidate(A, False)], 0.0) is None
    assert router.pick("work", [], 0.0) is None
    for _ in range(2):
        assert router.pick("work", [Candidate(A)], 0.0) == A
        router.asked("work", A, 0.0)
    assert router.pick("work", [Candidate(A)], 0.0) is None
    assert router.pick("other", [Candidate(A)], 0.0) == A, "windows are a skill's"
    router.released("work", A, 0.5, 0.5)
    assert router.pick("work", [Candidate(A)], 0.5) == A


def test_what_nobody_speaks_of_again_is_not_under_way_for_ever() -> None:
    router = Router(Random(1), Tuning(window_first=4, forgotten_s=100))
    for _ in range(4):
        router.asked("work", A, 0.0)
    router.asked("work", A, 101.0)
    assert router.snapshot(101.0).peers[0].outstanding == 1


def test_what_is_under_way_for_long_counts_before_it_is_answered() -> None:
    router = Router(Random(1))
    for _ in range(8):
        router.asked("work", A, 0.0)
        router.answered("work", A, 0.1, 0.1)
    router.asked("work", A, 1.0)
    assert router.snapshot(1.0).peers[0].expected_s < 0.3
    assert router.snapshot(9.0).peers[0].expected_s == 8.0


def test_what_is_late_is_known_from_what_came() -> None:
    router = Router(Random(1))
    assert router.late_after_s("work") is None
    for number in range(100):
        router.asked("work", A, float(number))
        router.answered("work", A, float(number), number / 100)
    assert router.late_after_s("work") == pytest.approx(0.95)
    assert router.late_after_s("other") is None


def test_fairness_between_workflows_is_reported() -> None:
    router = Router(Random(1))
    for number in range(30):
        router.asked("work", A, 0.0, workflow="w1" if number else "w2")
    assert router.snapshot(0.0).workflows < 0.6
    for _ in range(28):
        router.asked("work", A, 0.0, workflow="w2")
    assert router.snapshot(0.0).workflows == pytest.approx(1.0)
    assert jain([]) == 1


def test_what_the_router_remembers_is_bounded() -> None:
    """4,096 pairs of skill and organization: beyond them one is forgotten that nothing is under way at."""
    router = Router(Random(1))
    router.asked("work", "first.example", 0.0)
    for number in range(5_000):
        router.asked("work", f"o{number}.example", 1.0)
        router.released("work", f"o{number}.example", 1.0, 0.0)
    peers = router.snapshot(1.0).peers
    assert len(peers) == 4_096
    assert "first.example" in {each.organization for each in peers}


def test_the_skills_and_workflows_that_the_router_remembers_are_bounded() -> None:
    router = Router(Random(1))
    for number in range(300):
        router.weights(f"s{number}", {A: 1.0}, 10.0)
        for _ in range(8):
            router.answered(f"s{number}", A, 0.0, 1.0)
    assert router.late_after_s("s0") is None
    assert router.late_after_s("s299") == 1.0
    views = {each.skill: each.award for each in router.snapshot(1.0).peers}
    assert sum(views.values()) == 256
    for number in range(2_000):
        router.asked("s", A, 0.0, workflow=f"w{number}")
    assert len(router._workflows.shares(0.0)) == 1_024


def test_a_peer_with_very_many_requests_costs_bounded_memory() -> None:
    router = Router(Random(1))
    for _ in range(3_000):
        router.asked("work", A, 0.0)
    assert router.snapshot(0.0).peers[0].outstanding == 3_000
    assert len(router._tracks["work", A]._begun) == 1_024


def test_an_estimate_fades_and_a_change_shows_in_a_few_answers() -> None:
    estimate = Estimate(memory=8, half_life_s=30)
    assert estimate.mean(0.0, usual=1.0) == 1.0
    for _ in range(20):
        estimate.add(0.1, 0.0)
    assert estimate.mean(0.0, usual=1.0) == pytest.approx(0.2)
    assert estimate.mean(600.0, usual=1.0) == pytest.approx(1.0, abs=0.01)
    for _ in range(5):
        estimate.add(1.0, 1.0)
    assert estimate.mean(1.0, usual=1.0) > 0.7


def test_a_breaker_waits_longer_each_time_with_jitter_and_closes_at_a_probe() -> None:
    random = Random(5)
    breaker = Breaker(Tuning(failures=2, backoff_s=1, longest_backoff_s=8))
    now_s, waits = 0.0, []
    breaker.failed(now_s, random)
    assert breaker.state(now_s) is Circuit.CLOSED
    breaker.failed(now_s, random)
    for _ in range(6):
        assert breaker.state(now_s) is Circuit.OPEN
        began_s = now_s
        while not breaker.allows(now_s):
            now_s += 0.01
        waits.append(now_s - began_s)
        breaker.began()
        assert (breaker.state(now_s), breaker.allows(now_s)) == (Circuit.HALF_OPEN, False)
        breaker.failed(now_s, random)
        breaker.failed(now_s, random)  # one that began long ago: nothing new
    for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert longest / 2 <= wait <= longest + 0.02
    while not breaker.allows(now_s):
        now_s += 0.01
    breaker.began()
    assert breaker.succeeded()
    assert breaker.state(now_s) is Circuit.CLOSED


def test_after_an_outage_a_wide_window_opens_again_from_one() -> None:
    track, random = Track(Tuning(failures=3, backoff_s=1.0)), Random(1)
    for _ in range(64):
        track.begin(0.0)
    for _ in range(64):
        track.answered(0.1, 0.1)
    assert track.window.size == 80, "16, and one more for each of a full window"
    for _ in range(3):
        track.begin(1.0)
    for _ in range(3):
        track.failed(2.0, 1.0, random)
    assert (track.window.size, track.breaker.state(2.0)) == (40, Circuit.OPEN), "lost together: halved once"
    track.begin(4.0)
    track.answered(4.1, 0.1)
    assert (track.window.size, track.breaker.state(4.1)) == (1, Circuit.CLOSED)


def test_tallies_fade_and_times_are_the_last_ones() -> None:
    tally = Tally(most=2, half_life_s=10)
    for name in ("a", "a", "b"):
        tally.add(name, 0.0)
    assert tally.shares(0.0) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    tally.add("b", 10.0)
    assert tally.shares(10.0)["b"] == pytest.approx(1.5 / 2.5)
    tally.add("c", 10.0)
    assert set(tally.shares(10.0)) == {"b", "c"}
    times = Times(most=4)
    for value in (9, 1, 2, 3, 4):
        times.add(value)
    assert times.quantile(0.95, 4) == 4
    assert times.quantile(0.95, 5) is None


def test_an_award_is_more_than_a_price_that_is_in_it() -> None:
    place = Place(FOUR[:2], load=2)
    place.price[A] = 5.0
    place.router.weights("work", {A: 0.5, FOUR[1]: 0.5}, place.now_s + 60)
    place.run(30)
    assert place.share(A) == pytest.approx(0.5, abs=0.1)


def test_the_engine_sees_the_same_router_by_names() -> None:
    router, now_s, up = Router(Random(1), Tuning(explore=0.0)), [100.0], {A, FOUR[1]}
    routing = FlowRouting(router, me=FOUR[2], clock_s=lambda: now_s[0], reachable=up.__contains__)
    assert routing.pick("work", [FOUR[3]], 7.0) is None, "nobody leads there"
    assert routing.pick("work", [FOUR[2]], 7.0) == FOUR[2], "to oneself there is always a way"
    for _ in range(4):
        routing.asked(A, "work")
        routing.answered(A, "work", 5.0, good=True)
        routing.asked(FOUR[1], "work")
        routing.answered(FOUR[1], "work", 0.1, good=True)
    assert {routing.pick("work", [A, FOUR[1], A], 7.0) for _ in range(20)} == {FOUR[1]}
    routing.busy(FOUR[1], 3.0)
    assert routing.pick("work", [A, FOUR[1]], 7.0) == A
    now_s[0] += 3.0
    assert routing.pick("work", [A, FOUR[1]], 7.0) == FOUR[1]
    up.clear()
    assert routing.pick("work", [A, FOUR[1]], 7.0) is None
    routing.reliability = {A: 0.0}
    up.update(FOUR)
    for _ in range(3):
        routing.asked(FOUR[1], "work")
        routing.answered(FOUR[1], "work", 1.0, good=False)
    assert routing.pick("work", [FOUR[1]], 7.0) is None, "its circuit is open"
