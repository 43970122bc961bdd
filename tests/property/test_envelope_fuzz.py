"""The fuzz target of envelopes, over its seeds and what hypothesis makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.fuzz_envelope import SEEDS, one


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_the_seeds_pass(number: int) -> None:
    one(SEEDS[number])


@pytest.mark.invariant("S2")
@given(st.one_of(st.binary(max_size=500), st.sampled_from(SEEDS)), st.data())
def test_what_is_nearly_an_envelope_is_refused_by_name(data: bytes, more: st.DataObject) -> None:
    at = more.draw(st.integers(0, len(data)))
    to = more.draw(st.integers(at, min(len(data), at + 70)))
    one(data[:at] + more.draw(st.binary(max_size=70)) + data[to:])


@given(st.integers(0, len(SEEDS) - 1), st.binary(max_size=110))
def test_what_follows_the_first_byte_is_a_change_of_a_seed(seed: int, change: bytes) -> None:
    one(bytes([seed]) + change)
