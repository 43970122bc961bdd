"""`comity workflow check`: whether a workflow can be submitted, and what its flow does. No node is needed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from comity.errors import ConfigError, InvalidName
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, extra, printable

if TYPE_CHECKING:
    from comity_node.protocol.flow import Branch, Flow, Place, Step
    from comity_node.runtime.workflow import WorkflowSpec
    from comity_node.strictyaml import Mark, Node

#: A key that a message names.
_QUOTED = re.compile(r"'([\w.-]+)'")
_OPERATORS = {"is": "is", "in": "is one of", "below": "below", "above": "above"}
_OPERATORS |= {"at_least": "at least", "at_most": "at most"}


def _check(context: Context, arguments: argparse.Namespace) -> None:
    spec = read_spec(arguments.workflow)
    context.emit(_json(arguments.workflow, spec), _text(arguments.workflow, spec))


def read_spec(path: Path) -> WorkflowSpec:
    """Read a workflow's file as the node would read it when it is submitted.

    Raises:
        ConfigError: something is wrong with it: says what and where.
    """
    with extra("node"):
        from comity_node import strictyaml
        from comity_node.runtime.workflow import parse_workflow
    node = strictyaml.load(path)
    document = json.dumps(node.data()).encode()
    try:
        return parse_workflow(document)
    except ConfigError as error:
        _point(node, error)
    except InvalidName as error:
        _point(node, ConfigError(f"'participants' of the workflow: {error}"))


def _point(node: Node, error: ConfigError) -> NoReturn:
    """Say what is wrong and where in the file it stands."""
    named = _QUOTED.search(str(error))
    keys = error.path or (tuple(named[1].split(".")) if named else ())
    place = _locate(node, keys)
    raise ConfigError(str(error), file=place.file, line=place.line, column=place.column) from error


def _locate(node: Node, keys: tuple[str | int, ...]) -> Mark:
    """Return the place of what `keys` lead to, or as far as they lead."""
    mark = node.mark
    for key in keys:
        if isinstance(node.value, dict) and isinstance(key, str) and key in node.value:
            mark, node = node.value[key]
        elif isinstance(node.value, tuple) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            mark = node.mark
        else:
            break
    return mark


def _json(path: Path, spec: WorkflowSpec) -> dict[str, object]:
    made: dict[str, object] = {
        "file": str(path), "name": spec.name, "purpose": spec.purpose, "dataset": spec.dataset,
        "participants": list(spec.participants), **spec.numbers,
    }  # fmt: skip
    return made | {"flow": json.loads(spec.flow.document) if spec.flow else None}


def _text(path: Path, spec: WorkflowSpec) -> str:
    head = f"{path}: workflow {spec.name!r} can be submitted"
    if spec.flow is None:
        return f"{head}\nno flow: this organization's agent makes the records (skill generate), others review them"
    return f"{head}\n\n{draw(spec.flow)}"


def draw(flow: Flow) -> str:
    """Return a flow as text: each step, what it does, and the ways that lead on from it."""
    names = [flow.start, *(name for name in flow.steps if name != flow.start)]
    lines = [line for name in names for line in _step(flow.steps[name])]
    limits = flow.limits
    fate = "reviewed and certified" if flow.finish.value == "certify" else "completed, without review"
    lines += [
        f"end: {fate}; the record is {', '.join(flow.record)}",
        f"each task: {limits.steps} steps, {limits.seconds} s, {limits.tokens} tokens, cost {limits.cost / 1e6:g}",
    ]
    return "\n".join(map(printable, lines))


def _step(step: Step) -> list[str]:
    roles = step.roles or (step,)
    doing = [f"{role.skill} at {_place(role.at)}" for role in roles]
    said = [
        *([f"in turn, {step.turns} turns at most"] if step.roles else []),
        *([f"until {_condition(step.until.source)}"] if step.until else []),
        *([f"{step.rows} rows a call"] if step.rows > 1 else []),
        *([f"{step.most} visits at most"] if step.most else []),
        *([f"holds {step.lease}"] if step.lease else []),
        *([f"releases {step.release}"] if step.release else []),
    ]
    lines = [f"{step.name}: {', '.join([' | '.join(doing), *said])}"]
    last = len(step.next) - 1
    for number, branch in enumerate(step.next):
        why = f"{_condition(branch.when.source)} " if branch.when else "else " if last and number == last else ""
        lines.append(f"  {why}-> {_target(branch)}")
    if step.otherwise:
        lines.append(f"  otherwise -> {_target(step.otherwise)}")
    return lines


def _target(branch: Branch) -> str:
    return f"{branch.go} ({branch.reason})" if branch.reason else branch.go


def _place(place: Place) -> str:
    return "/".join(place.organizations) or place.where.value


def _condition(source: Mapping[str, Any]) -> str:
    parts = []
    for key, asked in source.items():
        if key == "any":
            parts.append(f"({' or '.join(_condition(each) for each in asked)})")
        elif key == "not":
            parts.append(f"not ({_condition(asked)})")
        else:
            parts += [_test(key, word, operand) for word, operand in asked.items()]
    return " and ".join(parts)


def _test(key: str, word: str, operand: object) -> str:
    if word == "has":
        return f"{key} is {'there' if operand else 'missing'}"
    return f"{key} {_OPERATORS[word]} {json.dumps(operand, ensure_ascii=False)}"


CHECK = Command(
    "check",
    "check a workflow and show what its flow does; no node is needed",
    _check,
    (argument("workflow", type=Path, metavar="WORKFLOW", help="the workflow, in YAML or JSON"),),
    description=(
        "Check a workflow as `comity workflow submit` would, without a node: what is wrong is named with its file and "
        "line. Shows the steps of its flow, who does each, and the ways that lead on. docs/workflows.md explains the "
        "language; examples/workflows has some to start from."
    ),
)
