"""The items of a stream that we asked for, between the link that gets them and the task that reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from comity.errors import ComityError


class Items:
    """What has come of a stream and is not read; never more than its window, and one item.

    Iterate over it, in one task. It ends when the peer has ended the stream, or raises why it ended early.
    """

    def __init__(self, window_items: int, window_bytes: int) -> None:
        self.window_items, self.window_bytes = window_items, window_bytes
        #: Told how many items and bytes have been read, each time half of the window has.
        self.on_used: Callable[[int, int], None] = _nothing
        self._items: deque[bytes] = deque()
        self._unread_bytes = 0
        self._used_items = 0
        self._used_bytes = 0
        self._ended = False
        self._error: ComityError | None = None
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def unread(self) -> int:
        """Items that have come and are not read."""
        return len(self._items)

    def put(self, item: bytes) -> None:
        """An item came."""
        self._items.append(item)
        if self._lot:
            self._lot.unpark_all()

    def end(self, error: ComityError | None) -> None:
        """No more come: all is there, or this is why not."""
        if not self._ended:
            self._ended, self._error = True, error
            self._lot.unpark_all()

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> bytes:
        """Return the next item.

        Raises:
            DeadlineExceeded: the time for the whole stream is up.
            LinkClosed: the link went down before the end.
            PeerRefused: the peer ended it early; `remote_code` says why.
            Busy: the peer does not serve it now.
        """
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._lot.park()
        item = self._items.popleft()
        self._used_items += 1
        self._used_bytes += len(item)
        if not self._ended and (2 * self._used_items >= self.window_items or 2 * self._used_bytes >= self.window_bytes):
            self.on_used(self._used_items, self._used_bytes)
            self._used_items = self._used_bytes = 0
        return item


def _nothing(items: int, size: int) -> None:
    """Nobody has to know."""
