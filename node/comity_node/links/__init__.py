"""Links to peers: mutual attestation, calls with back-pressure, tunnels, reconnects."""

from __future__ import annotations

from comity_node.links.activity import Changes
from comity_node.links.handlers import NoticeHandler, RequestHandler, Sink, StreamAnswerer
from comity_node.links.items import Items
from comity_node.links.limits import LinkLimits, Window
from comity_node.links.manager import Links
from comity_node.links.state import LinkState
from comity_node.links.tunnels import TunnelHandler

__all__ = [
    "Changes",
    "Items",
    "LinkLimits",
    "LinkState",
    "Links",
    "NoticeHandler",
    "RequestHandler",
    "Sink",
    "StreamAnswerer",
    "TunnelHandler",
    "Window",
]
