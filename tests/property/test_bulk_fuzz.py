"""The fuzz target for bulk transfers, for a moment: from inputs that are nearly right."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fuzz.fuzz_bulk import SEEDS, one


def test_inputs_that_are_nearly_right() -> None:
    rng = random.Random(12)
    for seed in SEEDS:
        one(seed)
        for _ in range(250):
            spoilt = bytearray(seed)
            for _ in range(rng.randrange(1, 4)):
                spoilt[rng.randrange(len(spoilt))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            one(bytes((rng.randrange(256),)) + bytes(spoilt[1:][: rng.randrange(len(spoilt)) or None]))


@given(st.binary(max_size=300))
def test_any_input(data: bytes) -> None:
    one(data)
