"""What strangers and peers may cost a node's transport."""

from __future__ import annotations

from dataclasses import dataclass, field

from comity_node.transport import yamux
from comity_node.transport.budget import BudgetLimits
from comity_node.transport.muxed import KeepAlive


@dataclass(frozen=True, slots=True)
class Libp2pLimits:
    """What strangers and peers may cost.

    A source is an IPv4 /24 or an IPv6 /56; it is known when a member has come from it before.

    Attributes:
        handshake_s: from the TCP connection to a proved key and an agreed multiplexer.
        handshake_bytes: what a peer may send in that time.
        handshakes_per_s: handshakes of inbound connections that are computed, in the long run.
        handshake_burst: of them, at once after a quiet time.
        handshake_wait_s: an inbound connection that would wait longer for its handshake is closed.
        source_handshakes_per_s: of them, those of one source.
        source_handshake_burst: of them, at once after a quiet time.
        reserved_handshakes_per_s: beside them, those of known sources; twice as many at once.
        max_unproved: inbound connections that have not proved their key; over that the source with most gives one up.
        max_unproved_per_source: of them, those of one source; over that its oldest is closed.
        confirm_s: from there until links have attested the peer.
        max_strangers: connections of peers that are not attested; over that the source with most gives one up.
        max_connections: all connections together.
        max_per_peer: connections of one peer; over that its oldest is closed.
        dial_s: for one address, TCP only.
        negotiate_s: to agree on the protocol of a stream.
        keep_alive: when a silent connection is asked for a sign of life; that keeps address translations open, too.
        retire_s: how long a relayed connection outlives the direct one that replaces it; then it takes no more streams,
            and those that are open have ten times as long to end.
        stranger_mux: streams and bytes of one connection of a peer that is not attested.
        mux: the same once it is.
        budget: bytes of all peers that may wait unread, beyond what each connection may hold anyway.
    """

    handshake_s: float = 5.0
    handshake_bytes: int = 16 * 1024
    handshakes_per_s: float = 200.0
    handshake_burst: int = 256
    handshake_wait_s: float = 1.0
    source_handshakes_per_s: float = 50.0
    source_handshake_burst: int = 128
    reserved_handshakes_per_s: float = 50.0
    max_unproved: int = 256
    max_unproved_per_source: int = 64
    confirm_s: float = 10.0
    max_strangers: int = 128
    max_connections: int = 1024
    max_per_peer: int = 4
    dial_s: float = 5.0
    negotiate_s: float = 10.0
    keep_alive: KeepAlive = field(default_factory=lambda: KeepAlive(idle_s=15.0, answer_s=10.0))
    retire_s: float = 10.0
    stranger_mux: yamux.MuxLimits = field(
        default_factory=lambda: yamux.MuxLimits(max_streams=4, window=yamux.INITIAL_WINDOW)
    )
    mux: yamux.MuxLimits = field(default_factory=yamux.MuxLimits)
    budget: BudgetLimits = field(default_factory=BudgetLimits)
