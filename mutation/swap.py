"""Puts the code of a mutant into a module that is loaded already.

A function keeps its identity when its `__code__` is replaced, so that whoever imported it runs the mutant from then on.
That works for what stands within a function or method; a mutant of anything else (a decorator, a class body, a table)
has to be imported in place of the module.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> dict[str, tuple[int, int]]:
    """Return the first and last line of the body of each function and method, by its qualified name.

    One that is defined twice (a property and its setter) is left out.
    """
    found: dict[str, tuple[int, int]] = {}
    names: list[str] = []
    for name, node in _defined(ast.parse(source).body, ""):
        names.append(name)
        found[name] = (node.body[0].lineno, node.end_lineno or node.lineno)
    return {name: lines for name, lines in found.items() if names.count(name) == 1}


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, _Function]]:
    for node in body:
        if isinstance(node, _Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")


def function_of(source: str, line: int) -> str | None:
    """Return the qualified name of the function or method in whose body a line stands; None if it is in none."""
    return next((name for name, (first, last) in functions(source).items() if first <= line <= last), None)


def swap(module: ModuleType, name: str, source: str, path: str) -> bool:
    """Give a function of `module` the code that it has in `source`.

    Returns:
        Whether it could be done.
    """
    code = _code_of(compile(source, path, "exec", dont_inherit=True), name)
    live = _live(module, name)
    if code is None or live is None or live.__code__.co_freevars != code.co_freevars:
        return False
    live.__code__ = code
    return True


def _code_of(code: CodeType, name: str) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == name:
                return constant
            if name.startswith(f"{constant.co_qualname}.") and (found := _code_of(constant, name)) is not None:
                return found
    return None


def _live(module: ModuleType, name: str) -> FunctionType | None:
    """Return the function itself, without what decorates it; None if it is not to be found."""
    found: object = module
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, type | ModuleType) else None
    for _ in range(4):
        match found:
            case FunctionType(__qualname__=qualified, __code__=code) if qualified == name == code.co_qualname:
                return found
            case property(fget=inner) | functools.cached_property(func=inner):
                found = inner
            case classmethod() | staticmethod():
                found = found.__func__
            case _:
                found = getattr(found, "__wrapped__", None)
    return None
