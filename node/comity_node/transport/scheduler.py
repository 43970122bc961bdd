"""Whose bytes go next on a connection, and how many at once. No I/O, no clock.

A class of `Priority` goes before the ones after it, and within a class streams take turns (round robin by
bytes: pieces are cut to the turn's size, so no stream has a deficit to carry over). So that no class starves, one
that waits is owed a turn as soon as the classes before it have sent `_SHARE` times a turn's bytes: it gets a byte for
every seven of theirs. A turn of BULK, and every turn that was owed, is at most `SMALL_PIECE` bytes while others wait.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from comity_node.transport.base import Priority

#: What Noise cuts long data into (`noise.CUT`), and the header of a frame.
_RECORD: Final = 511 * 128
_HEADER: Final = 12
#: A header and so many bytes fill one record.
MAX_PIECE: Final = _RECORD - _HEADER
#: The same for a quarter of it: what a stream that nobody waits for may put before one that somebody does.
SMALL_PIECE: Final = 16 * 1024 - _HEADER
#: The same for four: what a stream sends that waits alone. Cutting it further would help nobody, as the batch that it
#: goes in (`BatchSize`) cannot be overtaken anyway.
LONE_PIECE: Final = 4 * _RECORD - _HEADER
_SHARE: Final = 7


class Scheduler:
    """The streams that have something to send and may send it, by id."""

    def __init__(self) -> None:
        self._rings: tuple[deque[int], ...] = tuple(deque() for _ in Priority)
        self._owed = [0] * len(self._rings)
        self._waiting = 0

    def __len__(self) -> int:
        """How many streams wait for a turn."""
        return self._waiting

    def add(self, stream_id: int, priority: Priority) -> None:
        """Let a stream wait for its turn; it must not be waiting already."""
        self._rings[priority].append(stream_id)
        self._waiting += 1

    def remove(self, stream_id: int, priority: Priority) -> None:
        """Let a stream that waits, under this priority, wait no longer."""
        self._rings[priority].remove(stream_id)
        self._waiting -= 1

    def next(self) -> tuple[int, int]:
        """Take the stream whose turn it is from those that wait: its id, and how many bytes it may send.

        Raises:
            IndexError: none waits.
        """
        if not self._waiting:
            raise IndexError("no stream waits")
        alone = self._waiting == 1
        self._waiting -= 1
        first = -1
        for priority, ring in enumerate(self._rings):
            if not ring:
                continue
            if first < 0:
                first = priority
            elif self._owed[priority] >= _SHARE * SMALL_PIECE:
                self._owed[priority] -= _SHARE * SMALL_PIECE
                return ring.popleft(), SMALL_PIECE
        limit = LONE_PIECE if alone else SMALL_PIECE if first == Priority.BULK else MAX_PIECE
        return self._rings[first].popleft(), limit

    def sent(self, priority: Priority, count: int) -> None:
        """Bytes of a class were sent: those that wait behind it are owed more."""
        for lower in range(priority + 1, len(self._rings)):
            if self._rings[lower]:
                self._owed[lower] += count


class BatchSize:
    """How many bytes to hand to the line at once.

    What has been handed over cannot be overtaken, so on a slow line a batch is one small piece; every batch costs a
    system call, so on a fast line it is many. The line shows which it is by how long it makes the writer wait.
    """

    SMALLEST: Final = 16 * 1024
    LARGEST: Final = 256 * 1024
    _FAST_S: Final = 0.005
    _SLOW_S: Final = 0.02
    #: So many fast batches in a row before they get larger: more than a socket's buffer takes without sending.
    _PATIENCE: Final = 4

    def __init__(self) -> None:
        self.bytes = self.SMALLEST
        self._fast = 0

    def written(self, count: int, seconds: float) -> None:
        """A batch of `count` bytes took so long."""
        if seconds > self._SLOW_S:
            self.bytes, self._fast = self.SMALLEST, 0
        elif seconds > self._FAST_S:
            self.bytes, self._fast = max(self.SMALLEST, self.bytes // 2), 0
        elif count >= self.bytes:
            self._fast += 1
            if self._fast >= self._PATIENCE:
                self.bytes, self._fast = min(self.LARGEST, self.bytes * 2), 0
