"""Noise for numbers, and what it costs in privacy.

The mechanism is OpenDP's Laplace (`opendp.measurements.make_laplace`), which samples exactly and is safe for floating
point. A number is clamped to its bounds first, so it differs from any other by at most their distance, and noise of the
scale `distance / epsilon` is worth `epsilon` (Dwork, McSherry, Nissim, Smith, 2006). What comes out is clamped and
rounded by `policy.obligations.apply`: that takes nothing from the promise.

The promise is about one number: two values of it can be told apart from what left by a factor of exp(epsilon) at most.
The numbers of a record add up. The randomness is the library's own, from the operating system's generator: it is not
passed in, and cannot be replayed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

from comity.errors import PolicyDenied
from comity_node.policy.lattice import Noise

#: Mechanisms that are kept ready.
_MECHANISMS: Final = 256
#: How much larger than `distance / epsilon` the scale may have to be for the library's bound to be at most epsilon.
_STEPS: Final = tuple(1.0 + 2.0**-exponent for exponent in (52, 48, 40, 30))


class NoiseSource:
    """Draws the noise of one record or table, and sums up what it costs.

    Attributes:
        epsilon: the sum over all that was drawn.
        drawn: how many numbers got noise.
        paths: the greatest epsilon of each path that got noise.
    """

    def __init__(self) -> None:
        self.epsilon = 0.0
        self.drawn = 0
        self.paths: dict[str, float] = {}

    def draw(self, path: str, value: float, noise: Noise) -> float:
        """Return `value`, which lies within the bounds, with noise added.

        Raises:
            PolicyDenied: OpenDP is not installed, or the bounds and epsilon are beyond what it can do.
        """
        drawn = _mechanism(noise.epsilon, noise.upper - noise.lower)(float(value))
        self.epsilon += noise.epsilon
        self.drawn += 1
        self.paths[path] = max(self.paths.get(path, 0.0), noise.epsilon)
        return float(drawn)


@lru_cache(maxsize=_MECHANISMS)
def _mechanism(epsilon: float, distance: float) -> Any:  # noqa: ANN401  (opendp ships no types)
    try:
        import opendp.prelude as dp
    except ImportError as error:
        raise PolicyDenied(
            "a rule asks for noise, and OpenDP is not installed; install it with: pip install 'comity[dp]'"
        ) from error
    dp.enable_features("contrib")
    space = dp.atom_domain(T=float, nan=False), dp.absolute_distance(T=float)
    for step in _STEPS:
        try:
            mechanism = dp.m.make_laplace(*space, scale=distance / epsilon * step)
            worth = mechanism.map(d_in=distance)
        except dp.OpenDPException as error:
            raise PolicyDenied(
                f"noise of epsilon {epsilon:g} over {distance:g} cannot be drawn: {error.message}"
            ) from error
        if math.isfinite(worth) and worth <= epsilon:
            return mechanism
    raise PolicyDenied(f"noise of epsilon {epsilon:g} over {distance:g} cannot be drawn")
