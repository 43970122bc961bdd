"""The common form of benchmarks."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    form = script("bench_form", monkeypatch)
    ours = form.cell("bulk", "secured", [300.0, 100.0, 200.0], "MB/s")
    peer = form.cell("bulk", "py-libp2p-stock", [100.0], "MB/s")
    path = form.write("bulk", [ours, peer], [form.ratio(ours, peer, more_is_better=True)], root=tmp_path)
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "cells", "ratios"}
    assert report["machine"]["processors"]
    assert report["cells"][0] == {
        "work": "bulk", "arm": "secured", "value": 200.0, "unit": "MB/s", "spread": [100.0, 300.0], "runs": 3,
    }  # fmt: skip
    assert report["ratios"] == [{"work": "bulk", "arm": "secured", "peer": "py-libp2p-stock", "ratio": 2.0}]
    assert "bench-out/bulk.json" in capsys.readouterr().out


def test_over_1_is_better_also_for_times(monkeypatch: pytest.MonkeyPatch) -> None:
    form = script("bench_form", monkeypatch)
    ours, peer = form.cell("connect", "plain", [5.0], "ms"), form.cell("connect", "js-libp2p", [10.0], "ms")
    assert form.ratio(ours, peer, more_is_better=False).ratio == 2.0
    with pytest.raises(ValueError, match="cannot be compared"):
        form.ratio(ours, form.cell("bulk", "js-libp2p", [10.0], "ms"), more_is_better=False)


def test_the_demos_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    script("bench_form", monkeypatch)
    demo = script("bench_demo", monkeypatch)
    timings = {"total_s": 120, "records_per_s": 4.5, "links": {"connect_ms": 8.0}, "note": "words", "ok": True}
    assert list(demo.figures(timings)) == [
        ("total", 120.0, "s"), ("records", 4.5, "1/s"), ("links.connect", 8.0, "ms"),
    ]  # fmt: skip
