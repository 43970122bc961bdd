"""docs/limits.md has every limit, with the default that the code has, and tests that there are."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from comity_node.links.limits import LinkLimits
from comity_node.transport.limits import Libp2pLimits

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
#: Packages, and what of them is no part of a node that others can reach.
SOURCES = {ROOT / "node" / "comity_node": {"demo"}, ROOT / "sdk" / "comity": {"testing.py"}}

#: Limits whose values are those that another one has.
MADE = {
    "comity_node.transport.muxed.KeepAlive": Libp2pLimits().keep_alive,
    "comity_node.links.limits.Window": LinkLimits().control,
}
UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "ms": 0.001, "s": 1, "h": 3600, "days": 86400}
_CLASS = re.compile(r"(Limits|Settings|Params|LimitsConfig)$")
_CONSTANT = re.compile(r"_?MAX_[A-Z0-9_]+$")
_SECTION = re.compile(r"^`(comity_node(?:\.\w+)+\.[A-Z]\w+)`", re.M)
_ROW = re.compile(r"^\| `(?P<name>[\w.]+)` \| (?P<default>[^|]+) \| (?P<beyond>[^|]+) \| (?P<tests>[^|]*)\|[^|]*\|$")
_DEFAULT = re.compile(r"^(-?[\d,.]+) ?(\w*)(/s)?$")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        limit: `package.module.Class.field` or `package.module.NAME`.
        default: as it is written.
        beyond: what happens beyond it.
        tests: the tests' names.
    """

    limit: str
    default: str
    beyond: str
    tests: tuple[str, ...]


def rows(table: str) -> Iterator[Row]:
    for section in re.split(r"^##? ", table, flags=re.M):
        owner = _SECTION.search(section)
        for line in section.splitlines():
            if line.startswith("| `"):
                row = _ROW.match(line)
                assert row is not None, f"a row that is none: {line}"
                name = row["name"] if "." in row["name"] else f"{owner[1] if owner else '?'}.{row['name']}"
                tests = tuple(re.findall(r"`(test_\w+)`", row["tests"]))
                yield Row(name, row["default"].strip(), row["beyond"], tests)


@cache
def statements() -> tuple[tuple[str, ast.stmt], ...]:
    """What stands at the top of every module: the module's name and the statement."""
    found: list[tuple[str, ast.stmt]] = []
    for sources, left_out in SOURCES.items():
        for path in sorted(sources.rglob("*.py")):
            parts = path.relative_to(sources).parts
            if parts[0] not in left_out and not path.name.endswith("_pb2.py"):
                module = ".".join((sources.name, *path.relative_to(sources).with_suffix("").parts))
                found += [(module, node) for node in ast.parse(path.read_text(encoding="utf-8")).body]
    return tuple(found)


def limits_classes() -> tuple[str, ...]:
    """Every dataclass that says what something may cost."""
    classes = [(module, node) for module, node in statements() if isinstance(node, ast.ClassDef)]
    found = [f"{module}.{node.name}" for module, node in classes if _CLASS.search(node.name) and node.decorator_list]
    return (*MADE, *found)


def constants() -> frozenset[str]:
    """Every `MAX_...` and `_MAX_...` of a module."""
    return frozenset(
        f"{module}.{target.id}"
        for module, node in statements()
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and _CONSTANT.match(target.id)
    )


@cache
def known_tests() -> frozenset[str]:
    files = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))
    return frozenset(name for text in files for name in re.findall(r"^ *(?:async )?def (test_\w+)", text, re.M))


def value_of(limit: str) -> Any:
    owner, _, name = limit.rpartition(".")
    module, _, last = owner.rpartition(".")
    if owner in MADE:
        return getattr(MADE[owner], name)
    if last[:1].isupper():
        return getattr(getattr(importlib.import_module(module), last)(), name)
    return getattr(importlib.import_module(owner), name)


def numbers_of(limits: str) -> Mapping[str, float]:
    """The fields of a class of limits that are numbers, with their defaults."""
    module, _, name = limits.rpartition(".")
    fields = [field.name for field in dataclasses.fields(getattr(importlib.import_module(module), name))]
    values = {field: value_of(f"{limits}.{field}") for field in fields}
    return {field: v for field, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def read(default: str, limit: str) -> float:
    """The number that a default says, in the unit of the code: milliseconds where the name ends so."""
    match = _DEFAULT.match(default)
    assert match is not None, f"{limit}: {default!r} is no default"
    assert match[2] in UNITS, f"{limit}: {match[2]!r} is no unit"
    number = float(match[1].replace(",", "")) * UNITS[match[2]]
    return number * 1000 if limit.lower().endswith("_ms") else number


def faults(table: str, classes: Iterable[str] | None = None) -> list[str]:
    """What the table says wrong or not at all."""
    found, seen = [], set[str]()
    for row in rows(table):
        if row.limit in seen:
            found.append(f"{row.limit} has two rows")
        seen.add(row.limit)
        try:
            value = value_of(row.limit)
        except (ImportError, AttributeError):
            found.append(f"{row.limit} is no limit of the code")
            continue
        if read(row.default, row.limit) != pytest.approx(value):
            found.append(f"{row.limit} is {value}, the table says {row.default}")
        found += [f"{row.limit}: there is no {test}" for test in row.tests if test not in known_tests()]
        if not row.tests and not row.beyond.startswith("no limit: "):
            found.append(f"{row.limit} names no test")
    expected = [f"{owner}.{name}" for owner in classes or limits_classes() for name in numbers_of(owner)]
    expected += sorted(constants())
    return found + [f"{limit} has no row" for limit in expected if limit not in seen]


def test_the_table_is_whole_and_right() -> None:
    assert faults(TABLE) == []


def test_there_are_limits_to_look_at() -> None:
    assert len(limits_classes()) >= 25
    assert len(list(rows(TABLE))) >= 400
    assert len(constants()) >= 150


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("| `max_peers` | 256 |", "| `max_peers` | 257 |", "max_peers is 256, the table says 257"),
        ("| `max_peers` | 256 |", "| `max_pears` | 256 |", "max_pears is no limit of the code"),
        ("`test_nobody_offers_the_skill`", "`test_nobody_offers`", "there is no test_nobody_offers"),
        ("| `test_nobody_offers_the_skill` |", "| |", "grace_s names no test"),
        ("| `idle_s` | 15 s |", "| `idle_s` | 15 ms |", "idle_s is 15.0, the table says 15 ms"),
        ("MAX_ENVELOPE` | 4 MiB", "MAX_ENVELOPE` | 4 KiB", "MAX_ENVELOPE is 4194304, the table says 4 KiB"),
    ],
)
def test_what_is_wrong_with_it_is_seen(old: str, new: str, fault: str) -> None:
    assert old in TABLE
    assert any(fault in each for each in faults(TABLE.replace(old, new)))


def test_a_limit_without_a_row_is_seen() -> None:
    assert {"comity.hops.MAX_HOPS", "comity_node.discovery.mdns._MAX_WAITING"} <= constants()
    lines = TABLE.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("| `max_tunnels`", "| `validate_s`", "| `mark_step_ms`", "| `comity.hops.MAX_HOPS`")):
            [fault] = set(faults("\n".join(lines[:number] + lines[number + 1 :]))) - set(faults(TABLE))
            assert fault.endswith("has no row")
