"""Spans of tasks: where one spent its time, told to a collector of the organization's own, if it has one.

A trace's id follows from the task's, so that the spans of one task that several organizations have recorded join, and
nothing crosses a border for it. A span has ids, names and times, never anything of a record, a row or a reason.

Off unless `telemetry.traces` in node.yaml says where to (`tracing.otel`): then this module's `NULL` stands in, which
does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from comity.digest import sha256

__all__ = ["NULL", "NullTracer", "Subject", "Tracer", "is_sampled", "trace_id_of"]

_DOMAIN: Final = b"comity/trace/v1\x00"
_TRACE_BYTES: Final = 16


class Subject(NamedTuple):
    """A task, as a span names it.

    Attributes:
        task_id: 16 bytes.
        agreement: digest of the terms that it runs under.
        attempt: how often its home has sent it out; 0 where it does not travel.
        joined: the id of the way on which the record was made, or of the task that it is judged as; empty: none.
    """

    task_id: bytes
    agreement: bytes
    attempt: int = 0
    joined: bytes = b""


class Tracer(Protocol):
    """Takes spans that are over. It neither waits nor raises."""

    @property
    def enabled(self) -> bool:
        """Whether anything is done with spans: else nobody needs to gather what they say."""

    def now_ns(self) -> int:
        """Return the time for `record`, in nanoseconds since the Unix epoch; 0 if nothing is done with it."""

    def record(
        self, name: str, subjects: Sequence[Subject], start_ns: int, *, peer: str = "", skill: str = "",
        outcomes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Take one span for each task; all have begun at `start_ns`, and end now.

        Args:
            name: what was done: "egress", "send", "receive", "agent", "review" or "certify".
            subjects: the tasks.
            start_ns: of `now_ns`.
            peer: the other organization.
            skill: that was asked for.
            outcomes: a word of our own for each task, such as "passed"; none, or one for each.
        """


class NullTracer:
    """Does nothing with spans."""

    enabled: Final = False

    def now_ns(self) -> int:
        """Return 0."""
        return 0

    def record(
        self, name: str, subjects: Sequence[Subject], start_ns: int, *, peer: str = "", skill: str = "",
        outcomes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Forget them."""


NULL: Final = NullTracer()


def trace_id_of(task_id: bytes) -> int:
    """Return the trace id of a task: the first 16 bytes of SHA-256 over a domain and the task's id."""
    return int.from_bytes(sha256(_DOMAIN + task_id)[:_TRACE_BYTES], "big") or 1


def is_sampled(trace_id: int, share: float) -> bool:
    """Tell whether a trace is one of a `share` of all: every organization with the same share has the same ones.

    Its last 7 bytes are what is random in a trace id (W3C Trace Context, level 2).
    """
    return (trace_id & ((1 << 56) - 1)) < share * (1 << 56)
