"""A running node takes in a changed policy, trust bundle or certificate without a restart, or keeps the old one."""

from __future__ import annotations

from comity_node.reload.reloader import Reloader, Report

__all__ = ["Reloader", "Report"]
