"""The result's file: the form of `bench.common` (machine, cells, ratios), and beside it the models and the grid.

A ratio has its 95% interval (`low`, `high`), its `effect`, the `figure` that it is of, and what the `model` says that
scheduling alone can gain (null where nothing has a barrier). `models` has the simulated seconds of each case, `grid`
the digest of what was fixed before that run, and `failures` the arms that lost rows, which have no cells there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.common import Cell, Ratio, machine
from bench.runtime.runner import Compared, Modelled


def of_case(
    name: str, cells: Sequence[Cell], compared: Sequence[Compared], said: Modelled, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Return what is known of one case: a line of the grid's journal."""
    return {
        "case": name,
        "cells": [asdict(each) for each in cells],
        "ratios": [_ratio(each) for each in compared],
        "model": {
            "work": name,
            "hops": fmean(said.hops),
            "row_s": fmean(said.row),
            "bound_s": fmean(said.bound),
            "batch_s": {arm: fmean(values) for arm, values in said.batch.items()},
        },
        "failures": [{"work": name, "arm": arm, "why": why} for arm, why in failed.items()],
    }


def of_grid(cases: Sequence[Mapping[str, Any]], digest: str) -> dict[str, Any]:
    """Return the grid's part of the result, from `of_case` of each."""
    return {
        "cells": [cell for case in cases for cell in case["cells"]],
        "ratios": [ratio for case in cases for ratio in case["ratios"]],
        "models": [case["model"] for case in cases],
        "failures": [failure for case in cases for failure in case["failures"]],
        "grid": digest,
    }


def of_cells(cells: Sequence[Cell], ratios: Sequence[Ratio] = (), **more: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    """Return another part's cells and ratios, and what else it says."""
    return {"cells": [asdict(each) for each in cells], "ratios": [asdict(each) for each in ratios], **more}


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result of all parts: their cells and ratios one after the other."""
    content: dict[str, Any] = {"machine": machine(), "cells": [], "ratios": []}
    for part in parts:
        content["cells"] += part["cells"]
        content["ratios"] += part["ratios"]
        content.update({name: value for name, value in part.items() if name not in ("cells", "ratios")})
    return content


def write(content: Mapping[str, Any], out: Path) -> Path:
    """Write `runtime.json` and return it.

    Raises:
        ValueError: a figure is no number.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "runtime.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _ratio(each: Compared) -> dict[str, Any]:
    return {
        "work": each.work,
        "arm": each.arm,
        "peer": each.peer,
        "ratio": each.ratio.value,
        "low": each.ratio.low,
        "high": each.ratio.high,
        "effect": each.effect,
        "figure": each.figure,
        "model": each.model,
    }
