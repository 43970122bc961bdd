"""Bytes that are nearly right."""

from __future__ import annotations

import random


def nearly(seed: bytes, count: int) -> list[bytes]:
    """The seed with a few bytes changed, or a piece cut out or doubled, in ways that are the same each time."""
    chance, found = random.Random(seed), list[bytes]()
    for _ in range(count if seed else 0):
        data = bytearray(seed)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        start = chance.randrange(len(data))
        end = min(len(data), start + chance.randrange(1, 9))
        change = chance.randrange(4)
        if change == 0:
            del data[start:end]
        elif change == 1:
            data[start:start] = data[start:end]
        found.append(bytes(data))
    return found
