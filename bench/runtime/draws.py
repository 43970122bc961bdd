"""Chance that depends on nothing but its key: every arm that asks for the same (seed, row, hop) sees the same draw.

A draw is the first 8 bytes of BLAKE2b over its key, as a number between 0 and 1, put through the inverse of the
distribution. All distributions have the same mean, so that K slots can do the same hops a second in every case, and
what differs between them is only how far the draws lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from hashlib import blake2b
from statistics import NormalDist
from typing import Final

_NORMAL: Final = NormalDist()
_PARETO: Final = 2.1
#: Of the mean, what is spent until the first token; the rest goes to tokens, whose number is geometric.
_FIRST_TOKEN: Final = 0.25
_TOKENS: Final = 40.0
_FIRST_SIGMA: Final = 0.5


def unit(*key: int | str) -> float:
    """Return a number strictly between 0 and 1 that depends on `key` alone."""
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64


def geometric(u: float, mean: float, most: int) -> int:
    """Return a geometric number of tries (at least 1, of the given mean before the cap), at most `most`."""
    return min(most, 1 + int(math.log(1 - u) / math.log(1 - 1 / mean)))


def _constant(_: tuple[float, float]) -> float:
    return 1.0


def _lognormal(sigma: float) -> Callable[[tuple[float, float]], float]:
    def draw(us: tuple[float, float]) -> float:
        return math.exp(sigma * _NORMAL.inv_cdf(us[0]) - sigma * sigma / 2)

    return draw


def _pareto(us: tuple[float, float]) -> float:
    return (_PARETO - 1) / _PARETO * math.pow(1 - us[0], -1 / _PARETO)


def _tokens(us: tuple[float, float]) -> float:
    """Return the time to the first token (lognormal), then a geometric number of tokens at a constant rate."""
    first = _FIRST_TOKEN * _lognormal(_FIRST_SIGMA)((us[0], 0.0))
    count = 1 + math.floor(math.log(1 - us[1]) / math.log(1 - 1 / _TOKENS))
    return first + (1 - _FIRST_TOKEN) * count / _TOKENS


#: Draws of mean 1, from two uniform numbers.
LATENCIES: Final[Mapping[str, Callable[[tuple[float, float]], float]]] = {
    "constant": _constant,
    "lognormal-0.25": _lognormal(0.25),
    "lognormal-0.5": _lognormal(0.5),
    "lognormal-1": _lognormal(1.0),
    "lognormal-1.5": _lognormal(1.5),
    "pareto-2.1": _pareto,
    "ttft-tokens": _tokens,
}


def latency(kind: str, *key: int | str) -> float:
    """Return the draw of `kind` at `key`, of mean 1."""
    return LATENCIES[kind]((unit("latency", *key), unit("tokens", *key)))
