"""The runner of the fuzz targets, over what libFuzzer says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from fuzz import run

#: In place of a target under atheris: the options come last.
_QUIET = """
print("#2\\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 60Mb")
print("#77\\tNEW    cov: 20 ft: 31 corp: 5/90b lim: 4 exec/s: 70 rss: 60Mb L: 4/4 MS: 1 ChangeByte-")
print("stat::number_of_executed_units: 1234")
"""
_BROKEN = """
import sys
[prefix] = [each.partition("=")[2] for each in sys.argv if each.startswith("-artifact_prefix=")]
open(prefix + "crash-01", "wb").write(b"the input")
print("#512\\tpulse  cov: 20 ft: 31 corp: 5/90b lim: 4 exec/s: 70 rss: 60Mb", flush=True)
sys.exit(77)
"""


def fake(code: str) -> run.Command:
    return lambda target: [sys.executable, "-c", code, target]


def test_what_a_target_says_is_read(tmp_path: Path) -> None:
    result = run.fuzz("noise", 1, tmp_path, fake(_QUIET))
    assert result == run.Result("noise", 1234, 20, 31, 5, (), tmp_path / "noise" / "log", 0)
    assert result.is_clean
    assert "1234      20        31       5  nothing" in run.report([result])


def test_a_crash_is_kept_and_said(tmp_path: Path) -> None:
    result = run.fuzz("noise", 1, tmp_path, fake(_BROKEN))
    assert not result.is_clean
    assert [path.read_bytes() for path in result.found] == [b"the input"]
    assert result.runs == 512
    assert f"python -m fuzz.run --input {result.found[0]} noise" in run.report([result])
    assert "1 inputs" in run.report([result])


def test_a_crash_of_before_is_not_found_again(tmp_path: Path) -> None:
    run.fuzz("noise", 1, tmp_path, fake(_BROKEN))
    assert run.fuzz("noise", 1, tmp_path, fake(_QUIET)).is_clean


@pytest.mark.parametrize("code", ["import sys; sys.exit(1)", "raise ImportError"])
def test_a_target_that_does_not_end_well_is_no_success(tmp_path: Path, code: str) -> None:
    result = run.fuzz("noise", 1, tmp_path, fake(code))
    assert not result.is_clean
    assert "did not end well" in run.report([result])


def test_a_target_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_START_S", 0)
    result = run.fuzz("noise", 1, tmp_path, fake("import signal; signal.pause()"))
    assert result.ended is None
    assert not result.is_clean


def test_the_whole_run_fails_if_one_target_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "OUT", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    codes = {"noise": _QUIET, "yamux": _QUIET}
    monkeypatch.setattr(run, "fuzz", lambda target, seconds: original(target, seconds, tmp_path, fake(codes[target])))
    assert run.main(["--seconds", "1", "noise", "yamux"]) == 0
    codes["yamux"] = _BROKEN
    assert run.main(["--seconds", "1", "noise", "yamux"]) == 1


original = run.fuzz


def test_without_atheris_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run.main(["noise"]) == 2
    assert "make fuzz" in capsys.readouterr().err


def test_a_target_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["noise", "nosuch"]) == 2
    assert "no target nosuch" in capsys.readouterr().err


def test_one_input_is_tried_without_atheris(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"\x00\xff")
    assert run.main(["--input", str(tmp_path / "input"), "multistream"]) == 0
    assert run.main(["--input", str(tmp_path / "input"), "multistream", "noise"]) == 2
