"""Ctrl-C while a command reads what a node tells without end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Interrupt:
    """Ends a stream at Ctrl-C: between two messages, never in the middle of what is done about one.

    Raised inside a callback of gRPC, a KeyboardInterrupt would be reported and forgotten: so it is noted here as well,
    and met at the next message at the latest.
    """

    def __init__(self) -> None:
        """Note nothing yet; `until` listens."""
        self._asked = False
        self._waiting = False

    def until(self, stream: Iterator[T]) -> Iterator[T]:
        """Yield what `stream` yields, until it ends or somebody presses Ctrl-C.

        Outside the main thread, which alone gets signals, Ctrl-C is whoever's it was before.
        """
        if threading.current_thread() is not threading.main_thread():
            yield from stream
            return
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield from self._read(stream)
        except KeyboardInterrupt:
            return
        finally:
            signal.signal(signal.SIGINT, before)

    def _read(self, stream: Iterator[T]) -> Iterator[T]:
        while True:
            self._waiting = True  # first: what comes before it is seen below, what comes after it raises
            try:
                if self._asked:
                    return
                told = next(stream)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield told

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._waiting:
            raise KeyboardInterrupt
