"""Whether what a cursor tells of can come of one way through the flow, and whether that way ends where it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from comity.errors import FlowMismatch
from comity_node.protocol.flow_model import DROP, END, Cursor, Flow, Step

#: Flows whose ways are kept; a node takes part in fewer.
_KEPT = 256


def misfit(flow: Flow, cursor: Cursor) -> str:
    """Return what no way through the flow does of what a cursor tells; empty: nothing was found.

    Every step but the first was come to from one that leads there, and every one but the last was left for one that it
    leads to, as often as it was visited. Ways that conditions close are not looked at: the state of then is not known.

    Args:
        flow: as it was agreed on.
        cursor: its step and its visits are steps of the flow, the first step among them.
    """
    visits = cursor.visits
    ways = _targets(flow)
    lost = frozenset(_come_to(flow, cursor, _back(flow, cursor)))
    to = {name: lost.union(_come_to(flow, cursor, ways[name])) for name in visits}
    here: dict[str, set[str]] = {name: set() for name in visits}
    for name, targets in to.items():
        for there in targets:
            here[there].add(name)
    for name, count in visits.items():
        came = count - (name == flow.start)
        if came > sum(visits[each] - (each == cursor.step) for each in here[name]):
            return f"step {name!r} was come to more often than steps that lead there were left"
        left = count - (name == cursor.step)
        if left > sum(visits[each] - (each == flow.start) for each in to[name]):
            return f"step {name!r} was left, and nowhere that it leads to was come to so often"
    if alone := visits.keys() - (_closure(to, flow.start) & _closure(here, cursor.step)):
        return f"step {min(alone)!r} has visits, and is on no way from {flow.start!r} to {cursor.step!r}"
    return ""


def check_done(flow: Flow, cursor: Cursor, state: Mapping[str, Any]) -> None:
    """Refuse a task that is said to be done, and that the flow would have had go on, or have let go.

    Args:
        flow: as it was agreed on.
        cursor: of the task's last step; it fits the flow.
        state: what the task has; it fits the flow.

    Raises:
        FlowMismatch: says what does not fit.
    """
    if missing := [name for name in flow.required if name not in state]:
        raise FlowMismatch(f"a task is done without {missing[0]!r}, which its record needs")
    step = flow.steps[cursor.step]
    ways = [next(branch.go for branch in step.next if branch.when is None or branch.when.holds(state))]
    if cursor.turn + 1 < step.turns and not (step.until is not None and step.until.holds(state)):
        ways = []  # the dialogue goes on
    if cursor.tries >= step.retries:
        ways += _otherwise(step)
    for each in flow.steps.values():
        if count := cursor.losses.get(each.lease, 0):  # whoever lost a lease is back where it is acquired, or beyond
            ways += [each.name] if count <= each.retries else _otherwise(each)
    if not any(_settled(flow, cursor, go) == END for go in ways):
        raise FlowMismatch(f"no way leads from step {step.name!r} to the end")


def _settled(flow: Flow, cursor: Cursor, go: str) -> str:
    """Return where a branch leads once steps whose visits are used up are passed over."""
    while (step := flow.steps.get(go)) is not None and step.most and cursor.visits.get(go, 0) >= step.most:
        go = step.otherwise.go if step.otherwise is not None else DROP
    return go


def _back(flow: Flow, cursor: Cursor) -> Iterator[str]:
    """Yield where leases that were lost, at whatever step, led back to: where they are acquired, or on from there."""
    for step in flow.steps.values() if cursor.losses else ():
        if step.lease in cursor.losses:
            yield from (step.name, *_otherwise(step))


def _come_to(flow: Flow, cursor: Cursor, targets: Iterable[str]) -> Iterator[str]:
    """Yield the visited steps that a task may come to that a branch leads to `targets`."""
    for target in targets:
        there = flow.steps.get(target)
        while there is not None:
            if there.name in cursor.visits:
                yield there.name
            if not there.most or cursor.visits.get(there.name, 0) < there.most or there.otherwise is None:
                break
            there = flow.steps.get(there.otherwise.go)  # its visits are used up: it may have been passed over


@lru_cache(maxsize=_KEPT)
def _targets(flow: Flow) -> Mapping[str, tuple[str, ...]]:
    return {
        name: tuple(dict.fromkeys([*(branch.go for branch in step.next), *_otherwise(step)]))
        for name, step in flow.steps.items()
    }


def _otherwise(step: Step) -> tuple[str, ...]:
    return (step.otherwise.go,) if step.otherwise is not None else ()


def _closure(ways: Mapping[str, frozenset[str] | set[str]], start: str) -> set[str]:
    seen, todo = {start}, [start]
    while todo:
        new = ways[todo.pop()] - seen
        seen |= new
        todo += new
    return seen
