"""What Yamux says on the wire, and what it means: the frame header, the events, the limits.

The header's layout and the values of its fields are those of
https://github.com/hashicorp/yamux/blob/master/spec.md, which libp2p took over
(https://github.com/libp2p/specs/blob/master/yamux/README.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

PROTOCOL_ID: Final = "/yamux/1.0.0"
#: The window in bytes that both sides grant without saying so.
INITIAL_WINDOW: Final = 256 * 1024
#: The widest window that we grant, and the longest frame that anybody can have a window for.
MAX_WINDOW: Final = 16 * 1024 * 1024
#: What a peer's grants may add up to: a sum of the header's length fields that no longer fits one is nonsense.
MAX_SEND_WINDOW: Final = 2**32 - 1
#: Streams of ours that the peer has not acknowledged (libp2p's spec: at most 256).
MAX_UNACKNOWLEDGED: Final = 256

#: Version, type, flags, stream id, length.
HEADER: Final = struct.Struct(">BBHII")
HEADER_BYTES: Final = HEADER.size
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes of a stream. Call `consumed` when they have been read."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WindowGrew:
    """The peer takes more bytes of this stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sends no more on this stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer tore the stream down."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The peer answered our ping after so many seconds."""

    rtt_s: float


@dataclass(frozen=True, slots=True)
class PeerLeaves:
    """The peer takes no more streams; with a code other than 0 it gives up at once."""

    code: int


Event = StreamOpened | DataReceived | WindowGrew | StreamEnded | StreamReset | PingAnswered | PeerLeaves


@dataclass(frozen=True, slots=True)
class MuxLimits:
    """What one connection takes from a peer, and holds for it.

    Attributes:
        max_streams: streams that are open in each direction.
        window: bytes of one stream that may wait unread at first, at least `INITIAL_WINDOW`.
        max_window: bytes to which a window grows when the line could carry more, at most `MAX_WINDOW`; without a
            budget for all connections windows do not grow.
        max_bytes: bytes that all windows of the connection add up to.
        free_bytes: of them, those that are not charged to the budget for all connections.
        max_pending: bytes of answers (acknowledgements, resets) that may wait while the peer does not read.
        send_buffer: bytes of one stream that wait to be sent before its sender waits too. While less waits of all
            streams together than is written at once (256 KiB on a fast line), none waits.
    """

    max_streams: int = 64
    window: int = INITIAL_WINDOW
    max_window: int = MAX_WINDOW
    max_bytes: int = 64 * 1024 * 1024
    free_bytes: int = 2 * 1024 * 1024
    max_pending: int = 256 * 1024
    send_buffer: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class MuxMetrics:
    """What a connection has carried and holds now.

    Attributes:
        bytes_sent: of frames, headers included, since the connection was made.
        bytes_received: the same, the other way.
        frames_sent: since the connection was made.
        frames_received: the same, the other way.
        streams: streams that are open now.
        queued_bytes: bytes that wait to be written.
        unread_bytes: bytes that have come and nobody has read yet.
        window_bytes: the widest window of an open stream.
        granted_bytes: what the windows of all streams add up to.
        rtt_ms: round trip in milliseconds, smoothed; 0 if not measured.
    """

    bytes_sent: int
    bytes_received: int
    frames_sent: int
    frames_received: int
    streams: int
    queued_bytes: int
    unread_bytes: int
    window_bytes: int
    granted_bytes: int
    rtt_ms: float
