from __future__ import annotations

from collections import Counter
from random import Random

from comity_node.runtime.router import REVIEW, Candidate, Router


def first_choices(router: Router, candidates: list[Candidate], draws: int = 2000) -> Counter[str]:
    return Counter(router.draw(candidates, 1, 100.0)[0] for _ in range(draws))


def test_the_unreachable_come_last_whatever_their_reliability() -> None:
    router = Router(Random(1))
    candidates = [Candidate("a.example", False, 1.0), Candidate("b.example", True, 0.01)]
    assert router.draw(candidates, 2, 100.0) == ["b.example", "a.example"]


def test_reliable_ones_are_preferred_and_nobody_is_starved() -> None:
    router = Router(Random(2))
    candidates = [Candidate("good.example", True, 0.9), Candidate("bad.example", True, 0.1)]
    counts = first_choices(router, candidates)
    assert counts["good.example"] > 4 * counts["bad.example"]
    assert counts["bad.example"] > 0


def test_slow_and_busy_ones_are_asked_less() -> None:
    router = Router(Random(3))
    candidates = [Candidate("slow.example", True, 0.8), Candidate("fast.example", True, 0.8)]
    for _ in range(20):
        router.asked(REVIEW, "slow.example", 95.0)
        router.answered(REVIEW, "slow.example", 100.0, 5.0)
        router.asked(REVIEW, "fast.example", 99.5)
        router.answered(REVIEW, "fast.example", 100.0, 0.5)
    counts = first_choices(router, candidates)
    assert counts["fast.example"] > 4 * counts["slow.example"]
    for _ in range(50):
        router.asked(REVIEW, "fast.example", 100.0)
    assert first_choices(router, candidates)["slow.example"] > 1000


def test_a_draw_has_no_repetition_and_no_more_than_asked() -> None:
    router = Router(Random(4))
    candidates = [Candidate(f"o{n}.example", True, 0.5) for n in range(7)]
    drawn = router.draw(candidates, 4, 100.0)
    assert len(drawn) == len(set(drawn)) == 4
    assert len(router.draw(candidates, 100, 100.0)) == 7
