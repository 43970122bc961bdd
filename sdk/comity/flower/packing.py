"""Arrays as one canonical run of bytes.

A message of Flower costs about one HTTP round trip for each array in it, so an update travels as one packed
array. The packing is canonical (one content, one run of bytes), so that its SHA-256 names the update: it is what
the manifest signs, and the bytes that are checked are the bytes that are unpacked.

Layout: the magic `CMP1`, the header's length (4 bytes, big endian), the header, the data. The header is RFC 8785
JSON, a list of `[name, dtype, shape]` sorted by name; the data are the arrays in that order, little endian, row
by row. Nothing is allocated before the header's sizes have been compared with the bytes that are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from comity.digest import canonical_json, sha256
from comity.errors import EnvelopeMalformed

Array = npt.NDArray[Any]

MAX_PACKED_BYTES = 256 * 1024 * 1024
MAX_ARRAYS = 4096
_MAX_HEADER_BYTES = 1024 * 1024
_MAX_DIMENSIONS = 8
_MAGIC = b"CMP1"
_PREFIX = len(_MAGIC) + 4
#: Numbers only: no objects (pickle), no strings, no dates.
_DTYPES = frozenset({"<f2", "<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1"})


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Return `arrays` in canonical form.

    Raises:
        EnvelopeMalformed: an array is not numeric, or there are more or larger ones than a reader takes.
    """
    if len(arrays) > MAX_ARRAYS:
        raise EnvelopeMalformed(f"{len(arrays)} arrays are more than the {MAX_ARRAYS} that fit one update")
    header: list[list[object]] = []
    parts: list[bytes] = []
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        dtype = array.dtype.newbyteorder("<")
        if dtype.str not in _DTYPES:
            raise EnvelopeMalformed(f"array {name!r} has dtype {array.dtype}; only numbers travel")
        header.append([name, dtype.str, list(array.shape)])
        parts.append(np.ascontiguousarray(array, dtype=dtype).tobytes())
    encoded = canonical_json(header)
    size = _PREFIX + len(encoded) + sum(map(len, parts))
    if len(encoded) > _MAX_HEADER_BYTES or size > MAX_PACKED_BYTES:
        raise EnvelopeMalformed(f"an update of {size} bytes is over the limit of {MAX_PACKED_BYTES}")
    return b"".join((_MAGIC, len(encoded).to_bytes(4, "big"), encoded, *parts))


def unpack(data: bytes) -> dict[str, Array]:
    """Return the arrays of a packed update; they share `data`'s memory and are read-only.

    Raises:
        EnvelopeMalformed: `data` is not the canonical packing of anything.
    """
    if len(data) > MAX_PACKED_BYTES or len(data) < _PREFIX or data[: len(_MAGIC)] != _MAGIC:
        raise EnvelopeMalformed("these bytes are no packed update")
    length = int.from_bytes(data[len(_MAGIC) : _PREFIX], "big")
    start = _PREFIX + length
    if length > _MAX_HEADER_BYTES or start > len(data):
        raise EnvelopeMalformed("the header of a packed update is longer than it may be")
    entries = _header(data[_PREFIX:start])
    if start + sum(size for _, _, _, size in entries) != len(data):
        raise EnvelopeMalformed("a packed update holds more or fewer bytes than its header says")
    arrays: dict[str, Array] = {}
    for name, dtype, shape, size in entries:
        count = math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)
        start += size
    return arrays


def digest(packed: bytes) -> bytes:
    """Return the SHA-256 (32 bytes) that names a packed update."""
    return sha256(packed)


def _header(raw: bytes) -> list[tuple[str, np.dtype[Any], tuple[int, ...], int]]:
    """Read the header: name, dtype, shape and size in bytes of each array."""
    try:
        header = json.loads(raw)
        canonical = canonical_json(header) == raw
    except (ValueError, RecursionError) as error:
        raise EnvelopeMalformed("the header of a packed update is not JSON") from error
    if not canonical or not isinstance(header, list) or len(header) > MAX_ARRAYS:
        raise EnvelopeMalformed("the header of a packed update is not in canonical form")
    entries = [_entry(item) for item in header]
    names = [name for name, _, _, _ in entries]
    if names != sorted(set(names)):
        raise EnvelopeMalformed("the names in a packed update are not sorted, or not different")
    return entries


def _entry(item: object) -> tuple[str, np.dtype[Any], tuple[int, ...], int]:
    match item:
        case [str(name), str(dtype), list(shape)] if dtype in _DTYPES and len(shape) <= _MAX_DIMENSIONS:
            pass
        case _:
            raise EnvelopeMalformed("an entry of a packed update's header is not [name, dtype, shape]")
    if not all(type(side) is int and 0 <= side <= MAX_PACKED_BYTES for side in shape):
        raise EnvelopeMalformed(f"array {name!r} of a packed update has no shape")
    kind = np.dtype(dtype)
    return name, kind, tuple(shape), math.prod(shape) * kind.itemsize
