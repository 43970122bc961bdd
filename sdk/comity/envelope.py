"""Signed envelopes: who said it, what kind of thing it is, to whom and until when.

An envelope is a libp2p Signed Envelope (RFC 0002,
https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md) under a domain string of our own for each
kind, so that a signature over one kind never passes for another. There are two sorts:

* a *document* (terms, hop, review, ...) is signed for everyone and for good: the payload is the body itself;
* a *message* travels from one node to another: the payload is a `comity.v1.Message`, whose header names the one
  recipient, a random id and the time in which it is good.

Opening takes these steps and stops at the first that fails (S2: nothing of the body is read before the signature):

1. size limit;
2. the fixed form: an Ed25519 key, a kind that the caller expects, a payload and a signature, each once, in the order
   of their field numbers, and nothing else: an envelope has exactly one encoding, so its digest identifies it;
3. the signature over domain, payload type and payload, each after its length;
4. for a message: the header.

No I/O, clock or randomness here. Freshness and replay are judged by the node (`comity_node.protocol.freshness`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from comity import signing
from comity.errors import EnvelopeMalformed, SignatureInvalid
from comity.v1 import envelope_pb2

#: Bytes of the largest envelope that is made or opened.
MAX_ENVELOPE: Final = 4 * 1024 * 1024
#: Bytes of a message's id.
ID_BYTES: Final = 16
#: How long a message is good unless its sender says otherwise.
DEFAULT_LIFETIME_MS: Final = 60_000
#: How long a message may be good at most.
MAX_LIFETIME_MS: Final = 300_000

#: What travels between nodes, addressed to one of them.
MESSAGE_KINDS: Final = frozenset(
    {"peers", "cards", "proposal", "agreement", "task-offer", "reviews", "records", "receipt"}
)
#: What is signed for everyone.
DOCUMENT_KINDS: Final = frozenset({"terms", "hop", "review", "update", "card"})

_KEY_FIELD = b"\x0a\x24"  # field 1, 36 bytes
_TYPE_TAG = 0x12  # field 2
_PAYLOAD_TAG = 0x1A  # field 3
_SIGNATURE_FIELD = b"\x2a\x40"  # field 5, 64 bytes
_KEY_END = 2 + 36
_SIGNATURE_BYTES = 64
_MAX_VARINT = 4  # a length below 2^28, well over MAX_ENVELOPE
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
        id: 16 random bytes.
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


def sign_document(key: signing.PrivateKey, kind: str, body: bytes) -> bytes:
    """Return the envelope of a document.

    Raises:
        EnvelopeMalformed: `kind` is no kind of document, or the envelope would be too large.
    """
    if kind not in DOCUMENT_KINDS:
        raise EnvelopeMalformed(f"{kind!r} is no kind of document")
    return _sign(key, kind, body)


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
    parts = _open(data, (kind,))
    return Document(parts.kind, parts.signer, parts.payload)


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
    """Return the envelope of a message to one node.

    Args:
        key: the sending node's key.
        kind: one of `MESSAGE_KINDS`.
        body: what the message says.
        audience: the recipient's PeerId.
        message_id: 16 bytes that were never used before by this key: random ones.
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
    header = Header(audience, message_id, now_ms, now_ms + lifetime_ms, in_reply_to)
    _check_header(header)
    message = envelope_pb2.Message(
        header=envelope_pb2.Header(
            audience=_audience_bytes(audience),
            id=message_id,
            issued_ms=header.issued_ms,
            expires_ms=header.expires_ms,
            in_reply_to=in_reply_to,
        ),
        body=body,
    )
    return _sign(key, kind, message.SerializeToString())


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
    parts = _open(data, kinds)
    if parts.kind not in MESSAGE_KINDS:
        raise EnvelopeMalformed(f"{parts.kind!r} is no kind of message")
    message = envelope_pb2.Message()
    try:
        message.ParseFromString(parts.payload)
    except DecodeError as error:
        raise EnvelopeMalformed("the payload is no message") from error
    wire = message.header
    try:
        audience = _audience_text(wire.audience)
    except SignatureInvalid as error:
        raise EnvelopeMalformed("the header's audience is no PeerId") from error
    header = Header(audience, wire.id, wire.issued_ms, wire.expires_ms, wire.in_reply_to)
    _check_header(header)
    return Message(parts.kind, parts.signer, header, message.body)


class _Opened(NamedTuple):
    kind: str
    signer: bytes
    payload: bytes


def _sign(key: signing.PrivateKey, kind: str, payload: bytes) -> bytes:
    signature = key.sign(_prefix(kind) + _varint(len(payload)) + payload)
    parts = [_KEY_FIELD, signing.libp2p_public_key(key.public_key), _type_field(kind)]
    if payload:  # proto3 leaves an empty field out
        parts += [bytes([_PAYLOAD_TAG]), _varint(len(payload)), payload]
    data = b"".join([*parts, _SIGNATURE_FIELD, signature])
    if len(data) > MAX_ENVELOPE:
        raise EnvelopeMalformed(f"an envelope of {len(data)} bytes is over the limit of {MAX_ENVELOPE}")
    return data


def _open(data: bytes, kinds: Collection[str]) -> _Opened:
    if len(data) > MAX_ENVELOPE:
        raise EnvelopeMalformed(f"an envelope of {len(data)} bytes is over the limit of {MAX_ENVELOPE}")
    if data[:2] != _KEY_FIELD:
        raise EnvelopeMalformed("not a signed envelope with an Ed25519 key")
    kind, at = _read_kind(data)
    if kind not in kinds:
        raise EnvelopeMalformed(f"an envelope of kind {kind!r} is not expected here")
    payload, at = _read_payload(data, at)
    if data[at : at + 2] != _SIGNATURE_FIELD or len(data) != at + 2 + _SIGNATURE_BYTES:
        raise EnvelopeMalformed("the envelope does not end with one Ed25519 signature")
    signer = signing.from_libp2p_public_key(data[2:_KEY_END])
    signing.verify(signer, data[at + 2 :], _prefix(kind) + _varint(len(payload)) + payload)
    return _Opened(kind, signer, payload)


def _read_kind(data: bytes) -> tuple[str, int]:
    if len(data) < _KEY_END + 2 or data[_KEY_END] != _TYPE_TAG:
        raise EnvelopeMalformed("the envelope has no payload type")
    end = _KEY_END + 2 + data[_KEY_END + 1]
    kind = _KINDS_BY_TYPE.get(data[_KEY_END + 2 : end])
    if kind is None:
        raise EnvelopeMalformed("the envelope is of no kind that is known here")
    return kind, end


def _read_payload(data: bytes, at: int) -> tuple[bytes, int]:
    if data[at : at + 1] != bytes([_PAYLOAD_TAG]):
        return b"", at
    length = shift = 0
    for index in range(at + 1, min(at + 1 + _MAX_VARINT, len(data))):
        byte = data[index]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if byte == 0:  # an empty payload is left out, and a longer varint than needed is another encoding
                break
            if index + 1 + length > len(data):
                break
            return data[index + 1 : index + 1 + length], index + 1 + length
    raise EnvelopeMalformed("the payload's length is wrong")


def _check_header(header: Header) -> None:
    if len(header.id) != ID_BYTES or len(header.in_reply_to) not in (0, ID_BYTES):
        raise EnvelopeMalformed(f"a message's id has {ID_BYTES} bytes")
    if not 0 <= header.issued_ms < header.expires_ms <= _MAX_TIME_MS:
        raise EnvelopeMalformed("a message expires after it was issued, both in milliseconds since the Unix epoch")


def _varint(value: int) -> bytes:
    """Return the unsigned varint of `value` (https://github.com/multiformats/unsigned-varint)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _domain(kind: str) -> bytes:
    return b"comity/v1/" + kind.encode("ascii")


def _payload_type(kind: str) -> bytes:
    return b"/comity/v1/" + kind.encode("ascii")


_KINDS_BY_TYPE = {_payload_type(kind): kind for kind in MESSAGE_KINDS | DOCUMENT_KINDS}
_TYPE_FIELDS = {
    kind: bytes([_TYPE_TAG]) + _varint(len(_payload_type(kind))) + _payload_type(kind)
    for kind in MESSAGE_KINDS | DOCUMENT_KINDS
}
_PREFIXES = {
    kind: b"".join(_varint(len(part)) + part for part in (_domain(kind), _payload_type(kind)))
    for kind in MESSAGE_KINDS | DOCUMENT_KINDS
}


def _type_field(kind: str) -> bytes:
    return _TYPE_FIELDS[kind]


def _prefix(kind: str) -> bytes:
    """The signing input (RFC 0002) of a kind up to the payload's length."""
    return _PREFIXES[kind]


@lru_cache(maxsize=1024)
def _audience_bytes(text: str) -> bytes:
    return signing.peer_id_to_bytes(text)


@lru_cache(maxsize=1024)
def _audience_text(data: bytes) -> str:
    """The PeerId of a multihash; base58 is slow and a node reads its own id in every message."""
    if data[:-32] != b"\x00\x24\x08\x01\x12\x20" or len(data) != 38:
        raise SignatureInvalid("not the PeerId of an Ed25519 key")
    return signing.peer_id(data[-32:])
