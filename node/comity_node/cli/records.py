"""`comity records`: list, show and export certified records, and prove offline where one came from."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from comity.bundle import load_bundle
from comity.client import Record
from comity.errors import EnvelopeMalformed
from comity.export import FORMS, ProvenExport
from comity.provenance import Provenance, verify_provenance
from comity.revocation import MAX_REVOCATION, verify_revocation
from comity.trust import TrustStore
from comity_node.cli import record_files
from comity_node.cli.audit import count
from comity_node.cli.commands import Argument, Command, argument
from comity_node.cli.context import Context, extra, fields, printable, read_bytes, table, timestamp, write_new
from comity_node.cli.export_files import SUFFIX, proof_of, verify_file, write_proof
from comity_node.cli.node_client import CONTROL, connected

_MAX_PROVENANCE = 16 << 20


def _json(record: Record) -> dict[str, object]:
    return {
        "task_id": record.task_id,
        "author": record.author,
        "dataset": record.dataset,
        "score": record.score,
        "record_digest": record.record_digest,
        "agreement_digest": record.agreement_digest,
        "stored_ms": record.stored_ms,
        "fields": record.fields,
    }


def _list(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        found = node.records(
            dataset=arguments.dataset, author=arguments.author, agreement=arguments.agreement, limit=arguments.limit
        )
        records = list(found)
    rows = [
        (
            each.task_id,
            each.dataset,
            each.author,
            f"{each.score / 100:.2f}%",
            timestamp(each.stored_ms),
            each.record_digest[:16],
        )
        for each in records
    ]
    headings = ("TASK", "DATASET", "AUTHOR", "SCORE", "STORED", "SHA-256")
    context.emit([_json(each) for each in records], table(rows, headings))


def _show(context: Context, arguments: argparse.Namespace) -> None:
    with connected(context, arguments) as node:
        certified = node.record(arguments.task)
    if arguments.provenance:
        write_new(arguments.provenance, certified.provenance, force=True)
    values = _json(certified.record)
    context.emit(
        {**values, "provenance": str(arguments.provenance or "")},
        fields({name: value for name, value in values.items() if name != "fields"})
        + "\n\n"
        + fields({f"  {name}": value for name, value in certified.record.fields.items()}),
    )


def _export(context: Context, arguments: argparse.Namespace) -> None:
    form = arguments.format or ("parquet" if arguments.out.suffix == ".parquet" else "jsonl")
    if form == "parquet":
        with extra("node"):
            import pyarrow  # noqa: F401  (asked for before anything is written)
    write = partial(record_files.write_parquet if form == "parquet" else record_files.write_jsonl, arguments.out)
    with connected(context, arguments) as node:
        found = node.records(
            dataset=arguments.dataset, author=arguments.author, agreement=arguments.agreement, limit=arguments.limit
        )

        def sign(sha256: str, records: int, root: bytes) -> bytes:
            return node.sign_export(arguments.out.name, sha256, form=form, records=records, root=root)

        if arguments.no_provenance:
            written, proof = write(found), ""
        else:
            written = write_proof(arguments.out, found, lambda *which: node.record(*which).provenance, write, sign)
            proof = str(proof_of(arguments.out))
    lines = [f"{arguments.out}: {written} records", *([f"{proof}: where they came from"] if proof else [])]
    context.emit(
        {"file": str(arguments.out), "format": form, "records": written, "provenance": proof}, "\n".join(lines)
    )


def _verify(context: Context, arguments: argparse.Namespace) -> None:
    now_ms = context.now_ms if arguments.at is None else int(arguments.at.timestamp() * 1000)
    bundle_path = arguments.bundle or context.config().bundle
    # Whoever names the bundle vouches for it; a node has checked that its own CA is in the one in its home.
    trust = TrustStore(load_bundle(bundle_path, now_ms=now_ms, own_ca=None))
    for path in arguments.revocation:
        raw = read_bytes(path, "the revocation", limit=MAX_REVOCATION)
        # Who names the file vouches for it, too: a root that has left since may have signed it.
        known = verify_revocation(raw, trust.bundle, now_ms=now_ms, past=True)
        trust.revoke(known.certificate, known.issued_ms)
    answers, lines = [], []
    for path in arguments.provenance:
        if proof_of(path).exists():
            whole = verify_file(path, trust)
            answers.append({"file": str(path), **_exported(whole)})
            lines.append(
                f"{path}: proven\nrecords     {whole.export.records}, exported by {whole.holder}"
                f" {timestamp(whole.export.signed_ms)}\nfile        {whole.export.sha256}"
            )
            continue
        try:
            proven = verify_provenance(read_bytes(path, "the provenance", limit=_MAX_PROVENANCE), trust)
        except EnvelopeMalformed as error:
            raise EnvelopeMalformed(
                f"{path}: {error}; if this is a file of `records export`, {proof_of(path).name} has to lie beside it"
            ) from error
        answers.append({"file": str(path), **_proven(proven)})
        # What a member wrote must not steer a terminal, nor look like a line of ours.
        lines.append("\n".join([f"{path}: proven", *map(printable, proven.lines())]))
    context.emit(answers, "\n\n".join(lines))


def _exported(proven: ProvenExport) -> dict[str, object]:
    return {
        "valid": True,
        "holder": proven.holder,
        "records": proven.export.records,
        "sha256": proven.export.sha256,
        "root": proven.export.root.hex(),
        "signed_ms": proven.export.signed_ms,
    }


def _proven(proven: Provenance) -> dict[str, object]:
    return {
        "valid": True,
        "task_id": proven.task_id,
        "author": proven.author,
        "holder": proven.holder,
        "agreement_digest": proven.agreed.digest.hex(),
        "purpose": proven.agreed.terms.purpose,
        "participants": sorted(proven.agreed.participants),
        "hops": [
            {"action": hop.action, "to": hop.to_organization, "rules": list(hop.rules), "attested": dict(hop.attested)}
            for hop in proven.hops
        ],
        "votes": {one.organization: one.review.score for one in proven.reviews},
    }


def moment(text: str) -> datetime:
    """Read a date or a time (ISO 8601; UTC unless it says otherwise) from the command line.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date or time such as 2030-01-31T12:00:00Z") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


_CHOICE: tuple[Argument, ...] = (
    argument("--dataset", default="", help="only of this dataset"),
    argument("--author", default="", metavar="ORGANIZATION", help="only of this organization"),
    argument("--agreement", default="", metavar="DIGEST", help="only under this agreement"),
)

COMMAND = Command(
    "records",
    "list, show and export certified records, and prove where they came from",
    commands=(
        Command(
            "list",
            "list certified records",
            _list,
            (
                *_CHOICE,
                argument("--limit", type=count, default=100, help="at most so many; 0: all (%(default)s)"),
                *CONTROL,
            ),
        ),
        Command(
            "show",
            "show one record",
            _show,
            (
                argument("task", metavar="TASK_ID", help="as `records list` shows it"),
                argument("--provenance", type=Path, metavar="FILE", help="write its provenance, for `records verify`"),
                *CONTROL,
            ),
        ),
        Command(
            "export",
            "write records to a Parquet or JSON Lines file, and beside it what proves where they came from",
            _export,
            (
                argument("out", type=Path, metavar="FILE", help="the file; replaced in one step when all is written"),
                argument("--format", choices=FORMS, help="else by the file's ending"),
                argument(
                    "--no-provenance",
                    action="store_true",
                    help=f"leave out FILE{SUFFIX}, by which `records verify FILE` proves the file and every record",
                ),
                *_CHOICE,
                argument("--limit", type=count, default=0, help="at most so many; 0: all (%(default)s)"),
                *CONTROL,
            ),
        ),
        Command(
            "verify",
            "prove offline where records came from and who let them pass",
            _verify,
            (
                argument(
                    "provenance",
                    nargs="+",
                    type=Path,
                    metavar="FILE",
                    help="files of `records export`, or of `records show --provenance`",
                ),
                argument("--bundle", type=Path, metavar="FILE", help="the consortium's trust bundle (this node's)"),
                argument(
                    "--revocation",
                    type=Path,
                    action="append",
                    default=[],
                    metavar="FILE",
                    help="a file of `cert revoke`: what that certificate signed from then on is not taken",
                ),
                argument(
                    "--at",
                    type=moment,
                    metavar="TIME",
                    help="as of this time (now), for a bundle that has expired since",
                ),
            ),
        ),
    ),
)
