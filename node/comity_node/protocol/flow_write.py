"""Writes a flow as JSON in its normal form, which `read_flow` reads as the same flow."""

from __future__ import annotations

from typing import Any

from comity_node.protocol.flow_model import COST_UNIT, Branch, Flow, Place, Step, Where


def write_flow(flow: Flow) -> dict[str, Any]:
    """Return the JSON form: what a step says is there, what it leaves to the defaults is not; limits are all there."""
    limits = flow.limits
    made = {
        "state": flow.state.source,
        "start": flow.start,
        "steps": {name: _step(step) for name, step in flow.steps.items()},
        "limits": {
            "steps": limits.steps,
            "seconds": limits.seconds,
            "tokens": limits.tokens,
            "cost": limits.cost / COST_UNIT,
        },
        "finish": flow.finish.value,
    }
    return {**made, "record": list(flow.required)} if flow.required else made


def _step(step: Step) -> dict[str, Any]:
    made: dict[str, Any] = {"next": [_branch(each) for each in step.next], "retries": step.retries}
    if step.roles:
        made |= {"dialogue": [_role(role) for role in step.roles], "turns": step.turns}
        if step.until is not None:
            made["until"] = step.until.source
    else:
        made |= _role(step)
    if step.otherwise is not None:
        made["otherwise"] = _branch(step.otherwise)
    numbers = {"most": step.most or None, "rows": step.rows if step.rows > 1 else None}
    words = {"lease": step.lease or None, "release": step.release or None}
    return made | {key: value for key, value in {**numbers, **words}.items() if value is not None}


def _role(step: Step) -> dict[str, Any]:
    made: dict[str, Any] = {
        "skill": step.skill,
        "at": _place(step.at),
        "reads": list(step.reads),
        "writes": list(step.writes),
    }
    if step.appends:
        made["appends"] = list(step.appends)
    if not step.hedge:
        made["hedge"] = False
    return made if step.price is None else {**made, "price": step.price / COST_UNIT}


def _place(place: Place) -> str | list[str]:
    return list(place.organizations) if place.where is Where.NAMED else place.where.value


def _branch(branch: Branch) -> dict[str, Any]:
    made: dict[str, Any] = {"go": branch.go}
    if branch.when is not None:
        made["when"] = branch.when.source
    return {**made, "reason": branch.reason} if branch.reason else made
