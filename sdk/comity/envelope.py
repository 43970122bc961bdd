"""Signed envelopes: who said it, what kind of thing it is, to whom and until when.

There are two sorts of envelope (their bytes and signatures: `comity.signed`):

* a *document* (terms, hop, review, ...) is signed for everyone and for good: the payload is the body itself;
* a *message* travels from one node to another: the payload is a `comity.v1.Message`, whose header names the one
  recipient, an id and the time in which it is good.

Opening takes these steps and stops at the first that fails (S2: nothing of the body is read before the signature):

1. size limit;
2. the fixed form: an Ed25519 key, a kind that the caller expects, a payload and a signature, each once, in the order
   of their field numbers, and nothing else: what is signed has exactly one encoding;
3. the signature over domain, payload type and payload: alone, or by way of the head of its batch;
4. for a message: the header.

No I/O, clock or randomness here. Freshness and replay are judged by the node (`comity_node.protocol.freshness`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from comity import signing
from comity.errors import EnvelopeMalformed, SignatureInvalid
from comity.signed import DOCUMENT_KINDS, MAX_BATCH, MAX_ENVELOPE, MESSAGE_KINDS, Unsigned, open_signed, sign, sign_all
from comity.v1 import envelope_pb2

__all__ = [
    "DEFAULT_LIFETIME_MS",
    "DOCUMENT_KINDS",
    "ID_BYTES",
    "MAX_BATCH",
    "MAX_ENVELOPE",
    "MAX_LIFETIME_MS",
    "MESSAGE_KINDS",
    "Document",
    "Header",
    "Message",
    "Unsigned",
    "open_document",
    "open_message",
    "seal",
    "sign",
    "sign_all",
    "sign_document",
    "unsigned_document",
    "unsigned_message",
]

#: Bytes of a message's id.
ID_BYTES: Final = 16
#: How long a message is good unless its sender says otherwise.
DEFAULT_LIFETIME_MS: Final = 60_000
#: How long a message may be good at most.
MAX_LIFETIME_MS: Final = 300_000

_MAX_TIME_MS = 2**53  # so that a time survives JSON


@dataclass(frozen=True, slots=True)
class Document:
    """A verified document.

    Attributes:
        kind: one of `DOCUMENT_KINDS`.
        signer: the 32-byte Ed25519 public key that signed it.
        body: the bytes that were signed, as received.
    """

    kind: str
    signer: bytes
    body: bytes

    @property
    def peer_id(self) -> str:
        """The signer's PeerId."""
        return signing.peer_id(self.signer)


@dataclass(frozen=True, slots=True)
class Header:
    """What makes a message good once, for one recipient, for a bounded time.

    Attributes:
        audience: the recipient's PeerId.
        id: 16 bytes that its signer uses once for this recipient: 8 of an epoch, then 8 that count up
            (`comity_node.protocol.freshness`).
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch.
        in_reply_to: the id of the message that this one answers; empty in a request.
    """

    audience: str
    id: bytes
    issued_ms: int
    expires_ms: int
    in_reply_to: bytes = b""


@dataclass(frozen=True, slots=True)
class Message:
    """A message whose signature verified. Whether it is fresh is still to be judged.

    Attributes:
        kind: one of `MESSAGE_KINDS`.
        signer: the 32-byte Ed25519 public key that signed it.
        header: recipient, id and times.
        body: the bytes that were signed, as received.
    """

    kind: str
    signer: bytes
    header: Header
    body: bytes

    @property
    def peer_id(self) -> str:
        """The signer's PeerId."""
        return signing.peer_id(self.signer)


def unsigned_document(kind: str, body: bytes) -> Unsigned:
    """Return a document that is still to be signed, by `sign` or `sign_all`.

    Raises:
        EnvelopeMalformed: `kind` is no kind of document, or the envelope would be too large.
    """
    if kind not in DOCUMENT_KINDS:
        raise EnvelopeMalformed(f"{kind!r} is no kind of document")
    unsigned = Unsigned(kind, body)
    unsigned.check_size()
    return unsigned


def sign_document(key: signing.PrivateKey, kind: str, body: bytes) -> bytes:
    """Return the envelope of a document, with a signature of its own.

    Raises:
        EnvelopeMalformed: `kind` is no kind of document, or the envelope would be too large.
    """
    return sign(key, unsigned_document(kind, body))


def open_document(data: bytes, kind: str) -> Document:
    """Verify the envelope of a document.

    Args:
        data: the envelope as received.
        kind: the kind that is expected here.

    Raises:
        EnvelopeMalformed: the bytes are no envelope, too large, or of another kind.
        SignatureInvalid: the key is no Ed25519 key, or the signature does not verify.
    """
    if kind not in DOCUMENT_KINDS:
        raise EnvelopeMalformed(f"{kind!r} is no kind of document")
    opened = open_signed(data, (kind,))
    return Document(opened.kind, opened.signer, opened.payload)


def unsigned_message(
    kind: str,
    body: bytes,
    *,
    audience: str,
    message_id: bytes,
    now_ms: int,
    lifetime_ms: int = DEFAULT_LIFETIME_MS,
    in_reply_to: bytes = b"",
) -> Unsigned:
    """Return a message to one node that is still to be signed, by `sign` or `sign_all`.

    Args:
        kind: one of `MESSAGE_KINDS`.
        body: what the message says.
        audience: the recipient's PeerId.
        message_id: 16 bytes that were never used before by this key for this audience.
        now_ms: the time, in milliseconds since the Unix epoch.
        lifetime_ms: how long the message is good, at most `MAX_LIFETIME_MS`.
        in_reply_to: the id of the message that this one answers.

    Raises:
        EnvelopeMalformed: an argument is out of its bounds, or the envelope would be too large.
        SignatureInvalid: `audience` is not the PeerId of an Ed25519 key.
    """
    if kind not in MESSAGE_KINDS:
        raise EnvelopeMalformed(f"{kind!r} is no kind of message")
    if not 0 < lifetime_ms <= MAX_LIFETIME_MS:
        raise EnvelopeMalformed(f"a message is good for 1 to {MAX_LIFETIME_MS} ms, not {lifetime_ms}")
    expires_ms = now_ms + lifetime_ms
    _check_header(message_id, in_reply_to, now_ms, expires_ms)
    message = envelope_pb2.Message(body=body)
    header = message.header
    header.audience = _audience_bytes(audience)
    header.id = message_id
    header.issued_ms = now_ms
    header.expires_ms = expires_ms
    header.in_reply_to = in_reply_to
    unsigned = Unsigned(kind, message.SerializeToString())
    unsigned.check_size()
    return unsigned


def seal(
    key: signing.PrivateKey,
    kind: str,
    body: bytes,
    *,
    audience: str,
    message_id: bytes,
    now_ms: int,
    lifetime_ms: int = DEFAULT_LIFETIME_MS,
    in_reply_to: bytes = b"",
) -> bytes:
    """Return the envelope of a message to one node, with a signature of its own; see `unsigned_message`."""
    unsigned = unsigned_message(
        kind,
        body,
        audience=audience,
        message_id=message_id,
        now_ms=now_ms,
        lifetime_ms=lifetime_ms,
        in_reply_to=in_reply_to,
    )
    return sign(key, unsigned)


def open_message(data: bytes, kinds: Collection[str]) -> Message:
    """Verify the envelope of a message and read its header.

    Args:
        data: the envelope as received.
        kinds: the kinds that are expected here, out of `MESSAGE_KINDS`.

    Raises:
        EnvelopeMalformed: the bytes are no envelope, too large, of a kind that is not expected, or the header is not
            well formed.
        SignatureInvalid: the key is no Ed25519 key, or the signature does not verify.
    """
    opened = open_signed(data, kinds)
    if opened.kind not in MESSAGE_KINDS:
        raise EnvelopeMalformed(f"{opened.kind!r} is no kind of message")
    message = envelope_pb2.Message()
    try:
        message.ParseFromString(opened.payload)
    except DecodeError as error:
        raise EnvelopeMalformed("the payload is no message") from error
    wire = message.header
    try:
        audience = _audience_text(wire.audience)
    except SignatureInvalid as error:
        raise EnvelopeMalformed("the header's audience is no PeerId") from error
    header = Header(audience, wire.id, wire.issued_ms, wire.expires_ms, wire.in_reply_to)
    _check_header(header.id, header.in_reply_to, header.issued_ms, header.expires_ms)
    return Message(opened.kind, opened.signer, header, message.body)


def _check_header(message_id: bytes, in_reply_to: bytes, issued_ms: int, expires_ms: int) -> None:
    if len(message_id) != ID_BYTES or len(in_reply_to) not in (0, ID_BYTES):
        raise EnvelopeMalformed(f"a message's id has {ID_BYTES} bytes")
    if not 0 <= issued_ms < expires_ms <= _MAX_TIME_MS:
        raise EnvelopeMalformed("a message expires after it was issued, both in milliseconds since the Unix epoch")


@lru_cache(maxsize=1024)
def _audience_bytes(text: str) -> bytes:
    return signing.peer_id_to_bytes(text)


@lru_cache(maxsize=1024)
def _audience_text(data: bytes) -> str:
    """The PeerId of a multihash; base58 is slow and a node reads its own id in every message."""
    if data[:-32] != b"\x00\x24\x08\x01\x12\x20" or len(data) != 38:
        raise SignatureInvalid("not the PeerId of an Ed25519 key")
    return signing.peer_id(data[-32:])
