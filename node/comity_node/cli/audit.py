"""`comity audit`: read a node's audit log and prove that nobody has changed it, with no node running."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from comity.errors import AuditBroken, ConfigError
from comity_node.cli.audit_common import (
    DATABASE,
    IDENTITY,
    database_of,
    former_of,
    json_of,
    public_key_of,
    row_of,
    witnesses_of,
)
from comity_node.cli.audit_common import HEADINGS as _HEADINGS
from comity_node.cli.audit_show import EVIDENCE, SHOW, count, index
from comity_node.cli.audit_witnesses import WITNESSES
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, fields, read_bytes, table, timestamp, write_new
from comity_node.storage import audit, connections, witness
from comity_node.storage.audit_export import export_lines, open_export
from comity_node.storage.audit_proof import parse_proof, prove_entry, verify_proof
from comity_node.storage.audit_verify import AuditReport, open_stored, require_witnesses, verify_log

__all__ = ["COMMAND", "count"]


def _verify(context: Context, arguments: argparse.Namespace) -> None:
    if arguments.export and arguments.database:
        raise ConfigError("name a database or an export, not both")
    path = arguments.export or database_of(context, arguments.database)
    key = public_key_of(context, arguments, foreign=bool(arguments.export or arguments.database))
    keys, needed = witnesses_of(arguments)
    known = [read_bytes(note, "a checkpoint").decode("utf-8", errors="replace") for note in arguments.known]
    with (open_export if arguments.export else open_stored)(path) as log:
        report = verify_log(log, key, former=former_of(arguments), known=known, witnesses=keys)
    cosigned = require_witnesses(report, keys, needed) if keys else None
    values: dict[str, object] = {
        "export" if arguments.export else "database": str(path),
        "entries": report.entries,
        "root": report.root.hex(),
        "checkpoints": report.checkpoints,
        "signed": report.signed,
        "unsigned": report.unsigned,
        "signatures_checked": report.signatures_checked,
        "origin": report.origin,
        "cosignatures": report.cosignatures,
    }
    if cosigned is not None:
        values |= {"witnesses": needed, "cosigned": cosigned}
    seen = [{"name": each.name, "size": each.size, "at_s": each.at_s} for each in report.witnesses]
    context.emit({"valid": True, **values, "seen_by": seen}, _whole(values, report))


def _whole(values: dict[str, object], report: AuditReport) -> str:
    lines = ["the audit log is whole", fields(values)]
    if report.witnesses:
        rows = [(each.name, each.size, timestamp(each.at_s * 1000)) for each in report.witnesses]
        lines += ["", table(rows, ("COSIGNED BY", "ENTRIES", "AT"))]
    return "\n".join(lines)


def _checkpoint(context: Context, arguments: argparse.Namespace) -> None:
    connection = connections.connect_readonly(database_of(context, arguments.database))
    try:
        newest = audit.checkpoints(connection, limit=1)
        if not newest:
            raise ConfigError("the log has no checkpoint yet; a running node signs one within seconds")
        size = int(newest[0].split("\n")[1])
        note = witness.cosigned_note(connection, size) or newest[0]
    finally:
        connection.close()
    if arguments.out:
        write_new(arguments.out, note.encode())
    context.emit({"size": size, "note": note}, f"written to {arguments.out}" if arguments.out else note.rstrip("\n"))


def _prove(context: Context, arguments: argparse.Namespace) -> None:
    connection = connections.connect_readonly(database_of(context, arguments.database))
    try:
        connection.execute("BEGIN")
        proof = prove_entry(connection, arguments.index)
    finally:
        connection.close()
    out = arguments.out or Path(f"entry-{arguments.index}.tlog-proof")
    write_new(out, proof.encode().encode(), force=arguments.force)
    text = (
        f"the proof of entry {arguments.index} is in {out}; verify it with: comity audit verify-proof {out} --peer-id …"
    )
    context.emit({"index": arguments.index, "file": str(out)}, text)


def _verify_proof(context: Context, arguments: argparse.Namespace) -> None:
    text = read_bytes(arguments.file, "a proof").decode("utf-8", errors="replace")
    key = public_key_of(context, arguments, foreign=True)
    keys, needed = witnesses_of(arguments)
    proved = verify_proof(parse_proof(text), key, former=former_of(arguments), witnesses=keys)
    if len(proved.witnesses) < needed:
        raise AuditBroken(
            f"{len(proved.witnesses)} of the witnesses have cosigned the checkpoint, and {needed} have to"
        )
    values: dict[str, object] = {
        "origin": proved.origin,
        "size": proved.size,
        "signature_checked": key is not None,
        "witnesses": ", ".join(f"{name} at {timestamp(at_s * 1000)}" for name, at_s in proved.witnesses),
    }
    lines = ["the entry stands in the log", fields(values), "", table([row_of(proved.entry)], _HEADINGS)]
    context.emit({"valid": True, **values, "entry": json_of(proved.entry)}, "\n".join(lines))


def _export(context: Context, arguments: argparse.Namespace) -> None:
    connection = connections.connect_readonly(database_of(context, arguments.database))
    lines = 0
    try:
        connection.execute("BEGIN")
        if arguments.out is None:
            for line in export_lines(connection):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            return
        if arguments.out.exists() and not arguments.force:
            raise ConfigError("there is one already; --force replaces it", file=str(arguments.out))
        try:
            with arguments.out.open("wb") as file:
                for lines, line in enumerate(export_lines(connection), 1):  # noqa: B007
                    file.write(line)
        except OSError as error:
            raise ConfigError(f"cannot write: {error.strerror}", file=str(arguments.out)) from error
    finally:
        connection.close()
    text = f"{lines} lines are in {arguments.out}; verify them with: comity audit verify --export {arguments.out}"
    context.emit({"lines": lines, "file": str(arguments.out)}, text)


_OUT = argument("--out", type=Path, metavar="FILE", help="where to write it")
_FORCE = argument("--force", action="store_true", help="replace the file")

COMMAND = Command(
    "audit",
    "read the audit log, and prove that it is whole",
    commands=(
        Command(
            "verify",
            "check every entry, the chain, the tree, the signed checkpoints and their cosignatures, offline",
            _verify,
            (
                DATABASE,
                argument("--export", type=Path, metavar="FILE", help="an export instead of a database"),
                *IDENTITY,
                argument(
                    "--known",
                    type=Path,
                    action="append",
                    default=[],
                    metavar="NOTE",
                    help="a checkpoint kept elsewhere (`comity audit checkpoint`); may be repeated",
                ),
            ),
            description=(
                "Check every entry, the chain, the tree, the signed checkpoints and their cosignatures, offline."
                " Whoever holds the node's key can write a whole new log that verifies by itself: name witnesses, or"
                " checkpoints that were kept elsewhere, to see that."
            ),
        ),
        SHOW,
        Command(
            "checkpoint",
            "print the newest signed checkpoint, to be kept elsewhere",
            _checkpoint,
            (DATABASE, _OUT),
        ),
        Command(
            "prove",
            "write a proof that an entry stands in the log, which verifies without the database",
            _prove,
            (
                argument("index", type=index, metavar="INDEX", help="of the entry, as `comity audit show` has it"),
                DATABASE,
                argument("--out", type=Path, metavar="FILE", help="where to write it (entry-INDEX.tlog-proof)"),
                _FORCE,
            ),
        ),
        Command(
            "verify-proof",
            "verify such a proof, with no database and no node",
            _verify_proof,
            (argument("file", type=Path, metavar="FILE", help="what `comity audit prove` wrote"), *IDENTITY),
        ),
        Command(
            "export",
            "write the whole log as JSON lines, which verify without the database",
            _export,
            (DATABASE, _OUT, _FORCE),
        ),
        EVIDENCE,
        WITNESSES,
    ),
)
