"""`comity audit`: read a node's audit log and prove that nobody has changed it, with no node running."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from comity.errors import ConfigError
from comity.signing import peer_id_to_bytes
from comity_node.cli.certificates import read_leaf
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, read_bytes, table, timestamp
from comity_node.storage import audit, connections
from comity_node.storage.audit import StoredEntry

_PUBLIC_KEY_BYTES = 32
_PAGE = 1000
_MAX_SHOWN = 100_000


def _database(context: Context, path: Path | None) -> Path:
    return path or context.config().database


def _public_key(context: Context, arguments: argparse.Namespace) -> bytes | None:
    """Whose signature the checkpoints must have: --peer-id, else --chain, else that of the home's own chain."""
    if arguments.peer_id:
        return peer_id_to_bytes(arguments.peer_id)[-_PUBLIC_KEY_BYTES:]
    if arguments.unsigned:
        return None
    if arguments.chain is None and arguments.database is not None:
        raise ConfigError(
            "whose log is it? Name the node with --peer-id or --chain, or say --unsigned to check no signature"
        )
    return read_leaf(arguments.chain or context.config().chain).public_key


def _verify(context: Context, arguments: argparse.Namespace) -> None:
    path = _database(context, arguments.database)
    known = [read_bytes(note, "a checkpoint").decode("utf-8", errors="replace") for note in arguments.known]
    report = audit.verify_file(path, _public_key(context, arguments), known=known)
    values: dict[str, object] = {
        "database": str(path),
        "entries": report.entries,
        "root": report.root.hex(),
        "checkpoints": report.checkpoints,
        "signed": report.signed,
        "unsigned": report.unsigned,
        "signatures_checked": report.signatures_checked,
        "origin": report.origin,
    }
    context.emit({"valid": True, **values}, "the audit log is whole\n" + fields(values))


def _show(context: Context, arguments: argparse.Namespace) -> None:
    wanted = _entries(_database(context, arguments.database), arguments.start)
    matching = (each for each in wanted if not arguments.kind or each.entry.kind == arguments.kind)
    chosen = deque(matching, maxlen=arguments.last)
    context.emit([_json(each) for each in chosen], table([_row(each) for each in chosen], _HEADINGS))


_HEADINGS = ("INDEX", "TIME", "KIND", "ACTION", "DECISION", "PEER", "RULES", "SUBJECT")


def _entries(path: Path, start: int) -> Iterator[StoredEntry]:
    connection = connections.connect_readonly(path)
    try:
        while page := audit.entries(connection, start=start, limit=_PAGE):
            yield from page
            start = page[-1].index + 1
    finally:
        connection.close()


def _row(stored: StoredEntry) -> tuple[object, ...]:
    entry = stored.entry
    rules, subject = ", ".join(entry.rules), entry.subject.hex()[:16]
    return stored.index, timestamp(stored.at_ms), entry.kind, entry.action, entry.decision, entry.peer, rules, subject


def _json(stored: StoredEntry) -> dict[str, object]:
    entry = stored.entry
    return {
        "index": stored.index,
        "at_ms": stored.at_ms,
        "hash": stored.hash.hex(),
        "kind": entry.kind,
        "action": entry.action,
        "decision": entry.decision,
        "peer": entry.peer,
        "rules": list(entry.rules),
        "subject": entry.subject.hex(),
        "policy": entry.policy.hex(),
        "agreement": entry.agreement.hex(),
        "detail": dict(entry.detail),
    }


def count(text: str) -> int:
    """Read a number of lines from the command line.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 0 to 100,000.
    """
    if not (text.isascii() and text.isdigit() and int(text) <= _MAX_SHOWN):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {_MAX_SHOWN}")
    return int(text)


_DATABASE = argument("database", nargs="?", type=Path, metavar="DATABASE", help="a node's database (this node's)")

COMMAND = Command(
    "audit",
    "read the audit log, and prove that it is whole",
    commands=(
        Command(
            "verify",
            "check every entry, the chain, the tree and the signed checkpoints, offline",
            _verify,
            (
                _DATABASE,
                argument("--peer-id", metavar="PEERID", help="the node whose log it is"),
                argument("--chain", type=Path, metavar="FILE", help="the certificate of that node (this node's)"),
                argument("--unsigned", action="store_true", help="check no signatures"),
                argument(
                    "--known",
                    type=Path,
                    action="append",
                    default=[],
                    metavar="NOTE",
                    help="a checkpoint kept elsewhere",
                ),
            ),
        ),
        Command(
            "show",
            "show entries of the audit log",
            _show,
            (
                _DATABASE,
                argument("--last", type=count, default=50, metavar="N", help="how many (%(default)s)"),
                argument("--start", type=count, default=0, metavar="INDEX", help="the first index to look at"),
                argument("--kind", default="", help="only entries of a kind: decision, effect, …"),
            ),
        ),
    ),
)
