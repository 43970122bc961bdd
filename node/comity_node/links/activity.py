"""What happens on links, for those who wait for it."""

from __future__ import annotations

import trio


class Changes:
    """A counter of changes that tasks can wait on."""

    def __init__(self) -> None:
        self.version = 0
        self._lot = trio.lowlevel.ParkingLot()

    def note(self) -> None:
        """Something changed."""
        self.version += 1
        self._lot.unpark_all()

    async def wait(self, since: int) -> int:
        """Wait until the version is past `since`, and return it."""
        await trio.lowlevel.checkpoint()
        while self.version <= since:
            await self._lot.park()
        return self.version


class Activity:
    """Counts work under way, and lets a drain wait for its end."""

    __slots__ = ("_lot", "count")

    def __init__(self) -> None:
        #: Add one for each that begins.
        self.count = 0
        self._lot = trio.lowlevel.ParkingLot()

    def end(self) -> None:
        """One less."""
        self.count -= 1
        if not self.count:
            self._lot.unpark_all()

    async def wait_idle(self) -> None:
        """Wait until nothing is under way."""
        await trio.lowlevel.checkpoint()
        while self.count:
            await self._lot.park()
