"""`comity bulk`: send whole tables to other organizations, and use those that came."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comity.client import BulkProgress, BulkTransfer, Client
from comity.errors import TransferFailed
from comity_node.cli import bulk_files
from comity_node.cli.commands import Argument, Command, argument
from comity_node.cli.context import Context, UsageError, extra, fields, printable, size, table, timestamp
from comity_node.cli.node_client import CONTROL, connected

#: Digits of an id that are shown, and are enough to name a transfer.
_SHORT = 16
_STATES = {
    "preparing": "preparing the rows",
    "waiting": "waiting",
    "sending": "sending",
    "checking": "the other side checks the rows",
    "done": "done",
}


def _send(context: Context, arguments: argparse.Namespace) -> int:
    if (arguments.file is None) != (arguments.kind == "certified"):
        raise UsageError("name the FILE; only --kind certified takes none: it sends this node's certified records")

    def run(node: Client, report: Callable[[BulkProgress], None]) -> BulkProgress:
        return node.send_bulk(
            arguments.file,
            to_organization=arguments.to,
            dataset=arguments.dataset,
            purpose=arguments.purpose,
            kind=arguments.kind,
            agreement=arguments.agreement,
            on_progress=report,
        )

    return _run(context, arguments, run)


def _resume(context: Context, arguments: argparse.Namespace) -> int:
    return _run(context, arguments, lambda node, report: node.resume_bulk(arguments.id, on_progress=report))


def _run(
    context: Context,
    arguments: argparse.Namespace,
    run: Callable[[Client, Callable[[BulkProgress], None]], BulkProgress],
) -> int:
    seen: list[BulkProgress] = []
    with connected(context, arguments) as node:
        try:
            with _display(context) as show:

                def report(progress: BulkProgress) -> None:
                    seen[:] = [progress]
                    show(progress)

                done = run(node, report)
        except BaseException as error:  # Ctrl-C, too, says how to go on; raised again
            if getattr(error, "code", "") != TransferFailed.code:
                _say_how_to_resume(seen[0] if seen else None, interrupted=isinstance(error, KeyboardInterrupt))
            raise
    context.emit(
        asdict(done),
        f"sent {done.rows} rows, {size(done.bytes_total)}; transfer {done.transfer_id[:_SHORT]}",
    )
    return 0


def _say_how_to_resume(last: BulkProgress | None, *, interrupted: bool) -> None:
    if last is not None and last.transfer_id:
        name = last.transfer_id[:_SHORT]
        sys.stderr.write(f"transfer {name} is open; go on with it: comity bulk resume {name}\n")
    elif interrupted:
        sys.stderr.write("nothing has left this node, and nothing has to be resumed\n")


@contextmanager
def _display(context: Context) -> Iterator[Callable[[BulkProgress], None]]:
    """Show progress on standard error: a bar for a person, a line for each step in a log, nothing with --json."""
    if context.json:
        yield lambda progress: None
        return
    if not sys.stderr.isatty():
        said: list[str] = []

        def say(progress: BulkProgress) -> None:
            line = _line(progress)
            if line not in said[-1:]:
                said[:] = [line]
                sys.stderr.write(f"{line}\n")

        yield say
        return
    with extra("node"):
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    from rich.console import Console

    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("asking the node", total=None)
        last = [""]

        def update(progress: BulkProgress) -> None:
            if progress.state != last[0]:  # each step has a speed of its own
                bar.reset(task, total=progress.bytes_total or None)
                last[0] = progress.state
            bar.update(
                task, description=_line(progress), completed=progress.bytes_done, total=progress.bytes_total or None
            )

        yield update


def _line(progress: BulkProgress) -> str:
    what = _STATES.get(progress.state, progress.state)
    return printable(f"{what}: {progress.note}" if progress.note else what)


def _list(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        transfers = node.bulk_transfers()
    rows = [
        (
            each.transfer_id[:_SHORT],
            "from" if each.direction == "in" else "to",
            each.organization,
            each.dataset,
            each.kind,
            each.rows,
            size(each.bytes),
            each.state,
            timestamp(each.created_ms),
            _keep(each),
            each.reason,
        )
        for each in transfers
    ]
    headings = ("TRANSFER", "", "ORGANIZATION", "DATASET", "KIND", "ROWS", "SIZE", "STATE", "BEGUN", "KEEP", "REASON")
    context.emit([asdict(each) for each in transfers], table(rows, headings))


def _keep(transfer: BulkTransfer) -> str:
    return f"until {timestamp(transfer.retain_until_ms)}" if transfer.retain_until_ms else "-"


def _export(context: Context, arguments: argparse.Namespace) -> None:
    with extra("node"):
        import pyarrow  # noqa: F401  (asked for before anything is written)
    with connected(context, arguments) as node:
        rows = bulk_files.write(arguments.file, node.read_bulk(arguments.id))
    context.emit({"file": str(arguments.file), "rows": rows}, f"{arguments.file}: {rows} rows")


def _remove(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        name = node.remove_bulk(arguments.id)
    context.emit({"transfer_id": name}, fields({"removed": name[:_SHORT]}))


_ID: Argument = argument("id", metavar="ID", help="as `bulk list` shows it, or its first digits")

COMMAND = Command(
    "bulk",
    "send whole tables to other organizations, and use those that came",
    description=(
        "Send whole tables to other organizations, and use those that came. Both policies decide before a row moves "
        "(actions bulk.send and bulk.receive); what the sender's rules oblige to (redact, generalize, a distance to "
        "private rows) is done to the rows on their way out, and checked by the receiver before it takes them. A "
        "transfer that breaks off goes on where it was: comity bulk resume ID."
    ),
    commands=(
        Command(
            "send",
            "send a table, and wait until the other side has checked and signed for it",
            _send,
            (
                argument(
                    "file",
                    nargs="?",
                    type=Path,
                    metavar="FILE",
                    help="a Parquet, Arrow or CSV file on the node's machine; none with --kind certified",
                ),
                argument("--dataset", required=True, help="what the rows belong to, as the policies name it"),
                argument("--to", required=True, metavar="ORGANIZATION", help="who gets it"),
                argument("--purpose", required=True, help="what they may use it for, as the policies name it"),
                argument(
                    "--kind",
                    choices=("synthetic", "raw", "certified"),
                    default="synthetic",
                    help="of the rows; certified: the dataset's certified records, each with its proof (%(default)s)",
                ),
                argument("--agreement", default="", metavar="DIGEST", help="the agreement that covers it (none)"),
                *CONTROL,
            ),
            description=(
                "Send a table, and wait until the other side has checked and signed for it. Ctrl-C interrupts it and "
                "leaves it open: what has arrived stays there, and `comity bulk resume ID` sends the rest. "
                "Example: comity bulk send rows.parquet --dataset tumour-features --to stlukes.example "
                "--purpose breast-cancer-screening"
            ),
        ),
        Command("resume", "go on with a transfer that is open", _resume, (_ID, *CONTROL)),
        Command("list", "list transfers, both ways", _list, CONTROL),
        Command(
            "export",
            "write a table that came to a file",
            _export,
            (
                _ID,
                argument(
                    "file",
                    type=Path,
                    metavar="FILE",
                    help="ends in .parquet, .arrow or .csv; replaced in one step when all is written",
                ),
                *CONTROL,
            ),
        ),
        Command("remove", "delete a table that came, or give a transfer up", _remove, (_ID, *CONTROL)),
    ),
)
