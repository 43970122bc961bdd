"""`comity audit show` and `evidence`: which entries of the log somebody wants to see."""

from __future__ import annotations

import argparse
import re
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from comity.digest import hex_digest, sha256
from comity.v1.task_pb2 import Evidence
from comity_node.cli.audit_common import DATABASE, HEADINGS, database_of, entries_of, json_of, row_of
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, UsageError, printable, table, timestamp, write_new
from comity_node.storage import connections, journal
from comity_node.storage.audit import StoredEntry
from comity_node.storage.evidence import list_evidence as evidence_rows

_MAX_SHOWN = 100_000
_HEX = re.compile(r"[0-9a-f]{4,64}")
_AGO = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Wanted = Callable[[StoredEntry], bool]


def show(context: Context, arguments: argparse.Namespace) -> None:
    """Show the last entries that fit all filters."""
    path = database_of(context, arguments.database)
    filters = _filters(context, arguments, path)
    start = arguments.start if filters else max(arguments.start, _size(path) - arguments.last)
    matching = (each for each in entries_of(path, start) if all(fits(each) for fits in filters))
    chosen = deque(matching, maxlen=arguments.last)
    context.emit([json_of(each) for each in chosen], table([row_of(each) for each in chosen], HEADINGS))


def _size(path: Path) -> int:
    """Return how many entries there are, to find the last ones of a long log without reading all of it."""
    with closing(connections.connect_readonly(path)) as connection:
        return int(connection.execute("SELECT coalesce(max(position), -1) + 1 FROM audit_entries").fetchone()[0])


def _filters(context: Context, arguments: argparse.Namespace, path: Path) -> list[Wanted]:
    filters: list[Wanted] = []
    for name in ("kind", "action", "peer", "decision"):
        if pattern := getattr(arguments, name):
            filters.append(lambda each, n=name, p=pattern: fnmatchcase(getattr(each.entry, n), p))  # type: ignore[misc]
    for name in ("subject", "agreement"):
        if prefix := getattr(arguments, name):
            filters.append(lambda each, n=name, p=prefix: getattr(each.entry, n).hex().startswith(p))  # type: ignore[misc]
    if arguments.rule:
        filters.append(lambda each: arguments.rule in each.entry.rules)
    if arguments.since:
        since_ms = _moment(arguments.since, context.now_ms)
        filters.append(lambda each: each.at_ms >= since_ms)
    if arguments.until:
        until_ms = _moment(arguments.until, context.now_ms)
        filters.append(lambda each: each.at_ms < until_ms)
    if arguments.task:
        filters.append(_of_task(path, arguments.task))
    return filters


def _of_task(path: Path, task: str) -> Wanted:
    """Entries that name the task, and those about the same records: most know a record by its digest alone."""
    subjects = {each.entry.subject for each in entries_of(path) if _names(each, task)} - {b""}
    return lambda each: _names(each, task) or each.entry.subject in subjects


def _names(stored: StoredEntry, task: str) -> bool:
    return str(stored.entry.detail.get("task", "")).startswith(task)


def _moment(text: str, now_ms: int) -> int:
    """Read `2026-03-01`, `2026-03-01T12:00:00Z` or `36h` (ago), in milliseconds since the epoch."""
    if ago := _AGO.fullmatch(text):
        return now_ms - int(ago[1]) * _UNITS[ago[2]] * 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no time: write 2026-03-01, 2026-03-01T12:00:00Z, or 36h for 36 hours ago"
        ) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def evidence(context: Context, arguments: argparse.Namespace) -> int:
    """Show what somebody signed that contradicts itself, and write it to files; exit code 1 if there is any."""
    path = database_of(context, arguments.database)
    found = [_Evidence(each, _signed(path, each)) for each in entries_of(path) if each.entry.kind == "evidence"]
    if arguments.out:
        for each in found:
            for name, data in each.signed.items():
                write_new(arguments.out / f"{each.stored.index}-{name}", data)
    values = [
        {"index": each.stored.index, "at_ms": each.stored.at_ms, "what": each.stored.entry.action}
        | {"peer": each.stored.entry.peer, **each.stored.entry.detail}
        | {name: data.hex() for name, data in each.signed.items() if name.endswith(_REVIEW)}
        for each in found
    ]
    context.emit(values, "\n\n".join(map(str, found)) or "no contradictions are known")
    return 1 if found else 0


@dataclass(frozen=True, slots=True)
class _Evidence:
    """An entry, and by the names of files what was signed."""

    stored: StoredEntry
    signed: Mapping[str, bytes]

    def __str__(self) -> str:
        entry = self.stored.entry
        what = _WHAT.get(entry.action, entry.action)
        lines = [f"entry {self.stored.index}, {timestamp(self.stored.at_ms)}: {what}", f"  from {entry.peer}"]
        for name, data in self.signed.items():
            text = f"SHA-256 {hex_digest(data)}" if name.endswith(_REVIEW) else data.decode().rstrip("\n")
            lines += [f"  {name}:", *(f"    {printable(line)}" for line in text.split("\n"))]
        return "\n".join(lines)


def _signed(path: Path, stored: StoredEntry) -> dict[str, bytes]:
    """What was signed: checkpoints stand in the entry itself, reviews beside the log under their digests."""
    entry = stored.entry
    if entry.action.startswith(_PROVEN):
        with closing(connections.connect_readonly(path)) as connection:
            for one in evidence_rows(connection):
                if (one.organization, one.subject) == (entry.peer, entry.subject):
                    proof = Evidence.FromString(one.proof)
                    both = {f"first{_REVIEW}": proof.first, f"second{_REVIEW}": proof.second}
                    return {**both, f"proof{_REVIEW}": one.proof}
        return {}
    if entry.action != _EQUIVOCATION:
        return {f"{name}.note": str(entry.detail.get(name, "")).encode() for name in ("first", "second")}
    with closing(connections.connect_readonly(path)) as connection:
        for row in journal.list_equivocations(connection, entry.peer):
            if sha256(row.second_review) == entry.subject:
                return {f"first{_REVIEW}": row.first_review, f"second{_REVIEW}": row.second_review}
    return {}


_EQUIVOCATION = "review.equivocation"
_REVIEW = ".review"
#: Evidence that anybody can check (`comity.evidence`).
_PROVEN = "equivocation."
_WHAT = {
    "checkpoint.forked": "the log did not grow from the first checkpoint to the second: it has two pasts",
    "checkpoint.shrunk": "after the first checkpoint the log was smaller: an older copy was put in its place",
    "checkpoint.contradicted": "a member keeps the first checkpoint, which this node signed and its log does not hold",
    _EQUIVOCATION: "two signed reviews of one record by one organization",
    f"{_PROVEN}votes": "two different votes of one organization on one record, verified: it is suspended",
    f"{_PROVEN}commitments": "two commitments of one organization to one batch, verified: it is suspended",
    f"{_PROVEN}opening": "a review and a commitment to another score by one organization, verified: it is suspended",
}


def hex_prefix(text: str) -> str:
    """Read the beginning of a digest or an id.

    Raises:
        argparse.ArgumentTypeError: it has not 4 to 64 hex digits.
    """
    if not _HEX.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is not the beginning of a digest: 4 to 64 hex digits")
    return text.lower()


def count(text: str) -> int:
    """Read a number of lines from the command line.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 0 to 100,000.
    """
    if not (text.isascii() and text.isdigit() and int(text) <= _MAX_SHOWN):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {_MAX_SHOWN}")
    return int(text)


def index(text: str) -> int:
    """Read the index of an entry from the command line.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 0.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text!r} is no index: a whole number from 0")
    return int(text)


SHOW = Command(
    "show",
    "show entries of the audit log that fit all filters",
    show,
    (
        DATABASE,
        argument("--last", type=count, default=50, metavar="N", help="how many, the newest (%(default)s)"),
        argument("--start", type=index, default=0, metavar="INDEX", help="the first index to look at"),
        argument(
            "--kind", default="", help="decision, effect, evidence, key, deletion, start, …; * stands for anything"
        ),
        argument("--action", default="", help="as `record.send`, or `record.*`"),
        argument("--decision", default="", choices=("allow", "deny"), help="only what was allowed, or denied"),
        argument("--peer", default="", metavar="ORGANIZATION", help="the other side"),
        argument("--rule", default="", metavar="ID", help="decisions that this rule determined"),
        argument("--task", type=hex_prefix, metavar="ID", help="a task and its records, by its id's beginning"),
        argument("--subject", type=hex_prefix, metavar="DIGEST", help="what it is about, by its beginning"),
        argument("--agreement", type=hex_prefix, metavar="DIGEST", help="under this agreement"),
        argument("--since", default="", metavar="TIME", help="2026-03-01, 2026-03-01T12:00:00Z (UTC), or 36h (ago)"),
        argument("--until", default="", metavar="TIME", help="before this time"),
    ),
    description="The newest entries that fit all filters. They are read, not verified: see `comity audit verify`.",
)

EVIDENCE = Command(
    "evidence",
    "show signed checkpoints, and reviews, that contradict each other",
    evidence,
    (
        DATABASE,
        argument("--out", type=Path, metavar="DIR", help="write what was signed to files there"),
    ),
    description=(
        "Two checkpoints that one node signed and of which neither continues the other prove that its log was written"
        " anew or put back; the notes verify with `comity audit verify --known`. Two reviews of one record that one"
        " organization signed and that differ prove that it told two stories. Exit code 1 if there are any."
    ),
)
