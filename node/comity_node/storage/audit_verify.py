"""Verifying an audit log offline: a node's database, or an export of it.

1. Each entry is JSON that names its own index and the hash of the one before.
2. Each stored hash is the entry's leaf hash; none is missing and none is too many.
3. Each checkpoint names one log, a size that the log has and the root that it had at that size.
4. Each checkpoint is signed by the node's key, if one is given.
5. Each cosignature verifies under the key that is written beside it, over the checkpoint of its size.
6. Checkpoints that were kept elsewhere (`known`) fulfil 3 and 4 as well, and their cosignatures count.
7. The stored head and the stored subtrees are those that came out.

Who a witness is that cosigned says nobody in the file: whoever verifies names the keys (`require_witnesses`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from comity import merkle
from comity.errors import AuditBroken, StorageError
from comity.merkle import CompactRange
from comity_node.storage import connections
from comity_node.storage.audit_entry import links
from comity_node.storage.audit_tree import GENESIS, STEP, read_head
from comity_node.storage.cosignature import cosigned_at, with_cosignatures
from comity_node.storage.note import Checkpoint, note_signatures, note_text, open_signed, parse_checkpoint
from comity_node.storage.witness import Cosignature

__all__ = [
    "AuditReport", "Log", "Witnessed", "open_stored", "require_witnesses", "stored_log", "verify_file", "verify_log",
]  # fmt: skip

_MOST_WITNESSES: Final = 1000


@dataclass(frozen=True, slots=True)
class Witnessed:
    """The largest checkpoint of the log that a witness cosigned.

    Attributes:
        name: the witness's, as the cosignature says.
        public_key: 32 bytes; the cosignature verifies under it.
        size: entries under the checkpoint.
        at_s: when it was cosigned, in seconds since the epoch, by the witness's clock.
    """

    name: str
    public_key: bytes
    size: int
    at_s: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an offline verification found; nothing is wrong, or there would be no report.

    Attributes:
        entries: how many there are.
        root: the tree's head over all of them.
        checkpoints: how many were checked.
        signed: entries under the last checkpoint.
        unsigned: entries after it: protected by the chain alone.
        signatures_checked: False if no public key was given.
        origin: the log's name in its checkpoints; empty if there are none.
        cosignatures: how many were checked.
        witnesses: what each witness cosigned last, the largest checkpoint first.
    """

    entries: int
    root: bytes
    checkpoints: int
    signed: int
    unsigned: int
    signatures_checked: bool
    origin: str
    cosignatures: int = 0
    witnesses: tuple[Witnessed, ...] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """A log to verify, from wherever.

    Attributes:
        rows: index, bytes and stored hash of each entry, in order.
        notes: checkpoints, each with the size it is stored under (None if it was not).
        cosignatures: of these checkpoints.
        head: the stored tree and last hash; None if the source has none.
        root: the head's root as the source says it; None if it does not.
        subtrees: stored height, place and root of full subtrees.
    """

    rows: Iterable[tuple[int, bytes, bytes]]
    notes: Sequence[tuple[int | None, str]]
    cosignatures: Sequence[Cosignature] = ()
    head: tuple[CompactRange, bytes] | None = None
    root: bytes | None = None
    subtrees: Iterable[tuple[int, int, bytes]] = ()


@contextmanager
def open_stored(path: Path) -> Iterator[Log]:
    """Open the log in a node's database, offline and read-only; a node may be running on it.

    Raises:
        StorageError: the file cannot be read, now or while the log is verified.
    """
    try:
        with closing(connections.connect_readonly(path)) as connection:
            connection.execute("BEGIN")
            yield stored_log(connection)
    except sqlite3.Error as error:
        raise connections.storage_error(error, path.name) from error
    except UnicodeDecodeError as error:  # of a name in the file that SQLite's own message repeats
        raise StorageError(f"{path.name}: it is corrupt; stop the node, keep the file, and restore a backup") from error


def verify_file(
    path: Path,
    public_key: bytes | None,
    *,
    former: Collection[bytes] = (),
    known: Iterable[str] = (),
    witnesses: Collection[bytes] = (),
) -> AuditReport:
    """Verify the log in a node's database: `verify_log` of `open_stored`."""
    with open_stored(path) as log:
        return verify_log(log, public_key, former=former, known=known, witnesses=witnesses)


def verify_log(
    log: Log,
    public_key: bytes | None,
    *,
    former: Collection[bytes] = (),
    known: Iterable[str] = (),
    witnesses: Collection[bytes] = (),
) -> AuditReport:
    """Verify a log.

    Args:
        log: from `open_stored`, or from `open_export` of `comity_node.storage.audit_export`.
        public_key: 32 bytes, the node's Ed25519 key; None checks no signature, and the report says so.
        former: keys that the node had before; its checkpoints may be signed with any of them.
        known: notes of checkpoints from other places, such as a peer or a printout.
        witnesses: public keys whose cosignatures below `known` notes count, too.

    Raises:
        AuditBroken: something is wrong; `.index` is the first entry that is, where one can be named.
    """
    notes = [*log.notes, *((None, note) for note in known)]
    keys = () if public_key is None else (public_key, *former)
    pending = _checkpoints(notes, keys)
    stored = _stored_cosignatures(log)
    seen = [*stored, *_foreign_cosignatures(notes, witnesses)]
    tree, previous, checked, signed, origin = CompactRange(), GENESIS, 0, 0, ""
    subtrees: dict[tuple[int, int], bytes] = {}

    def completed(height: int, place: int, roots: Sequence[bytes]) -> None:
        if height % STEP == 0:
            subtrees[height, place] = roots[0]

    for index, data, hashed in log.rows:
        _check_entry(index, data, hashed, tree.size, previous)
        tree, previous = tree.extend((hashed,), completed), hashed
        due = pending.pop(tree.size, ())
        if bad := [note for found, note in due if found.root != tree.root()]:
            where = f"entries {signed} to {tree.size - 1} are not those that a checkpoint of {tree.size} covers"
            raise AuditBroken(where + _liars(bad, tree.size, stored), index=signed)
        for found, _ in due:
            checked, signed, origin = checked + 1, tree.size, found.origin
    for found, _ in pending.pop(0, ()):
        checked, origin = checked + 1, found.origin
        if found.root != merkle.EMPTY_ROOT:
            raise AuditBroken("the checkpoint of the empty log has another root")
    if pending:
        raise AuditBroken(f"a checkpoint covers {min(pending)} entries and only {tree.size} are there", index=tree.size)
    if log.root is not None and log.root != tree.root():
        raise AuditBroken(f"the {tree.size} entries have not the root that the export says", index=tree.size)
    if log.head is not None and log.head != (tree, previous):
        raise AuditBroken(f"the stored head is not the head of the {tree.size} entries", index=tree.size)
    for height, place, root in log.subtrees:
        if subtrees.get((height, place)) != root:
            raise AuditBroken(f"the stored root of subtree {place} of height {height} is not that of its entries")
    return AuditReport(
        entries=tree.size,
        root=tree.root(),
        checkpoints=checked,
        signed=signed,
        unsigned=tree.size - signed,
        signatures_checked=public_key is not None,
        origin=origin,
        cosignatures=len(seen),
        witnesses=_newest(seen),
    )


def require_witnesses(report: AuditReport, keys: Collection[bytes], count: int) -> int:
    """Check that at least `count` of the witnesses with these keys have cosigned the log.

    Args:
        report: of the verification.
        keys: public keys of witnesses that the caller trusts.
        count: how many of them there have to be, from 1.

    Returns:
        How many entries so many of them have cosigned: the size that the least of the best `count` vouches for.

    Raises:
        AuditBroken: too few of them have cosigned any checkpoint of the log.
    """
    best: dict[bytes, int] = {}
    for each in report.witnesses:
        if each.public_key in keys:
            best[each.public_key] = max(each.size, best.get(each.public_key, 0))
    sizes = sorted(best.values(), reverse=True)
    if len(sizes) < count:
        raise AuditBroken(f"{len(sizes)} of the {len(set(keys))} witnesses have cosigned the log, and {count} have to")
    return sizes[count - 1]


def _checkpoints(
    notes: Sequence[tuple[int | None, str]], keys: Sequence[bytes]
) -> dict[int, list[tuple[Checkpoint, str]]]:
    """Parse all checkpoints and check their signatures; return them with their notes by tree size."""
    pending: dict[int, list[tuple[Checkpoint, str]]] = {}
    origins: set[str] = set()
    for size, note in notes:
        found = parse_checkpoint(note_text(note))
        if size is not None and found.size != size:
            raise AuditBroken(f"the checkpoint stored for {size} entries speaks of {found.size}")
        if keys:
            open_signed(note, found.origin, keys)
        origins.add(found.origin)
        pending.setdefault(found.size, []).append((found, note))
    if len(origins) > 1:
        raise AuditBroken(f"the checkpoints name several logs: {', '.join(sorted(origins))}")
    return pending


def _stored_cosignatures(log: Log) -> list[Witnessed]:
    notes = {size: note for size, note in log.notes if size is not None}
    seen = []
    for each in log.cosignatures:
        if each.size not in notes:
            raise AuditBroken(f"a cosignature of {each.witness} is for a checkpoint of {each.size}, which is not there")
        text = f"{note_text(notes[each.size])}\n"
        at_s = cosigned_at(with_cosignatures(text, [each.line]), each.witness, each.public_key)
        if at_s is None:
            raise AuditBroken(f"the cosignature of {each.witness} for {each.size} entries is under another name or key")
        seen.append(Witnessed(each.witness, each.public_key, each.size, at_s))
    return seen


def _foreign_cosignatures(notes: Sequence[tuple[int | None, str]], keys: Collection[bytes]) -> Iterator[Witnessed]:
    """What witnesses with these keys cosigned below notes that bring their cosignatures with them."""
    for stored, note in notes:
        names = sorted({name for name, _ in note_signatures(note)})[:_MOST_WITNESSES] if stored is None else ()
        for name in names:
            for key in keys:
                at_s = cosigned_at(note, name, key)
                if at_s is not None:
                    yield Witnessed(name, key, parse_checkpoint(note_text(note)).size, at_s)


def _liars(bad: Sequence[str], size: int, stored: Sequence[Witnessed]) -> str:
    """Name the witnesses who cosigned a checkpoint that contradicts the log, and one of the log that covers as much.

    Whoever checks that a tree grew from the last one never does: they, too, are proved liars.
    """
    names = sorted(
        {
            each.name
            for each in stored
            for note in bad
            if each.size >= size and cosigned_at(note, each.name, each.public_key) is not None
        }
    )
    return f"; {', '.join(names)} cosigned both, and is no witness" if names else ""


def _newest(seen: Iterable[Witnessed]) -> tuple[Witnessed, ...]:
    newest: dict[tuple[str, bytes], Witnessed] = {}
    for each in seen:
        before = newest.get((each.name, each.public_key))
        if before is None or (each.size, each.at_s) > (before.size, before.at_s):
            newest[each.name, each.public_key] = each
    return tuple(sorted(newest.values(), key=lambda each: (-each.size, each.name)))


def stored_log(connection: sqlite3.Connection) -> Log:
    """Return the log that a database holds; its entries are read as they are verified."""
    rows = connection.execute("SELECT position, entry, hash FROM audit_entries ORDER BY position")
    notes = connection.execute("SELECT size, note FROM audit_checkpoints ORDER BY size").fetchall()
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    cosignatures: list[tuple[int, str, bytes, str]] = []
    subtrees: Iterable[tuple[int, int, bytes]] = ()
    if version >= _WITNESSED_SINCE:
        cosignatures = connection.execute(
            "SELECT size, witness, public_key, line FROM audit_cosignatures ORDER BY size, witness"
        ).fetchall()
        subtrees = connection.execute("SELECT height, place, hash FROM audit_subtrees ORDER BY height, place")
    return Log(
        rows=((int(index), bytes(data), bytes(hashed)) for index, data, hashed in rows),
        notes=[(int(size), str(note)) for size, note in notes],
        cosignatures=[
            Cosignature(int(size), str(name), bytes(key), str(line)) for size, name, key, line in cosignatures
        ],
        head=read_head(connection),
        subtrees=((int(height), int(place), bytes(root)) for height, place, root in subtrees),
    )


#: The schema version that brought cosignatures and stored subtrees.
_WITNESSED_SINCE: Final = 4


def _check_entry(index: int, data: bytes, hashed: bytes, expected: int, previous: bytes) -> None:
    if index != expected:
        raise AuditBroken(f"the entry is missing; the next one is {index}", index=expected)
    if merkle.leaf_hash(data) != hashed:
        raise AuditBroken("its hash is not the hash of its bytes", index=index)
    if links(index, data) != (index, previous.hex()):
        raise AuditBroken("it does not continue the chain", index=index)
