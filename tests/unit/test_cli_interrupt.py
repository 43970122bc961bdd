"""Ctrl-C ends a stream between two messages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from comity_node.cli.interrupt import Interrupt


def test_ctrl_c_in_the_middle_of_a_message_is_met_after_it() -> None:
    done = []
    for number in Interrupt().until(iter(range(10))):
        os.kill(os.getpid(), signal.SIGINT)
        done.append(number)
    assert done == [0]


def test_ctrl_c_while_waiting_ends_the_stream_at_once() -> None:
    def waits() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGINT)
        yield 2

    assert list(Interrupt().until(waits())) == [1]


def test_ctrl_c_that_somebody_swallowed_is_met_at_the_next_message() -> None:
    def swallows() -> Iterator[int]:
        for number in range(10):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass
            yield number

    assert list(Interrupt().until(swallows())) == [0]


def test_what_ctrl_c_did_before_it_does_after() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert list(Interrupt().until(iter("ab"))) == ["a", "b"]
    assert signal.getsignal(signal.SIGINT) is before
