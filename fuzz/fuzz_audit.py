"""Fuzzes what an auditor reads: entries of an audit log, notes and checkpoints.

Run: python -m fuzz.run audit
"""

from __future__ import annotations

from comity.errors import ComityError
from comity.merkle import leaf_hash
from comity.signing import PrivateKey
from comity_node.storage.audit_entry import AuditEntry, decode, encode, links
from comity_node.storage.note import (
    Checkpoint,
    NoteSigner,
    note_signatures,
    note_text,
    open_note,
    parse_checkpoint,
    sign_note,
)

_KEY = PrivateKey(bytes(32))
_NAME = "home.example/node/n1"
_SIGNER = NoteSigner(_NAME, _KEY.public_key, _KEY.sign)
_TEXT = Checkpoint(_NAME, 7, bytes(32)).text()
_NOTE = sign_note(_TEXT, _SIGNER)
_ENTRY = AuditEntry(
    "decision", action="record.send", decision="allow", rules=("a", "b"), peer="other.example", subject=b"s" * 32,
    policy=b"p" * 32, agreement=b"a" * 32, detail={"n": 1, "l": ["x", None, {"y": True}]},
)  # fmt: skip

#: Where a fuzzer begins.
SEEDS = (
    encode(_ENTRY, 3, bytes(32), 1_790_000_000_000),
    encode(AuditEntry("start"), 0, bytes(32), 1),
    _NOTE.encode(),
    _TEXT.encode(),
    b'{"at_ms":Infinity,"index":3,"kind":"k","previous":"","v":1}',
    b'{"at_ms":' + b"[" * 2000,
    (_NOTE + "\u2014 witness.example AAAAAAAA\n").encode(),
)


def one(data: bytes) -> None:
    """Read the bytes as an entry, and as text as a note and as a checkpoint."""
    try:
        links(3, data)
        entry = decode(3, data, leaf_hash(data))
    except ComityError:
        pass
    else:
        assert entry.data == data
        _written_again(entry.entry)
    text = data.decode("utf-8", "surrogateescape")
    for read in (note_text, note_signatures):
        try:
            read(text)
        except ComityError:
            pass
    try:
        opened = open_note(text, _NAME, _KEY.public_key)
    except ComityError:
        pass
    else:
        assert opened == _TEXT, "a note that nobody has signed"
    try:
        checkpoint = parse_checkpoint(text)
    except ComityError:
        return
    assert checkpoint.text() == text
    assert parse_checkpoint(open_note(sign_note(text, _SIGNER), _NAME, _KEY.public_key)) == checkpoint


def _written_again(entry: AuditEntry) -> None:
    """What was read is refused by the writer, or written in a form that reads the same."""
    try:
        written = encode(entry, 3, bytes(32), 1)
    except ComityError:
        return
    assert decode(3, written, leaf_hash(written)).entry == entry
