"""`comity audit witnesses`: who has cosigned this node's audit log, and whose logs this node has cosigned."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from comity.signing import peer_id
from comity_node.cli.audit_common import DATABASE, database_of
from comity_node.cli.commands import Command, argument
from comity_node.cli.context import Context, table, timestamp, write_new
from comity_node.storage import audit, connections, witness
from comity_node.storage.cosignature import cosigned_at
from comity_node.storage.witness import Cosignature, WitnessedHead


def _witnesses(context: Context, arguments: argparse.Namespace) -> None:
    with closing(connections.connect_readonly(database_of(context, arguments.database))) as connection:
        connection.execute("BEGIN")
        size = audit.head(connection).size
        given = [
            (each, cosigned_at(note, each.witness, each.public_key))
            for each in witness.newest_by_witness(connection)
            if (note := witness.cosigned_note(connection, each.size)) is not None
        ]
        heads = witness.heads(connection)
    if arguments.out:
        for each in heads:
            write_new(arguments.out / f"{each.origin.replace('/', '-')}.note", each.note.encode(), force=True)
    value = {
        "entries": size,
        "witnessed_by": [_given(each, at_s) for each, at_s in given],
        "witnesses": [_head(each) for each in heads],
    }
    rows = [(each.witness, peer_id(each.public_key), each.size, _time(at_s)) for each, at_s in given]
    kept = [(each.origin, each.size, timestamp(each.cosigned_ms), each.contradictions) for each in heads]
    text = [
        f"this node's log has {size} entries; it was cosigned by",
        table(rows, ("WITNESS", "PEER ID", "ENTRIES", "AT")),
        "",
        "this node has cosigned the logs of",
        table(kept, ("LOG", "ENTRIES", "AT", "CONTRADICTIONS")),
    ]
    context.emit(value, "\n".join(text))


def _given(each: Cosignature, at_s: int | None) -> dict[str, object]:
    return {"name": each.witness, "peer_id": peer_id(each.public_key), "size": each.size, "at_s": at_s}


def _head(each: WitnessedHead) -> dict[str, object]:
    return {
        "origin": each.origin,
        "size": each.size,
        "note": each.note,
        "cosigned_ms": each.cosigned_ms,
        "contradictions": each.contradictions,
    }


def _time(at_s: int | None) -> str:
    return "" if at_s is None else timestamp(at_s * 1000)


WITNESSES = Command(
    "witnesses",
    "show who has cosigned this node's log, and whose logs this node has cosigned",
    _witnesses,
    (
        DATABASE,
        argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="write the others' checkpoints to files there, for whoever audits them (`verify --known`)",
        ),
    ),
)
