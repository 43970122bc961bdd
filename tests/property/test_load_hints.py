"""What a holder says of its load, and what is left of it: bounded, monotone, and forgotten."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import LinkClosed
from comity.v1 import flow_pb2 as pb
from comity_node.protocol.load import MAX_WAIT_S, Hint, Loads
from comity_node.runtime.passing.ports import Answer, Verdicts
from comity_node.runtime.passing.receipts import read_receipts

SECONDS = st.floats(0.0, 1e6)
WHATEVER = st.floats(allow_nan=True, allow_infinity=True)
#: What happens at agents: a call begins, is answered, or is given up; and how long after the last event, of two skills.
EVENTS = st.lists(
    st.tuples(st.sampled_from(["began", "answered", "left"]), st.sampled_from(["a", "b"]), st.floats(0.0, 100.0)),
    max_size=60,
)


def load_of(events: list[tuple[str, str, float]]) -> tuple[Loads, float]:
    """A load after events, and the time by then."""
    load, now_s = Loads(), 0.0
    begun: dict[str, list[float]] = {"a": [], "b": []}
    for what, skill, after_s in events:
        now_s += after_s
        if what == "began":
            load.began(skill, now_s)
            begun[skill].append(now_s)
        elif begun[skill]:
            since_s = begun[skill].pop(0)
            load.answered(skill, now_s, now_s - since_s) if what == "answered" else load.left(skill, now_s)
    return load, now_s


@pytest.mark.invariant("R3")
@given(EVENTS, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**4), st.floats(0.0, 1e4))
def test_a_hint_is_bounded_and_grows_with_what_waits_and_with_silence(
    events: list[tuple[str, str, float]], fewer: int, more: int, window: int, silent_s: float
) -> None:
    load, now_s = load_of(events)
    fewer, more = sorted((fewer, more))
    least = load.wait_s(now_s, fewer, window)
    assert 0.0 <= least <= load.wait_s(now_s, more, window) <= MAX_WAIT_S
    assert least <= load.wait_s(now_s + silent_s, fewer, window) <= MAX_WAIT_S
    assert load.wait_s(now_s + silent_s, fewer, window + 1) <= load.wait_s(now_s + silent_s, fewer, window)


@given(EVENTS, st.floats(0.001, 10.0))
def test_an_answer_ends_the_silence(events: list[tuple[str, str, float]], took_s: float) -> None:
    load, now_s = load_of(events)
    load.began("a", now_s)
    load.answered("a", now_s + took_s, took_s)
    assert "a" not in load.overdue(now_s + took_s)


@pytest.mark.invariant("R3")
@given(WHATEVER, SECONDS, SECONDS, SECONDS, st.floats(0.01, 100.0))
def test_a_hint_never_counts_less_than_nothing_and_is_believed_less_and_less(
    said_s: float, heard_s: float, one_s: float, other_s: float, half_life_s: float
) -> None:
    hint = Hint(said_s, heard_s, half_life_s)
    sooner_s, later_s = heard_s + min(one_s, other_s), heard_s + max(one_s, other_s)
    assert MAX_WAIT_S >= hint.at(heard_s) >= hint.at(sooner_s) >= hint.at(later_s) >= 0.0
    half_life_s = max(half_life_s, hint.at(heard_s) / 8)
    assert math.isclose(hint.at(heard_s + half_life_s), hint.at(heard_s) / 2, rel_tol=1e-3, abs_tol=1e-9)
    assert hint.at(heard_s + 8.1 * half_life_s) == 0.0
    assert hint.at(heard_s - one_s) == hint.at(heard_s), "a clock that goes back makes it no bigger"


@given(st.binary(max_size=200), st.integers(0, 4))
def test_receipts_of_any_bytes_are_read_or_asked_for_again(body: bytes, count: int) -> None:
    try:
        verdicts = read_receipts("b.example", body, count).verdicts
    except LinkClosed:
        return
    assert isinstance(verdicts, Verdicts)
    assert len(verdicts) == count
    assert verdicts.wait_s is None or 0.0 <= verdicts.wait_s < 2**32


@given(st.none() | st.integers(0, 2**32 - 1))
def test_a_hint_stands_beside_the_receipts(wait_ms: int | None) -> None:
    receipt = pb.TokenReceipt(outcome=pb.TokenReceipt.OUTCOME_TAKEN)
    body = pb.TokenReceipts(receipts=[receipt], wait_ms=wait_ms).SerializeToString()
    verdicts = read_receipts("b.example", body, 1).verdicts
    assert [each.answer for each in verdicts] == [Answer.TAKEN]
    assert verdicts.wait_s == (None if wait_ms is None else wait_ms / 1000)
