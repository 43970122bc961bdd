"""`comity approvals`: what waits for a person, and what people are told of."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict

from comity.client import Approval
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, table, timestamp
from comity_node.cli.node_client import CONTROL, connected

#: Digits of an id that are shown, and are enough to name an approval.
_SHORT = 12


def _list(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        approvals = node.approvals(everything=arguments.all)
    rows = [
        (
            each.id[:_SHORT], each.state, each.action, each.organization, each.purpose or "-", each.dataset or "-",
            each.rule, timestamp(each.deadline_ms),
        )
        for each in approvals
    ]  # fmt: skip
    headings = ("APPROVAL", "STATE", "ACTION", "ORGANIZATION", "PURPOSE", "DATASET", "RULE", "UNTIL")
    context.emit([_json(each) for each in approvals], table(rows, headings))


def _show(context: Context, arguments: argparse.Namespace) -> int:
    with connected(context, arguments) as node:
        found = [each for each in node.approvals(everything=True) if each.id.startswith(arguments.id.lower())]
    if len(found) != 1:
        what = "no approval" if not found else f"{len(found)} approvals"
        return context.refuse(f"there is {what} {arguments.id!r}; `comity approvals list --all` names them")
    context.emit(_json(found[0]), _text(found[0]))
    return 0


def _approve(context: Context, arguments: argparse.Namespace) -> None:
    _decide(context, arguments, approve=True)


def _deny(context: Context, arguments: argparse.Namespace) -> None:
    _decide(context, arguments, approve=False)


def _decide(context: Context, arguments: argparse.Namespace, *, approve: bool) -> None:
    with connected(context, arguments) as node:
        decided = node.decide_approval(arguments.id, approve=approve, reason=arguments.reason)
    what = f"{decided.action} with {decided.organization} (rule {decided.rule})"
    context.emit(_json(decided), f"{decided.state}: {what}")


def _notices(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        notices = node.notices()
    rows = [
        (
            timestamp(each.at_ms), ", ".join(each.persons), each.action, each.organization, each.purpose or "-",
            each.dataset or "-", each.times, ", ".join(each.rules),
        )
        for each in notices
    ]  # fmt: skip
    headings = ("TIME", "FOR", "ACTION", "ORGANIZATION", "PURPOSE", "DATASET", "TIMES", "RULES")
    context.emit([asdict(each) for each in notices], table(rows, headings))


def _json(approval: Approval) -> dict[str, object]:
    return {**asdict(approval), "request": _request(approval)}


def _request(approval: Approval) -> object:
    return json.loads(approval.request) if approval.request else None


def _text(approval: Approval) -> str:
    request = _request(approval)
    asked = request if isinstance(request, Mapping) else {}
    return fields(
        {
            "approval": approval.id,
            "state": f"{approval.state}: {approval.reason}" if approval.reason else approval.state,
            "rule": approval.rule,
            **{name: json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
               for name, value in asked.items()},
            "good for": approval.scope,
            "asked": timestamp(approval.asked_ms),
            "until": timestamp(approval.deadline_ms),
            "decided": timestamp(approval.decided_ms) if approval.decided_ms else "-",
        }
    )  # fmt: skip


_ID = argument("id", metavar="APPROVAL", help="its id, or six digits or more of its beginning")
_REASON = argument("--reason", default="", metavar="TEXT", help="why; it goes into the audit log")

COMMAND = Command(
    "approvals",
    "decide what waits for a person, and see what people are told of",
    description=(
        "A rule of the policy with `approval: {within: 2d}` lets something happen only once a person of this"
        " organization has said yes. Until then, and after the two days, the answer is no. A yes is good for all that"
        " the same rule, action and organization do under one agreement; without an agreement, for the very thing that"
        " was asked about. Every question and every answer is in the audit log."
    ),
    commands=(
        Command(
            "list",
            "list what waits for a person",
            _list,
            (argument("--all", action="store_true", help="also what was decided, or nobody decided in time"), *CONTROL),
        ),
        Command("show", "show one approval: what exactly is asked", _show, (_ID, *CONTROL)),
        Command(
            "approve",
            "say yes; one that was denied or has expired can be approved too",
            _approve,
            (_ID, _REASON, *CONTROL),
        ),
        Command(
            "deny",
            "say no; of one that was approved, nothing more happens under it",
            _deny,
            (_ID, _REASON, *CONTROL),
        ),
        Command("notices", "list the newest things that rules with `notify` tell people of", _notices, CONTROL),
    ),
)
