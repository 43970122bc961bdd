"""Reliability: what counts of agreement and disagreement are worth."""

from __future__ import annotations


def mean(agreed: float, disagreed: float) -> float:
    """Return the mean of the Beta posterior over a uniform prior (Jøsang and Ismail, The Beta Reputation System, 2002).

    Nothing known is 0.5.
    """
    return (agreed + 1.0) / (agreed + disagreed + 2.0)
