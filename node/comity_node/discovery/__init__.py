"""How a node finds the others of its consortium, and the news that they spread.

`hints`: from one address to the full mesh; `pubsub`: GossipSub over the transport; `news`: signed cards, hints at
reliability, and revocations.
"""

from __future__ import annotations

from comity_node.discovery.hints import Discovery, DiscoverySettings, FetchPeers, LinkTable, PeerHint

__all__ = ["Discovery", "DiscoverySettings", "FetchPeers", "LinkTable", "PeerHint"]
