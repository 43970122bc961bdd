"""Virtual time for a whole world: a run of hours takes seconds, and the same plan takes the same way each time.

Trio's clock jumps to the next deadline as soon as every task waits. A thread that works would not be seen by it, so
whatever the product gives to a thread is done on the loop here; databases get `storage.offload.inline` likewise.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")


async def _run_sync(function: Callable[..., T], *arguments: Any, **_: Any) -> T:
    """Stand in for `trio.to_thread.run_sync`."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


@contextmanager
def _on_the_loop(seed: int) -> Iterator[None]:
    """Take trio's threads away, and its choice of which task goes first: a seed chooses."""
    core = sys.modules["trio._core._run"]
    kept = {(trio.to_thread, "run_sync"): _run_sync, (core, "_ALLOW_DETERMINISTIC_SCHEDULING"): True}
    before = {(owner, name): getattr(owner, name) for owner, name in kept}
    for (owner, name), value in kept.items():
        setattr(owner, name, value)
    draws = core._r
    state = draws.getstate()
    draws.seed(seed)
    try:
        yield
    finally:
        draws.setstate(state)
        for (owner, name), value in before.items():
            setattr(owner, name, value)


def run(main: Callable[[], Awaitable[T]], seed: int) -> T:
    """Run `main` in virtual time and return what it returns; an error of one kind comes out as itself."""
    try:
        with _on_the_loop(seed):
            return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
