"""docs/benchmarks.md: its tables and plots are made of a result, its text stands in `page.md` beside this file.

python -m bench.runtime.page bench-out/runtime.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.runtime.grid import ARMS
from bench.runtime.plot import PLOTS, bars, draw

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_TEMPLATE: Final = Path(__file__).with_name("page.md")
_SHORT: Final = {
    "central-batch-50": "batch 50",
    "central-batch-C": "batch C",
    "central-row": "row",
    "central-row-hedged": "row, hedged",
}


def publish(content: Mapping[str, Any], docs: Path = _ROOT / "docs") -> Path:
    """Write `benchmarks.md` and its plots into `docs`; return the page."""
    plots = docs / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        (plots / f"{plot.name}.svg").write_text(draw(plot, content["ratios"]), encoding="utf-8")
    (plots / "ceiling.svg").write_text(
        bars("Hops a second, agents that cost nothing", _rates(content)), encoding="utf-8"
    )
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, make in _TABLES.items():
        text = text.replace(f"<!-- {name} -->", make(content))
    page = docs / "benchmarks.md"
    page.write_text(text, encoding="utf-8")
    return page


def _machine(content: Mapping[str, Any]) -> str:
    machine = content["machine"]
    load = f"load before the run {content.get('load', 0.0):.2f}"
    return f"{machine['cpus']} processors, {machine['platform']}, {machine['python']}, {load}"


def _makespans(content: Mapping[str, Any]) -> str:
    values = {(each["work"], each["arm"]): each["value"] for each in content["cells"]}
    models = content.get("models", [])
    arms = [arm for arm in ARMS if any((f"{each['work']} makespan", arm) in values for each in models)]
    head = ["case", *(_SHORT.get(arm, arm) for arm in arms), "model: row", "batch 50", "batch C"]
    rows = [
        [
            each["work"],
            *(_seconds(values.get((f"{each['work']} makespan", arm))) for arm in arms),
            _seconds(each["row_s"]),
            _seconds(each["batch_s"]["central-batch-50"]),
            _seconds(each["batch_s"]["central-batch-C"]),
        ]
        for each in models
    ]
    return _table(head, rows)


def _effects(content: Mapping[str, Any]) -> str:
    rows = [
        [
            each["work"],
            each["effect"],
            f"{each['arm']} / {each['peer']}",
            f"{each['ratio']:.2f} [{each['low']:.2f}, {each['high']:.2f}]",
            f"{each['model']:.2f}" if each["model"] else "",
        ]
        for each in content["ratios"]
        if each.get("figure") == "makespan"
    ]
    return _table(["case", "effect", "arms", "ratio [95%]", "model"], rows)


def _steady(content: Mapping[str, Any]) -> str:
    values = {(each["work"], each["arm"]): each["value"] for each in content["cells"]}
    models = content.get("models", [])
    arms = [arm for arm in ARMS if any((f"{each['work']} steady", arm) in values for each in models)]
    rows = [[each["work"], *(_rate(values.get((f"{each['work']} steady", arm))) for arm in arms)] for each in models]
    return _table(["case", *(_SHORT.get(arm, arm) for arm in arms)], rows)


def _others(content: Mapping[str, Any]) -> str:
    """Return the table of what is not of the grid."""
    known = {each["work"] for each in content.get("models", [])}
    rows = [
        [
            each["work"],
            each["arm"],
            f"{each['value']:,.4g}",
            f"{each['spread'][0]:,.4g} to {each['spread'][1]:,.4g}",
            each["unit"],
        ]
        for each in content["cells"]
        if each["work"].rpartition(" ")[0] not in known
    ]
    return _table(["work", "arm", "median", "lowest to highest", "unit"], rows)


def _failures(content: Mapping[str, Any]) -> str:
    failed = [f"- {each['work']}, `{each['arm']}`: {each['why']}" for each in content.get("failures", [])]
    return "\n".join(["Arms that failed, and have no figures where they did:", "", *failed]) if failed else ""


_TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "machine": _machine,
    "failures": _failures,
    "makespans": _makespans,
    "effects": _effects,
    "steady": _steady,
    "others": _others,
    "repeats": lambda content: str(max((each["runs"] for each in content["cells"]), default=0)),
    "grid": lambda content: str(content.get("grid", "")),
}


def _rates(content: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    return [
        (f"{each['arm']}, {each['work'].removeprefix('ceiling ')}", each["value"], each["unit"])
        for each in content["cells"]
        if each["work"].startswith("ceiling") and each["unit"].endswith("/s")
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def main() -> None:
    """Write the page from a result's file."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "bench-out/runtime.json")
    print(publish(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
