"""A loop on a thread of its own, so that skills on threads and skills on any loop share one window."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from comity.errors import BackendError

T = TypeVar("T")


class LoopThread:
    """Starts at the first call. The thread is a daemon: a call that hangs does not hold up the process's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` on the loop; a cancelled future cancels it.

        Raises:
            BackendError: it is closed.
        """
        with self._lock:
            if self._closed:
                work.close()
                raise BackendError("the back-end is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="comity-model-backend", daemon=True
                )  # fmt: skip
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what runs, run `last`, and end the thread."""
        with self._lock:
            loop, thread, self._closed = self._loop, self._thread, True
            self._loop = None
        if loop is None or thread is None:
            last.close()
            return
        asyncio.run_coroutine_threadsafe(_end(last), loop).result(10.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10.0)
        loop.close()


async def _end(last: Coroutine[Any, Any, None]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in others if task is not None), return_exceptions=True)
    await last
