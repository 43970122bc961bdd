"""`comity workflow status` and `cancel`: how the tasks of a workflow are getting on, and how to end them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from comity.client import Workflow
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, table
from comity_node.cli.node_client import CONTROL, connected


def _status(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        workflow = node.workflow(arguments.id)
    value = {
        "workflow_id": workflow.workflow_id,
        "state": workflow.state,
        "reason": workflow.reason,
        "journeys": dict(workflow.journeys),
        "holders": dict(workflow.holders),
        "tasks": dict(workflow.tasks),
    }
    context.emit(value, _text(workflow))


def _text(workflow: Workflow) -> str:
    state = f"{workflow.state}: {workflow.reason}" if workflow.reason else workflow.state
    parts = [fields({"workflow": workflow.workflow_id, "state": state})]
    for heading, counts in (
        ("UNDER WAY", workflow.journeys), ("HELD BY", workflow.holders), ("IN REVIEW AND AFTER", workflow.tasks)
    ):  # fmt: skip
        if counts:
            parts.append(table(_rows(counts), (heading, "TASKS")))
    return "\n\n".join(parts)


def _rows(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items())


def _cancel(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        count = node.cancel_workflow(arguments.id, arguments.reason)
    context.emit({"workflow_id": arguments.id, "tasks": count}, f"cancelled; {count} tasks had not ended")


_ID = argument("id", metavar="WORKFLOW_ID", help="the workflow, as `comity workflow show` lists it")

#: Beside `submit` and `show`.
COMMANDS = (
    Command(
        "status",
        "count a workflow's tasks by state, and by who has them",
        _status,
        (_ID, *CONTROL),
        description=(
            "Count the tasks of this organization in a workflow. With a flow they go from step to step: `queued` ones "
            "are here, `leased` ones are with the organizations that are named, and what is done is reviewed (or "
            "`completed`, if the flow wants no review)."
        ),
    ),
    Command(
        "cancel",
        "end the own tasks of a running workflow",
        _cancel,
        (
            _ID,
            argument("--reason", default="", metavar="TEXT", help="why, for the audit log and whoever asks"),
            *CONTROL,
        ),
        description=(
            "End the tasks of this organization in a workflow: nothing more is made, sent out, offered or certified "
            "for it. Whoever has a task is told, and lets go of it at its deadline if the word does not get there. The "
            "agreement stays, and so do the tasks of the others: `comity agreement withdraw` ends it for all."
        ),
    ),
)
