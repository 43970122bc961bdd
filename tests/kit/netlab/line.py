"""One direction of a site's line: rate, bounded queue, loss, delay and jitter; packets stay in order. Sans-IO."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

#: Bytes that one direction carries at most, whatever its delay: over that it drops.
MAX_IN_FLIGHT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """How a line behaves in one direction.

    Attributes:
        delay_ms: of every packet, after it has been sent at `rate_bps`.
        jitter_ms: added, evenly between none and this much; never lets a packet overtake another.
        loss: probability that a packet is lost.
        rate_bps: bits a second of whole IP packets; 0: as fast as the machine.
        queue_bytes: what may wait to be sent at `rate_bps`; what comes on top is dropped (tail drop).
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_bps: float = 0.0
    queue_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        if not (0 <= self.loss <= 1 and min(self.delay_ms, self.jitter_ms, self.rate_bps, self.queue_bytes) >= 0):
            raise ValueError(f"a line cannot be like this: {self}")

    @property
    def is_plain(self) -> bool:
        """Whether packets pass at once, all of them."""
        return not (self.delay_ms or self.jitter_ms or self.loss or self.rate_bps)


class Line:
    """Packets on their way in one direction."""

    def __init__(self, random: Random) -> None:
        """Make a line without delay, loss or limit.

        Args:
            random: decides on loss and jitter.
        """
        self.shape = Shape()
        self.lost = 0
        self.overflowed = 0
        self._random = random
        self._packets: deque[tuple[float, bytes]] = deque()
        self._in_flight = 0
        self._sent_at = 0.0  # when the last byte that was accepted has left at the line's rate
        self._last_due = 0.0

    @property
    def is_clear(self) -> bool:
        """Whether a packet may pass at once, around the queue."""
        return self.shape.is_plain and not self._packets

    def offer(self, packet: bytes, now: float) -> bool:
        """Put a packet on the line; False when it was lost or there was no room."""
        shape, size = self.shape, len(packet)
        leaves = now
        if shape.rate_bps:
            starts = max(now, self._sent_at)
            waiting = round((starts - now) * shape.rate_bps / 8)
            if waiting + size > max(shape.queue_bytes, size):
                self.overflowed += 1
                return False
            leaves = self._sent_at = starts + size * 8 / shape.rate_bps
        if self._in_flight + size > MAX_IN_FLIGHT:
            self.overflowed += 1
            return False
        if shape.loss and self._random.random() < shape.loss:
            self.lost += 1
            return False
        jitter = self._random.random() * shape.jitter_ms if shape.jitter_ms else 0.0
        self._last_due = max(self._last_due, leaves + (shape.delay_ms + jitter) / 1000)
        self._packets.append((self._last_due, packet))
        self._in_flight += size
        return True

    def arrived(self, now: float) -> Iterator[bytes]:
        """Take off, in order, the packets that have come through by `now`."""
        while self._packets and self._packets[0][0] <= now:
            packet = self._packets.popleft()[1]
            self._in_flight -= len(packet)
            yield packet

    @property
    def next_due(self) -> float:
        """When the next packet comes through; infinity if there is none."""
        return self._packets[0][0] if self._packets else math.inf
