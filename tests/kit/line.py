"""Lines between two ends, under a virtual clock: with a rate, a delay and a kernel's buffer; or without all three."""

from __future__ import annotations

from collections import deque

import trio

from comity.errors import LinkClosed

#: What the line carries at once: one packet.
_SEGMENT = 1448


class LineEnd:
    """One end, as the `SecureChannel` below a multiplexer."""

    def __init__(self, bytes_per_s: float, delay_s: float, kernel_bytes: int) -> None:
        self._rate, self._delay, self._kernel = bytes_per_s, delay_s, kernel_bytes
        self.peer: LineEnd
        #: When the last byte that was written will have left.
        self._free_at = float("-inf")
        self._arriving: deque[tuple[float, bytes]] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._ended = False
        self._cut = False
        self._healed = trio.lowlevel.ParkingLot()
        self.closed = False
        self.bytes_written = 0

    def cut(self) -> None:
        """Let this end neither send nor receive; neither end is told."""
        self._cut = True

    def heal(self) -> None:
        """End that."""
        self._cut = False
        self._healed.unpark_all()

    async def read(self) -> bytes:
        """What has arrived; waits for something."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._cut:
                await self._healed.park()
            elif self._arriving:
                when = self._arriving[0][0]
                now = trio.current_time()
                if when <= now:
                    return self._take(now)
                await trio.sleep_until(when)
            elif self._ended:
                return b""
            else:
                await self._arrived.park()

    async def write(self, data: bytes) -> None:
        """Returns when no more waits to leave than the kernel holds."""
        await trio.lowlevel.checkpoint()
        while self._cut:
            await self._healed.park()
        if self.closed or self.peer.closed:
            raise LinkClosed("the line is down")
        now = trio.current_time()
        view = memoryview(data)
        step = max(_SEGMENT, int(self._rate * 0.001))  # on fast lines, what leaves in a millisecond
        self._free_at = max(self._free_at, now)
        for start in range(0, len(view), step):
            piece = view[start : start + step]
            self._free_at += len(piece) / self._rate
            self.peer._arriving.append((self._free_at + self._delay, bytes(piece)))
        self.peer._arrived.unpark_all()
        self.bytes_written += len(data)
        await trio.sleep_until(max(now, self._free_at - self._kernel / self._rate))

    async def close(self) -> None:
        """The other end reads what is on its way, then the end."""
        await trio.lowlevel.checkpoint()
        self.closed = True
        self.peer._ended = True
        self.peer._arrived.unpark_all()

    def _take(self, now: float) -> bytes:
        parts = []
        while self._arriving and self._arriving[0][0] <= now:
            parts.append(self._arriving.popleft()[1])
        return b"".join(parts)


def make_line(bytes_per_s: float, rtt_s: float = 0.0, kernel_bytes: int = 16 * 1024) -> tuple[LineEnd, LineEnd]:
    """Both ends of a line; `kernel_bytes` is what TCP_NOTSENT_LOWAT lets the kernel hold."""
    ends = LineEnd(bytes_per_s, rtt_s / 2, kernel_bytes), LineEnd(bytes_per_s, rtt_s / 2, kernel_bytes)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    return ends


class PipeEnd:
    """One end of a pipe that takes no time, as the `SecureChannel` below a multiplexer."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.peer: PipeEnd
        self._data = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
        self._ended = False

    async def read(self) -> bytes:
        """What is there; waits for something."""
        await trio.lowlevel.checkpoint()
        while not (self._data or self._ended):
            await self._changed.park()
        data = bytes(self._data)
        self._data.clear()
        self._changed.unpark_all()
        return data

    async def write(self, data: bytes) -> None:
        """Returns when the pipe has taken everything."""
        await trio.lowlevel.checkpoint()
        while len(self.peer._data) > self._capacity and not self.peer._ended:
            await self.peer._changed.park()
        if self.peer._ended or self._ended:
            raise LinkClosed("the pipe is closed")
        self.peer._data += data
        self.peer._changed.unpark_all()

    async def close(self) -> None:
        """The other end reads what is there, then the end."""
        await trio.lowlevel.checkpoint()
        for end in (self, self.peer):
            end._ended = True
            end._changed.unpark_all()


def make_pipe(capacity: int = 256 * 1024) -> tuple[PipeEnd, PipeEnd]:
    """Both ends of a pipe that holds about so many bytes each way."""
    ends = PipeEnd(capacity), PipeEnd(capacity)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    return ends
