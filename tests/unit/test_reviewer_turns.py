"""Slots are shared among homes; what fails or waits holds none."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from comity_node.runtime.turns import Turns
from comity_node.storage.journal import HeldOffer

BIG, SMALL, THIRD = "big.example", "small.example", "third.example"


def held(home: str, numbers: Iterable[int]) -> list[HeldOffer]:
    return [HeldOffer(f"{home}{number}".encode().ljust(32), home, bytes(32)) for number in numbers]


@pytest.mark.invariant("S7")
def test_a_home_has_at_most_its_share_of_the_slots() -> None:
    turns = Turns(4, 2)
    big = held(BIG, range(100))
    assert turns.choose(big, 0.0) == big[:2]
    assert turns.choose(big, 0.0) == []
    small = held(SMALL, range(5))
    assert turns.choose([*big, *small], 0.0) == small[:2]
    assert turns.choose([*big, *small, *held(THIRD, [0])], 0.0) == [], "all slots are in use"
    turns.end(big[1].digest)
    assert turns.choose([big[0], *big[2:]], 0.0) == [big[2]]


@pytest.mark.invariant("S7")
def test_homes_take_turns_however_many_batches_they_have() -> None:
    turns = Turns(1, 1)
    waiting = {BIG: held(BIG, range(20)), SMALL: held(SMALL, range(3)), THIRD: held(THIRD, range(3))}
    seen = []
    for _ in range(9):
        (one,) = turns.choose([each for offers in waiting.values() for each in offers], 0.0)
        seen.append(one.home)
        waiting[one.home].remove(one)
        turns.end(one.digest)
    assert seen == [BIG, SMALL, THIRD] * 3


@pytest.mark.invariant("S7")
def test_what_fails_again_and_again_costs_others_only_its_turn() -> None:
    turns = Turns(1, 1)
    bad, good = held(BIG, range(20)), held(SMALL, range(5))
    begun: list[HeldOffer] = []
    for step in range(10):
        (one,) = turns.choose([*bad, *good], float(step))
        begun.append(one)
        if one.home == BIG:
            turns.end(one.digest, step + 0.5)
        else:
            good.remove(one)
            turns.end(one.digest)
    assert not good
    assert sum(one.home == BIG for one in begun) == 5


def test_what_is_put_aside_comes_again_when_its_time_has_come() -> None:
    turns = Turns(2, 2)
    (offer,) = held(BIG, [0])
    assert turns.choose([offer], 0.0) == [offer]
    assert turns.next_at(0.0) == math.inf
    turns.end(offer.digest, 5.0)
    assert turns.choose([offer], 4.9) == []
    assert turns.next_at(4.9) == 5.0
    assert turns.choose([offer], 5.0) == [offer]
    turns.end(offer.digest, 6.0)
    turns.pause(8.0)
    assert turns.choose([offer], 7.0) == []
    assert turns.next_at(7.0) == 8.0
    assert turns.choose([offer], 8.0) == [offer]
