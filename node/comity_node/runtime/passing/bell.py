"""Wakes one loop: rung as often as there is news, heard once for all of it."""

from __future__ import annotations

import trio


class Bell:
    """An event that can be waited for again and again; rings between two waits are one."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        """Begin silent."""
        self._event = trio.Event()

    def ring(self) -> None:
        """Say that there is news."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until it rang after the last wait."""
        await self._event.wait()
        self._event = trio.Event()
