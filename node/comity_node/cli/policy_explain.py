"""`comity policy explain`: why something is decided as it is, or why it was decided as it was."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, UsageError, as_json, extra, printable, read_bytes, timestamp
from comity_node.cli.node_client import CONTROL, connected
from comity_node.cli.policy_common import DATABASE, POLICY, opened, policy_path, todays_policy, whole

if TYPE_CHECKING:
    from comity_node.admission.retrospect import Retrospect
    from comity_node.policy.model import Request

_MAX_REQUEST: Final = 64 * 1024
#: Decisions about one task that are explained; a task has a few for each reviewer and revision.
_MAX_OF_TASK: Final = 1_000
_WORDS: Final = ("action", "organization", "role", "purpose", "dataset", "kind")


def _explain(context: Context, arguments: argparse.Namespace) -> None:
    request = _request(arguments)
    past = arguments.entry is not None or bool(arguments.task)
    if past and (request or arguments.live or (arguments.entry is not None and arguments.task)):
        raise UsageError("say one of --entry, --task, --request and --action (see: comity policy explain --help)")
    if past:
        _explain_past(context, arguments)
        return
    if not {"action", "organization"} <= set(request):
        raise UsageError(
            "say --action and --organization, --request FILE, --entry N or --task ID "
            "(see: comity policy explain --help)"
        )
    if arguments.live:
        with connected(context, arguments) as node:
            answer = node.explain_policy(request)
        context.emit(answer, json.dumps(answer, indent=2, ensure_ascii=False))
        return
    with extra("node"):
        from comity_node.policy import explain, loader
    explanation = explain.explain(loader.load(policy_path(context, arguments)), _checked(request))
    context.emit(explanation.to_json(), explanation.text())


def _explain_past(context: Context, arguments: argparse.Namespace) -> None:
    with extra("node"):
        from comity_node.admission.retrospect import Historian
    today = todays_policy(context, arguments)
    with opened(context, arguments.database) as connection:
        historian = Historian(connection, today)
        if not arguments.task:
            found = historian.entry(arguments.entry)
            context.emit(found.to_json(), _text(found))
            return
        decisions = list(islice(historian.task(_task_id(arguments.task)), _MAX_OF_TASK))
    said = list(_texts(decisions)) or ["the log has no decision about this task's record"]
    context.emit({"task": arguments.task, "decisions": [each.to_json() for each in decisions]}, "\n".join(said))


def _texts(decisions: list[Retrospect]) -> Iterator[str]:
    for number, each in enumerate(decisions):
        yield ("" if number == 0 else "\n") + _text(each)


def _text(found: Retrospect) -> str:
    head, *lines = found.lines()
    where = f"entry {found.recorded.entry.index}, {timestamp(found.recorded.entry.at_ms)}: "
    return "\n".join(printable(line) for line in (where + head, *lines))


def _task_id(text: str) -> bytes:
    try:
        task_id = bytes.fromhex(text)
    except ValueError:
        task_id = b""
    if len(task_id) != 16:
        raise UsageError(f"{text[:80]!r} is no task id: 32 hexadecimal digits")
    return task_id


def _request(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the request of --request, or of the options; empty if there is neither.

    Raises:
        UsageError: there are both.
    """
    given: dict[str, object] = {name: word for name in _WORDS if (word := getattr(arguments, name))}
    if arguments.field:
        given["fields"] = arguments.field
    if arguments.label:
        given["labels"] = dict(arguments.label)
    if arguments.request is None:
        return given
    if given:
        raise UsageError("say the request in a file or in options, not in both (see: comity policy explain --help)")
    value: Any = as_json(read_bytes(arguments.request, "the request", limit=_MAX_REQUEST), str(arguments.request))
    if not isinstance(value, dict):
        raise UsageError(f"{arguments.request} is no JSON object")
    return {name: part for name, part in value.items() if part not in ("", [], {})}  # as `explain --json` writes them


def _checked(request: dict[str, object]) -> Request:
    with extra("node"):
        from comity_node import strictyaml
        from comity_node.policy import cases
    return cases.read_request(strictyaml.loads(json.dumps(request), "request"))


def label(text: str) -> tuple[str, object]:
    """Read NAME=VALUE from the command line; numbers, true and false are what they look like.

    Raises:
        argparse.ArgumentTypeError: there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


EXPLAIN = Command(
    "explain",
    "say what is decided about a request, by which rule, and what would have to change",
    _explain,
    (
        POLICY,
        argument("--request", type=Path, metavar="FILE", help="the request, in JSON"),
        argument("--action", default="", help="such as record.send"),
        argument("--organization", default="", help="the other side"),
        argument("--role", default="", help="the other side's part in it, such as validator"),
        argument("--purpose", default=""),
        argument("--dataset", default=""),
        argument("--kind", default="", help="raw, synthetic, certified or update"),
        argument("--field", action="append", default=[], metavar="PATH", help="a field of the record; repeat"),
        argument("--label", action="append", type=label, default=[], metavar="NAME=VALUE", help="repeat"),
        argument("--entry", type=whole, metavar="N", help="the decision at this index of the audit log"),
        argument("--task", default="", metavar="ID", help="all decisions about this task's record"),
        DATABASE,
        argument("--live", action="store_true", help="ask the running node, which may have another policy"),
        *CONTROL,
    ),
    description="Say what is decided about a request, by which rule, which conditions failed, and what would have to "
    "change. The request is written in options or in a file; or it is one that was decided already: --entry and --task "
    "take it from the audit log, and the policy that decided it from the database.",
)
