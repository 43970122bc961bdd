"""How a task goes on: pure functions of the flow, the cursor, the state and what an agent answered.

An agent answers `{"state": {...}, "usage": {"tokens": n, "cost": x}, "lease": "handle"}`, of which everything may be
left out; or `{"error": "why"}` when it could not, or `{"lost": true}` when what was leased is not there any more.

1. Whatever was answered has used up one step, and what it says of tokens and cost.
2. An answer that is none, writes what the step does not, does not fit the state's shape, costs more than the step's
   price or is an error is a try that failed: the step is tried again, `retries` times; then the task goes to
   `otherwise`, or fails.
3. A lease that was lost leads back to the step that acquired it, as often as that step has retries; then to that step's
   `otherwise`, or the task fails.
4. A dialogue has its next turn, until `until` holds or its turns are over.
5. The first branch of `next` that holds leads on. A step that has had `most` visits is passed over to its `otherwise`,
   or the task is dropped.
6. A task that would go on without steps, tokens or cost left, or whose seconds are over, fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comity.errors import FlowMismatch
from comity_node.protocol.flow_cursor import is_handle, oversize
from comity_node.protocol.flow_model import (
    COST_UNIT,
    DROP,
    END,
    MAX_HANDLE,
    MAX_REASON,
    MAX_TASK_COST,
    MAX_TASK_TOKENS,
    Branch,
    Cursor,
    Done,
    Dropped,
    Failed,
    Flow,
    Goes,
    Lease,
    Outcome,
    Place,
    Step,
    Where,
)

_ANSWER = {"state", "usage", "lease"}


def begin(flow: Flow, now_ms: int = 0) -> Cursor:
    """Return the cursor of a new task, whose state is empty.

    Args:
        flow: its flow.
        now_ms: the time in milliseconds since 1970; 0: the task begins when it first goes on.
    """
    return Cursor(flow.start, visits={flow.start: 1}, begun_ms=now_ms)


def current(flow: Flow, cursor: Cursor) -> Step:
    """Return what is to be done next: a step, or in a dialogue the turn of whose it is.

    With a lease that is held, `at` names whoever has it. The cursor fits the flow (`check_cursor`).
    """
    step = flow.steps[cursor.step]
    if step.roles:
        return step.roles[cursor.turn % len(step.roles)]
    lease = cursor.leases.get(step.leased) if step.leased else None
    return replace(step, at=Place(Where.NAMED, (lease.at,))) if lease is not None and lease.at else step


def advance(
    flow: Flow, cursor: Cursor, state: Mapping[str, Any], output: object, now_ms: int, *, by: str = ""
) -> Outcome:
    """Return how the task goes on after an agent has answered.

    Args:
        flow: as it was agreed on.
        cursor: where the task is; it fits the flow.
        state: what it has; it fits the flow.
        output: what the agent answered, a JSON value; anything at all.
        now_ms: the time in milliseconds since 1970.
        by: the organization whose agent it was: where a lease is held from now on.
    """
    step, used = flow.steps[cursor.step], _usage(output)
    spent = _spend(cursor, now_ms, *(used or (0, 0)))
    if late := _late(flow, spent, now_ms):
        return late
    if used is None:
        return _again(flow, spent, state, "its usage is no mapping of tokens and cost")
    if isinstance(output, dict) and output.get("lost") is True and step.leased in cursor.leases:
        return _back(flow, spent, state, step.leased)
    answer = _read(flow, current(flow, cursor), state, output, used[1])
    if isinstance(answer, str):
        return _again(flow, spent, state, answer)
    after = {**state, **answer.writes}
    if wrong := oversize(after):
        return _again(flow, spent, state, wrong)
    if step.leased:
        spent = _hold(spent, step, Lease(by, step.name, answer.handle))
    turn = cursor.turn + 1
    if step.roles and turn < step.turns and not (step.until is not None and step.until.holds(after)):
        return _within(flow, replace(spent, turn=turn, tries=0), after, "")
    branch = next(each for each in step.next if each.when is None or each.when.holds(after))
    return _enter(flow, spent, after, branch, "", "")


def failed(flow: Flow, cursor: Cursor, state: Mapping[str, Any], reason: str, now_ms: int) -> Outcome:
    """Return how the task goes on after an agent that did not answer: it raised, was lost, or took too long."""
    spent = _spend(cursor, now_ms)
    return _late(flow, spent, now_ms) or _again(flow, spent, state, reason)


def lost(flow: Flow, cursor: Cursor, state: Mapping[str, Any], lease: str, now_ms: int) -> Outcome:
    """Return how the task goes on after a lease was lost: whoever held it is gone, or says that it is.

    Raises:
        FlowMismatch: the task does not hold it.
    """
    if lease not in cursor.leases:
        raise FlowMismatch(f"the task does not hold the lease {lease[:64]!r}")
    spent = _spend(cursor, now_ms)
    return _late(flow, spent, now_ms) or _back(flow, spent, state, lease)


def batch_of(step: Step, works: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the input of an agent's call for several tasks: `{"rows": [...]}` if the step takes rows, else the one."""
    return {"rows": [dict(work) for work in works]} if step.rows > 1 else dict(works[0])


def answers_of(step: Step, output: object, count: int) -> list[object]:
    """Return the answer of each of `count` tasks; if the answer to several is none, or an error, each has failed."""
    if step.rows == 1:
        return [output]
    if isinstance(output, dict) and output.keys() == {"error"}:
        return [output] * count
    rows = output.get("rows") if isinstance(output, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        return [{"error": f"the answer to {count} rows is no list `rows` with as many"}] * count
    return rows


@dataclass(frozen=True, slots=True)
class _Answer:
    writes: Mapping[str, Any]
    handle: str


def _spend(old: Cursor, now_ms: int, tokens: int = 0, cost: int = 0) -> Cursor:
    """Return the cursor with one step and this much more used up; written out, since `replace` takes twice as long."""
    return Cursor(
        old.step, old.turn, old.tries, old.visits, old.losses, old.leases, old.steps + 1, old.tokens + tokens,
        old.cost + cost, old.begun_ms or now_ms,
    )  # fmt: skip


def _hold(spent: Cursor, step: Step, lease: Lease) -> Cursor:
    """Acquire what the step leases, if it is not held yet, and release what it releases."""
    leases = dict(spent.leases)
    if step.lease:
        leases.setdefault(step.lease, lease)
    if step.release:
        leases.pop(step.release, None)
    return replace(spent, leases=leases)


def _late(flow: Flow, spent: Cursor, now_ms: int) -> Failed | None:
    if now_ms - spent.begun_ms <= flow.limits.seconds * 1000:
        return None
    return Failed(f"its {flow.limits.seconds} seconds are over", spent, expired=True)


def _usage(output: object) -> tuple[int, int] | None:
    """Return the tokens and the cost in millionths that an answer says; None: it says them wrong."""
    value = output.get("usage") if isinstance(output, dict) else None
    if value is None:
        return None if isinstance(output, dict) and "usage" in output else (0, 0)
    if not isinstance(value, dict) or not value.keys() <= {"tokens", "cost"}:
        return None
    tokens, cost = value.get("tokens", 0), value.get("cost", 0)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= MAX_TASK_TOKENS:
        return None
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost <= MAX_TASK_COST:
        return None
    return tokens, round(cost * COST_UNIT)


def _read(flow: Flow, step: Step, state: Mapping[str, Any], output: object, cost: int) -> _Answer | str:
    """Return what an answer says, or what is wrong with it."""
    if not isinstance(output, dict):
        return "its answer is no mapping"
    if "error" in output:
        error = output["error"]
        return error.encode(errors="replace").decode() if isinstance(error, str) and error else "it says no reason"
    if not output.keys() <= _ANSWER:
        unknown = sorted(str(key)[:64] for key in output.keys() - _ANSWER)
        return f"its answer has an unknown key {unknown[0]!r}; known: {', '.join(sorted(_ANSWER))}"
    if step.price is not None and cost > step.price:
        return f"it cost {cost / COST_UNIT:g}, and its price is {step.price / COST_UNIT:g}"
    writes, handle = output.get("state", {}), output.get("lease", "")
    if not is_handle(handle):
        return f"its lease is no ASCII text of at most {MAX_HANDLE} characters without quotes"
    if not isinstance(writes, dict):
        return "its state is no mapping"
    written = {}
    for name, value in writes.items():
        if name in step.appends:
            written[name] = [*state.get(name, ()), *value] if isinstance(value, list) else value
        elif name in step.writes:
            written[name] = value
        else:
            return f"it writes {str(name)[:64]!r}, and may write {', '.join(step.writes + step.appends) or 'nothing'}"
        if wrong := flow.state.properties[name].misfit(written[name], name):
            return wrong
    return _Answer(written, handle)


def _again(flow: Flow, spent: Cursor, state: Mapping[str, Any], reason: str) -> Outcome:
    step = flow.steps[spent.step]
    reason = reason[:MAX_REASON]
    if spent.tries < step.retries:
        return _within(flow, replace(spent, tries=spent.tries + 1), state, reason)
    return _leave(flow, spent, state, step, f"step {step.name!r} failed {spent.tries + 1} times: {reason}")


def _back(flow: Flow, spent: Cursor, state: Mapping[str, Any], lease: str) -> Outcome:
    step = flow.steps[spent.leases[lease].step]
    count = spent.losses.get(lease, 0) + 1
    leases = {name: held for name, held in spent.leases.items() if name != lease}
    spent = replace(spent, leases=leases, losses={**spent.losses, lease: count})
    reason = f"the lease {lease!r} was lost"
    if count <= step.retries:
        return _enter(flow, spent, state, Branch(step.name), "", reason)
    return _leave(flow, spent, state, step, f"{reason} {count} times")


def _leave(flow: Flow, spent: Cursor, state: Mapping[str, Any], step: Step, reason: str) -> Outcome:
    """Go to the `otherwise` of `step`, if it has one."""
    if step.otherwise is None:
        return Failed(reason[:MAX_REASON], spent)
    return _enter(flow, spent, state, step.otherwise, reason, reason)


def _enter(
    flow: Flow, spent: Cursor, state: Mapping[str, Any], branch: Branch, dropped: str, reason: str
) -> Outcome:  # fmt: skip
    """Take a branch; `dropped` says why a task is dropped where the flow does not say it."""
    for _ in range(len(flow.steps) + 1):
        if branch.go == END:
            missing = [name for name in flow.required if name not in state]
            return Failed(f"it is at its end without {missing[0]!r}", spent) if missing else Done(state, spent)
        if branch.go == DROP:
            return Dropped((branch.reason or dropped or f"step {spent.step!r} lets it go")[:MAX_REASON], spent)
        step, visits = flow.steps[branch.go], spent.visits.get(branch.go, 0)
        if not step.most or visits < step.most:
            there = Cursor(
                step.name, 0, 0, {**spent.visits, step.name: visits + 1}, spent.losses, spent.leases, spent.steps,
                spent.tokens, spent.cost, spent.begun_ms,
            )  # fmt: skip
            return _within(flow, there, state, reason)
        branch, dropped = step.otherwise or Branch(DROP), f"step {step.name!r} has had its {step.most} visits"
    raise AssertionError("read_flow refuses steps whose `otherwise` lead round in a ring")


def _within(flow: Flow, spent: Cursor, state: Mapping[str, Any], reason: str) -> Outcome:
    """Go on if the limits let it."""
    limits = flow.limits
    if spent.steps >= limits.steps:
        over = f"{limits.steps} steps"
    elif spent.tokens > limits.tokens:
        over = f"{limits.tokens} tokens"
    elif spent.cost > limits.cost:
        over = f"cost of {limits.cost / COST_UNIT:g}"
    else:
        return Goes(spent, state, reason)
    return Failed(f"its {over} are used up{f' ({reason})' if reason else ''}"[:MAX_REASON], spent)
