"""SECURITY.md promises invariants; each promise has tests that are marked with it, and each mark has a promise."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALL = {f"S{number}" for number in range(1, 10)} | {f"R{number}" for number in range(1, 6)}
_ROW = re.compile(r"^\| (?P<name>[SR]\d) \|(?P<rest>.*)\|$")
_THREAT = re.compile(r"^\| (?P<letter>[STRIDE]) \| (?P<where>[\w ]+) \|(?P<rest>.*)\|$")
_TEST = re.compile(r"`([tT]est\w+)`")


def promised() -> dict[str, set[str]]:
    """Invariants of SECURITY.md's tables, and the tests that each row names."""
    rows = (_ROW.match(line) for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines())
    return {row["name"]: set(_TEST.findall(row["rest"])) for row in rows if row}


def marked() -> dict[str, set[str]]:
    """Invariants, and the tests that are marked with each, on themselves, their class or their module."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        everywhere: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                assigned = node.targets[0].id
                everywhere += names_in(node.value) if assigned == "pytestmark" else []
                for name in names_in(node.value) if assigned.lower().startswith("test") else []:
                    found[name].add(assigned)  # such as a state machine's TestCase
            inherited = [*everywhere, *(name for each in decorators(node) for name in names_in(each))]
            for test in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
                if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                    own = [name for each in decorators(test) for name in names_in(each)]
                    for name in {*inherited, *own}:
                        found[name].add(test.name)
    return found


def decorators(node: ast.stmt) -> list[ast.expr]:
    return node.decorator_list if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []


def names_in(node: ast.expr) -> list[str]:
    """Arguments of every `invariant(...)` call in an expression."""
    return [
        argument.value
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "invariant"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


def test_every_invariant_is_promised_and_tested() -> None:
    promises, marks = promised(), marked()
    assert set(promises) == ALL
    assert not ALL - set(marks), "promised, and no test is marked with it"
    assert not set(marks) - ALL, "a test is marked with what nobody promises"


def unknown(promises: Mapping[str, set[str]], marks: Mapping[str, set[str]]) -> list[str]:
    return [f"{name}: {test}" for name, tests in promises.items() for test in sorted(tests - marks.get(name, set()))]


def test_every_test_that_security_md_names_exists_and_is_marked() -> None:
    promises = promised()
    assert not unknown(promises, marked())
    assert not [name for name, tests in promises.items() if not tests], "a promise names at least one test"
    assert unknown({"S1": {"test_of_nothing"}}, marked()) == ["S1: test_of_nothing"]


def threats(text: str) -> list[tuple[str, str, set[str]]]:
    """The rows of SECURITY.md's STRIDE table: letter, where, tests."""
    rows = (_THREAT.match(line) for line in text.splitlines())
    return [(row["letter"], row["where"], set(_TEST.findall(row["rest"]))) for row in rows if row]


def test_every_threat_of_stride_names_tests_that_there_are() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = threats(text)
    files = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))
    known = {name for text in files for name in re.findall(r"^ *def (test_\w+)", text, re.M)}
    assert {letter for letter, _, _ in rows} == set("STRIDE")
    assert not [(letter, where) for letter, where, tests in rows if not tests]
    assert not [test for _, _, tests in rows for test in sorted(tests - known)]
    assert threats("| T | link | bytes | held by `test_of_nothing` |") == [("T", "link", {"test_of_nothing"})]
