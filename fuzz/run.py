"""Fuzzes every target in turn: `make fuzz`, or `python -m fuzz.run [--seconds N] [TARGET ...]` in the root folder.

A target is a module `fuzz/fuzz_NAME.py` with `one(data: bytes)`, which raises if something is wrong, and `SEEDS`,
inputs to begin with. Each runs in a process of its own under atheris (coverage-guided, by libFuzzer), with our packages
instrumented. What it has learned stays in `fuzz-out/NAME/corpus`, so that the next run begins there; an input that
breaks a target, hangs for ten seconds or takes 2 GiB is kept in `fuzz-out/NAME`, and the exit status is 1. To look at
it: `python -m fuzz.run --input FILE TARGET`.

The tests run `one` over the seeds and what hypothesis makes of them, without atheris
(tests/architecture/test_fuzz_targets.py sees to that).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
OUT: Final = ROOT / "fuzz-out"

_MAX_INPUT: Final = 4096
_HANG_S: Final = 10
_MEMORY_MIB: Final = 2048
#: A target has so long to import what it tests, and to read its corpus, before it is given up.
_START_S: Final = 90
#: Folder with the keys' certificates that the corpus is of.
_WORLD: Final = "world"
_KEPT: Final = ("crash-", "timeout-", "oom-")
_PACKAGES: Final = ("comity", "comity_node")
_HOW_TO: Final = "atheris is not installed; `make fuzz` installs it (Linux and CPython 3.11 to 3.13 only) and fuzzes"

_STATUS = re.compile(r"^#\d+\s.*\bcov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)
_RUNS = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
_STARTED = re.compile(r"^#(\d+)\s", re.MULTILINE)

#: Makes the command that fuzzes a target.
Command = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of fuzzing one target.

    Attributes:
        target: its name.
        runs: inputs that were tried; where it did not end well, as far as it said so.
        edges: control-flow edges of our packages that were reached.
        features: edges, and how often each was.
        corpus: inputs that were kept since each reaches something else.
        found: files with inputs that break it.
        log: what it printed.
        ended: its exit status; None if it had to be ended.
    """

    target: str
    runs: int
    edges: int
    features: int
    corpus: int
    found: tuple[Path, ...]
    log: Path
    ended: int | None

    @property
    def is_clean(self) -> bool:
        """Whether it ran to its end and broke nothing."""
        return self.ended == 0 and not self.found


def targets() -> list[str]:
    """The names of all targets."""
    return sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))


def fuzz(target: str, seconds: int, out: Path = OUT, command: Command | None = None) -> Result:
    """Fuzz one target.

    Args:
        target: its name.
        seconds: for how long.
        out: where a folder of its name is made for its corpus, its log and what it finds.
        command: what is run, followed by libFuzzer's options; by default this module, to drive the target.
    """
    corpus, log = out / target / "corpus", out / target / "log"
    corpus.mkdir(parents=True, exist_ok=True)
    before = _kept(out / target)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_INPUT}",
        f"-timeout={_HANG_S}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-artifact_prefix={out / target}/",
        "-print_final_stats=1",
        str(corpus),
    ]
    with log.open("wb") as sink:
        ended = _ended(
            [*(command or _command)(target), *options], sink.fileno(), seconds + _START_S, out / target / "world"
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    edges, features, kept = map(int, [("0", "0", "0"), *_STATUS.findall(said)][-1])
    runs = max(map(int, ["0", *_RUNS.findall(said), *_STARTED.findall(said)]))
    found = tuple(sorted(_kept(out / target) - before))
    return Result(target, runs, edges, features, kept, found, log, ended)


def report(results: Sequence[Result]) -> str:
    """A table of the results, and where to look at what was found."""
    lines = [f"{'target':<14}{'runs':>10}{'edges':>8}{'features':>10}{'corpus':>8}  found"]
    for each in results:
        verdict = "nothing" if each.is_clean else f"{len(each.found)} inputs" if each.found else "did not end well"
        lines.append(f"{each.target:<14}{each.runs:>10}{each.edges:>8}{each.features:>10}{each.corpus:>8}  {verdict}")
    for each in results:
        for path in each.found:
            lines.append(f"{each.target}: python -m fuzz.run --input {_shown(path)} {each.target}")
        if not each.is_clean:
            lines.append(f"{each.target}: see {_shown(each.log)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz what is asked for; returns 0 if nothing was found, 1 if something was, 2 if it cannot be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--drive"]:
        _drive(given[1], given[2:])
        return 0
    asked = _parser().parse_args(given)
    unknown = sorted(set(asked.targets) - set(targets()))
    if unknown:
        print(f"error: no target {', '.join(unknown)}; there are {', '.join(targets())}", file=sys.stderr)
        return 2
    if asked.input is not None:
        return _replay(asked.targets, asked.input)
    if importlib.util.find_spec("atheris") is None:
        print(f"error: {_HOW_TO}", file=sys.stderr)
        return 2
    results = []
    for target in asked.targets or targets():
        print(f"{target}: {asked.seconds} s", flush=True)
        results.append(fuzz(target, asked.seconds))
    print(report(results))
    return 0 if all(each.is_clean for each in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description="Fuzz the parsers of what peers send.")
    parser.add_argument("--seconds", type=int, default=30, help="for each target (default: 30)")
    parser.add_argument("--input", type=Path, help="run one target over this file instead, without atheris")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(targets())} (default: all)")
    return parser


def _replay(names: Sequence[str], path: Path) -> int:
    if len(names) != 1:
        print("error: --input takes one target", file=sys.stderr)
        return 2
    if (world := OUT / names[0] / _WORLD).exists():
        os.environ["COMITY_FUZZ_WORLD"] = str(world)
    importlib.import_module(f"fuzz.fuzz_{names[0]}").one(path.read_bytes())
    print(f"{names[0]} holds over {path}")
    return 0


def _command(target: str) -> list[str]:
    return [sys.executable, "-m", "fuzz.run", "--drive", target]


def _ended(command: Sequence[str], output: int, longest_s: float, world: Path) -> int | None:
    environment = {**os.environ, "COMITY_FUZZ_WORLD": str(world)}
    try:
        return subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=longest_s, check=False,
            env=environment,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def _drive(target: str, options: Sequence[str]) -> None:
    """Fuzz in this process; the last of libFuzzer's options is the corpus, into which the seeds go first."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=list(_PACKAGES)):
        module = importlib.import_module(f"fuzz.fuzz_{target}")
    for seed in module.SEEDS:
        (Path(options[-1]) / hashlib.sha256(seed).hexdigest()[:40]).write_bytes(seed)
    atheris.Setup([target, *options], module.one)
    atheris.Fuzz()


def _kept(folder: Path) -> set[Path]:
    return {path for path in folder.iterdir() if path.name.startswith(_KEPT)}


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
