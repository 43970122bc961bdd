"""The report's plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comity_node.demo.report.facts import BAD, ENDS
from comity_node.demo.report.svg import AMBER, BLUE, GREEN, GREY, INK, MUTED, ORANGE, PAPER, Drawing, mix
from comity_node.demo.report.text import decimal, kind_name

Report = Mapping[str, Any]
_WIDTH = 920
_COLORS: Mapping[str, str] = {"certified": GREEN, "rejected": ORANGE, "undecided": GREY, "refused": BLUE}
_DARK = (GREEN, ORANGE, BLUE)


def outcomes(report: Report) -> str:
    """Draw how each organization's rows ended, as stacked bars."""
    organizations = report["organizations"]
    left, row, top = 190, 36, 40
    drawing = Drawing(_WIDTH, top + row * len(organizations) + 6, "How each organization's rows ended")
    for number, end in enumerate(ENDS):
        drawing.rect(left + 120 * number, 8, 14, 14, _COLORS[end])
        drawing.text(left + 120 * number + 20, 20, end)
    widest = max((one["offered"] for one in organizations.values()), default=0) or 1
    for number, (name, one) in enumerate(organizations.items()):
        y = top + row * number
        drawing.text(left - 10, y + 18, _named(name, one["role"]), anchor="end", fill=_role_ink(one["role"]))
        x = float(left)
        for end in ENDS:
            width = (_WIDTH - left - 60) * one[end] / widest
            if not one[end]:
                continue
            drawing.rect(x, y, width, 26, _COLORS[end], f"{name}: {one[end]} {end}")
            if width > 24:
                ink = PAPER if _COLORS[end] in _DARK else INK
                drawing.text(x + width / 2, y + 18, str(one[end]), anchor="middle", fill=ink)
            x += width
        drawing.text(x + 8, y + 18, str(one["offered"]), fill=MUTED)
    return str(drawing)


def reliability(report: Report) -> str:
    """Draw what each organization (a row) has learned about each other (a column)."""
    seen_by, organizations = report["reliability"]["seen_by"], report["organizations"]
    names = list(organizations)
    left, top, row = 190, 52, 36
    column = (_WIDTH - left - 10) / max(len(names), 1)
    drawing = Drawing(_WIDTH, top + row * len(names) + 6, "Reliability of each organization as each other one sees it")
    drawing.text(left - 10, 20, "seen by ↓   of →", anchor="end", fill=MUTED)
    for number, name in enumerate(names):
        role = organizations[name]["role"]
        drawing.text(left + column * (number + 0.5), 20, name, anchor="middle", fill=_role_ink(role))
        drawing.text(left + column * (number + 0.5), 38, role, anchor="middle", size=11, fill=_role_ink(role))
    for y_number, viewer in enumerate(names):
        y = top + row * y_number
        role = organizations[viewer]["role"]
        drawing.text(left - 10, y + 21, _named(viewer, role), anchor="end", fill=_role_ink(role))
        for x_number, other in enumerate(names):
            x = left + column * x_number
            one = seen_by[viewer].get(other)
            mean = one["mean"] if one else None
            if one is None or mean is None:
                drawing.rect(x + 1, y + 1, column - 2, row - 2, "#f3f5f7")
                continue
            tip = f"{viewer} of {other}: {one['agreed']} agreed, {one['disagreed']} disagreed"
            drawing.rect(x + 1, y + 1, column - 2, row - 2, mix(BLUE, mean), tip)
            ink = PAPER if mean > 0.6 else INK
            drawing.text(x + column / 2, y + 22, decimal(mean, 2), anchor="middle", fill=ink)
    return str(drawing)


def comparison(report: Report, metric: str, shown: str) -> str:
    """Draw every arm's values, mean and standard deviation, once over all of their range and once near the top."""
    arms = report["federated"]["ablation"]["arms"]
    left, row, top, bottom, gap = 270, 30, 34, 34, 46
    panel = (_WIDTH - left - gap - 20) / 2
    height = top + row * len(arms) + bottom
    drawing = Drawing(_WIDTH, height, f"{shown} on held-out rows, by arm: every seed, mean and standard deviation")
    for number, arm in enumerate(arms):
        drawing.text(left - 16, top + row * (number + 0.5) + 4, arm["label"], anchor="end")
    for number, (low, high) in enumerate(_ranges(arms, metric)):
        x = left + number * (panel + gap)
        title = f"{shown}, all of it" if number == 0 else f"{shown}, near the top"
        drawing.text(x, 16, title, bold=True)
        _panel(drawing, arms, metric, (x, top, panel, row * len(arms)), (low, high))
    return str(drawing)


def timings(report: Report) -> str:
    """Draw how long each step took."""
    steps = {kind_name(name.removesuffix("_s")): seconds or 0.0 for name, seconds in report["timings"]["steps"].items()}
    left, row = 190, 30
    drawing = Drawing(_WIDTH, row * len(steps) + 8, "Seconds of each step")
    longest = max(steps.values(), default=0.0) or 1.0
    for number, (name, seconds) in enumerate(steps.items()):
        y = row * number + 4
        width = (_WIDTH - left - 90) * seconds / longest
        drawing.text(left - 10, y + 16, name, anchor="end")
        drawing.rect(left, y, max(width, 1.0), 22, BLUE, f"{name}: {seconds} s")
        drawing.text(left + width + 8, y + 16, f"{seconds:.1f} s", fill=MUTED)
    return str(drawing)


def _panel(
    drawing: Drawing,
    arms: Sequence[Mapping[str, Any]],
    metric: str,
    box: tuple[float, float, float, float],
    limits: tuple[float, float],
) -> None:
    (x, y, width, height), (low, high) = box, limits

    def place(value: float) -> float:
        return x + width * (min(max(value, low), high) - low) / (high - low)

    for tick in _ticks(low, high):
        drawing.line(place(tick), y, place(tick), y + height)
        drawing.text(place(tick), y + height + 18, f"{tick:g}", anchor="middle", size=12, fill=MUTED)
    row = height / max(len(arms), 1)
    for number, arm in enumerate(arms):
        _arm(drawing, arm[metric], y + row * (number + 0.5), place, low)


def _arm(drawing: Drawing, one: Mapping[str, Any], y: float, place: Callable[[float], float], low: float) -> None:
    """Draw one arm's spread: a bar of one standard deviation to each side, dots for seeds, a diamond."""
    mean, sd = one["mean"], one["sd"] or 0.0
    if mean is None:
        return
    if mean < low:
        drawing.text(place(low) + 4, y + 4, f"◂ {decimal(mean)}", size=12, fill=ORANGE)
        return
    drawing.line(place(mean - sd), y, place(mean + sd), y, AMBER, 5)
    for value in one["values"]:
        if value is not None and value >= low:
            drawing.dot(place(value), y, 3.5, BLUE, 0.55, decimal(value, 4))
    drawing.diamond(place(mean), y, 5, INK, f"mean {decimal(mean, 4)}, sd {decimal(one['sd'], 4)}")


def _ranges(arms: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """Return the range of everything, and that of the arms whose mean is within a tenth of the best one's."""
    values = [value for arm in arms for value in arm[metric]["values"] if value is not None]
    means = [arm[metric]["mean"] for arm in arms if arm[metric]["mean"] is not None]
    if not values or not means:
        return [(0.0, 1.0)]
    good = [arm for arm in arms if (arm[metric]["mean"] or 0.0) >= 0.9 * max(means)]
    near = [value for arm in good for value in arm[metric]["values"] if value is not None]
    high = min(1.0, math.ceil(max(values) * 100 + 0.1) / 100)
    return [_wide(math.floor(min(values) * 10) / 10, high), _wide(math.floor(min(near) * 100) / 100, high)]


def _wide(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high - low >= 0.01 else (high - 0.01, high)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from `low` to `high`."""
    step = next(
        (s for s in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 6),
        0.5,
    )
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + number) * step, 6) for number in range(count)]


def _named(name: str, role: str) -> str:
    return f"{name} (bad)" if role == BAD else name


def _role_ink(role: str) -> str:
    return ORANGE if role == BAD else INK
