"""The bytes of a signed envelope, and its signature: alone, or one for a whole batch.

An envelope is a libp2p Signed Envelope (RFC 0002,
https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md) under a domain string of our own for each
kind, so that a signature over one kind never passes for another. It holds an Ed25519 key, a kind, a payload and a
signature, each once, in the order of their field numbers, and nothing else: there is one way to write it.

The *signing input* is domain, payload type and payload, each after its length. The signature takes one of two forms:

* alone: an Ed25519 signature (64 bytes) over the signing input;
* in a batch (ADR 0010): one Ed25519 signature covers many envelopes, and each can still be verified by itself. The
  signing inputs are the leaves of a Merkle tree (RFC 6962). What is signed is the tree's size (2 bytes) and head (32
  bytes), under the domain `comity/v1/batch`, which is no kind. The signature field is then

      signature (64 bytes) || index (2) || size (2) || inclusion path (32 bytes each)

  with big-endian numbers, 2 <= size <= 4096, index < size, and the path exactly as long as that of this leaf. The size
  is signed because a tree's head does not tell it: without it, several sizes would pass with the same path.

No I/O, clock or randomness here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from comity import merkle, signing
from comity.errors import EnvelopeMalformed

#: Bytes of the largest envelope that is made or opened.
MAX_ENVELOPE: Final = 4 * 1024 * 1024
#: Envelopes that one signature may cover.
MAX_BATCH: Final = 4096
#: What travels between nodes, addressed to one of them.
MESSAGE_KINDS: Final = frozenset(
    {"peers", "cards", "proposal", "agreement", "task-offer", "reviews", "records", "receipt", "checkpoint"}
    | {"agreement-status", "withdrawal-notice", "tokens", "token-parts", "token-notes"}
    | {"commitments", "commitment-set", "agreement-brought"}
    | {"market-call", "market-award"}
)
#: What is signed for everyone.
DOCUMENT_KINDS: Final = frozenset(
    {"terms", "hop", "review", "update", "card", "bulk", "bulk-receipt", "withdrawal", "draw", "flow-hop"}
    | {"commitment"}
)

_KEY_FIELD = b"\x0a\x24"  # field 1, 36 bytes
_TYPE_TAG = b"\x12"  # field 2
_PAYLOAD_TAG = b"\x1a"  # field 3
_SIGNATURE_TAG = b"\x2a"  # field 5
_KEY_END = 2 + 36
_SIGNATURE_BYTES = 64
#: Where the size begins that stands behind signature and index, and where the path begins.
_SIZE_AT = _SIGNATURE_BYTES + 2
_PATH_AT = _SIZE_AT + 2
_PLACE = Struct(">HH")  # index and size
_MAX_VARINT = 4  # a length below 2^28, well over MAX_ENVELOPE
#: With a payload up to this size there is room for any kind and the longest path.
_ROOMY = MAX_ENVELOPE - 1024
#: Signatures of batches that are remembered as verified; about 400 bytes each.
_VERIFIED_HEADS = 1024


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A document or message that only lacks its signature.

    Attributes:
        kind: one of `DOCUMENT_KINDS` or `MESSAGE_KINDS`.
        payload: what the signature will cover, besides the kind.
    """

    kind: str
    payload: bytes

    def check_size(self) -> None:
        """Refuse what is too large for an envelope with a signature of its own.

        Raises:
            EnvelopeMalformed: it is.
        """
        if len(self.payload) > _ROOMY:
            size = _KEY_END + len(_fields_before_signature(self)) + 2 + _SIGNATURE_BYTES
            if size > MAX_ENVELOPE:
                raise EnvelopeMalformed(f"an envelope of {size} bytes is over the limit of {MAX_ENVELOPE}")


class Opened(NamedTuple):
    """What an envelope says whose signature verified: the bytes as received.

    Attributes:
        kind: what it was signed as.
        signer: the 32-byte key that signed it.
        payload: what was signed.
        head: of the tree of its batch (`Batch.head`); empty if its signature is its own.
        place: in the batch, from 0.
        size: of the batch.
    """

    kind: str
    signer: bytes
    payload: bytes
    head: bytes = b""
    place: int = 0
    size: int = 1


def sign(key: signing.PrivateKey, unsigned: Unsigned) -> bytes:
    """Return the envelope with a signature of its own."""
    return _envelope(key, unsigned, key.sign(_signing_input(unsigned.kind, unsigned.payload)))


def sign_all(key: signing.PrivateKey, unsigned: Sequence[Unsigned]) -> list[bytes]:
    """Return the envelopes of all, in their order, under as few signatures as there can be.

    One that is alone gets the plain form, and so does one that could be too large with an inclusion path.
    """
    small = [at for at, one in enumerate(unsigned) if len(one.payload) <= _ROOMY]
    batched: dict[int, bytes] = {}
    for start in range(0, len(small), MAX_BATCH):
        places = small[start : start + MAX_BATCH]
        if len(places) > 1:
            batched.update(zip(places, Batch([unsigned[at] for at in places]).sign(key), strict=True))
    return [batched.get(at) or sign(key, one) for at, one in enumerate(unsigned)]


def open_signed(data: bytes, kinds: Collection[str]) -> Opened:
    """Verify an envelope of one of `kinds`.

    Raises:
        EnvelopeMalformed: the bytes are no envelope, too large, or of a kind that is not expected.
        SignatureInvalid: the key is no Ed25519 key, or the signature does not verify.
    """
    if len(data) > MAX_ENVELOPE:
        raise EnvelopeMalformed(f"an envelope of {len(data)} bytes is over the limit of {MAX_ENVELOPE}")
    if data[:2] != _KEY_FIELD:
        raise EnvelopeMalformed("not a signed envelope with an Ed25519 key")
    kind, at = _read_kind(data)
    if kind not in kinds:
        raise EnvelopeMalformed(f"an envelope of kind {kind!r} is not expected here")
    start, end = _find_payload(data, at)
    signature = _read_signature(data, end)
    signer = signing.from_libp2p_public_key(data[2:_KEY_END])
    # Before the payload stands its length, in the one form that it has, here as there.
    signed = _PREFIXES[kind] + (data[at + 1 : end] or _NO_PAYLOAD)
    if len(signature) == _SIGNATURE_BYTES:
        signing.verify(signer, signature, signed)
        return Opened(kind, signer, data[start:end])
    return Opened(kind, signer, data[start:end], *_verify_in_batch(signer, signature, signed))


def read_payload(data: bytes, kind: str) -> bytes:
    """Return the payload of an envelope that nobody has verified, or that was verified before.

    Raises:
        EnvelopeMalformed: it has not the form of an envelope of this kind.
    """
    if len(data) > MAX_ENVELOPE or data[:2] != _KEY_FIELD:
        raise EnvelopeMalformed("not a signed envelope with an Ed25519 key")
    found, at = _read_kind(data)
    if found != kind:
        raise EnvelopeMalformed(f"an envelope of kind {found!r} is not expected here")
    start, end = _find_payload(data, at)
    return data[start:end]


def read_signer(data: bytes) -> bytes:
    """Return the 32-byte key that an envelope, which nobody has verified, says it was signed with.

    Raises:
        EnvelopeMalformed, SignatureInvalid: it says none.
    """
    if data[:2] != _KEY_FIELD:
        raise EnvelopeMalformed("not a signed envelope with an Ed25519 key")
    return signing.from_libp2p_public_key(data[2:_KEY_END])


# -- writing -----------------------------------------------------------------------------------------------------------


def _signing_input(kind: str, payload: bytes) -> bytes:
    """What a plain signature is over, and what a batch has as a leaf (RFC 0002)."""
    return _PREFIXES[kind] + _varint(len(payload)) + payload


class Batch:
    """Envelopes that share a signature. Their head is known before they are signed, and names exactly these."""

    def __init__(self, unsigned: Sequence[Unsigned]) -> None:
        """Build the tree over 1 to `MAX_BATCH` of them, none of which is too large for a path beside it.

        Raises:
            EnvelopeMalformed: there are none, too many, or one is too large.
        """
        if not 1 <= len(unsigned) <= MAX_BATCH or any(len(one.payload) > _ROOMY for one in unsigned):
            raise EnvelopeMalformed(f"a batch has 1 to {MAX_BATCH} envelopes, none of them over {_ROOMY} bytes")
        self._unsigned = unsigned
        self._leaves = [merkle.leaf_hash(_signing_input(one.kind, one.payload)) for one in unsigned]
        self._tree = merkle.Tree(self._leaves)

    @property
    def head(self) -> bytes:
        """The tree's head, 32 bytes: of one envelope alone, its leaf hash (`head_of` finds it from an envelope)."""
        return self._tree.root

    def leaf(self, place: int) -> bytes:
        """Return the hash of the leaf of one of them (`leaf_of` finds it from its envelope)."""
        return self._leaves[place]

    def sign(self, key: signing.PrivateKey) -> list[bytes]:
        """Return the envelopes in their order; one that is alone gets a signature of its own."""
        if len(self._unsigned) == 1:
            return [sign(key, self._unsigned[0])]
        tree = self._tree
        signature = key.sign(_BATCH_PREFIX + tree.size.to_bytes(2, "big") + tree.root)
        return [
            _envelope(key, one, b"".join((signature, _PLACE.pack(index, tree.size), *tree.path(index))))
            for index, one in enumerate(self._unsigned)
        ]


def leaf_of(opened: Opened) -> bytes:
    """Return the hash of an envelope's leaf in the tree of its batch (`Batch.leaf`)."""
    return merkle.leaf_hash(_signing_input(opened.kind, opened.payload))


def head_of(opened: Opened) -> bytes:
    """Return the head of the batch that an envelope was signed in (`Batch.head`), whether or not it was alone."""
    return opened.head or leaf_of(opened)


def _envelope(key: signing.PrivateKey, unsigned: Unsigned, signature: bytes) -> bytes:
    return b"".join(
        (
            _KEY_FIELD,
            signing.libp2p_public_key(key.public_key),
            _fields_before_signature(unsigned),
            _SIGNATURE_HEADS[len(signature)],
            signature,
        )
    )


def _fields_before_signature(unsigned: Unsigned) -> bytes:
    if not unsigned.payload:  # proto3 leaves an empty field out
        return _TYPE_FIELDS[unsigned.kind]
    return _TYPE_FIELDS[unsigned.kind] + _PAYLOAD_TAG + _varint(len(unsigned.payload)) + unsigned.payload


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_kind(data: bytes) -> tuple[str, int]:
    if len(data) < _KEY_END + 2 or data[_KEY_END : _KEY_END + 1] != _TYPE_TAG:
        raise EnvelopeMalformed("the envelope has no payload type")
    end = _KEY_END + 2 + data[_KEY_END + 1]
    kind = _KINDS_BY_TYPE.get(data[_KEY_END + 2 : end])
    if kind is None:
        raise EnvelopeMalformed("the envelope is of no kind that is known here")
    return kind, end


def _find_payload(data: bytes, at: int) -> tuple[int, int]:
    """Return where the payload begins and ends; both are `at` if there is none."""
    if data[at : at + 1] != _PAYLOAD_TAG:
        return at, at
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
            return index + 1, index + 1 + length
    raise EnvelopeMalformed("the payload's length is wrong")


def _read_signature(data: bytes, at: int) -> bytes:
    """Return the content of the last field: a signature, or a signature with its place in a batch and its path."""
    length = len(data) - at - 2
    if length > 0x7F:  # it takes two bytes to say so
        length -= 1
    start = len(data) - length
    signature = data[start:]
    head = _SIGNATURE_HEADS.get(length)
    if head is None or data[at:start] != head or (length != _SIGNATURE_BYTES and not _fits_its_place(signature)):
        raise EnvelopeMalformed("the envelope does not end with one Ed25519 signature, or with one of a batch")
    return signature


def _fits_its_place(proof: bytes) -> bool:
    """Whether `proof` is as long as the path to the place that it names takes; nothing is hashed yet."""
    index, size = _PLACE.unpack_from(proof, _SIGNATURE_BYTES)
    if not 2 <= size <= MAX_BATCH or index >= size:
        return False
    return len(proof) == _PATH_AT + merkle.HASH_BYTES * merkle.path_length(index, size)


def _verify_in_batch(signer: bytes, proof: bytes, signed: bytes) -> tuple[bytes, int, int]:
    """Verify the signature over the head that the path leads to, from what it shall have signed.

    Returns:
        The head, the envelope's place under it, and how many there are.
    """
    index, size = _PLACE.unpack_from(proof, _SIGNATURE_BYTES)
    path = [proof[at : at + merkle.HASH_BYTES] for at in range(_PATH_AT, len(proof), merkle.HASH_BYTES)]
    root = merkle.root_from_path(merkle.leaf_hash(signed), index, size, path)
    _verify_head(signer, proof[:_SIGNATURE_BYTES], proof[_SIZE_AT:_PATH_AT] + root)
    return root, index, size


@lru_cache(maxsize=_VERIFIED_HEADS)
def _verify_head(signer: bytes, signature: bytes, size_and_root: bytes) -> None:
    """Verify the signature of a batch, or know that these very bytes have been verified.

    The result depends on the three arguments alone, and they are the key, whole. One that raises is not remembered.
    """
    signing.verify(signer, signature, _BATCH_PREFIX + size_and_root)


# -- constants of the kinds --------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    """Return the unsigned varint of `value` (https://github.com/multiformats/unsigned-varint)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _payload_type(kind: str) -> bytes:
    return b"/comity/v1/" + kind.encode("ascii")


def _prefix(kind: str) -> bytes:
    """The signing input of a kind (RFC 0002) up to the payload's length."""
    parts = (b"comity/v1/" + kind.encode("ascii"), _payload_type(kind))
    return b"".join(_varint(len(part)) + part for part in parts)


_KINDS = MESSAGE_KINDS | DOCUMENT_KINDS
_KINDS_BY_TYPE = {_payload_type(kind): kind for kind in _KINDS}
_TYPE_FIELDS = {kind: _TYPE_TAG + _varint(len(_payload_type(kind))) + _payload_type(kind) for kind in _KINDS}
_PREFIXES = {kind: _prefix(kind) for kind in _KINDS}
_NO_PAYLOAD = _varint(0)
#: Before a signature field of each length that there is: its tag and its length.
_SIGNATURE_HEADS = {
    length: _SIGNATURE_TAG + _varint(length)
    for length in (_SIGNATURE_BYTES, *(_PATH_AT + merkle.HASH_BYTES * steps for steps in range(1, 13)))
}
_BATCH_PREFIX = _prefix("batch") + _varint(2 + merkle.HASH_BYTES)
