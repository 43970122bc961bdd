"""One content, one run of bytes; and nothing else unpacks."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from comity.digest import canonical_json
from comity.errors import EnvelopeMalformed
from comity.flower import packing

ARRAYS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: "\ud800" > name or name > "\udfff"),
    hnp.arrays(
        st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)


def packed(header: Any, data: bytes = b"", *, raw: bytes | None = None) -> bytes:
    encoded = canonical_json(header) if raw is None else raw
    return b"CMP1" + len(encoded).to_bytes(4, "big") + encoded + data


@given(ARRAYS)
def test_what_is_packed_is_unpacked(arrays: dict[str, npt.NDArray[Any]]) -> None:
    found = packing.unpack(packing.pack(arrays))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_the_digest_knows_contents_not_layout() -> None:
    array = np.arange(6.0).reshape(2, 3)
    one = packing.digest(packing.pack({"b": array, "a": np.zeros(2)}))
    two = packing.digest(packing.pack({"a": np.zeros(2), "b": np.asfortranarray(array.astype(">f8"))}))
    assert one == two
    assert one != packing.digest(packing.pack({"b": array.T, "a": np.zeros(2)}))
    assert one != packing.digest(packing.pack({"b": array.astype("f4"), "a": np.zeros(2)}))


@pytest.mark.invariant("S6")
@pytest.mark.parametrize("array", [np.array([{}]), np.array(["text"]), np.array(["2020-01-01"], dtype="M8[D]")])
def test_only_numbers_are_packed(array: npt.NDArray[Any]) -> None:
    with pytest.raises(EnvelopeMalformed, match="only numbers"):
        packing.pack({"a": array})


@pytest.mark.invariant("S6")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"CMP1",
        b"PK\x03\x04" + bytes(20),
        packed([["a", "|O", [1]]], bytes(8)),
        packed([["a", "<f8", [2]]], bytes(8)),
        packed([["a", "<f8", [1]]], bytes(9)),
        packed([["a", "<f8", [-1]]], bytes(8)),
        packed([["a", "<f8", [True]]], bytes(8)),
        packed([["a", "<f8", [1] * 9]], bytes(8)),
        packed([["a", "<f8", 1]], bytes(8)),
        packed([["b", "|u1", [1]], ["a", "|u1", [1]]], bytes(2)),
        packed([["a", "|u1", [1]], ["a", "|u1", [1]]], bytes(2)),
        packed({"a": 1}),
        packed(None, raw=b'[["a","|u1",[1]] ]', data=bytes(1)),
        packed(None, raw=b'[["a","|u1",[1.0]]]', data=bytes(1)),
        packed(None, raw=b"[" * 5000),
        packed(None, raw=b"\xff"),
        b"CMP1\xff\xff\xff\xff",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(EnvelopeMalformed):
        packing.unpack(data)


@pytest.mark.invariant("S7")
def test_a_header_that_asks_for_memory_gets_none() -> None:
    bomb = packed([[f"a{n}", "<f8", [2**28, 2**28]] for n in range(10, 99)])
    tracemalloc.start()
    with pytest.raises(EnvelopeMalformed):
        packing.unpack(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@given(st.binary(max_size=200))
def test_garbage_never_gets_further(data: bytes) -> None:
    for candidate in (data, b"CMP1" + data, packed(None, raw=data)):
        with pytest.raises(EnvelopeMalformed):
            packing.unpack(candidate)
