"""Cosignatures of checkpoints (https://c2sp.org/tlog-cosignature, `cosignature/v1` with Ed25519).

A cosignature is a witness's word that at a time it had seen no larger tree of the log, and that this one grew from
those that it saw before. It is one more signature line below the checkpoint: a 4-byte key id, 8 bytes of time in
seconds since the epoch, 64 bytes of Ed25519 over two lines of header and the checkpoint's text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final

from comity.digest import sha256
from comity.errors import AuditBroken, SignatureInvalid
from comity.signing import verify
from comity_node.storage.note import NoteSigner, note_signatures, note_text

_COSIGNATURE: Final = b"\x04"
_KEY_ID_BYTES: Final = 4
_TIME_BYTES: Final = 8
_VALUE_BYTES: Final = _KEY_ID_BYTES + _TIME_BYTES + 64


def key_id(name: str, public_key: bytes) -> bytes:
    """Return the 4-byte id of a cosigner's Ed25519 key: SHA-256(name || 0x0A || 0x04 || key)[:4]."""
    return sha256(name.encode() + b"\n" + _COSIGNATURE + public_key)[:_KEY_ID_BYTES]


def cosign(text: str, signer: NoteSigner, at_s: int) -> str:
    """Return the signature line of a cosignature, with its newline.

    Args:
        text: the checkpoint's, as `note.note_text` returns it.
        signer: the witness.
        at_s: seconds since the epoch.
    """
    signature = signer.sign(_message(text, at_s))
    value = key_id(signer.name, signer.public_key) + at_s.to_bytes(_TIME_BYTES, "big") + signature
    return f"\u2014 {signer.name} {base64.b64encode(value).decode()}\n"


def cosigned_at(note: str, name: str, public_key: bytes) -> int | None:
    """Return when the witness cosigned the checkpoint (seconds since the epoch), None if it did not.

    Of several cosignatures of it the last counts; all have to verify.

    Raises:
        AuditBroken: the note is malformed, or a cosignature under the witness's name and key does not verify.
    """
    wanted, text = key_id(name, public_key), note_text(note)
    times = [
        _verified(text, value, name, public_key)
        for line_name, value in note_signatures(note)
        if line_name == name and value[:_KEY_ID_BYTES] == wanted
    ]
    return max(times, default=None)


def with_cosignatures(note: str, lines: Iterable[str]) -> str:
    """Return a checkpoint with more signature lines below it, each ending in a newline."""
    return note + "".join(lines)


def _verified(text: str, value: bytes, name: str, public_key: bytes) -> int:
    at_s = int.from_bytes(value[_KEY_ID_BYTES : _KEY_ID_BYTES + _TIME_BYTES], "big")
    if len(value) != _VALUE_BYTES or at_s >> 63:
        raise AuditBroken(f"the cosignature of {name} is malformed")
    try:
        verify(public_key, value[-64:], _message(text, at_s))
    except SignatureInvalid as error:
        raise AuditBroken(f"the cosignature of {name} does not verify") from error
    return at_s


def _message(text: str, at_s: int) -> bytes:
    return f"cosignature/v1\ntime {at_s}\n{text}".encode()
