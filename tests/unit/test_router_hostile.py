"""The router among those who lie, fall silent or never answer, and when the clocks of others jump."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import trio
import trio.testing

from comity_node.protocol.market import Bid, MarketRules, Standing
from comity_node.protocol.routing import Tuning
from comity_node.protocol.token import Outcome
from comity_node.runtime.passing.world import MemoryWorld
from comity_node.runtime.router import Candidate, PeerView, Router
from comity_node.runtime.router_flows import FlowRouting
from kit.market_place import Place
from kit.passing import ALONE, Colleagues, play, rows, trip

FOUR = ("a.example", "b.example", "c.example", "d.example")
A, B = FOUR[:2]


def view(router: Router, now_s: float, name: str = A) -> PeerView:
    return next(each for each in router.snapshot(now_s).peers if each.organization == name)


def routers_of() -> tuple[dict[str, Router], Callable[[str, Random], FlowRouting]]:
    """The routers of a world of flows, by organization, and what makes them."""
    routers: dict[str, Router] = {}

    def routing(organization: str, random: Random) -> FlowRouting:
        router = routers.setdefault(organization, Router(random))
        return FlowRouting(router, me=organization, clock_s=trio.current_time, reachable=lambda name: True)

    return routers, routing


@pytest.mark.invariant("R3")
def test_a_window_full_of_what_is_lost_opens_again() -> None:
    router = Router(Random(1), Tuning(window_first=2, forgotten_s=100))
    for _ in range(2):
        assert router.pick("work", [Candidate(A)], 0.0) == A
        router.asked("work", A, 0.0)
    assert router.pick("work", [Candidate(A)], 99.0) is None
    assert router.pick("work", [Candidate(A)], 101.0) == A
    assert view(router, 101.0).outstanding == 0


@pytest.mark.invariant("R3")
def test_a_probe_that_is_lost_is_followed_by_another() -> None:
    router = Router(Random(1), Tuning(failures=1, backoff_s=1.0, forgotten_s=100))
    router.asked("work", A, 0.0)
    router.answered("work", A, 1.0, 1.0, good=False)
    assert router.pick("work", [Candidate(A)], 3.0) == A
    router.asked("work", A, 3.0)
    assert router.pick("work", [Candidate(A)], 50.0) is None, "one probe at a time"
    assert router.pick("work", [Candidate(A)], 104.0) == A


@pytest.mark.invariant("R3")
def test_more_than_is_remembered_one_by_one_is_forgotten_with_the_rest() -> None:
    router = Router(Random(1), Tuning(forgotten_s=100))
    for _ in range(3_000):
        router.asked("work", A, 0.0)
    assert router.pick("work", [Candidate(A)], 101.0) == A
    assert view(router, 101.0).outstanding == 0


def test_lost_reviews_leave_the_room_they_took_to_others() -> None:
    router = Router(Random(1), Tuning(window_first=1, explore=0.0, forgotten_s=100))
    router.asked("review", A, 0.0)
    both = [Candidate(A, reliability=0.9), Candidate(B, reliability=0.3)]
    assert {router.draw(both, 1, 1.0)[0] for _ in range(50)} == {B}
    assert A in {router.draw(both, 1, 101.0)[0] for _ in range(50)}


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("award", [False, True])
def test_who_answers_garbage_at_once_does_not_draw_the_work_to_itself(award: bool) -> None:
    """A thousand times faster than the others, and nearly always wrong: a quotient alone would prefer it."""
    place = Place(FOUR)
    place.takes_s[A], place.reliability[A] = 0.0002, 0.05
    if award:
        place.router.weights("work", {A: 0.9, B: 0.1}, place.now_s + 3_600)
    place.run(30)
    assert place.share(A) < 0.08, "the explore budget"
    assert place.asked[A] > 0, "it can show that it is better now"


@pytest.mark.invariant("S9")
def test_reviews_go_to_a_fast_liar_last() -> None:
    router = Router(Random(1), Tuning(explore=0.0))
    known = [Candidate(A, reliability=0.2), *(Candidate(name, reliability=0.6) for name in FOUR[1:])]
    for number, name in enumerate(FOUR):
        for _ in range(20):
            router.asked("review", name, 0.0)
            router.answered("review", name, 1.0, 0.001 if number == 0 else 1.0)
    for _ in range(50):
        assert router.draw(known, 4, 1.0)[-1] == A
    assert router.pick("review", known[:1], 1.0) == A, "better than nobody"


def test_an_answer_from_before_the_clock_was_set_back_teaches_no_negative_time() -> None:
    router = Router(Random(1))
    for _ in range(20):
        router.asked("work", A, 0.0)
        router.answered("work", A, 0.0, -3_600.0)
    assert router.late_after_s("work") == 0.0
    assert view(router, 0.0).expected_s >= 0
    router.asked("work", B, 0.0)
    assert view(router, 0.0, B).expected_s >= 0, "nor is it what is usual"


@pytest.mark.parametrize("wish_s", [1e12, math.inf, math.nan, -5.0])
def test_nobody_is_left_alone_for_longer_than_a_minute_at_its_own_wish(wish_s: float) -> None:
    router = Router(Random(1))
    router.asked("work", A, 0.0)
    router.busy("work", A, 0.0, wish_s)
    assert router.pick("work", [Candidate(A)], 61.0) == A


@pytest.mark.invariant("R3")
def test_who_is_overtaken_when_late_has_failed_and_when_not_has_done_no_wrong() -> None:
    router = Router(Random(1))
    for _ in range(10):
        router.asked("work", B, 0.0)
        router.answered("work", B, 0.5, 0.5)
    routing = FlowRouting(router, me=FOUR[2], clock_s=lambda: 10.0, reachable=lambda name: True)
    for _ in range(5):
        routing.asked(A, "work")
        routing.overtaken(A, "work", 0.1)
    known = view(router, 10.0)
    assert (known.failures, known.outstanding, known.circuit, known.answers) == (0, 0, "closed", 0)
    for _ in range(3):
        routing.asked(A, "work")
        routing.overtaken(A, "work", 5.0)
    known = view(router, 10.0)
    assert (known.failures, known.outstanding, known.circuit, known.answers) == (3, 0, "open", 0)


def test_what_tokens_are_under_which_workflow_is_told_to_the_router() -> None:
    router = Router(Random(1))
    routing = FlowRouting(router, me=FOUR[2], clock_s=lambda: 10.0, reachable=lambda name: True)
    for number in range(20):
        routing.asked(A, "work", "w1" if number else "w2")
    assert router.snapshot(10.0).workflows < 0.65


def test_prices_and_reliability_reach_the_picks_of_flows() -> None:
    prices = {A: 50.0, B: 0.0}
    router = Router(Random(1), Tuning(explore=0.0))
    routing = FlowRouting(
        router, me=FOUR[2], clock_s=lambda: 1.0, reachable=lambda name: True, price=lambda name, skill: prices[name]
    )
    assert {routing.pick("work", [A, B], 0.0) for _ in range(30)} == {B}
    prices[A] = 0.0
    routing.reliability = {A: 0.9, B: 0.1}
    assert {routing.pick("work", [A, B], 0.0) for _ in range(30)} == {A}


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
def test_an_award_is_renewed_though_the_clock_has_jumped(jump_ms: int) -> None:
    rules, standing, now_ms = MarketRules(), Standing(), 10_000_000
    standing.bid(A, Bid(10.0, 1.0, 0.1, now_ms + rules.lasts_ms))
    assert standing.decide(5.0, 9.0, now_ms) is not None
    now_ms += jump_ms
    standing.bid(A, Bid(10.0, 1.0, 0.1, now_ms + rules.lasts_ms))
    renewed = standing.decide(5.0, 9.0, now_ms)
    assert renewed is not None
    assert renewed.until_ms == now_ms + rules.lasts_ms


@pytest.mark.invariant("R3")
def test_a_holder_that_takes_tokens_and_never_returns_them_is_not_paid_with_good_answers() -> None:
    """Each of its tokens is hedged, and another's comes first: that is no answer of the one that fell silent."""
    mute, quick = Colleagues("s0", delay_s=lambda: 0.5), Colleagues("s0", delay_s=lambda: 0.5)
    routers, routing = routers_of()
    limits = replace(ALONE, hedge_factor=3.0, hedge_least_s=2.0, hedge_share=0.5, window=200)
    agents = {"a.example": Colleagues(), "b.example": mute, "c.example": quick}
    world = MemoryWorld(agents, trip(("others",)), limits=limits, routing=routing)

    async def scene(world: MemoryWorld) -> None:
        home = world.sinks["a.example"]
        await world.open("a.example", rows(100))
        await home.wait(100)
        router = routers["a.example"]
        before = view(router, trio.current_time(), "b.example").answers
        assert before > 10
        mute.delay_s = lambda: 1e5
        for start in range(100, 400, 50):
            await world.open("a.example", rows(50, first=start))
            await home.wait(start + 50)
        known = view(router, trio.current_time(), "b.example")
        assert known.answers == before
        assert known.failures >= 3

    play(world, scene)


def test_a_holder_that_fails_every_task_at_once_is_not_paid_with_good_answers() -> None:
    routers, routing = routers_of()
    agents = {"a.example": Colleagues(), "b.example": Colleagues("s0")}
    world = MemoryWorld(agents, trip(("others",)), limits=ALONE, routing=routing)

    async def scene(world: MemoryWorld) -> None:
        world.network.cut.add(frozenset(("a.example", "b.example")))
        await world.open("a.example", rows(1))
        await trio.testing.wait_all_tasks_blocked()
        (task,) = world.engine("a.example")._keeper._tasks.values()
        failed = replace(task.token, sequence=task.token.sequence + 1, outcome=Outcome.FAILED, reason="no")
        (verdict,) = await world.engine("a.example").take("b.example", [failed])
        assert verdict.lets_go
        known = view(routers["a.example"], trio.current_time(), "b.example")
        assert (known.answers, known.failures, known.outstanding) == (0, 1, 0)

    play(world, scene)
