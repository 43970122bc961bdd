"""Signed notes and checkpoints (https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint).

A note is a text, an empty line and signature lines: em dash, space, key name, space, base64 of a 4-byte key id and the
signature, newline. A checkpoint is a note of three lines: origin, tree size, base64 of the tree's root.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from comity.digest import sha256
from comity.errors import AuditBroken, SignatureInvalid
from comity.signing import verify

_ED25519: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_MAX_NOTE: Final = 64 * 1024
_NAME: Final = re.compile(r"[^\s+]+")
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
#: Control characters but for the newline, and halves of characters, which no UTF-8 has.
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class NoteSigner:
    """Signs notes under a name.

    Attributes:
        name: the key's name and a checkpoint's origin: a URL without its scheme, as `mercy.example/node/n1`.
        public_key: 32 bytes, Ed25519.
        sign: makes the 64-byte signature of a message, as `PrivateKey.sign`.
    """

    name: str
    public_key: bytes
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: the log's origin, its size in leaves, its root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def key_id(name: str, public_key: bytes) -> bytes:
    """Return the 4-byte id of an Ed25519 key: SHA-256(name || 0x0A || 0x01 || key)[:4]."""
    return sha256(name.encode() + b"\n" + _ED25519 + public_key)[:_KEY_ID_BYTES]


def sign_note(text: str, signer: NoteSigner) -> str:
    """Return `text` as a note with one signature.

    Raises:
        AuditBroken: the text or the signer's name is not allowed in a note.
    """
    if not text.endswith("\n") or _CONTROL.search(text):
        raise AuditBroken("a note's text ends with a newline and has no control characters")
    if not _NAME.fullmatch(signer.name):
        raise AuditBroken(f"{signer.name!r} is no key name: it is empty or has a space or a plus sign")
    signature = key_id(signer.name, signer.public_key) + signer.sign(text.encode())
    return f"{text}\n\u2014 {signer.name} {base64.b64encode(signature).decode()}\n"


def open_note(note: str, name: str, public_key: bytes) -> str:
    """Return the text of a note that the key signed; signatures of other keys are passed over.

    Raises:
        AuditBroken: the note is malformed, does not carry the key's signature, or the signature does not verify.
    """
    text, signatures = _split(note)
    wanted = key_id(name, public_key)
    found = [value for line_name, value in signatures if line_name == name and value[:_KEY_ID_BYTES] == wanted]
    if not found:
        raise AuditBroken(f"the note carries no signature of {name} with the given key")
    try:
        for value in found:
            verify(public_key, value[_KEY_ID_BYTES:], text.encode())
    except SignatureInvalid as error:
        raise AuditBroken(f"the signature of {name} does not verify") from error
    return text


def open_signed(note: str, name: str, public_keys: Sequence[bytes]) -> str:
    """Return the text of a note that one of a signer's keys signed, the present one first.

    Raises:
        AuditBroken: the note is malformed, carries no signature of any of them, or one that does not verify.
    """
    ids = {key_id(name, each): each for each in reversed(public_keys)}
    used = [
        ids[value[:_KEY_ID_BYTES]] for line, value in _split(note)[1] if line == name and value[:_KEY_ID_BYTES] in ids
    ]
    return open_note(note, name, used[0] if used else public_keys[0])


def note_text(note: str) -> str:
    """Return the text of a note without checking who signed it.

    Raises:
        AuditBroken: the note is malformed.
    """
    return _split(note)[0]


def note_signatures(note: str) -> list[tuple[str, bytes]]:
    """Return the name and the value (key id and signature) of each signature line, unchecked.

    Raises:
        AuditBroken: the note is malformed.
    """
    return _split(note)[1]


def note_signature_lines(note: str) -> list[tuple[str, str]]:
    """Return the name and the whole line, with its newline, of each signature of a note, unchecked.

    Raises:
        AuditBroken: the note is malformed.
    """
    names = [name for name, _ in _split(note)[1]]
    lines = note.rpartition("\n\n")[2].split("\n")
    return [(name, f"{line}\n") for name, line in zip(names, lines[:-1], strict=True)]


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse the text of a checkpoint. Extension lines are refused: this log writes none.

    Raises:
        AuditBroken: the text is no checkpoint.
    """
    lines = text.split("\n")
    if _CONTROL.search(text):
        raise AuditBroken("the checkpoint has control characters")
    if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]):
        raise AuditBroken("not a checkpoint of three lines: origin, size, root")
    checkpoint = Checkpoint(lines[0], int(lines[1]), _base64(lines[2]))
    if checkpoint.size.bit_length() > 63:
        raise AuditBroken("the checkpoint is of more entries than any log has")
    if checkpoint.text() != text or len(checkpoint.root) != 32:
        raise AuditBroken("the checkpoint's root is not the base64 of 32 bytes")
    return checkpoint


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    if len(note) > _MAX_NOTE or _CONTROL.search(note):
        raise AuditBroken("the note is too long or has control characters")
    head, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise AuditBroken("the note has no signature lines")
    signatures: list[tuple[str, bytes]] = []
    for line in tail[:-1].split("\n"):
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "\u2014" or not _NAME.fullmatch(parts[1]):
            raise AuditBroken("the note has a malformed signature line")
        value = _base64(parts[2])
        if len(value) <= _KEY_ID_BYTES:
            raise AuditBroken("the note has a signature that is too short")
        signatures.append((parts[1], value))
    return head + "\n", signatures


def _base64(text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AuditBroken("the note holds something that is no base64") from error
    if base64.b64encode(value).decode() != text:  # bits behind the last byte: two texts for one value
        raise AuditBroken("the note holds base64 that is not in its one canonical form")
    return value
