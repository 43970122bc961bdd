"""Frames come out the same however the bytes were chunked, and nothing is allocated for what is too large."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import FrameTooLarge, ProtocolError
from comity_node.protocol.framing import FrameDecoder, encode_frame

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=20)


def _chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def _frames(decoder: FrameDecoder) -> list[tuple[int, bytes]]:
    return [(kind, decoder.buffer[begin:end]) for kind, begin, end in decoder.frames()]


def _decode(chunks: list[bytes], limit: int) -> list[tuple[int, bytes]]:
    decoder, frames = FrameDecoder(limit), []
    for chunk in chunks:
        decoder.feed(chunk)
        frames += _frames(decoder)
    assert decoder.buffered == 0
    return frames


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=30))
def test_any_chunking_gives_the_same_frames(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    assert _decode(_chunks(data, cuts), 201) == frames
    assert _decode([bytes((byte,)) for byte in data], 201) == frames


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=30), st.data())
def test_a_reader_that_stops_after_any_frame_loses_none(
    frames: list[tuple[int, bytes]], cuts: list[int], data: st.DataObject
) -> None:
    decoder = FrameDecoder(201)
    seen: list[tuple[int, bytes]] = []
    for chunk in _chunks(b"".join(encode_frame(kind, payload) for kind, payload in frames), cuts):
        decoder.feed(chunk)
        for kind, begin, end in decoder.frames():
            seen.append((kind, decoder.buffer[begin:end]))
            if data.draw(st.booleans()):
                break
    decoder.feed(b"")
    seen += _frames(decoder)
    assert seen == frames
    assert decoder.buffered == 0


@given(st.integers(0, 255), st.lists(st.binary(max_size=50), max_size=5))
def test_a_payload_in_parts_is_the_payload_joined(kind: int, parts: list[bytes]) -> None:
    assert encode_frame(kind, *parts) == encode_frame(kind, b"".join(parts))


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000), max_size=10))
def test_any_bytes_give_frames_or_a_protocol_error_and_the_buffer_stays_bounded(data: bytes, cuts: list[int]) -> None:
    decoder = FrameDecoder(64)
    try:
        for chunk in _chunks(data, cuts):
            decoder.feed(chunk)
            _frames(decoder)
            assert decoder.buffered < 64 + 4
    except ProtocolError:
        with pytest.raises(ProtocolError):
            _frames(decoder)


@pytest.mark.invariant("S7")
def test_the_limit_is_checked_before_anything_is_allocated() -> None:
    decoder = FrameDecoder(1000)
    tracemalloc.start()
    try:
        decoder.feed(b"\xff\xff\xff")
        assert _frames(decoder) == []
        decoder.feed(b"\xff")
        with pytest.raises(FrameTooLarge, match="4294967295 bytes"):
            _frames(decoder)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    decoder = FrameDecoder(1000)
    decoder.feed(encode_frame(1, b"x" * 999))
    assert _frames(decoder) == [(1, b"x" * 999)]
    decoder.feed(encode_frame(1, b"x" * 1000))
    with pytest.raises(FrameTooLarge):
        _frames(decoder)


@pytest.mark.invariant("S7")
def test_a_large_frame_in_small_pieces_costs_no_more_than_it_is_large() -> None:
    size = 200_000
    data = encode_frame(1, bytes(size))
    decoder = FrameDecoder(size + 1)
    tracemalloc.start()
    try:
        for start in range(0, len(data) - 1, 3):
            decoder.feed(data[start : min(start + 3, len(data) - 1)])
            assert _frames(decoder) == []
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()
    decoder.feed(data[-1:])
    assert [(kind, len(payload)) for kind, payload in _frames(decoder)] == [(1, size)]


def test_an_empty_frame_has_no_type() -> None:
    decoder = FrameDecoder(10)
    decoder.feed(bytes(4))
    with pytest.raises(ProtocolError, match="without a type"):
        _frames(decoder)


def test_the_rest_is_handed_over_when_a_stream_becomes_raw() -> None:
    decoder = FrameDecoder(10)
    decoder.feed(encode_frame(7, b"last") + b"raw bytes")
    assert next(decoder.frames()) == (7, 5, 9)
    assert decoder.take_rest() == b"raw bytes"
    assert decoder.take_rest() == b""
