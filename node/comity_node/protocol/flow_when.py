"""What a branch asks about a task's state: conditions, read against the state's shape, and decided without surprises.

    when: {verdict: good, confidence: {at_least: 0.4, below: 0.9}}    all of it has to hold
    when: {any: [{verdict: good}, {score.total: {above: 8}}]}         one of these
    when: {not: {verdict: [good, fair]}}                              a list: one of these values

A field that is not there makes its test false, whatever it asks, but for `has: false`. So `not` of it holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comity_node.protocol.flow_spot import Spot
from comity_node.protocol.flow_state import MAX_ENUM, Shape

#: Levels of `any` and `not` in one condition.
MAX_NESTED = 4
#: Conditions of one `any`, and fields that one condition asks about.
MAX_TESTS = 16

_ANY, _NOT = "any", "not"
_NUMBERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "below": operator.lt,
    "above": operator.gt,
    "at_least": operator.ge,
    "at_most": operator.le,
}
_OPERATORS = ("is", "in", "has", *_NUMBERS)
_SCALARS = ("string", "number", "integer", "boolean")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Test:
    """One question about one field.

    Attributes:
        path: the names that lead to the field.
        asks: `is`, `in`, `has`, `below`, `above`, `at_least` or `at_most`.
        operand: what it is compared with.
    """

    path: tuple[str, ...]
    asks: str
    operand: Any

    def holds(self, state: Mapping[str, Any]) -> bool:
        """Whether it holds of a state that fits the shape."""
        value: Any = state
        for name in self.path:
            value = value.get(name, _MISSING) if isinstance(value, Mapping) else _MISSING
        if self.asks == "has":
            return (value is not _MISSING) is self.operand
        if value is _MISSING:
            return False
        if self.asks == "is":
            return bool(value == self.operand)
        return value in self.operand if self.asks == "in" else _NUMBERS[self.asks](value, self.operand)


@dataclass(frozen=True, slots=True)
class Condition:
    """Tests, all of which have to hold, and one of `any_of`, and not `unless`.

    Attributes:
        source: itself as JSON, in its normal form.
        tests: what has to hold.
        any_of: of these one at least; none: nothing.
        unless: what may not hold.
    """

    source: Mapping[str, Any]
    tests: tuple[Test, ...]
    any_of: tuple[Condition, ...] = ()
    unless: Condition | None = None

    def holds(self, state: Mapping[str, Any]) -> bool:
        """Whether it holds of a state that fits the shape it was read against."""
        if not all(test.holds(state) for test in self.tests):
            return False
        if self.any_of and not any(each.holds(state) for each in self.any_of):
            return False
        return self.unless is None or not self.unless.holds(state)


def read_condition(spot: Spot, shape: Shape, depth: int = 1) -> Condition:
    """Read a condition about states of `shape`.

    Raises:
        ConfigError: it is none, names no field of the state, or compares what cannot be compared.
    """
    if depth > MAX_NESTED:
        spot.fail(f"conditions are nested at most {MAX_NESTED} levels deep")
    entries = spot.table(MAX_TESTS)
    if not entries:
        spot.fail("a condition without a question always holds: leave `when` out")
    source: dict[str, Any] = {}
    tests: list[Test] = []
    any_of: tuple[Condition, ...] = ()
    unless = None
    for key, inner in entries.items():
        if key == _ANY:
            any_of = tuple(read_condition(each, shape, depth + 1) for each in inner.items(MAX_TESTS))
            if not any_of:
                inner.fail("none of no conditions ever holds: name one")
            source[key] = [each.source for each in any_of]
        elif key == _NOT:
            unless = read_condition(inner, shape, depth + 1)
            source[key] = unless.source
        else:
            found = _read_tests(inner, key, shape)
            tests += found
            source[key] = {test.asks: list(test.operand) if test.asks == "in" else test.operand for test in found}
    ordered = tuple(sorted(tests, key=lambda test: (test.path, test.asks)))
    return Condition(source, ordered, any_of, unless)


def _read_tests(spot: Spot, key: str, top: Shape) -> list[Test]:
    path = tuple(key.split("."))
    shape = top.at(path)
    if shape is None:
        spot.fail(f"the state has no field {key[:64]!r}")
    if isinstance(spot.value, list):
        return [_read_test(spot, path, "in", shape)]
    if not isinstance(spot.value, dict):
        return [_read_test(spot, path, "is", shape)]
    entries = spot.mapping(_OPERATORS)
    if not entries:
        spot.fail(f"asks nothing; it can ask {', '.join(_OPERATORS)}")
    return [_read_test(inner, path, asks, shape) for asks, inner in entries.items()]


def _read_test(spot: Spot, path: tuple[str, ...], asks: str, shape: Shape) -> Test:
    if asks == "has":
        return Test(path, asks, spot.boolean())
    if shape.type not in _SCALARS:
        spot.fail(f"the field is an {shape.type}: only `has` can be asked of it")
    if asks in _NUMBERS:
        if shape.type not in ("number", "integer"):
            spot.fail(f"the field is a {shape.type}: `{asks}` is for numbers")
        return Test(path, asks, spot.number())
    if asks == "is":
        if wrong := shape.misfit(spot.value, "the value"):
            spot.fail(f"{wrong}, so this never holds")
        return Test(path, asks, spot.value)
    values = tuple(item.value for item in spot.items(MAX_ENUM))
    if not values:
        spot.fail("one of no values: name some")
    for value in values:
        if wrong := shape.misfit(value, "the value"):
            spot.fail(f"{wrong}, so this never holds")
    return Test(path, asks, values)
