"""The simulated gossip network, which `make simulate` uses, too."""

from __future__ import annotations

from bench.simulation.gossipnet import TOPIC, GossipNet, name, unsigned

__all__ = ["TOPIC", "GossipNet", "name", "unsigned"]
