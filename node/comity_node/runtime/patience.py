"""What the node does of itself waits while the disk is full, and goes on by itself once there is room."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from comity.errors import Busy, StorageFull

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_S = 2.0


async def patiently(work: Callable[[], Awaitable[T]], what: str) -> T:
    """Do `work`, again and again while the disk or the outbox is full, and return its result.

    Args:
        work: goes on where it stopped when it is done again; nothing of a change that was refused was applied.
        what: the work's name for the log.
    """
    while True:
        try:
            return await work()
        except (StorageFull, Busy) as error:
            log.error("%s waits: %s", what, error.diagnostics())  # noqa: TRY400  (no bug, so no traceback)
            await trio.sleep(_RETRY_S)
