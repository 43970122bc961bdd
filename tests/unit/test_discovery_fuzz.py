"""The fuzz targets of the provider table and of meeting points, over their seeds and what hypothesis makes of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzz_kad, fuzz_rendezvous


@pytest.mark.invariant("S7")
@given(st.binary(max_size=300))
def test_any_bytes_break_no_provider_table(data: bytes) -> None:
    fuzz_kad.one(data)


@pytest.mark.invariant("S7")
@given(st.binary(max_size=300))
def test_any_bytes_break_no_meeting_point(data: bytes) -> None:
    fuzz_rendezvous.one(data)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("seed", fuzz_kad.SEEDS)
def test_good_messages_of_the_provider_table_with_bytes_changed_break_nothing(seed: bytes) -> None:
    fuzz_kad.one(seed)
    for changed in nearly(seed):
        fuzz_kad.one(changed)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("seed", fuzz_rendezvous.SEEDS)
def test_good_messages_to_a_meeting_point_with_bytes_changed_break_nothing(seed: bytes) -> None:
    fuzz_rendezvous.one(seed)
    for changed in nearly(seed):
        fuzz_rendezvous.one(changed)


def nearly(seed: bytes) -> list[bytes]:
    """The seed with a few bytes changed, in many ways that are the same each time."""
    chance = random.Random(seed)
    found = []
    for _ in range(100):
        data = bytearray(seed)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        found.append(bytes(data))
    return found
