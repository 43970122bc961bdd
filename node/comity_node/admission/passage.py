"""A passage that many use at once, or one alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Passage:
    """Lets any number in at once; whoever wants it alone waits for those inside, and those who come wait for that one.

    Nobody may enter from inside.
    """

    def __init__(self) -> None:
        """Make one that is open and empty."""
        self._inside = 0
        self._lock = trio.Lock()
        self._opened: trio.Event | None = None
        self._emptied = trio.Event()

    async def enter(self) -> None:
        """Go in, once nobody has it alone or waits for that; `leave` has to follow."""
        while self._opened is not None:
            await self._opened.wait()
        self._inside += 1

    def leave(self) -> None:
        """Go out."""
        self._inside -= 1
        if not self._inside:
            self._emptied.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Have it alone for a block."""
        async with self._lock:
            self._opened, self._emptied = trio.Event(), trio.Event()
            try:
                if self._inside:
                    await self._emptied.wait()
                yield
            finally:
                self._opened.set()
                self._opened = None
