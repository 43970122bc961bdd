"""What a holder may have done to a task between the home's checkpoint and what came back: the home's own check.

A holder says where the task is now and what it has. The home believes of it what the steps in between may write, by
those who may do them, and keeps its own of everything else: so nobody writes what is not his to write, and a field that
had another form abroad, or stayed at home, is at home as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comity.errors import FlowMismatch
from comity_node.protocol.flow_cursor import check_state
from comity_node.protocol.flow_model import Cursor, Flow, Step, Where

__all__ = ["believed"]


def believed(
    flow: Flow, before: Cursor, after: Cursor, mine: Mapping[str, Any], came: Mapping[str, Any], *, home: str,
    holder: str, done: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the state of a task that came back.

    Args:
        flow: as it was agreed on.
        before: where the task was when it left its home.
        after: where it is now; it fits the flow, and follows `before`.
        mine: the state at home when it left.
        came: the state as it came, which fits the flow.
        home: the task's home.
        holder: who had it all the time; empty: it may have been with several.
        done: its way is at the end, after a step; else `after` is what is to be done next.

    Raises:
        FlowMismatch: a step was done that nobody but the home may do, or not this holder; or the state does not fit.
    """
    state = dict(mine)
    for role in _performed(flow, before, after, home, holder, done):
        for name in role.writes:
            if name in came:
                state[name] = came[name]
        for name in role.appends:
            if name in came and name not in role.writes:
                state[name] = _longer(mine.get(name, ()), came[name])
    check_state(flow, state)
    return state


def _longer(mine: Any, came: Any) -> list[Any]:  # noqa: ANN401  (JSON)
    """What was there stays as it is; a list that is shorter was not sent, and has what is new alone."""
    return [*mine, *(came[len(mine) :] if len(came) >= len(mine) else came)]


def _performed(flow: Flow, before: Cursor, after: Cursor, home: str, holder: str, done: bool) -> Iterator[Step]:
    def may(role: Step) -> bool:
        return role.at.where is not Where.HOME and (not holder or role.at.allows(holder, home))

    for name, count in after.visits.items():
        step = flow.steps[name]
        here = name == after.step and not done
        left = count - before.visits.get(name, 0) + (name == before.step) - here
        if step.roles and here:
            first = before.turn if name == before.step and count == before.visits.get(name, 0) else 0
            turns = [step.roles[turn % len(step.roles)] for turn in range(first, after.turn)]
            if not all(may(turn) for turn in turns):
                raise FlowMismatch(f"a turn of {name!r} was done by somebody who may not do it")
            yield from turns
        if left <= 0:
            continue
        roles = [role for role in step.roles or (step,) if may(role)]
        if not roles:
            raise FlowMismatch(f"step {name!r} was done by somebody who may not do it")
        yield from roles
