"""The mutants that are made, and what is said about those that live."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mutation.mutants import Mutant, _declarations, _without_a_statement
from mutation.run import EXPLAINED, Outcome, explained, judge
from mutation.swap import function_of, functions, swap
from mutation.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
LIMIT = 10


def check(count: int = 3, *, most: int = LIMIT) -> None:
    if count > most:
        raise ValueError("too many")
    note(count)
    count += 1
    del count
"""


def mutant(before: str, after: str, module: str = "m") -> Mutant:
    return Mutant(module, "Operator", 1, before, after, "")


def test_statements_are_left_out_one_at_a_time() -> None:
    made = [changed for _, changed in _without_a_statement(SOURCE, ast.parse(SOURCE))]
    gone = [[line for line in SOURCE.splitlines() if line not in changed.splitlines()] for changed in made]
    assert sorted(line.strip() for lines in gone for line in lines) == [
        "count += 1",
        "del count",
        "note(count)",
        'raise ValueError("too many")',
    ]
    assert all(ast.parse(changed) for changed in made)


def test_what_declares_is_left_alone() -> None:
    lines = SOURCE.splitlines()
    declared = {lines[begin[0] - 1][begin[1] : end[1]] for begin, end in _declarations(SOURCE, ast.parse(SOURCE))}
    assert declared == {"LIMIT = 10", "int", "3", "LIMIT", "None", "*"}


def test_what_is_told_to_people_and_how_much_a_memo_keeps_is_left_alone() -> None:
    source = """
def tell(count: int) -> str:
    if len(MEMO) < _MAX_MEMO:
        MEMO.add(count)
    return f"{count - 1} are left" + f"{count - 2}"
"""
    lines = source.splitlines()
    told = {lines[begin[0] - 1][begin[1] : end[1]] for begin, end in _declarations(source, ast.parse(source))}
    assert told == {"int", "str", "len(MEMO) < _MAX_MEMO", 'f"{count - 1} are left"'}


TOY = """
from functools import lru_cache


def plain(value):
    return value > 3


class Toy:
    @property
    def size(self):
        return 1

    @lru_cache
    def kept(self):
        return 1

    @classmethod
    def made(cls):
        return 1

    @property
    def twice(self):
        return 1

    @twice.setter
    def twice(self, value):
        self.value = value
"""


@pytest.mark.parametrize("name", ["plain", "Toy.size", "Toy.kept", "Toy.made", "Toy.twice"])
def test_a_function_keeps_its_identity_and_gets_other_code(name: str) -> None:
    module = ModuleType("toy")
    exec(compile(TOY, "toy.py", "exec"), vars(module))
    plain, toy = module.plain, module.Toy()
    changed = TOY.replace("value > 3", "value > 7").replace("return 1", "return 2")
    found = name in functions(TOY)
    assert found is (name != "Toy.twice"), "there are two of that name"
    if not found:
        return
    assert function_of(TOY, functions(TOY)[name][0]) == name
    assert swap(module, name, changed, "toy.py")
    said = {"plain": plain(5), "Toy.size": toy.size, "Toy.kept": toy.kept(), "Toy.made": module.Toy.made()}
    same = {"plain": True, "Toy.size": 1, "Toy.kept": 1, "Toy.made": 1}
    assert {each for each in said if said[each] != same[each]} == {name}


def test_what_is_in_no_function_cannot_be_swapped() -> None:
    module = ModuleType("toy")
    exec(compile(TOY, "toy.py", "exec"), vars(module))
    assert function_of(TOY, 2) is None
    assert not swap(module, "elsewhere", TOY, "toy.py")
    assert not swap(module, "Toy", TOY, "toy.py")


RUN = """
import sys
from pathlib import Path
from mutation import run, targets
run.ROOT = Path.cwd()
target = targets.Target("toy", ("test_toy.py",))
for outcome in run.run(target, 2):
    print("lives" if outcome.lives else "dead", outcome.mutant.before, "->", outcome.mutant.after)
"""


@pytest.mark.slow
def test_mutants_that_a_test_sees_die_and_the_others_live(tmp_path: Path) -> None:
    """In a function, where code is swapped, and in a class body, which is imported anew."""
    pytest.importorskip("cosmic_ray")
    (tmp_path / "sdk").mkdir()
    (tmp_path / "sdk" / "toy.py").write_text(
        "class Toy:\n    least = 3\n\n\ndef check(value):\n    return value > Toy.least\n"
    )
    (tmp_path / "test_toy.py").write_text(
        "from toy import check\n\n\ndef test_check():\n    assert check(9)\n    assert not check(1)\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path / "sdk")])
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, timeout=100, check=True,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith(("lives ", "dead "))]
    assert set(said) == {
        "lives least = 3 -> least = 4",
        "lives least = 3 -> least = 2",
        "lives return value > Toy.least -> return value >= Toy.least",
        "dead return value > Toy.least -> return value <= Toy.least",
    }


def test_who_lives_needs_a_reason_and_who_has_one_has_to_live() -> None:
    living, dead = mutant("a > b", "a >= b"), mutant("a", "b")
    outcomes = [Outcome(living, True), Outcome(dead, False)]
    assert judge(outcomes, {living.key: "they are never equal"}) == []
    assert judge(outcomes, {}) == [f"lives, and nothing explains it: {living.key}"]
    both = {living.key: "they are never equal", dead.key: "nobody can see it"}
    assert judge(outcomes, both) == [f"is explained and does not live: {dead.key}"]
    assert judge(outcomes, both, whole=False) == []
    elsewhere = {
        living.key: "they are never equal",
        mutant("a", "b", "other").key: "of a module that was not asked for",
    }
    assert judge(outcomes, elsewhere) == []


def test_an_explanation_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "explained.txt"
    path.write_text("# a comment\n\nm | a > b -> a >= b  # they are never equal\n")
    assert explained(path) == {"m | a > b -> a >= b": "they are never equal"}
    path.write_text("m | a > b -> a >= b\n")
    with pytest.raises(SystemExit, match=r"explained\.txt:1"):
        explained(path)


def test_the_targets_and_their_tests_are_there_and_explanations_are_of_them() -> None:
    for target in TARGETS.values():
        places = [top / Path(*target.module.split(".")).with_suffix(".py") for top in (ROOT / "sdk", ROOT / "node")]
        assert any(place.exists() for place in places), target.module
        assert all((ROOT / test.removeprefix("--deselect=").partition("::")[0]).exists() for test in target.tests), (
            target.module
        )
    modules = {target.module for target in TARGETS.values()}
    assert {key.split(" | ")[0] for key in explained(EXPLAINED)} <= modules
