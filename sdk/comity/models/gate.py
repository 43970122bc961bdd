"""The queue in front of a back-end: calls wait, oldest first, until its window has room. Of one asyncio loop."""

from __future__ import annotations

import asyncio
from collections import deque

from comity.errors import BackendBusy
from comity.pacing import AimdWindow


class Gate:
    """Lets calls through as the window allows.

    Args:
        window: how many may be under way.
        waiting: how many may wait.
    """

    def __init__(self, window: AimdWindow, waiting: int) -> None:
        self._window, self._limit = window, waiting
        self._queue: deque[asyncio.Future[None]] = deque()
        self._open_s = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def window(self) -> AimdWindow:
        """How many may be under way."""
        return self._window

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    async def enter(self) -> None:
        """Wait for room; `window.begin` has been called then, and `left` is due afterwards.

        Raises:
            BackendBusy: too many wait already.
        """
        loop = asyncio.get_running_loop()
        if len(self._queue) >= self._limit:
            raise BackendBusy(f"{self._limit} calls wait for the model's server already")
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        self.admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._queue:
                self._queue.remove(turn)
            elif turn.done() and not turn.cancelled():  # it had its turn at the same moment
                self._window.released()
                self.admit()
            raise

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._open_s = max(self._open_s, asyncio.get_running_loop().time() + seconds)

    def admit(self) -> None:
        """Let through whom there is room for; to be called whenever the window may have room."""
        loop = asyncio.get_running_loop()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if loop.time() < self._open_s:
            if self._queue:
                self._alarm = loop.call_at(self._open_s, self.admit)
            return
        while self._queue and self._window.free:
            turn = self._queue.popleft()
            if not turn.done():
                self._window.begin()
                turn.set_result(None)
