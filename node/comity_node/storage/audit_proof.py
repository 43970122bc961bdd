"""A proof that one entry stands in an audit log, in a file of its own (https://c2sp.org/tlog-proof).

The entry's bytes are the format's extra data; its leaf hash leads over the path to the checkpoint's root; the
checkpoint is signed by the node and cosigned by its witnesses. Nothing but their public keys is needed to verify it.
"""

from __future__ import annotations

import base64
import binascii
import re
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from comity import merkle
from comity.errors import AuditBroken, ProofInvalid
from comity_node.storage import witness
from comity_node.storage.audit_entry import StoredEntry, decode, links
from comity_node.storage.audit_tree import prove_inclusion
from comity_node.storage.cosignature import cosigned_at
from comity_node.storage.note import note_signatures, note_text, open_signed, parse_checkpoint

_FORMAT: Final = "c2sp.org/tlog-proof@v1"
_MAX_TEXT: Final = 256 * 1024
_EXTRA: Final = re.compile(r"extra ([A-Za-z0-9+/]+={0,2})")
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class EntryProof:
    """An entry, where it stands, and why that is so.

    Attributes:
        index: from 0.
        data: the entry's bytes.
        path: hashes from the leaf's sibling to the root's child.
        note: the checkpoint with its signatures.
    """

    index: int
    data: bytes
    path: tuple[bytes, ...]
    note: str

    def encode(self) -> str:
        """Return the file's text."""
        hashes = "".join(f"{base64.b64encode(each).decode()}\n" for each in self.path)
        return f"{_FORMAT}\nextra {base64.b64encode(self.data).decode()}\nindex {self.index}\n{hashes}\n{self.note}"


@dataclass(frozen=True, slots=True)
class Proved:
    """What a proof proves.

    Attributes:
        entry: the entry.
        origin: the log's name.
        size: entries under the checkpoint.
        witnesses: for each of the given keys that cosigned it, a name and the time (seconds since the epoch).
    """

    entry: StoredEntry
    origin: str
    size: int
    witnesses: tuple[tuple[str, int], ...]


def prove_entry(connection: sqlite3.Connection, index: int) -> EntryProof:
    """Prove an entry under the checkpoint over it that most witnesses have cosigned.

    Raises:
        AuditBroken: there is no such entry, or no checkpoint over it yet.
    """
    row = connection.execute("SELECT entry FROM audit_entries WHERE position = ?", (index,)).fetchone()
    if row is None:
        raise AuditBroken("there is no such entry", index=index)
    note = witness.covering_note(connection, index)
    if note is None:
        raise AuditBroken("no checkpoint covers it yet; a running node signs one within seconds", index=index)
    size = parse_checkpoint(note_text(note)).size
    return EntryProof(index, bytes(row[0]), prove_inclusion(connection, index, size=size).path, note)


def parse_proof(text: str) -> EntryProof:
    """Read a proof's file; what it says is checked by `verify_proof`.

    Raises:
        AuditBroken: it is no proof with an entry.
    """
    first, separator, note = text.partition("\n\n")
    lines = first.split("\n")
    if len(text) > _MAX_TEXT or not separator or len(lines) < 3 or lines[0] != _FORMAT:
        raise AuditBroken(f"this is no proof: it does not begin with {_FORMAT}, or has no checkpoint")
    extra, index = _EXTRA.fullmatch(lines[1]), _INDEX.fullmatch(lines[2])
    if extra is None or index is None:
        raise AuditBroken("the proof lacks its entry (`extra`) or its index")
    try:
        data, *path = (base64.b64decode(each, validate=True) for each in (extra[1], *lines[3:]))
    except (binascii.Error, ValueError) as error:
        raise AuditBroken("the proof holds something that is no base64") from error
    proof = EntryProof(int(index[1]), data, tuple(path), note)
    if proof.encode() != text:
        raise AuditBroken("the proof is not written in its one form")
    return proof


def verify_proof(
    proof: EntryProof, public_key: bytes | None, *, former: Collection[bytes] = (), witnesses: Collection[bytes] = ()
) -> Proved:
    """Verify a proof, with no database.

    1. The checkpoint is signed by the node's key, if one is given. 2. The entry's leaf hash leads over the path to the
    checkpoint's root. 3. The entry names its own index. 4. Cosignatures under the given witnesses' keys verify.

    Args:
        proof: what `parse_proof` returned.
        public_key: the node's, 32 bytes; None checks no signature.
        former: keys that the node had before.
        witnesses: public keys of witnesses.

    Raises:
        AuditBroken: one of these does not hold.
    """
    checkpoint = parse_checkpoint(note_text(proof.note))
    if public_key is not None:
        open_signed(proof.note, checkpoint.origin, (public_key, *former))
    leaf = merkle.leaf_hash(proof.data)
    try:
        merkle.verify_inclusion(leaf, proof.index, checkpoint.size, proof.path, checkpoint.root)
    except ProofInvalid as error:
        raise AuditBroken(str(error), index=proof.index) from error
    if links(proof.index, proof.data)[0] != proof.index:
        raise AuditBroken("the entry names another index", index=proof.index)
    entry = decode(proof.index, proof.data, leaf)
    return Proved(entry, checkpoint.origin, checkpoint.size, tuple(_cosigners(proof.note, witnesses)))


def _cosigners(note: str, keys: Collection[bytes]) -> Iterator[tuple[str, int]]:
    """Yield one name and time for each of the keys that cosigned.

    What a witness signs does not hold its name: anybody can add it to a note once more under another one.
    """
    names = sorted({name for name, _ in note_signatures(note)})
    for key in sorted(set(keys)):
        times = [(name, at_s) for name in names if (at_s := cosigned_at(note, name, key)) is not None]
        yield from times[:1]
