"""The report's end on a terminal: a table and the facts, as plain lines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from comity_node.demo.report.facts import ENDS
from comity_node.demo.report.headlines import headlines
from comity_node.demo.report.text import decimal, size

Report = Mapping[str, Any]
_WIDTH = 110


def summary_lines(report: Report) -> list[str]:
    """Return what a person wants to see when the demo ends; no line holds control characters or markup of ours."""
    lines = [*_organizations(report), "", *_arms(report), ""]
    for fact in headlines(report):
        lines += textwrap.wrap(fact, _WIDTH, initial_indent="* ", subsequent_indent="  ")
    times = report["timings"]
    traffic = f"{times['messages']:,} messages, {size(times['sent_bytes'])} sent"
    lines += ["", f"{decimal(times['total_s'], 1)} s in all; {traffic} between the organizations"]
    for one in report["verify"]:
        lines.append(f"{'passed' if one['passed'] else 'FAILED'}: {one['what']}")
    return lines


def _organizations(report: Report) -> list[str]:
    medians = {one["organization"]: decimal(one["median"], 2) for one in report["reliability"]["summary"]}
    rows = [
        [name, one["role"], *(str(one[field]) for field in ("offered", *ENDS)), medians.get(name, "–")]
        for name, one in report["organizations"].items()
    ]
    totals = report["records"]["totals"]
    rows.append(["all", "", *(str(totals[field]) for field in ("offered", *ENDS)), ""])
    return _table(["organization", "role", "offered", *ENDS, "reliability"], rows)


def _arms(report: Report) -> list[str]:
    arms = report["federated"]["ablation"]["arms"]
    rows = [
        [
            arm["label"],
            *(f"{decimal(arm[m]['mean'], 4)} ± {decimal(arm[m]['sd'], 4)}" for m in ("auc", "accuracy")),
        ]
        for arm in arms
    ]
    count = len(report["federated"]["ablation"]["seeds"])
    return _table([f"trained (mean ± sd over {count} seeds)", "AUC", "accuracy"], rows) if rows else []


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines: the first column to the left, the others to the right."""
    widths = [max(len(row[number]) for row in (headers, *rows)) for number in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return [line(headers), "  ".join("-" * width for width in widths), *map(line, rows)]
