"""What is put together again is what there was, and nothing else fits together."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from comity.errors import UnexpectedMessage
from comity_node.protocol.token import decode_state, encode_state
from comity_node.protocol.token_parts import Part, cut, splice, whole_size

TEXTS = st.text(max_size=40) | st.text(alphabet='"\\\n/a{}[],:', max_size=40)
VALUES: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.integers(-1000, 1000) | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)
)
STATES = st.dictionaries(TEXTS, VALUES)
MOST = 1 << 18


@given(STATES, st.integers(0, 20))
def test_a_state_in_pieces_is_the_same_once_they_are_in(state: dict[str, Any], over: int) -> None:
    data = encode_state(state)
    rest, parts, texts = cut(data, over)
    assert whole_size(rest, parts, over=over, most=MOST) == len(data)
    whole = splice(rest, parts, texts)
    assert whole == data
    assert decode_state(whole) == state
    assert all(part.size > over and hashlib.sha256(texts[part.digest]).digest() == part.digest for part in parts)


@given(st.dictionaries(TEXTS, TEXTS.map(lambda text: text * 3), min_size=1), st.integers(1, 10))
def test_each_text_that_is_long_is_left_out_and_no_other(state: dict[str, Any], over: int) -> None:
    lengths = [len(encode_state({"": text})) - 7 for pair in state.items() for text in pair]
    assert sorted(part.size for part in cut(encode_state(state), over).parts) == sorted(
        length for length in lengths if length > over and len(encode_state(state)) > over
    )


@given(st.binary(max_size=200), st.integers(0, 10))
@example(b'"' * 199, 0)
@example(b'"\\' * 100, 0)
def test_bytes_that_are_no_state_are_the_same_too(data: bytes, over: int) -> None:
    rest, parts, texts = cut(data, over)
    assert splice(rest, parts, texts) == data


PARTS = st.builds(
    Part, st.integers(0, 60), st.sampled_from([b"a" * 32, b"b" * 32, b"short", b""]), st.integers(0, 2**32 - 1)
)


@given(st.lists(PARTS, max_size=4), st.sampled_from([b'{"a":"","b":""}', b'""""', b"", b'{"a":1}']))
@example([Part(6, b"a" * 32, 30), Part(6, b"a" * 32, 30)], b'{"a":"","b":""}')
@example([Part(12, b"a" * 32, 30), Part(6, b"a" * 32, 30)], b'{"a":"","b":""}')
@example([Part(2**32 - 1, b"a" * 32, 30)], b'{"a":"","b":""}')
def test_what_a_peer_declares_is_refused_or_fits_exactly(parts: list[Part], rest: bytes) -> None:
    with suppress(UnexpectedMessage):
        size = whole_size(rest, parts, over=20, most=200)
        assert size <= 200
        assert all(part.size > 20 and len(part.digest) == 32 for part in parts)
        ends = [0, *(part.offset + part.size for part in parts)]
        assert all(part.offset > end for part, end in zip(parts, ends, strict=False)), "none lies over another one"
        texts = {part.digest: b"x" * part.size for part in parts}
        if all(len(texts[part.digest]) == part.size for part in parts):
            whole = splice(rest, parts, texts)
            assert len(whole) == size
            for part in parts:
                assert whole[part.offset - 1 : part.offset + part.size + 1] == b'"' + b"x" * part.size + b'"'


REST = b'{"a":"","b":""}'
DIGEST = b"d" * 32


@pytest.mark.parametrize(
    "parts",
    [
        [Part(0, DIGEST, 30)],
        [Part(5, DIGEST, 30)],
        [Part(7, DIGEST, 30)],
        [Part(15, DIGEST, 30)],
        [Part(6, DIGEST, 20)],
        [Part(6, DIGEST[1:], 30)],
        [Part(6, DIGEST, 30), Part(6, DIGEST, 30)],
        [Part(6, DIGEST, 30), Part(20, DIGEST, 30)],
        [Part(6, DIGEST, 30), Part(36, DIGEST, 30)],
        [Part(43, DIGEST, 30), Part(6, DIGEST, 30)],
        [Part(6, DIGEST, 186)],
        [Part(6, DIGEST, 100), Part(113, DIGEST, 100)],
    ],
)
def test_parts_at_places_that_are_none_are_refused(parts: list[Part]) -> None:
    good = [Part(6, DIGEST, 30), Part(43, DIGEST, 30)]
    assert whole_size(REST, good, over=20, most=200) == len(REST) + 60
    with pytest.raises(UnexpectedMessage):
        whole_size(REST, parts, over=20, most=200)


def test_a_text_that_is_not_there_or_of_another_size_is_refused() -> None:
    for texts in ({}, {DIGEST: b"x" * 29}, {DIGEST: b"x" * 31}):
        with pytest.raises(UnexpectedMessage):
            splice(REST, [Part(6, DIGEST, 30)], texts)
