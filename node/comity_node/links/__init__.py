"""Links to peers: mutual attestation, requests with back-pressure, tunnels, reconnects."""

from __future__ import annotations

from comity_node.links.inbound import RequestHandler
from comity_node.links.limits import LinkLimits
from comity_node.links.manager import Links
from comity_node.links.state import Changes, LinkState
from comity_node.links.tunnels import TunnelHandler

__all__ = ["Changes", "LinkLimits", "LinkState", "Links", "RequestHandler", "TunnelHandler"]
