"""The cursor and the state of a task as they travel: bytes, and whether they fit the flow.

What a peer sends is checked as if it lied: `decode_cursor` and `decode_state` read only canonical JSON of a bounded
size, `check_cursor` and `check_state` refuse what no way through the flow leads to, and `check_follows` what has gone
back behind an earlier cursor of the same task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from comity.digest import canonical_json
from comity.errors import FlowMismatch, InvalidName
from comity.ids import organization_name
from comity.strictjson import MAX_INTEGER, parse_json
from comity_node.protocol.flow_model import MAX_HANDLE, Cursor, Flow, Lease, Step
from comity_node.protocol.flow_state import MAX_STATE, weight
from comity_node.protocol.flow_walk import misfit

#: Bytes of a cursor as canonical JSON.
MAX_CURSOR = 8 * 1024
#: What an agent may call what it leased: ASCII that can be read, without quotes and backslashes.
_HANDLE = re.compile(r"[ !#-\[\]-~]*")
_write = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
#: Cursors that are kept read: the gate and the engine both read each that comes in, and those of a batch are alike.
_READ = 1024
_COUNTS = ("turn", "tries", "steps", "tokens", "cost", "begun_ms")
_KEYS = {"step", "visits", "losses", "leases", *_COUNTS}


def encode_cursor(cursor: Cursor) -> bytes:
    """Return the cursor as canonical JSON (RFC 8785): ASCII names, texts and integers only, sorted."""
    value = {
        "step": cursor.step,
        **{name: getattr(cursor, name) for name in _COUNTS},
        "visits": dict(cursor.visits),
        "losses": dict(cursor.losses),
        "leases": {name: [lease.at, lease.step, lease.handle] for name, lease in cursor.leases.items()},
    }
    return _write(value).encode()


@lru_cache(maxsize=_READ)
def decode_cursor(data: bytes) -> Cursor:
    """Read a cursor; `check_cursor` says whether it fits a flow.

    Raises:
        FlowMismatch: it is too long, or no cursor in canonical JSON.
    """
    try:
        value = parse_json(data, limit=MAX_CURSOR)
    except ValueError as error:
        raise FlowMismatch(f"the cursor is no JSON: {error}") from error
    if not isinstance(value, dict) or value.keys() != _KEYS or not isinstance(value["step"], str):
        raise FlowMismatch("the cursor has other keys than a cursor has")
    counts = {name: _count(value[name]) for name in _COUNTS}
    visits, losses = (_counts(value[name]) for name in ("visits", "losses"))
    cursor = Cursor(step=value["step"], visits=visits, losses=losses, leases=_leases(value["leases"]), **counts)
    if encode_cursor(cursor) != data:
        raise FlowMismatch("the cursor is not in its canonical form")
    return cursor


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise FlowMismatch("a number of the cursor is no count")
    return value


def _counts(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise FlowMismatch("the counts of the cursor are no mapping")
    return {name: _count(count) for name, count in value.items()}


def _leases(value: object) -> dict[str, Lease]:
    if not isinstance(value, dict):
        raise FlowMismatch("the leases of the cursor are no mapping")
    leases = {}
    for name, parts in value.items():
        if not isinstance(parts, list) or len(parts) != 3 or not all(isinstance(part, str) for part in parts):
            raise FlowMismatch("a lease of the cursor is none")
        leases[name] = Lease(*parts)
    return leases


def check_cursor(flow: Flow, cursor: Cursor, home: str = "", *, over: bool = False) -> None:
    """Refuse a cursor that no way through the flow leads to.

    Args:
        flow: as it was agreed on.
        cursor: of a task, from anybody.
        home: the task's home, if it is known: then who holds a lease is looked at, too.
        over: the task is at its end, whichever: with its last step, or since it has used up more than it may.

    Raises:
        FlowMismatch: says what does not fit.
    """
    step = flow.steps.get(cursor.step)
    if step is None:
        raise FlowMismatch(f"the flow has no step {cursor.step[:64]!r}")
    if cursor.turn >= max(1, step.turns):
        raise FlowMismatch(f"step {step.name!r} has no turn {cursor.turn}")
    if cursor.tries > step.retries:
        raise FlowMismatch(f"step {step.name!r} has been tried {cursor.tries} times")
    _check_losses(flow, cursor)
    _check_visits(flow, cursor)
    limits = flow.limits
    dear = cursor.tokens > limits.tokens or cursor.cost > limits.cost
    if cursor.steps >= limits.steps + over or (dear and not over):
        raise FlowMismatch("the task has used up what it may")
    for name, lease in cursor.leases.items():
        _check_lease(flow, name, lease, home)


def _check_visits(flow: Flow, cursor: Cursor) -> None:
    for name, count in cursor.visits.items():
        step = flow.steps.get(name)
        if step is None or count < 1 or (step.most and count > step.most):
            raise FlowMismatch(f"step {name[:64]!r} cannot have {count} visits")
    if not {flow.start, cursor.step} <= cursor.visits.keys():
        raise FlowMismatch("the first step, or this one, has had no visit")
    # Whatever leads on takes a performance: another visit, a turn, a try.
    if cursor.steps < sum(cursor.visits.values()) - 1 + cursor.turn + cursor.tries:
        raise FlowMismatch("there are more visits, turns and tries than performances")
    if wrong := misfit(flow, cursor):
        raise FlowMismatch(wrong)


def _check_losses(flow: Flow, cursor: Cursor) -> None:
    known = {step.lease for step in flow.steps.values() if step.lease}
    if not cursor.losses.keys() <= known or not all(cursor.losses.values()):
        raise FlowMismatch("a lease was lost that there is not, or not at all")
    if sum(cursor.losses.values()) > cursor.steps:
        raise FlowMismatch("more leases were lost than steps done")


def _check_lease(flow: Flow, name: str, lease: Lease, home: str) -> None:
    step = flow.steps.get(lease.step)
    if step is None or step.lease != name or not is_handle(lease.handle):
        raise FlowMismatch(f"the lease {name[:64]!r} is none of the flow")
    if not lease.at:
        return
    try:
        organization_name(lease.at)
    except InvalidName as error:
        raise FlowMismatch(f"the lease {name!r} is held by nobody: {error}") from error
    if home and not step.at.allows(lease.at, home):
        raise FlowMismatch(f"{lease.at} may not hold the lease {name!r}")


def check_follows(before: Cursor, after: Cursor) -> None:
    """Refuse a cursor that is behind an earlier one of the same task: what is used up does not come back.

    Raises:
        FlowMismatch: a count has gone back, or the task has another beginning.
    """
    counts = all(getattr(before, name) <= getattr(after, name) for name in ("steps", "tokens", "cost"))
    visits = all(count <= after.visits.get(name, 0) for name, count in before.visits.items())
    losses = all(count <= after.losses.get(name, 0) for name, count in before.losses.items())
    if not (counts and visits and losses and before.begun_ms in (0, after.begun_ms)):
        raise FlowMismatch("the task has gone back behind where it was")


def is_handle(value: object) -> bool:
    """Whether an agent may call what it leased so."""
    return isinstance(value, str) and len(value) <= MAX_HANDLE and _HANDLE.fullmatch(value) is not None


def encode_state(state: Mapping[str, Any]) -> bytes:
    """Return a state that fits its shape as canonical JSON (RFC 8785).

    Raises:
        FlowMismatch: it is over `MAX_STATE`.
    """
    data = canonical_json(dict(state))
    if len(data) > MAX_STATE:
        raise FlowMismatch(f"the state has {len(data)} bytes; at most {MAX_STATE}")
    return data


def decode_state(data: bytes) -> dict[str, Any]:
    """Read a state; `check_state` says whether it fits a flow.

    Raises:
        FlowMismatch: it is too long, or no object in canonical JSON.
    """
    try:
        value = parse_json(data, limit=MAX_STATE)
        canonical = isinstance(value, dict) and canonical_json(value) == data
    except (ValueError, RecursionError) as error:
        raise FlowMismatch(f"the state is no JSON: {error}") from error
    if not canonical:
        raise FlowMismatch("the state is no object in canonical form")
    return dict(value)


def check_state(flow: Flow, state: Mapping[str, Any]) -> None:
    """Refuse a state that does not have the flow's shape; fields may be missing.

    Raises:
        FlowMismatch: says what does not fit, or that it is over `MAX_STATE`.
    """
    if wrong := flow.state.misfit(dict(state), "the state") or oversize(state):
        raise FlowMismatch(wrong)


def oversize(state: Mapping[str, Any]) -> str:
    """Return what is wrong with the size of a state that fits its shape; empty: nothing."""
    if weight(state) <= MAX_STATE:
        return ""
    size = len(canonical_json(dict(state)))
    return f"the state has {size} bytes; at most {MAX_STATE}" if size > MAX_STATE else ""


def record_of(flow: Flow, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a done task's state is the record."""
    return {name: state[name] for name in flow.record if name in state}


def work_of(flow: Flow, cursor: Cursor, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the agent gets: of the state what the step reads, and where the task is.

    `step`, `visit` (1 is the first), `try` (0 is the first), `state`; in a dialogue `turn` (0 is the first), `turns`;
    with a lease `lease`: its `name`, `release` (it is to be given back after this), and `handle`, if it is held.
    """
    step = flow.steps[cursor.step]
    turn = step.roles[cursor.turn % len(step.roles)] if step.roles else step
    work: dict[str, Any] = {
        "step": cursor.step,
        "visit": cursor.visits.get(cursor.step, 1),
        "try": cursor.tries,
        "state": {name: state[name] for name in turn.reads if name in state},
    }
    if step.roles:
        work |= {"turn": cursor.turn, "turns": step.turns}
    if step.leased:
        work["lease"] = _lease_of(step, cursor.leases.get(step.leased))
    return work


def _lease_of(step: Step, lease: Lease | None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": step.leased, "release": bool(step.release)}
    return made if lease is None else {**made, "handle": lease.handle}
