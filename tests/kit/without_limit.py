"""Takes one limit away, so that it shows whether the tests hold it.

    PYTHONPATH=tests WITHOUT_LIMIT=comity_node.links.limits.LinkLimits.max_peers pytest -p kit.without_limit ...

A field of a limits dataclass then has a value that nothing reaches, whatever it is made with; a module's constant is
replaced where it is made, before anything is calculated from it or takes it as a default. The tests that
docs/limits.md names for it have to fail. Another value can be said: `WITHOUT_LIMIT=...=0.001` for what is a least time,
not a most.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

#: A number that no test reaches, small enough to calculate with, and one that also fits into 32 bits of a frame.
ENDLESS, ENDLESS_32 = 1 << 40, (1 << 31) - 1
_OF_32_BITS = {"LinkLimits", "MuxLimits", "SessionLimits", "Window"}


def take_away(path: str, value: str) -> None:
    """Make a limit, `package.module.Class.field` or `package.module.NAME`, endless, or what is said."""
    owner, _, name = path.rpartition(".")
    module, _, last = owner.rpartition(".")
    if last[:1].isupper() or last[:2].lstrip("_")[:1].isupper():
        limits = getattr(importlib.import_module(module), last)
        fields = {field.name: field for field in dataclasses.fields(limits)}
        kind = float if "float" in str(fields[name].type) else int
        endless = kind(float(value)) if value else kind(ENDLESS_32 if last in _OF_32_BITS else ENDLESS)
        setattr(limits, name, property(lambda _: endless, _ignore))
    else:
        sys.meta_path.insert(0, _Finder(owner, name, float(value) if value else ENDLESS))
        importlib.import_module(owner)


def _ignore(limits: object, value: object) -> None:
    """What a limit is made with does not matter any more."""


class _Finder:
    """Finds one module, in which one constant has another value of its own type."""

    def __init__(self, module: str, name: str, value: float) -> None:
        self._module, self._name, self._value = module, name, value

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._name, self._value)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, name: str, value: float) -> None:
        super().__init__(fullname, path)
        self._name, self._value = name, value

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path))
        replaced = 0
        for node in tree.body:
            targets = _targets(node)
            if [target.id for target in targets if isinstance(target, ast.Name)] == [self._name]:
                made: ast.expr = node.value  # type: ignore[attr-defined]
                changed = ast.parse(f"type({ast.unparse(made)})({self._value!r})", mode="eval").body
                node.value = ast.copy_location(changed, made)  # type: ignore[attr-defined]
                replaced += 1
        assert replaced == 1, f"{fullname} has no constant {self._name}"
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


def _targets(node: ast.stmt) -> list[ast.expr]:
    """What a statement gives a value to."""
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) and node.value is not None else []


if os.environ.get("WITHOUT_LIMIT"):
    path, _, value = os.environ["WITHOUT_LIMIT"].partition("=")
    take_away(path, value)
