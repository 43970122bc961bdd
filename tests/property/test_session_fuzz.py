"""The fuzz target of sessions holds on its seeds and on what hypothesis makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.fuzz_session import SEEDS, one


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_seeds(seed: bytes) -> None:
    one(seed)


@pytest.mark.invariant("S7")
@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    one(data)


@pytest.mark.invariant("S7")
@settings(max_examples=300)
@given(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3), st.integers(0, 120), st.binary(max_size=3))
def test_seeds_joined_cut_and_changed(seeds: list[bytes], place: int, change: bytes) -> None:
    joined = seeds[0] + b"".join(seed[1:] for seed in seeds[1:])
    one(joined[:place] + change + joined[place + len(change) :])
