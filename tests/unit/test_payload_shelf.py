"""What is kept of texts: whose it is, for how long, and how much."""

from __future__ import annotations

from typing import Any

import pytest

from comity_node.runtime.passing.payloads import PayloadLimits, Shelf

PACT, OTHER_PACT = b"p" * 32, b"q" * 32
LATER = 10**12


def a_shelf(**limits: Any) -> Shelf:
    made = PayloadLimits(**limits)
    return Shelf(made, made.all_bytes)


def put(shelf: Shelf, party: str, number: int, *, size: int = 1000, now_ms: int = 0, until_ms: int = LATER) -> None:
    text = bytes([number % 256]) * size
    shelf.keep(party, PACT, number.to_bytes(32), text, size=size, until_ms=until_ms, now_ms=now_ms)


def has(shelf: Shelf, party: str, number: int, now_ms: int = 1) -> bool:
    return shelf.get(party, PACT, number.to_bytes(32), now_ms) is not None


@pytest.mark.invariant("S1")
def test_a_text_is_there_for_who_brought_it_under_the_agreement_that_it_came_under() -> None:
    shelf = a_shelf()
    shelf.keep("a.example", PACT, b"d" * 32, b"text", size=4, until_ms=LATER, now_ms=0)
    assert shelf.get("a.example", PACT, b"d" * 32, 1) == b"text"
    assert shelf.get("b.example", PACT, b"d" * 32, 1) is None
    assert shelf.get("a.example", OTHER_PACT, b"d" * 32, 1) is None
    assert shelf.get("a.example", PACT, b"e" * 32, 1) is None


@pytest.mark.invariant("S7")
def test_of_one_organization_so_many_bytes_are_kept() -> None:
    shelf = a_shelf(per_peer_bytes=5 * 1256)
    for number in range(5):
        put(shelf, "a.example", number)
    put(shelf, "b.example", 9)
    assert has(shelf, "a.example", 0), "and it was of use now"
    put(shelf, "a.example", 5)
    assert [has(shelf, "a.example", number) for number in range(6)] == [True, False, True, True, True, True]
    assert has(shelf, "b.example", 9)
    put(shelf, "a.example", 6, size=5 * 1256)
    assert not has(shelf, "a.example", 6)
    assert len(shelf) == 6, "what is too much by itself drives nothing out"


@pytest.mark.invariant("S7")
def test_of_all_organizations_so_many_bytes_are_kept_and_who_has_most_loses() -> None:
    shelf = a_shelf(all_bytes=10 * 1256)
    for number in range(3):
        put(shelf, "a.example", number)
    for number in range(100):
        put(shelf, "b.example", number)
    assert all(has(shelf, "a.example", number) for number in range(3))
    assert [number for number in range(100) if has(shelf, "b.example", number)] == list(range(93, 100))
    assert shelf.size == 10 * 1256


def test_what_is_kept_is_kept_for_so_long() -> None:
    shelf = a_shelf()
    put(shelf, "a.example", 1)
    put(shelf, "a.example", 2, until_ms=500)
    put(shelf, "a.example", 3, until_ms=0)
    assert has(shelf, "a.example", 1, 3_599_999)
    assert not has(shelf, "a.example", 1, 3_600_000)
    assert not has(shelf, "a.example", 2, 500)
    assert not has(shelf, "a.example", 3, 0)
    assert (len(shelf), shelf.size) == (0, 0)
    put(shelf, "a.example", 1)
    put(shelf, "a.example", 1, now_ms=1_000_000, until_ms=1_000_001)
    assert has(shelf, "a.example", 1, 2_000_000), "a task that is over sooner takes nothing from another one"
    put(shelf, "b.example", 2, until_ms=500)
    shelf.forget_old(501)
    assert len(shelf) == 1
    shelf.forget_old(3_600_000)
    assert (len(shelf), shelf.size) == (0, 0), "let go of, also if nobody asks"


def test_what_is_forgotten_takes_no_room() -> None:
    shelf = a_shelf()
    for number in range(3):
        put(shelf, "a.example", number)
    shelf.forget("a.example", PACT, (1).to_bytes(32))
    shelf.forget("a.example", PACT, (7).to_bytes(32))
    shelf.forget("b.example", PACT, (0).to_bytes(32))
    assert len(shelf) == 2
    assert shelf.size == 2 * 1256
    shelf.forget_all("a.example")
    shelf.forget_all("b.example")
    assert (len(shelf), shelf.size) == (0, 0)
