"""Reliability: what counts of agreement and disagreement are worth."""

from comity_node.storage.reliability import mean

__all__ = ["mean"]
