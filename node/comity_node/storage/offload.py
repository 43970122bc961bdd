"""How work that blocks leaves the loop, and how soon those who wait for it hear of its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    import outcome  # what trio wraps results in

T = TypeVar("T")


class Offload(Protocol):
    """Runs something that blocks without blocking the loop."""

    def __call__(
        self, work: Callable[[], T], limiter: trio.CapacityLimiter | None, /, after: Callable[[], None] | None = None
    ) -> Awaitable[T]:
        """Run `work` and return what it returns.

        Args:
            work: what blocks.
            limiter: bounds how many work at once; None if the caller sees to that.
            after: called on the loop when `work` has ended, however it has, before this call returns.
        """


async def in_thread(
    work: Callable[[], T], limiter: trio.CapacityLimiter | None, /, after: Callable[[], None] | None = None
) -> T:
    """Run `work` in a thread of trio's pool: what a node does. Once it runs, it is not cancelled.

    Without a limiter it takes two rounds of the loop less than `trio.to_thread.run_sync`: `after` is called, and may
    wake tasks, in the same round in which the loop hears from the thread. Under load a round takes milliseconds.
    """
    if limiter is not None:
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter)
        finally:
            if after is not None:
                after()
    token, task = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()

    def finish(result: outcome.Outcome[T]) -> None:
        if after is not None:
            after()
        trio.lowlevel.reschedule(task, result)

    trio.lowlevel.start_thread_soon(work, lambda result: token.run_sync_soon(finish, result))
    value: Any = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
    return value  # type: ignore[no-any-return]  # what `work` returned


async def inline(
    work: Callable[[], T], limiter: trio.CapacityLimiter | None, /, after: Callable[[], None] | None = None
) -> T:
    """Run `work` on the loop: for tests under a virtual clock, which would jump while a thread works."""
    await trio.lowlevel.checkpoint()
    try:
        return work()
    finally:
        if after is not None:
            after()
