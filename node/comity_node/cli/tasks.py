"""`comity tasks`: the own tasks, and the whole way of one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from comity.client import TaskWay
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, moment, table, timestamp
from comity_node.cli.node_client import CONTROL, connected

#: Digits of an id that are shown in a list, and are enough to name a task.
_SHORT = 12


def _list(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        page = node.tasks(arguments.workflow, arguments.state, arguments.limit)
    rows = [
        (
            each.task_id[:_SHORT], each.state, each.step or "-", each.holder or "-", each.attempt or "-",
            each.revision or "-", each.workflow_id, timestamp(each.updated_ms), each.reason or "-",
        )
        for each in page.tasks
    ]  # fmt: skip
    headings = ("TASK", "STATE", "STEP", "HELD BY", "ATTEMPT", "REPAIRS", "WORKFLOW", "CHANGED", "REASON")
    text = table(rows, headings)
    if page.more:
        text += "\n(there are more: name a workflow or a state, or raise --limit)"
    context.emit({"tasks": [asdict(each) for each in page.tasks], "more": page.more}, text)


def _show(context: Context, arguments: argparse.Namespace) -> int:
    with connected(context, arguments) as node:
        way = node.task(arguments.id, record=arguments.record)
    context.emit(_json(way), _text(way))
    return 0 if not way.unverified else context.refuse(f"a hop does not verify: {way.unverified}")


def _json(way: TaskWay) -> dict[str, Any]:
    value = asdict(way)
    for entry in value["entries"]:
        entry["detail"] = json.loads(entry["detail"]) if entry["detail"] else {}
    if way.record:
        value["record"] = json.loads(way.record)
    else:
        del value["record"]
    return value


def _text(way: TaskWay) -> str:
    parts = [fields(dict(_facts(way)))]
    if way.record:
        parts.append("RECORD\n" + json.dumps(json.loads(way.record), indent=2, ensure_ascii=True))
    events = sorted(_events(way), key=lambda event: event.at_ms)
    rows = [(moment(one.at_ms), one.what, one.who, one.how, ", ".join(one.rules) or "-") for one in events]
    parts.append(table(rows, ("TIME (UTC)", "WHAT", "WHO", "HOW", "RULES")))
    if way.entries_cut:
        parts.append("(the audit log has more entries than were searched: `comity audit show` reads on)")
    if way.deliveries:
        sent = [(one.kind, one.organization, one.state, one.attempts, one.reason or "-") for one in way.deliveries]
        parts.append(table(sent, ("MESSAGE", "TO", "STATE", "RETRIES", "REASON")))
    return "\n\n".join(parts)


def _facts(way: TaskWay) -> Iterator[tuple[str, object]]:
    task = way.task
    yield "task", task.task_id
    if task.record_task_id:
        yield "judged as", task.record_task_id
    yield "workflow", task.workflow_id or "-"
    yield "agreement", task.agreement_digest
    yield "state", f"{task.state}: {task.reason}" if task.reason else task.state
    if task.attempt:
        where = f"at step {task.step}, " if task.step else ""
        yield "way", f"{where}attempt {task.attempt}, {f'with {task.holder}' if task.holder else 'at home'}"
    if task.opened_ms:
        yield "opened", timestamp(task.opened_ms)
    if way.deadline_ms:
        yield "deadline", timestamp(way.deadline_ms)
    if task.revision:
        yield "repairs", task.revision
    for note in way.feedback:
        yield "asked for", note
    if way.certificate is not None:
        yield "certified", f"{way.certificate.score / 100:.2f} by {', '.join(way.certificate.organizations)}"
    signed = sum(hop.verified for hop in way.hops)
    if way.hops:
        yield (
            "hops",
            f"{len(way.hops)}, all of them verify"
            if signed == len(way.hops)
            else (f"{len(way.hops)}, of which {len(way.hops) - signed} DO NOT VERIFY: {way.unverified}"),
        )


class _Event(NamedTuple):
    """One line of the timeline."""

    at_ms: int
    what: str
    who: str
    how: str
    rules: Sequence[str] = ()


def _events(way: TaskWay) -> Iterator[_Event]:
    """Yield what happened, in no order."""
    for hop in way.hops:
        to = f" -> {hop.to_organization}" if hop.to_organization else ""
        how = f"attempt {hop.attempt}" if hop.attempt else f"revision {hop.revision}"
        proof = "" if hop.verified else ", DOES NOT VERIFY"
        yield _Event(hop.at_ms, f"hop: {hop.role}", f"{hop.organization}{to}", how + proof, hop.rules)
    for one in way.reviewers:
        yield _Event(one.offered_ms, "review asked for", one.organization, f"revision {one.revision}, {one.state}")
        if one.committed_ms:
            counts = "counts" if one.in_set else "does not count"
            yield _Event(one.committed_ms, "review committed to", one.organization, counts)
    for review in way.reviews:
        axes = ", ".join(f"{name} {value / 100:.2f}" for name, value in sorted(review.axes.items()))
        verdict = f"{'accepts' if review.accept else 'rejects'} with {review.score / 100:.2f} ({axes or 'no axes'})"
        late = ", late" if review.late else ", in the certificate" if review.counted else ""
        yield _Event(review.received_ms, f"review of revision {review.revision}", review.organization, verdict + late)
    for entry in way.entries:
        how = entry.decision or _words(entry.detail)
        yield _Event(entry.at_ms, f"{entry.kind}: {entry.action}", entry.organization or "-", how, entry.rules)
    if way.certificate is not None:
        score = f"score {way.certificate.score / 100:.2f}"
        yield _Event(way.certificate.stored_ms, "certified", "-", score)


def _words(detail: str) -> str:
    """Return an entry's detail in a few words; which task it is about is known."""
    said = json.loads(detail) if detail else {}
    return ", ".join(f"{name} {value}" for name, value in said.items() if name != "task" and value not in ("", None))


_LIST = (
    argument("--workflow", default="", metavar="ID", help="of this workflow alone"),
    argument("--state", default="", metavar="STATE", help="in this state alone, such as leased or certified"),
    argument("--limit", type=int, default=100, metavar="COUNT", help="at most so many, 1 to 500 (%(default)s)"),
    *CONTROL,
)
_SHOW = (
    argument("id", metavar="TASK", help="its id, or six hex digits or more of its beginning; that of its record does"),
    argument("--record", action="store_true", help="print the record, too: else nothing of it is shown"),
    *CONTROL,
)

COMMAND = Command(
    "tasks",
    "list this organization's tasks, or show the whole way of one",
    description=(
        "A task is one row's journey: with a flow its way from organization to organization, then the record's review,"
        " certificate and delivery. Its home keeps who had it, who signed for it, by which rules, and when; that is"
        " what is shown here. Tasks of others that are here are theirs to show."
    ),
    commands=(
        Command("list", "list own tasks, the one that changed last first", _list, _LIST),
        Command(
            "show",
            "show the whole way of one task: hops, decisions, reviews, certificate, deliveries, with times",
            _show,
            _SHOW,
            description=(
                "Show what the node has kept of a task: who let it pass and by which rules (every signature is verified"
                " again), what the audit log says of it, who was asked to review and what came back, the certificate,"
                " and whether the others have it. Nothing of the record is shown without --record. The exit code is 1"
                " if a hop does not verify."
            ),
        ),
    ),
)
