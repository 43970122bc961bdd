"""Mutates the gate and asks its tests: `make mutate`, or `python -m mutation.run [TARGET ...]` in the root folder.

Each mutant is tried twice at most: in a fork of a session that has collected its tests already (`host`), where most die
within a tenth of a second; and, if it lives there or cannot be put in place there, in a process of its own that
imports it in place of the module and runs all tests of the target. It is dead when a test fails or takes too long. One
that lives has to stand in `mutation/explained.txt` with the reason why no test can see it, or the exit status is 1. So
it is when an explanation is there for a mutant that is none any more, or that dies.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

import pytest

from mutation.host import GRACE_S, OPTIONS, PATIENCE, Host, ended, fork
from mutation.mutants import Mutant, mutants
from mutation.targets import TARGETS, Target

ROOT: Final = Path(__file__).resolve().parent.parent
EXPLAINED: Final = Path(__file__).parent / "explained.txt"
_PROGRESS_S = 5.0
_FAIL = "the tests of {} fail without a mutant: {}"
#: Loaded before the forks: no package of ours is among them.
_LIBRARIES = (
    "cryptography.x509",
    "google.protobuf",
    "hypothesis",
    "nacl.signing",
    "numpy",
    "trio",
    "trio.testing",
    "yaml",
)


class _Loader(importlib.machinery.SourceFileLoader):
    """Finds one module (it stands in `sys.meta_path`), with another source."""

    def __init__(self, module: str, path: str, source: str) -> None:
        super().__init__(module, path)
        self._module, self._source = module, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        if fullname != self._module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        """Compile the other source."""
        code: CodeType = compile(self._source, self.path, "exec", dont_inherit=True)
        return code


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    lives: bool


def _source_of(module: str) -> Path:
    for top in ("sdk", "node"):
        path = ROOT / top / Path(*module.split(".")).with_suffix(".py")
        if path.exists():
            return path
    raise SystemExit(f"there is no module {module}")


class _Progress:
    """Tells now and then how far it is, and at once what lives."""

    def __init__(self, module: str, mutants: int) -> None:
        self._module, self._mutants = module, mutants
        self._tried = self._lives = 0
        self._told_at = self._began = time.monotonic()

    def tell(self, mutant: Mutant, lives: bool) -> None:
        """Count a mutant that was tried."""
        self._tried += 1
        self._lives += lives
        if lives:
            print(f"  lives: line {mutant.line}, {mutant.operator}: {mutant.key}", flush=True)
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_S or self._tried == self._mutants:
            self._told_at = now
            took = f"{now - self._began:.0f} s"
            print(f"  {self._tried} of {self._mutants} tried, {self._lives} live, {took}", flush=True)


def _in_child(work: Callable[[], int]) -> int:
    child = fork()
    if not child:
        status = 2
        try:
            os.environ["CI"] = "1"  # hypothesis tries the same examples each time
            status = work()
        finally:
            os._exit(status)
    return child


def _hosted(target: Target, made: Sequence[Mutant], path: Path, jobs: int) -> Iterator[tuple[Mutant, bool | None]]:
    """Try mutants in one session; yield each with whether it is dead, None if that session cannot tell.

    Raises:
        SystemExit: the tests fail without a mutant.
    """
    reading, writing = os.pipe()
    source = path.read_text(encoding="utf-8")

    def host() -> int:
        def told(at: int, dead: bool | None) -> None:
            os.write(writing, f"{at} {dead}\n".encode())

        return int(pytest.main([*OPTIONS, *target.tests], [Host(str(path), source, made, jobs, told)]))

    child = _in_child(host)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        for line in pipe:
            at, dead = line.split()
            yield made[int(at)], {"True": True, "False": False}.get(dead)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(_FAIL.format(target.module, " ".join(target.tests)))


def _unchanged(work: Callable[[], int], target: Target) -> float:
    """Return how many seconds the tests of a target take in a process of their own, without a mutant."""
    began = time.monotonic()
    _, status = os.waitpid(_in_child(work), 0)
    if status:
        raise SystemExit(_FAIL.format(target.module, " ".join(target.tests)))
    return time.monotonic() - began


def _imported(target: Target, made: Iterable[Mutant], path: Path, jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """Try each mutant in a process of its own; yield each with whether it is dead.

    Raises:
        SystemExit: the tests fail without a mutant.
    """

    def alone(mutant: Mutant | None) -> int:
        if mutant is not None:
            sys.meta_path.insert(0, _Loader(mutant.module, str(path), mutant.source))
        return int(pytest.main([*OPTIONS, *target.tests]))

    waiting, running = iter(made), dict[int, tuple[Mutant, float]]()
    patience_s = 0.0
    while True:
        while len(running) < jobs and (mutant := next(waiting, None)) is not None:
            if not patience_s:
                patience_s = GRACE_S + PATIENCE * jobs * _unchanged(partial(alone, None), target)
            running[_in_child(partial(alone, mutant))] = (mutant, time.monotonic() + patience_s)
        if not running:
            return
        yield from ((each, status != 0) for each, status in ended(running))


def run(target: Target, jobs: int, only: str = "") -> list[Outcome]:
    """Run the tests of a target against each of its mutants.

    Args:
        target: what is mutated.
        jobs: processes at a time.
        only: mutants whose line has this text in it; all by default.

    Raises:
        SystemExit: the tests fail without a mutant.
    """
    path = _source_of(target.module)
    made = [each for each in mutants(target.module, path.read_text(encoding="utf-8")) if only in each.before]
    print(f"{target.module}: {len(made)} mutants", flush=True)
    progress = _Progress(target.module, len(made))
    outcomes: list[Outcome] = []

    def judged(mutant: Mutant, dead: bool) -> None:
        outcomes.append(Outcome(mutant, not dead))
        progress.tell(mutant, not dead)

    doubtful: list[Mutant] = []
    for mutant, dead in _hosted(target, made, path, jobs):
        if dead:
            judged(mutant, True)
        else:
            doubtful.append(mutant)
    for mutant, dead in _imported(target, doubtful, path, jobs):
        judged(mutant, dead)
    return outcomes


def explained(path: Path = EXPLAINED) -> dict[str, str]:
    """Return the reasons why mutants live, by their key.

    Raises:
        SystemExit: a line is neither a comment nor `KEY # REASON`.
    """
    reasons: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, found, reason = line.rpartition("  # ")
        if not found or not reason.strip():
            raise SystemExit(f"{path.name}:{number}: a mutant and its reason are written: KEY  # REASON")
        reasons[key.strip()] = reason.strip()
    return reasons


def judge(outcomes: Sequence[Outcome], reasons: dict[str, str], *, whole: bool = True) -> list[str]:
    """What is wrong: mutants that live unexplained; if `whole`, explanations of mutants that do not live."""
    living = {each.mutant.key for each in outcomes if each.lives}
    modules = {each.mutant.module for each in outcomes}
    wrong = [f"lives, and nothing explains it: {key}" for key in sorted(living - set(reasons))]
    stale = [key for key in sorted(set(reasons) - living) if key.split(" | ")[0] in modules]
    return wrong + [f"is explained and does not live: {key}" for key in stale if whole]


def main() -> None:
    """Mutate what is asked for; exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="mutation.run", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {', '.join(TARGETS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants of lines with this text")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    for name in _LIBRARIES:
        importlib.import_module(name)
    os.chdir(ROOT)
    outcomes: list[Outcome] = []
    for name in arguments.targets or TARGETS:
        outcomes += run(TARGETS[name], arguments.jobs, arguments.only)
    wrong = judge(outcomes, explained(), whole=not arguments.only)
    living = sum(each.lives for each in outcomes)
    print(f"{len(outcomes)} mutants, {len(outcomes) - living} killed, {living} live")
    print("\n".join(wrong) or "all that live are explained")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
