"""Takes one limit away, so that it shows whether the tests hold it.

    PYTHONPATH=tests WITHOUT_LIMIT=comity_node.links.limits.LinkLimits.max_peers pytest -p kit.without_limit ...

A field of a limits dataclass then has a value that nothing reaches, whatever it is made with; a module's constant is
replaced before others import it. The tests that docs/limits.md names for it have to fail. Another value can be said:
`WITHOUT_LIMIT=...=0.001` for what is a least time, not a most.
"""

from __future__ import annotations

import dataclasses
import importlib
import os

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
        constants = importlib.import_module(owner)
        setattr(constants, name, type(getattr(constants, name))(float(value) if value else ENDLESS))


def _ignore(limits: object, value: object) -> None:
    """What a limit is made with does not matter any more."""


if os.environ.get("WITHOUT_LIMIT"):
    path, _, value = os.environ["WITHOUT_LIMIT"].partition("=")
    take_away(path, value)
