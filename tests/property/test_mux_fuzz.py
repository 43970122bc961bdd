"""The fuzz target for Yamux runs, holds over its seeds, and over random programs."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz import fuzz_yamux

STEP = st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)).map(bytes)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("number", range(len(fuzz_yamux.SEEDS)))
def test_the_target_holds_over_its_seeds_and_every_cut_of_them(number: int) -> None:
    seed = fuzz_yamux.SEEDS[number]
    for end in range(0, len(seed) + 1, max(1, len(seed) // 50)):
        fuzz_yamux.one(seed[:end])
    fuzz_yamux.one(seed)


@pytest.mark.invariant("S7")
@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=1), st.lists(STEP, max_size=60))
@example(b"\x00", [bytes([129, 17, 0, 0]), bytes([130, 16, 255, 255])])
def test_the_target_holds_over_random_programs(side: bytes, steps: list[bytes]) -> None:
    fuzz_yamux.one(side + b"".join(steps))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_the_target_holds_over_random_bytes(data: bytes) -> None:
    fuzz_yamux.one(data)
