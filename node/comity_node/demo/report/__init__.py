"""The demo's report: what came out, as JSON, as one page of HTML, and as lines for a terminal.

    report = build(Inputs(...))
    write(report, Path("demo-out"))
    print(*summary_lines(report), sep=chr(10))
    check(report)

A report is written whatever it says, also when its numbers do not add up; `check` is what fails then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comity_node.demo.report.facts import Inputs, Verification, build, check
from comity_node.demo.report.measure import held_out_score, machine
from comity_node.demo.report.page import page
from comity_node.demo.report.terminal import summary_lines

__all__ = [
    "Inputs",
    "Verification",
    "build",
    "check",
    "held_out_score",
    "machine",
    "page",
    "summary_lines",
    "write",
]

JSON_FILE = "report.json"
HTML_FILE = "report.html"


def write(report: dict[str, Any], directory: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into a directory, which is made if it is missing; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    as_json, as_html = directory / JSON_FILE, directory / HTML_FILE
    as_json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    as_html.write_text(page(report), encoding="utf-8")
    return as_json, as_html
