"""A network in a test: sites in network namespaces, and a wire between them that can be slow, lossy, cut or NATed."""

from __future__ import annotations

from kit.netlab.kernel import has_privileges, unavailable
from kit.netlab.lab import NetLab, NetLabError, Site
from kit.netlab.line import Shape
from kit.netlab.nat import NatSettings

__all__ = ["NatSettings", "NetLab", "NetLabError", "Shape", "Site", "has_privileges", "unavailable"]
