"""The plots of the grid: ratios with their intervals, and what the model says, case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, Final

from comity_node.demo.report.svg import AMBER, BLUE, GREEN, GREY, INK, MUTED, ORANGE, PAPER, Drawing

_COLORS: Final = (BLUE, ORANGE, GREEN, AMBER)
_WIDTH, _LEFT, _RIGHT, _TOP, _LINE, _BOTTOM = 900, 300, 30, 56, 14, 36


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn in one colour: ratios of `arm` over `peer`.

    Attributes:
        label: what the legend says.
        arm: as in the result.
        peer: as in the result.
    """

    label: str
    arm: str
    peer: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot.

    Attributes:
        name: of its file.
        title: above it.
        series: at most four.
        marks: ratios at which a line is drawn, beside 1.
    """

    name: str
    title: str
    series: tuple[Series, ...]
    marks: tuple[float, ...] = ()


PLOTS: Final = (
    Plot(
        "scheduling",
        "Scheduling alone: row by row over a barrier, both central (makespan; diamond: the model)",
        (
            Series("over batches of C", "central-row", "central-batch-C"),
            Series("over batches of 50", "central-row", "central-batch-50"),
        ),
    ),
    Plot(
        "topology",
        "Topology alone: over the central orchestrator, all row by row (makespan)",
        (
            Series("brokers", "brokers", "central-row"),
            Series("Comity in memory", "comity-memory", "central-row"),
            Series("in memory, by way of home", "comity-memory-home", "central-row"),
            Series("Comity in full", "comity-full", "central-row"),
        ),
    ),
    Plot(
        "comity",
        "Both: Comity in full over a central orchestrator with a barrier (makespan; diamond: the model)",
        (
            Series("over batches of C", "comity-full", "central-batch-C"),
            Series("over batches of 50", "comity-full", "central-batch-50"),
        ),
        (2.0,),
    ),
)


def draw(plot: Plot, ratios: Sequence[Mapping[str, Any]]) -> str:
    """Return a plot as SVG, with the cases in which one of its series was measured."""
    shown = [each for each in ratios if each.get("figure") == "makespan"]
    pairs = {(each.arm, each.peer) for each in plot.series}
    works = list(dict.fromkeys(each["work"] for each in shown if (each["arm"], each["peer"]) in pairs))
    found = {(each["work"], each["arm"], each["peer"]): each for each in shown}
    lines = [[found.get((work, each.arm, each.peer)) for each in plot.series] for work in works]
    high = _LINE * max(1, len(plot.series)) + 8
    tall = _TOP + high * len(works) + _BOTTOM
    drawing = Drawing(_WIDTH, tall, plot.title)
    drawing.rect(0, 0, _WIDTH, tall, PAPER)
    drawing.text(14, 22, plot.title, size=14, bold=True)
    _legend(drawing, [(each.label, color) for each, color in zip(plot.series, _COLORS, strict=False)])
    scale = _Scale([each for line in lines for each in line if each])
    _axis(drawing, scale, tall, plot.marks)
    for number, (work, line) in enumerate(zip(works, lines, strict=True)):
        top = _TOP + 8 + high * number
        drawing.text(_LEFT - 10, top + high / 2, work, anchor="end", size=12)
        for index, each in enumerate(line):
            if each:
                _interval(drawing, scale, top + _LINE * index + 8, each, _COLORS[index])
    return _file(drawing)


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Return rates as bars on a logarithmic scale: label, value, and what it is of."""
    tall = 44 + 26 * len(rows) + 14
    drawing = Drawing(_WIDTH, tall, title)
    drawing.rect(0, 0, _WIDTH, tall, PAPER)
    drawing.text(14, 22, title, size=14, bold=True)
    low = floor(log10(min((value for _, value, _ in rows), default=1.0))) - 0.3
    high = ceil(log10(max((value for _, value, _ in rows), default=10.0)))
    for number, (label, value, unit) in enumerate(rows):
        y = 40 + 26 * number
        wide = (_WIDTH - _LEFT - 150) * (log10(value) - low) / (high - low)
        drawing.text(_LEFT - 10, y + 14, label, anchor="end", size=12)
        drawing.rect(_LEFT, y + 2, wide, 17, ORANGE if label.startswith("Ray") else BLUE)
        drawing.text(_LEFT + wide + 8, y + 15, f"{value:,.0f} {unit}", size=12, fill=MUTED)
    return _file(drawing)


class _Scale:
    """Ratios from left to right, from the lowest to the highest."""

    def __init__(self, each: Sequence[Mapping[str, Any]]) -> None:
        values: list[float] = [one[name] for one in each for name in ("low", "high", "model") if one.get(name)]
        self.low = floor(min([0.9, *values]) * 10) / 10
        self.high = ceil(max([1.2, *values]) * 10) / 10
        self._wide = self.high - self.low

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.low) / self._wide

    def ticks(self) -> list[float]:
        step = next(each for each in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if (self.high - self.low) / each <= 10)
        return [step * number for number in range(ceil(self.low / step), floor(self.high / step) + 1)]


def _axis(drawing: Drawing, scale: _Scale, tall: float, marks: Sequence[float]) -> None:
    for value in scale.ticks():
        drawing.line(scale.x(value), _TOP, scale.x(value), tall - _BOTTOM + 6)
        drawing.text(scale.x(value), tall - _BOTTOM + 22, f"{value:g}x", anchor="middle", size=11, fill=MUTED)
    for mark in (1.0, *marks):
        if scale.low <= mark <= scale.high:
            drawing.line(scale.x(mark), _TOP, scale.x(mark), tall - _BOTTOM + 6, INK, 1.5)


def _interval(drawing: Drawing, scale: _Scale, y: float, each: Mapping[str, Any], color: str) -> None:
    drawing.line(scale.x(each["low"]), y, scale.x(each["high"]), y, color, 2.0)
    tip = f"{each['arm']} over {each['peer']}: {each['ratio']:.3f}x [{each['low']:.3f}, {each['high']:.3f}]"
    if each.get("model"):
        drawing.diamond(scale.x(each["model"]), y, 7, GREY, tip=f"model: {each['model']:.3f}x")
    drawing.dot(scale.x(each["ratio"]), y, 3.5, color, tip=tip)


def _legend(drawing: Drawing, entries: Sequence[tuple[str, str]]) -> None:
    at = float(_LEFT)
    for label, color in entries:
        drawing.dot(at, 40, 4, color)
        drawing.text(at + 10, 44, label, size=12, fill=MUTED)
        at += 34 + 7 * len(label)


def _file(drawing: Drawing) -> str:
    return str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"
