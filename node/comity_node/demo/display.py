"""What the demo shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_STATES = ("queued", "in_review", "in_repair", "certified", "rejected", "undecided", "refused")
_LINES = 12
_PLAIN_EVERY_S = 5.0

Counts = Mapping[str, Mapping[str, int]]


class Display:
    """Steps, lines, and a table of task states by organization."""

    def __init__(self, *, plain: bool) -> None:
        """Show plain lines if asked to, or if standard output is no terminal."""
        self._console = Console(file=sys.stdout, highlight=False)
        self._plain = plain or not self._console.is_terminal
        self._lines: list[str] = []
        self._counts: Counts = {}
        self._began = time.monotonic()
        self._printed = ""
        self._printed_at = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if not self._plain:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def line(self, text: str) -> None:
        """Show one line of what happened."""
        stamped = f"{time.monotonic() - self._began:6.1f} s  {text}"
        if self._plain:
            print(stamped, flush=True)
            return
        self._lines = [*self._lines, stamped]
        self._refresh()

    def counts(self, counts: Counts) -> None:
        """Show how many tasks of each organization are in each state."""
        self._counts = counts
        if not self._plain:
            self._refresh()
            return
        text = "; ".join(
            f"{name.split('.')[0]} " + (", ".join(f"{n} {s}" for s, n in sorted(states.items())) or "starting")
            for name, states in counts.items()
        )
        now = time.monotonic()
        if text != self._printed and now - self._printed_at >= _PLAIN_EVERY_S:
            self.line(text)
            self._printed, self._printed_at = text, now

    def _refresh(self) -> None:
        if self._live is None:
            return
        parts: list[Table | Text] = [Text("\n".join(self._lines[-_LINES:]))]
        if self._counts:
            table = Table("organization", *_STATES)
            for name, states in self._counts.items():
                table.add_row(name, *(str(states.get(state, 0)) for state in _STATES))
            parts.append(table)
        self._live.update(Group(*parts))
