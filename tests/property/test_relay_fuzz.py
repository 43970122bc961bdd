"""The fuzz target of relays, identify and DCUtR holds on its seeds and on what hypothesis makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.fuzz_relay import SEEDS, one


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_seeds(seed: bytes) -> None:
    one(seed)


@pytest.mark.invariant("S7")
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    one(data)


@pytest.mark.invariant("S7")
@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.integers(1, 120), st.binary(max_size=3))
def test_seeds_cut_and_changed(seed: bytes, place: int, change: bytes) -> None:
    one(seed[:place] + change + seed[place + len(change) :])
