"""Reliability: what counts are worth over time, and that a coalition cannot talk an honest organization down (S9)."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.certificate import QuorumRule
from comity.evidence import Proven
from comity_node.runtime.certify import learn
from comity_node.storage import evidence
from comity_node.storage.reliability import (
    FLOOR,
    HALF_LIFE_MS,
    MAX_WEIGHT,
    ReliabilityRow,
    add_agreement,
    add_disagreement,
    list_reliability,
    mean,
)
from comity_node.storage.schema import prepare
from comity_node.storage.tables.reviewing import DECAY

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = memory()
    yield made
    made.close()


def memory() -> sqlite3.Connection:
    made = sqlite3.connect(":memory:", isolation_level=None)
    prepare(made, "reliability")
    return made


def of(connection: sqlite3.Connection, name: str, now_ms: int, role: str = "reviewer") -> ReliabilityRow:
    rows = {(row.organization, row.role): row for row in list_reliability(connection, now_ms)}
    return rows.get((name, role), ReliabilityRow(name, role, 0.0, 0.0))


# -- the model ---------------------------------------------------------------------------------------------------------


def test_outcomes_lose_half_their_weight_in_a_half_life(connection: sqlite3.Connection) -> None:
    for _ in range(8):
        add_agreement(connection, "a.example", "reviewer", now_ms=0)
    assert of(connection, "a.example", 0).reliability == mean(8, 0) == 0.9
    assert of(connection, "a.example", HALF_LIFE_MS).agreed == pytest.approx(4)
    add_disagreement(connection, "a.example", "reviewer", 4, now_ms=HALF_LIFE_MS)
    row = of(connection, "a.example", HALF_LIFE_MS)
    assert row.agreed == pytest.approx(4)
    assert row.disagreed == pytest.approx(4)
    assert row.reliability == pytest.approx(0.5)
    assert of(connection, "a.example", 40 * HALF_LIFE_MS).reliability == pytest.approx(0.5), "what is old is nothing"


def test_a_clock_that_goes_back_adds_nothing(connection: sqlite3.Connection) -> None:
    add_agreement(connection, "a.example", "reviewer", 8, now_ms=HALF_LIFE_MS)
    assert of(connection, "a.example", 0).agreed == 8
    add_agreement(connection, "a.example", "reviewer", 1, now_ms=0)
    assert of(connection, "a.example", HALF_LIFE_MS).agreed == pytest.approx(9)
    assert of(connection, "a.example", 2 * HALF_LIFE_MS).agreed == pytest.approx(4.5)


def test_nobody_lives_on_its_past(connection: sqlite3.Connection) -> None:
    """After any number of good outcomes, so many bad ones bring an organization below one half."""
    for _ in range(20):
        add_agreement(connection, "a.example", "reviewer", 1000, now_ms=0)
    assert of(connection, "a.example", 0).agreed == pytest.approx(200)
    turned = 0
    while of(connection, "a.example", 0).reliability >= 0.5:
        add_disagreement(connection, "a.example", "reviewer", now_ms=0)
        turned += 1
    assert turned <= 200


def test_what_was_counted_before_version_5_is_capped_and_fades_too(connection: sqlite3.Connection) -> None:
    """Counts of then have no time and no cap: their owner would live on them for ever."""
    connection.execute("INSERT INTO reliability VALUES ('old.example', 'reviewer', 90000.0, 10000.0)")
    connection.execute("DROP TABLE reliability_times")
    connection.executescript(DECAY)
    now_ms = connection.execute("SELECT max(at_ms) FROM reliability_times").fetchone()[0]
    row = of(connection, "old.example", now_ms)
    assert row.agreed + row.disagreed == pytest.approx(MAX_WEIGHT)
    assert row.agreed == pytest.approx(0.9 * MAX_WEIGHT)
    later = of(connection, "old.example", now_ms + 20 * HALF_LIFE_MS)
    assert later.agreed + later.disagreed < 1


def test_roles_are_apart_and_names_are_who_counts(connection: sqlite3.Connection) -> None:
    """New keys under an old name inherit, since nothing here knows keys; a new name begins with nothing."""
    add_disagreement(connection, "a.example", "reviewer", 50, now_ms=0)
    assert of(connection, "a.example", 0).reliability < 0.02
    assert of(connection, "a.example", 0, "generator").reliability == 0.5
    assert of(connection, "new.example", 0).reliability == 0.5


@pytest.mark.invariant("S9")
def test_who_is_proven_to_have_lied_is_at_the_floor_while_it_is_suspended(connection: sqlite3.Connection) -> None:
    add_agreement(connection, "a.example", "reviewer", 100, now_ms=0)
    evidence.add_evidence(connection, Proven("a.example", "votes", b"s" * 32, 0, b"proof"), 0, DAY_MS)
    for role in ("reviewer", "generator"):
        assert of(connection, "a.example", 1, role).reliability == FLOOR
    assert of(connection, "a.example", DAY_MS + 1).reliability > 0.9
    assert of(connection, "b.example", 1).reliability == 0.5


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0, 500), st.integers(0, 3 * HALF_LIFE_MS)), max_size=40
    )
)  # fmt: skip
def test_counts_are_bounded_whatever_comes(events: list[tuple[bool, float, int]]) -> None:
    connection, now_ms = memory(), 0
    for good, weight, after_ms in events:
        now_ms += after_ms
        add = add_agreement if good else add_disagreement
        add(connection, "a.example", "reviewer", weight, now_ms=now_ms)
        row = of(connection, "a.example", now_ms)
        assert 0 <= row.agreed
        assert 0 <= row.disagreed
        assert row.agreed + row.disagreed <= 200 * (1 + 1e-9)
        assert 0 < row.reliability < 1
    connection.close()


# -- the bound ---------------------------------------------------------------------------------------------------------


class Target:
    """An honest reviewer, and what the bound says about it after each record."""

    def __init__(self) -> None:
        self.safe = 0.0
        self.lost = 0.0
        self.at_ms = 0

    def note(self, safe: bool, lost: bool, now_ms: int) -> None:
        fade = math.exp2(-(now_ms - self.at_ms) / HALF_LIFE_MS)
        self.safe, self.lost, self.at_ms = self.safe * fade + safe, self.lost * fade + lost, now_ms

    @property
    def bound(self) -> float:
        """B = min(1/2, U / (U + E))."""
        return min(0.5, self.safe / (self.safe + self.lost)) if self.safe + self.lost else 0.5


def one_record(rule: QuorumRule, says: list[bool], target: int, adaptive: bool, random: Random) -> bool | None:
    """Return the verdict that liars who know everything, and are after `target`, bring about; None: no certificate.

    `says` are the votes of the honest. They lend their votes to the side that is against the target if that makes a
    certificate; if only the side that is with it can have one, they keep silent.
    """
    against = not says[target]
    votes = {side: sum(one is side for one in says) for side in (True, False)}
    if adaptive:
        votes[against] += rule.faulty
    else:
        for _ in range(rule.faulty):
            votes[random.random() < 0.5] += 1
    for side in (against, not against):
        if votes[side] >= rule.quorum:
            return side
    return None


def campaign(
    eligible: int, error: float, *, rounds: int, seed: int, adaptive: bool = True, every_ms: int = HOUR_MS,
) -> tuple[float, float, float]:  # fmt: skip
    """Many records with one target; returns the least and the last reliability, and how far above the bound it stayed.

    Honest reviewers err independently with probability `error`. All else is the code of the node.
    """
    rule, random, connection = QuorumRule.of(eligible), Random(seed), memory()
    honest, target, slack, least = eligible - rule.faulty, Target(), 1.0, 1.0
    last = 0.5
    for number in range(rounds):
        now_ms = number * every_ms
        good = random.random() < 0.5
        says = [good != (random.random() < error) for _ in range(honest)]
        verdict = one_record(rule, says, 0, adaptive, random)
        if verdict is not None:
            learn(connection, [("target.example", says[0] == verdict)], now_ms)
        with_it = sum(one is says[0] for one in says)
        target.note(with_it >= rule.quorum, honest - with_it >= rule.quorum - rule.faulty, now_ms)
        last = of(connection, "target.example", now_ms).reliability
        slack, least = min(slack, last - target.bound), min(least, last)
    connection.close()
    return least, last, slack


def expected_bound(eligible: int, error: float) -> float:
    """U / (U + E) for honest reviewers that err independently: what docs/reliability.md derives."""
    rule = QuorumRule.of(eligible)
    honest, needed = eligible - rule.faulty, rule.quorum - rule.faulty

    def right(count: int, at_least: int, chance: float) -> float:
        return sum(
            math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(at_least, count + 1)
        )  # fmt: skip

    others, right_rate = honest - 1, 1 - error
    safe = right_rate * right(others, rule.quorum - 1, right_rate) + error * right(others, rule.quorum - 1, error)
    lost = error * right(others, needed, right_rate) + right_rate * right(others, needed, error)
    return safe / (safe + lost)


@pytest.mark.invariant("S9")
@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from((4, 7, 10)), st.floats(0, 0.5), st.integers(0, 2**20), st.booleans(),
    st.sampled_from((0, HOUR_MS, DAY_MS)),
)  # fmt: skip
def test_no_adaptive_coalition_gets_an_honest_reviewer_below_the_bound(
    eligible: int, error: float, seed: int, adaptive: bool, every_ms: int
) -> None:
    _, _, slack = campaign(eligible, error, rounds=80, seed=seed, adaptive=adaptive, every_ms=every_ms)
    assert slack >= -1e-9


@pytest.mark.invariant("S9")
@pytest.mark.parametrize("eligible", [4, 7, 10])
def test_over_thousands_of_records_an_honest_reviewer_stays_where_the_bound_says(eligible: int) -> None:
    """Five in a hundred of its votes are wrong; the liars know each honest vote before they give theirs."""
    _, last, slack = campaign(eligible, 0.05, rounds=1500, seed=eligible)
    bound = expected_bound(eligible, 0.05)
    assert slack >= -1e-9
    assert bound > 0.9
    assert last > bound - 0.1, "the cap leaves 200 outcomes: one in a hundred is below by more"


@pytest.mark.invariant("S9")
def test_the_bound_is_tight(connection: sqlite3.Connection) -> None:
    """The liars do reach it: with their help a contested record counts against who is in the honest minority."""
    rule = QuorumRule.of(4)
    says = [True, False, False]
    assert one_record(rule, says, 0, True, Random(1)) is False
    assert one_record(rule, [True, True, False], 0, True, Random(1)) is None, "and withhold what would count for it"
    learn(connection, [("target.example", False)], 0)
    assert of(connection, "target.example", 0).reliability < 0.5


@pytest.mark.invariant("S9")
def test_more_liars_than_f_break_it() -> None:
    """The tests above are ones that can fail: with two liars of four everybody honest can be outvoted... by liars."""
    rule = QuorumRule.of(4)
    crowd = QuorumRule(rule.eligible, 3, rule.quorum)
    assert one_record(crowd, [True, True], 0, True, Random(1)) is False


@pytest.mark.invariant("S9")
def test_an_author_is_judged_by_the_own_validator_alone(connection: sqlite3.Connection) -> None:
    """What others vote or say is not asked: no coalition comes into it."""
    for number in range(400):
        wrong = number % 20 == 0
        add = add_disagreement if wrong else add_agreement
        add(connection, "author.example", "generator", now_ms=number * HOUR_MS)
        learn(connection, [("liar.example", False)], number * HOUR_MS)
    assert of(connection, "author.example", 400 * HOUR_MS, "generator").reliability > 0.9
    assert of(connection, "author.example", 400 * HOUR_MS).reliability == 0.5


def test_figures_of_campaigns() -> None:
    """The table of docs/reliability.md: `pytest tests/property/test_reliability_bound.py -k figures -s`."""
    lines = ["n f error U/(U+E) last-adaptive last-random"]
    for eligible in (4, 7, 10):
        for error in (0.02, 0.05, 0.1):
            bound = expected_bound(eligible, error)
            last = [sum(campaign(eligible, error, rounds=300, seed=s, adaptive=a)[1] for s in range(2)) / 2
                    for a in (True, False)]  # fmt: skip
            lines.append(
                f"{eligible} {(eligible - 1) // 3} {error} {bound:.3f} {last[0]:.3f} {last[1]:.3f}"
            )  # fmt: skip
            assert last[0] > bound - 0.15
    print("\n" + "\n".join(lines))
