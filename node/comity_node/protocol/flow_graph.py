"""Which ways a flow has: every step can be come to, every one leads to an end, and nothing goes round for ever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from comity_node.protocol.flow_model import DROP, END, MAX_LEASES, Step
from comity_node.protocol.flow_spot import Spot


def check_graph(steps: Mapping[str, Step], start: str, spots: Mapping[str, Spot]) -> None:
    """Refuse a flow that cannot work.

    Args:
        steps: of the flow; what they name is there.
        start: the first one.
        spots: where each stands.

    Raises:
        ConfigError: a step cannot be reached or has no way to an end, the task cannot be done, a loop has no bound, or
            leases do not fit together.
    """
    ways = {name: _targets(step) for name, step in steps.items()}
    reached = _closure(ways, start)
    for name in steps:
        if name not in reached:
            spots[name].fail("no way leads to this step: name it in the `next` of another, or leave it out")
    if END not in reached:
        spots[start].fail("no way leads from the first step to `end`, so no task is ever done")
    for name in steps:
        if not _closure(ways, name) & {END, DROP}:
            spots[name].fail("no way leads from this step to `end` or `drop`")
    _check_loops(steps, spots)
    _check_leases(steps, spots)


def _targets(step: Step) -> tuple[str, ...]:
    return (*(branch.go for branch in step.next), *((step.otherwise.go,) if step.otherwise else ()))


def _closure(ways: Mapping[str, Iterable[str]], start: str) -> set[str]:
    seen, todo = {start}, [start]
    while todo:
        for there in ways.get(todo.pop(), ()):
            if there not in seen:
                seen.add(there)
                todo.append(there)
    return seen


def _check_loops(steps: Mapping[str, Step], spots: Mapping[str, Spot]) -> None:
    """A task ends if, once every step that says `most` has had its visits, no loop is left.

    Whoever comes to a step that has had them goes on to its `otherwise` at once: so the ways that are left lead from
    steps without `most` to where they, or those `otherwise`, lead.
    """
    used_up = {name: step.otherwise.go if step.otherwise else DROP for name, step in steps.items() if step.most}
    if loop := _loop({name: (there,) for name, there in used_up.items()}):
        spots[loop].fail("when its visits are used up, its `otherwise` leads back to it: lead it elsewhere")
    left = {
        name: tuple(_settle(there, used_up) for there in _targets(step))
        for name, step in steps.items()
        if not step.most
    }
    if loop := _loop(left):
        spots[loop].fail("a loop without a bound leads back to this step: say `most` at it, or at another step of it")


def _settle(name: str, used_up: Mapping[str, str]) -> str:
    while name in used_up:
        name = used_up[name]
    return name


def _loop(ways: Mapping[str, Iterable[str]]) -> str:
    """Return a node of a cycle, or nothing: takes away whatever leads nowhere until nothing more does."""
    left = {name: {there for there in targets if there in ways} for name, targets in ways.items()}
    while ends := [name for name, targets in left.items() if not targets]:
        for name in ends:
            del left[name]
        for targets in left.values():
            targets.difference_update(ends)
    # What is left leads on for ever: so far, and it stands on a cycle.
    name = min(left, default="")
    for _ in left:
        name = min(left[name])
    return name


def _check_leases(steps: Mapping[str, Step], spots: Mapping[str, Spot]) -> None:
    acquired = {step.lease for step in steps.values() if step.lease}
    if len(acquired) > MAX_LEASES:
        spots[next(iter(steps))].fail(f"the flow has {len(acquired)} leases; at most {MAX_LEASES}")
    first: dict[str, Step] = {}
    for name, step in steps.items():
        if not step.leased:
            continue
        if step.leased not in acquired:
            spots[name].fail(f"no step has the lease {step.leased!r}")
        other = first.setdefault(step.leased, step)
        if other.at != step.at:
            spots[name].fail(f"{step.leased!r} stays where it was acquired: say the same `at` as step {other.name!r}")
