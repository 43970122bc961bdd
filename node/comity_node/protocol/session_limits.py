"""What a session takes from a peer, and sends."""

from __future__ import annotations

from dataclasses import dataclass

from comity_node.protocol.session_codec import LONGEST_HEADER

#: The longest deadline that a call carries: a day, in milliseconds.
MAX_DEADLINE_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Sizes and counts of one stream.

    Attributes:
        max_hello: bytes of a frame before both sides have accepted each other.
        max_payload: bytes of a request, a response, a notification or an item.
        max_outstanding: calls without an answer, in the one direction that a stream has. The acceptor says in
            its Hello how many it takes, which may be fewer.
        max_outstanding_bytes: of their payloads together: once they are that many, no further call.
        max_streams: of the calls, those that are answered by a stream of items; the links refuse further ones.
        max_credit: items, and bytes, of one stream that an opener may grant and not have got.
    """

    max_hello: int = 64 * 1024
    max_payload: int = 4 * 1024 * 1024
    max_outstanding: int = 1024
    max_outstanding_bytes: int = 16 * 1024 * 1024
    max_streams: int = 64
    max_credit: int = 64 * 1024 * 1024

    @property
    def max_frame(self) -> int:
        """The largest frame of an open session: type, the longest header, and a payload."""
        return 1 + LONGEST_HEADER + self.max_payload
