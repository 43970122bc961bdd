"""What a flow may hold, by the number: one more is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from comity.errors import ConfigError
from comity_node.protocol.flow import advance, begin, failed, parse_flow, read_flow
from kit.flows import STATE, flow_of, step

pytestmark = pytest.mark.invariant("S7")

TEXT = {"type": "string"}


def steps(count: int) -> Any:
    return flow_of([{"name": f"s{number}", **step()} for number in range(count)])


def branches(count: int) -> Any:
    some = [{"when": {"count": number}, "go": "drop"} for number in range(count - 1)]
    return flow_of({"a": {**step(), "next": [*some, {"go": "end"}]}})


def dialogue(roles: int = 2, turns: int = 10) -> Any:
    return flow_of({"a": {"dialogue": [{"skill": "x"}] * roles, "turns": turns}})


def one(**changes: Any) -> Any:
    return flow_of({"a": {**step(), **changes}})


def leases(count: int) -> Any:
    return flow_of([{"name": f"s{number}", **step(), "lease": f"l{number}"} for number in range(count)])


def fields(count: int) -> Any:
    inner = {f"f{number}": TEXT for number in range(count - 1)}
    return with_state({"outer": {"type": "object", "properties": inner}})


def with_state(properties: Any) -> Any:
    return read_flow({"state": {"type": "object", "properties": properties}, "steps": {"a": {"skill": "x"}}})


def levels(count: int) -> Any:
    shape: Any = TEXT
    for _ in range(count - 2):
        shape = {"type": "array", "items": shape}
    return with_state({"a": shape})


def asks(when: Any) -> Any:
    return flow_of({"a": {**step(), "next": [{"when": when, "go": "end"}, {"go": "drop"}]}})


def nested(count: int) -> Any:
    when: Any = {"done": True}
    for _ in range(count - 1):
        when = {"not": when}
    return asks(when)


def alternatives(count: int) -> Any:
    return asks({"any": [{"count": number} for number in range(count)]})


def limits(**said: Any) -> Any:
    return flow_of({"a": step()}, limits=said)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        pytest.param(steps, 64, id="steps"),
        pytest.param(branches, 16, id="branches"),
        pytest.param(dialogue, 8, id="roles"),
        pytest.param(lambda turns: dialogue(turns=turns), 250, id="turns"),
        pytest.param(lambda most: one(most=most), 250, id="most"),
        pytest.param(lambda retries: one(retries=retries), 16, id="retries"),
        pytest.param(lambda rows: one(rows=rows), 256, id="rows"),
        pytest.param(lambda price: one(price=price), 1_000_000, id="price"),
        pytest.param(leases, 4, id="leases"),
        pytest.param(
            lambda length: one(next={"go": "drop", "reason": "x" * length}, otherwise="end"), 200, id="reason"
        ),
        pytest.param(lambda count: one(at=[f"o{number}.example" for number in range(count)]), 256, id="organizations"),
        pytest.param(fields, 256, id="fields"),
        pytest.param(levels, 8, id="levels"),
        pytest.param(lambda count: with_state({"a": {**TEXT, "enum": [str(n) for n in range(count)]}}), 64, id="enum"),
        pytest.param(lambda count: asks({"count": list(range(count))}), 64, id="in"),
        pytest.param(lambda length: with_state({"a": {**TEXT, "description": "x" * length}}), 1000, id="description"),
        pytest.param(lambda length: with_state({"a": {**TEXT, "maxLength": length}}), 256 * 1024, id="maxLength"),
        pytest.param(nested, 4, id="nested"),
        pytest.param(alternatives, 16, id="any"),
        pytest.param(lambda count: limits(steps=count), 500, id="task-steps"),
        pytest.param(lambda count: limits(seconds=count), 30 * 86_400, id="task-seconds"),
        pytest.param(lambda count: limits(tokens=count), 10**9, id="task-tokens"),
        pytest.param(lambda count: limits(cost=count), 10**6, id="task-cost"),
    ],
)
@pytest.mark.invariant("S7")
def test_a_flow_has_so_much_of_everything(make: Callable[[int], Any], most: int) -> None:
    make(most)
    with pytest.raises(ConfigError):
        make(most + 1)


def test_a_condition_asks_about_so_many_fields() -> None:
    properties = {f"f{number}": {"type": "boolean"} for number in range(17)}

    def about(count: int) -> None:
        when = {f"f{number}": True for number in range(count)}
        follows = [{"when": when, "go": "end"}, {"go": "drop"}]
        read_flow(
            {
                "state": {"type": "object", "properties": properties},
                "steps": {"a": {"skill": "x", "next": follows}},
            }
        )

    about(16)
    with pytest.raises(ConfigError, match="17 entries; at most 16"):
        about(17)


def test_a_word_of_a_flow_has_256_characters() -> None:
    with pytest.raises(ConfigError, match="is no place"):
        one(at="x" * 256)
    with pytest.raises(ConfigError, match="257 characters; 1 to 256"):
        one(at="x" * 257)


def test_a_flow_has_64_kib() -> None:
    def described(length: int) -> dict[str, Any]:
        properties = {
            f"f{number}": {**TEXT, "description": "x" * 1000 if number else "x" * length} for number in range(63)
        }
        reads = {"skill": "x", "reads": []}
        return {"state": {"type": "object", "properties": properties}, "steps": {"a": reads}}

    room = 64 * 1024 - len(read_flow(described(1)).document) + 1
    assert 1 < room <= 1000
    full = read_flow(described(room))
    assert len(full.document) == 64 * 1024
    assert parse_flow(full.document) == full
    with pytest.raises(ConfigError, match="65537 bytes as canonical JSON"):
        read_flow(described(room + 1))
    with pytest.raises(ConfigError, match="65537 bytes are over the limit"):
        parse_flow(full.document + b" ")


def test_what_an_agent_says_of_itself_is_bounded() -> None:
    flow = flow_of({"a": {**step(), "lease": "box"}}, state=STATE)
    cursor = begin(flow)
    assert getattr(advance(flow, cursor, {}, {"lease": "x" * 128}, 1), "reason", "") == ""
    assert "128 characters" in advance(flow, cursor, {}, {"lease": "x" * 129}, 1).reason  # type: ignore[union-attr]
    assert len(failed(flow, cursor, {}, json.dumps(["x"] * 999), 1).reason) == 200  # type: ignore[union-attr]
