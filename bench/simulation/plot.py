"""The plot of a simulation: figures over sizes as dots, and the law that fits as a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from bench.simulation.laws import Fit
from bench.simulation.world import Figure
from comity_node.demo.report.svg import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, Drawing

_COLORS: Final = (BLUE, ORANGE, GREEN)
_COLUMNS: Final = 3
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 400, 270, 66, 84, 34, 18
_STEPS: Final = 40


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: its title, and up to three figures, each as (part, name, label)."""

    title: str
    lines: tuple[tuple[str, str, str], ...]


_LOOKUPS = (("lookup/room", "20 links"), ("lookup/full", "all places taken"))
PANELS: Final = (
    Panel(
        "Gossip: bytes a node sends for a message",
        (("gossip", "bytes-sent", "20 links"), ("gossip/full", "bytes-sent", "256 links")),
    ),
    Panel("Gossip: copies of a message", (("gossip", "copies-sent", "sent"), ("gossip", "duplicates", "in vain"))),
    Panel(
        "Gossip: ms until a message is there",
        (("gossip", "time-to-99-percent", "at 99%"), ("gossip", "time-to-all", "at all")),
    ),
    Panel("Gossip: hops", (("gossip", "hops", "mean"), ("gossip", "longest-way", "longest"))),
    Panel(
        "Gossip: bytes/s a node sends when all repeat",
        (("gossip", "all-cards-bytes-sent", "20 links"), ("gossip/full", "all-cards-bytes-sent", "256 links")),
    ),
    Panel("Lookup: messages of a search", tuple((part, "find-messages", label) for part, label in _LOOKUPS)),
    Panel("Lookup: messages until a provider is found", tuple((p, "messages-to-first", lb) for p, lb in _LOOKUPS)),
    Panel("Lookup: share that finds a provider", tuple((part, "found", label) for part, label in _LOOKUPS)),
    Panel("Lookup: ms of a search", tuple((part, "find-time", label) for part, label in _LOOKUPS)),
    Panel(
        "Routing: ms until 99% of batches are answered",
        (
            ("routing/quorum", "time-99-percent", "a quorum of 12"),
            ("routing/few", "time-99-percent", "3 of 24"),
            ("routing/few-blind", "time-99-percent", "3 of 24, at random"),
        ),
    ),
    Panel(
        "Quorum: bytes of a certificate, over reviewers",
        (("quorum", "bytes-of-certificate", "a vote of each of the quorum"),),
    ),
    Panel(
        "Quorum: votes checked, over reviewers",
        (
            ("quorum", "verifications-by-each-holder", "by a holder"),
            ("quorum/liars", "verifications-by-author", "by the author, f lie"),
        ),
    ),
)


def draw(figures: Sequence[Figure], laws: Mapping[tuple[str, str], Fit], panels: Sequence[Panel] = PANELS) -> str:
    """Return the plot as SVG; panels without figures stay empty."""
    rows = math.ceil(len(panels) / _COLUMNS)
    drawing = Drawing(_COLUMNS * _WIDTH, rows * _HEIGHT, "What a node pays as the number of organizations grows")
    drawing.rect(0, 0, _COLUMNS * _WIDTH, rows * _HEIGHT, PAPER)
    for number, panel in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        _Plot(drawing, column * _WIDTH, row * _HEIGHT, panel, figures).draw(laws)
    text = str(drawing)
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


class _Plot:
    """One panel on the drawing: sizes from left to right by their logarithm, values from 0 upwards."""

    def __init__(self, drawing: Drawing, left: float, top: float, panel: Panel, figures: Sequence[Figure]) -> None:
        self._drawing, self._panel = drawing, panel
        self._left, self._top = left + _LEFT, top + _TOP
        self._wide, self._high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        self._lines = {
            (part, name): [each for each in figures if (each.part, each.name) == (part, name)]
            for part, name, _ in panel.lines
        }
        every = [each for line in self._lines.values() for each in line]
        self._sizes = sorted({each.size for each in every}) or [1]
        self._most = max((each.value for each in every), default=0.0) * 1.1 or 1.0

    def draw(self, laws: Mapping[tuple[str, str], Fit]) -> None:
        """Draw axes, dots and laws."""
        self._drawing.text(self._left - _LEFT + 12, self._top - _TOP + 22, self._panel.title, size=14, bold=True)
        self._axes()
        for number, (part, name, label) in enumerate(self._panel.lines):
            color = _COLORS[number]
            law = laws.get((part, name))
            said = f"{label}: {law.law}{'' if law.fits else '?'}, off by {law.residual:.1%}" if law else label
            self._drawing.dot(self._left - _LEFT + 18, self._top - _TOP + 36 + 15 * number, 4, color)
            self._drawing.text(self._left - _LEFT + 28, self._top - _TOP + 40 + 15 * number, said, size=12, fill=MUTED)
            sizes = [each.size for each in self._lines[part, name]]
            if law and sizes:
                self._curve(law, color, min(sizes), max(sizes))
            for each in self._lines[part, name]:
                tip = f"{each.size:,}: {each.value:,.4g} {each.unit}"
                self._drawing.dot(self._x(each.size), self._y(each.value), 3.5, color, tip=tip)

    def _axes(self) -> None:
        for share in (0.0, 0.5, 1.0):
            value = self._most / 1.1 * share
            self._drawing.line(self._left, self._y(value), self._left + self._wide, self._y(value))
            self._drawing.text(self._left - 6, self._y(value) + 4, _short(value), anchor="end", size=11, fill=MUTED)
        for size in self._sizes:
            y = self._top + self._high + 16
            self._drawing.text(self._x(size), y, f"{size:,}", anchor="middle", size=11, fill=INK)

    def _curve(self, law: Fit, color: str, low: int, high: int) -> None:
        first, last = math.log(low), math.log(high)
        at = [math.exp(first + (last - first) * step / _STEPS) for step in range(_STEPS + 1)]
        points = [(self._x(size), self._y(law.at(size))) for size in at]
        for (x1, y1), (x2, y2) in pairwise(points):
            self._drawing.line(x1, y1, x2, y2, color, 1.5)

    def _x(self, size: float) -> float:
        first, last = math.log(self._sizes[0]), math.log(self._sizes[-1])
        return self._left + self._wide * ((math.log(size) - first) / (last - first) if last > first else 0.5)

    def _y(self, value: float) -> float:
        return self._top + self._high * (1 - min(max(value, 0.0), self._most) / self._most)


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
