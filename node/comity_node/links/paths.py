"""By which way a peer is reached, in words for `comity peers`."""

from __future__ import annotations

from collections.abc import Callable

from comity_node.transport.base import ConnectionInfo


def describe_path(info: ConnectionInfo | None, organization_of: Callable[[str], str]) -> str:
    """Say how a peer is connected.

    Args:
        info: the connection; None if there is none.
        organization_of: the organization of a PeerId, "" if it is not known.

    Returns:
        "direct", "relayed via <organization>" (or the relay's PeerId, if we do not know whose it is), or "".
    """
    if info is None:
        return ""
    if not info.relay:
        return "direct"
    return f"relayed via {organization_of(info.relay) or info.relay}"
