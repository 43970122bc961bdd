"""The fuzz target of flows, cursors and states: seeds, nearly those, and any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.fuzz_flow import SEEDS, one
from kit.nearly import nearly

pytestmark = pytest.mark.invariant("S7")

JSON = st.text(st.sampled_from('{}[],:"stepviu012.-en '), max_size=80).map(str.encode)


@given(st.binary(max_size=300) | JSON)
def test_any_bytes_are_a_flow_a_cursor_a_state_or_refused(data: bytes) -> None:
    one(data)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_good_flows_and_cursors_with_bytes_changed_fit_or_are_refused(number: int) -> None:
    seed = SEEDS[number]
    for data in (seed, *nearly(seed, 60)):
        one(data)
