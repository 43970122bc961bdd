"""`comity workflow`: submit a collaboration and see how it goes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from comity.client import Client, Workflow
from comity.errors import ConfigError
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, as_json, extra, fields, read_bytes, table, timestamp
from comity_node.cli.node_client import CONTROL, connected
from comity_node.cli.workflow_check import CHECK
from comity_node.cli.workflow_status import COMMANDS
from comity_node.cli.workflow_try import TRY

_MAX_DOCUMENT = 64 * 1024
_POLL_S = 0.5
_RUNNING = frozenset({"negotiating", "running"})


def read_document(path: Path, what: str = "the workflow") -> Mapping[str, object]:
    """Read a workflow, or what it is called, from JSON or YAML.

    Raises:
        ConfigError: it cannot be read or is no mapping.
    """
    if path.suffix == ".json":
        value = as_json(read_bytes(path, what, limit=_MAX_DOCUMENT), f"{path}: {what}")
    else:
        with extra("node"):
            from comity_node import strictyaml
        value = strictyaml.load(path).data()
    if not isinstance(value, dict):
        raise ConfigError("a workflow is a mapping, and so is its amendment", file=str(path))
    return value


def _submit(context: Context, arguments: argparse.Namespace) -> int:
    document = read_document(arguments.workflow)
    with connected(context, arguments) as node:
        workflow_id = node.submit_workflow(document)
        if not arguments.wait:
            context.emit({"workflow_id": workflow_id}, workflow_id)
            return 0
        workflow = _wait(node, workflow_id)
    context.emit(_json(workflow), _text(workflow))
    return context.refuse(f"workflow {workflow_id} failed: {workflow.reason}") if workflow.state == "failed" else 0


def _wait(node: Client, workflow_id: str) -> Workflow:
    """Ask until the workflow is over; the person who waits ends it with Ctrl-C, and the workflow goes on."""
    while (workflow := node.workflow(workflow_id)).state in _RUNNING:
        time.sleep(_POLL_S)
    return workflow


def _show(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        if arguments.id:
            workflow = node.workflow(arguments.id)
            context.emit(_json(workflow), _text(workflow))
            return
        workflows = node.workflows()
    rows = [
        (each.workflow_id, each.state, _counts(each.tasks), each.agreement_digest[:16], each.reason)
        for each in workflows
    ]
    headings = ("WORKFLOW", "STATE", "TASKS", "AGREEMENT", "REASON")
    context.emit([_json(each) for each in workflows], table(rows, headings))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "-"


def _json(workflow: Workflow) -> dict[str, object]:
    return {**asdict(workflow), "terms": workflow.terms.hex()}


def _text(workflow: Workflow) -> str:
    values = {
        "workflow": workflow.workflow_id,
        "state": f"{workflow.state}: {workflow.reason}" if workflow.reason else workflow.state,
        "agreement": workflow.agreement_digest or "-",
        "tasks": _counts(workflow.tasks),
        "refused by": _counts(workflow.refused_by),
        "rejected by": _counts(workflow.rejected_by),
        "repaired": workflow.repaired,
    }
    steps = [(timestamp(step.at_ms), step.organization, step.step, step.detail) for step in workflow.steps]
    return f"{fields(values)}\n\n{table(steps, ('TIME', 'ORGANIZATION', 'STEP', 'DETAIL'))}"


#: What a workflow can say; `comity_node.runtime.workflow` reads it.
_KEYS = (
    "Start a workflow: the others are asked to agree, and when all have signed it runs. A workflow needs name, "
    "purpose, dataset and records_per_organization. It can say participants (else everybody who offers the skills), "
    "minimum_participants, batch_records, repair_rounds, min_score (0 to 10000), lease_seconds, expires_seconds, "
    "negotiation_seconds (how long to wait for people who have to approve it), and under limits how strict the terms "
    "may get before whoever asks for it is left out: minimum_records, maximum_min_score, maximum_quorum, "
    "maximum_distance, minimum_retain_seconds, maximum_grid (field: grid), keep (fields that stay readable). "
    "Under flow it says by which steps each record is made: see docs/workflows.md and `comity workflow check`. "
    "With homes: initiator, only this organization's records are made. With panel: k so many of the others, drawn for "
    "each batch, judge it instead of all; with commit_reveal: true they commit to their scores before any is shown."
)

COMMAND = Command(
    "workflow",
    "submit a collaboration, and see how it goes",
    commands=(
        CHECK,
        TRY,
        Command(
            "submit",
            "start a workflow: it is negotiated, then run",
            _submit,
            (
                argument("workflow", type=Path, metavar="WORKFLOW", help="the workflow, in YAML or JSON"),
                argument("--wait", action="store_true", help="wait until it is done; exit 1 if it failed"),
                *CONTROL,
            ),
            description=_KEYS,
        ),
        Command(
            "show",
            "show a workflow, or list all",
            _show,
            (argument("id", nargs="?", default="", metavar="WORKFLOW_ID", help="one workflow (all)"), *CONTROL),
        ),
        *COMMANDS,
    ),
)
