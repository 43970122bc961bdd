"""Fuzzes envelopes: whatever the bytes, they are refused by name, or they are the one encoding of what was signed.

Run: python -m fuzz.run envelope
"""

from __future__ import annotations

from comity.envelope import (
    DOCUMENT_KINDS,
    MESSAGE_KINDS,
    open_document,
    open_message,
    sign_all,
    sign_document,
    unsigned_document,
    unsigned_message,
)
from comity.errors import EnvelopeMalformed, SignatureInvalid
from comity.signing import PrivateKey
from comity.v1.envelope_pb2 import Envelope

_KEY = PrivateKey(bytes(range(32)))
_AUDIENCE = PrivateKey(b"a" * 32).peer_id


def _honest() -> tuple[bytes, ...]:
    """Everything that the key ever signed: alone and in batches, documents and messages."""
    unsigned = [unsigned_document(kind, kind.encode()) for kind in sorted(DOCUMENT_KINDS)]
    unsigned += [
        unsigned_message(kind, b"body", audience=_AUDIENCE, message_id=bytes(16), now_ms=1_750_000_000_000)
        for kind in sorted(MESSAGE_KINDS)
    ]
    return (
        sign_document(_KEY, "hop", b""),
        sign_document(_KEY, "hop", b"x" * 200),
        *sign_all(_KEY, unsigned),
        *sign_all(_KEY, unsigned[:2]),
        *sign_all(_KEY, unsigned[-3:]),
    )


#: Where a fuzzer begins.
SEEDS = _honest()
_SIGNED = frozenset(SEEDS)


def one(data: bytes) -> None:
    """Open the bytes as everything that they could be; then with what is behind the first byte of them as a change.

    Nothing opens but what the key signed, byte for byte: not what differs from it in one byte anywhere.
    """
    _open(data)
    if data:
        seed = SEEDS[data[0] % len(SEEDS)]
        change = data[1:]
        _open(seed[: len(seed) - len(change)] + change)
        _open(seed + change)
        _open(change + seed)
        parsed = Envelope.FromString(seed)
        parsed.signature = parsed.signature[:64] + change
        _open(parsed.SerializeToString())


def _open(data: bytes) -> None:
    opened = 0
    for kind in DOCUMENT_KINDS:
        try:
            open_document(data, kind)
        except (EnvelopeMalformed, SignatureInvalid):
            continue
        opened += 1
    try:
        open_message(data, MESSAGE_KINDS)
    except (EnvelopeMalformed, SignatureInvalid):
        pass
    else:
        opened += 1
    ours = data[6:38] == _KEY.public_key  # whoever fuzzes may find a key of its own, and sign with it
    assert opened == 1 if data in _SIGNED else opened <= (not ours), "forged, or one envelope is of two kinds"
