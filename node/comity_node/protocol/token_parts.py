"""Long texts of a token's state, left out of its bytes and put in again.

A part is what stands between the quotes of a JSON string, byte for byte as it is escaped there. Nothing is parsed but
where strings begin and end, and what is put together again is the bytes that there were: what was signed of them holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from comity.digest import sha256
from comity.errors import UnexpectedMessage

#: A JSON string; possessive, so that it is linear whatever the bytes are.
_STRING: Final = re.compile(rb'(?s)"((?:[^"\\]++|\\.)*+)"')
_QUOTE: Final = ord('"')
_DIGEST_BYTES: Final = 32


class Part(NamedTuple):
    """A text that is left out.

    Attributes:
        offset: where in the whole state it begins.
        digest: SHA-256 of it.
        size: how many bytes it has.
    """

    offset: int
    digest: bytes
    size: int


class Cut(NamedTuple):
    """A state without its long texts.

    Attributes:
        rest: what is left of it.
        parts: what is left out, in its order.
        texts: these, by digest.
    """

    rest: bytes
    parts: tuple[Part, ...]
    texts: Mapping[bytes, bytes]


def cut(state: bytes, over: int) -> Cut:
    """Leave out of `state` all texts of more than `over` bytes."""
    if len(state) <= over:
        return Cut(state, (), {})
    rest: list[bytes] = []
    parts: list[Part] = []
    texts: dict[bytes, bytes] = {}
    at = 0
    for found in _STRING.finditer(state):
        begin, end = found.span(1)
        if end - begin > over:
            text = state[begin:end]
            digest = sha256(text)
            texts[digest] = text
            parts.append(Part(begin, digest, end - begin))
            rest.append(state[at:begin])
            at = end
    return Cut(b"".join((*rest, state[at:])), tuple(parts), texts)


def whole_size(rest: bytes, parts: Sequence[Part], *, over: int, most: int) -> int:
    """Return how many bytes a state will have once its parts are in; only what is declared is looked at.

    Args:
        rest: the state without them.
        parts: what is left out of it.
        over: each has more bytes than these.
        most: the whole has at most so many.

    Raises:
        UnexpectedMessage: they are not in their order, lie over each other, are not between quotes, or are too short
            or too much.
    """
    end = gone = 0
    for part in parts:
        if len(part.digest) != _DIGEST_BYTES or part.size <= over:
            raise UnexpectedMessage(f"a part of a token has a digest of 32 bytes and more than {over} bytes")
        place = part.offset - gone
        if part.offset <= end or place >= len(rest) or rest[place - 1] != _QUOTE or rest[place] != _QUOTE:
            raise UnexpectedMessage("parts of a token stand between quotes, one after the other")
        end = part.offset + part.size
        gone += part.size
        if gone + len(rest) > most:
            raise UnexpectedMessage(f"a token's state with its parts has at most {most} bytes")
    return gone + len(rest)


def splice(rest: bytes, parts: Sequence[Part], texts: Mapping[bytes, bytes]) -> bytes:
    """Return the whole state; `whole_size` has been asked about it.

    Raises:
        UnexpectedMessage: a text is not there, or has another size than its part says.
    """
    pieces: list[bytes] = []
    at = gone = 0
    for part in parts:
        text = texts.get(part.digest)
        if text is None or len(text) != part.size:
            raise UnexpectedMessage("a part of a token is not there, or has another size than it says")
        place = part.offset - gone
        pieces += rest[at:place], text
        at = place
        gone += part.size
    return b"".join((*pieces, rest[at:]))
