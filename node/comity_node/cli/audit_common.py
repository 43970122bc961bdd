"""What the `comity audit` commands share: whose log it is, who its witnesses are, and how an entry is shown."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from comity.errors import ConfigError
from comity.signing import peer_id_to_bytes
from comity_node.cli.certificates import read_leaf
from comity_node.cli.commands import argument
from comity_node.cli.context import Context, timestamp
from comity_node.storage import audit, connections
from comity_node.storage.audit import StoredEntry

PAGE = 1000
HEADINGS = ("INDEX", "TIME", "KIND", "ACTION", "DECISION", "PEER", "RULES", "SUBJECT")
_PUBLIC_KEY_BYTES = 32

DATABASE = argument("database", nargs="?", type=Path, metavar="DATABASE", help="a node's database (this node's)")
#: Whose log it is, and who may vouch for it.
IDENTITY = (
    argument("--peer-id", metavar="PEERID", help="the node whose log it is"),
    argument("--chain", type=Path, metavar="FILE", help="the certificate of that node (this node's)"),
    argument(
        "--former",
        action="append",
        default=[],
        metavar="WHO",
        help="a key that the node had before, by PeerId or certificate; may be repeated",
    ),
    argument("--unsigned", action="store_true", help="check no signature of that node"),
    argument(
        "--witness",
        action="append",
        default=[],
        metavar="WHO",
        help="a node whose cosignatures count, by its PeerId or its certificate's file; may be repeated",
    ),
    argument(
        "--witnesses",
        type=int,
        metavar="K",
        help="how many of them have to have cosigned the log (all that are named)",
    ),
)


def database_of(context: Context, path: Path | None) -> Path:
    """Return the database that is named, else that of the home's node."""
    return path or context.config().database


def public_key_of(context: Context, arguments: argparse.Namespace, *, foreign: bool) -> bytes | None:
    """Return whose signature the checkpoints must have: --peer-id, else --chain, else that of the home's own chain.

    Args:
        context: of the command.
        arguments: with `IDENTITY`.
        foreign: whether the log is a file that was named: then whose it is has to be said.

    Raises:
        ConfigError: it was not said.
    """
    if arguments.peer_id:
        return peer_id_to_bytes(arguments.peer_id)[-_PUBLIC_KEY_BYTES:]
    if arguments.unsigned:
        return None
    if arguments.chain is None and foreign:
        raise ConfigError(
            "whose log is it? Name the node with --peer-id or --chain, or say --unsigned to check no signature"
        )
    return read_leaf(arguments.chain or context.config().chain).public_key


def witnesses_of(arguments: argparse.Namespace) -> tuple[frozenset[bytes], int]:
    """Return the witnesses' public keys and how many of them there have to be.

    Raises:
        ConfigError: more have to be there than are named, or none.
    """
    keys = frozenset(_key(each) for each in arguments.witness)
    count = len(keys) if arguments.witnesses is None else arguments.witnesses
    if arguments.witnesses is not None and not 1 <= count <= len(keys):
        raise ConfigError(f"--witnesses says {count}, and {len(keys)} are named: name each with --witness")
    return keys, count


def former_of(arguments: argparse.Namespace) -> list[bytes]:
    """Return the public keys that the node had before."""
    return [_key(each) for each in arguments.former]


def _key(who: str) -> bytes:
    path = Path(who)
    return read_leaf(path).public_key if path.is_file() else peer_id_to_bytes(who)[-_PUBLIC_KEY_BYTES:]


def entries_of(path: Path, start: int = 0) -> Iterator[StoredEntry]:
    """Yield the entries of a database from an index on; they are read, not verified."""
    connection = connections.connect_readonly(path)
    try:
        while page := audit.entries(connection, start=start, limit=PAGE):
            yield from page
            start = page[-1].index + 1
    finally:
        connection.close()


def row_of(stored: StoredEntry) -> tuple[object, ...]:
    """Return an entry as a line of a table under `HEADINGS`."""
    entry = stored.entry
    rules, subject = ", ".join(entry.rules), entry.subject.hex()[:16]
    return stored.index, timestamp(stored.at_ms), entry.kind, entry.action, entry.decision, entry.peer, rules, subject


def json_of(stored: StoredEntry) -> dict[str, object]:
    """Return an entry for --json."""
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
