"""Who has a place among the peers that a node knows, when there are fewer places than peers.

An organization's CA can make any number of nodes, so places are counted for each organization. A peer that is gone
gives its place to one that is there; what is up, under way, or named by the operator is never forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from comity.errors import Busy
from comity_node.links.limits import LinkLimits
from comity_node.links.state import Peer


def whose_place(
    organization: str, others: Collection[Peer], *, known: bool, limits: LinkLimits, now: float
) -> Peer | None:
    """Find a place for a node of `organization` that has attested itself.

    Args:
        organization: whose node it is.
        others: all other peers that are known.
        known: whether it is in the table already, as one that somebody has named.
        limits: how many places there are.
        now: the time by trio's clock, in seconds.

    Returns:
        Who must be forgotten for it; None when there is room.

    Raises:
        Busy: there is no room, and nobody who could be forgotten.
    """
    siblings = [peer for peer in others if peer.place_of == organization]
    if len(siblings) >= limits.max_nodes_per_organization:
        leaving = _longest_gone(siblings, limits, now)
        if leaving is None:
            raise Busy(f"{len(siblings)} nodes of {organization} are known, which is the limit", retry_after_ms=60_000)
        return leaving
    if known or len(others) < limits.max_peers:
        return None
    leaving = _longest_gone(others, limits, now)
    if leaving is None:
        raise Busy(f"{len(others)} peers are known, which is the limit", retry_after_ms=60_000)
    return leaving


def _longest_gone(peers: Iterable[Peer], limits: LinkLimits, now: float) -> Peer | None:
    """Of those that may be forgotten one that never attested itself, or else the one that has been gone longest."""

    def may_leave(peer: Peer) -> bool:
        patience_s = limits.forget_after_s if peer.attested else limits.attest_s
        return peer.is_idle and not peer.keep and now - peer.gone_since > patience_s

    leaving = [peer for peer in peers if may_leave(peer)]
    return min(leaving, key=lambda peer: (peer.attested is not None, peer.gone_since), default=None)
