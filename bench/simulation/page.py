"""docs/simulation.md: its tables are made of a result, its text stands in `page.md` beside this file.

python -m bench.simulation.page bench-out/simulation.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.simulation.laws import fit_all, simplest
from bench.simulation.plot import PANELS, Panel, draw
from bench.simulation.world import Figure

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_TEMPLATE: Final = Path(__file__).with_name("page.md")
#: Told in the tables beside what is drawn.
_MORE: Final = (
    Panel("Routing: fairness between reviewers", (("routing/quorum", "fairness", "a quorum of 12"),)),
    Panel("Routing: fairness between reviewers", (("routing/few", "fairness", "3 of 24"),)),
)


def publish(content: Mapping[str, Any], docs: Path = _ROOT / "docs") -> Path:
    """Write `simulation.md` and its plot into `docs`; return the page."""
    figures = [Figure(**each) for each in content["cells"]]
    laws = {key: simplest(fits) for key, fits in fit_all(figures).items()}
    (docs / "simulation.svg").write_text(draw(figures, laws), encoding="utf-8")
    text = _TEMPLATE.read_text(encoding="utf-8")
    for over in ("organizations", "reviewers"):
        text = text.replace(f"<!-- {over} -->", _table(content, over))
    page = docs / "simulation.md"
    page.write_text(text, encoding="utf-8")
    return page


def _table(content: Mapping[str, Any], over: str) -> str:
    values: dict[tuple[str, str], dict[int, float]] = {}
    for each in content["cells"]:
        if each["over"] == over:
            values.setdefault((each["part"], each["name"]), {})[each["size"]] = each["value"]
    laws = {(law["part"], law["name"]): law for law in content["laws"]}
    sizes = sorted({size for line in values.values() for size in line})
    head = [f"of so many {over}", *(f"{size:,}" for size in sizes), "law", "off by"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * len(sizes) + "|---|---:|"]
    for panel in (*PANELS, *_MORE):
        for part, name, label in panel.lines:
            if line := values.get((part, name)):
                row = [f"{panel.title}: {label}", *(_number(line.get(size)) for size in sizes)]
                lines.append("| " + " | ".join([*row, *_law(laws.get((part, name)))]) + " |")
    return "\n".join(lines)


def _law(law: Mapping[str, Any] | None) -> tuple[str, str]:
    if law is None:
        return "", ""
    return f"{law['law']}{'' if law['fits'] else '?'}", f"{law['residual']:.1%}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    """Write the page from a result's file."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "bench-out/simulation.json")
    print(publish(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
