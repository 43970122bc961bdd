"""Every fuzz target is run by `make fuzz`, and by the tests over its seeds and what hypothesis makes of them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.run import targets

ROOT = Path(__file__).resolve().parents[2]


def test_there_are_targets() -> None:
    assert len(targets()) >= 20


@pytest.mark.parametrize("target", targets())
def test_a_target_has_what_the_runner_wants(target: str) -> None:
    module = importlib.import_module(f"fuzz.fuzz_{target}")
    assert callable(module.one)
    assert len(module.SEEDS) >= 4
    assert all(isinstance(seed, bytes) for seed in module.SEEDS)
    assert f"Run: python -m fuzz.run {target}\n" in (module.__doc__ or "")


@pytest.mark.parametrize("target", targets())
def test_a_target_is_run_by_tests_over_its_seeds_and_by_hypothesis(target: str) -> None:
    users = [tree for tree in fuzz_tests() if f"fuzz.fuzz_{target}" in imported(tree)]
    runs = [test for tree in users for test in cases(tree) if calls_one(test)]
    assert any(is_given(test) for test in runs), f"no test has hypothesis run fuzz_{target}.one"
    assert any("SEEDS" in names(test) and not is_given(test) for test in runs), "no test runs it over its seeds"


def test_a_target_that_no_test_runs_is_seen() -> None:
    text = """
from fuzz.fuzz_x import SEEDS, one
@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(seed): one(seed)
@given(st.binary())
def test_any(data): two(data)
"""
    tree = ast.parse(text)
    assert imported(tree) == {"fuzz.fuzz_x"}
    assert [test.name for test in cases(tree) if calls_one(test)] == ["test_seeds"]
    assert [test.name for test in cases(tree) if is_given(test)] == ["test_any"]


def fuzz_tests() -> Iterator[ast.Module]:
    for path in sorted((ROOT / "tests").rglob("test_*fuzz*.py")):
        yield ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "fuzz":
            found |= {f"fuzz.{each.name}" for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def cases(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def calls_one(test: ast.FunctionDef) -> bool:
    called = [node.func for node in ast.walk(test) if isinstance(node, ast.Call)]
    return any(
        (isinstance(each, ast.Name) and each.id == "one") or (isinstance(each, ast.Attribute) and each.attr == "one")
        for each in called
    )


def is_given(test: ast.FunctionDef) -> bool:
    return any(
        isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "given"
        for each in test.decorator_list
    )


def names(test: ast.FunctionDef) -> set[str]:
    return {node.id for node in ast.walk(test) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)
    }
