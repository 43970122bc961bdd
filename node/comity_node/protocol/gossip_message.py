"""A gossiped message and its signature: libp2p's StrictSign policy, with Ed25519 authors.

The signature is over "libp2p-pubsub:" and the message's protobuf without the fields `signature` and `key`
(https://github.com/libp2p/specs/tree/master/pubsub, Message Signing). Every implementation writes those four
fields in the order of their numbers, so the one encoding is made here from the fields, byte by byte: a message that was
signed over anything else (unknown fields, several topics) does not verify, and what is forwarded is what was verified.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from comity.errors import SignatureInvalid
from comity.signing import PrivateKey, from_libp2p_public_key, verify

#: Bytes of a sequence number.
SEQNO_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
#: Bytes of an Ed25519 PeerId: an "identity" multihash of the public key itself.
PEER_BYTES: Final = 38
_PREFIX: Final = b"libp2p-pubsub:"
_IDENTITY: Final = b"\x00\x24"
_AUTHOR, _DATA, _SEQNO, _TOPIC, _SIGNATURE = b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a"


@dataclass(frozen=True, slots=True)
class GossipMessage:
    """One message.

    Attributes:
        author: the author's PeerId as a multihash.
        data: the payload.
        seqno: 8 bytes, big-endian.
        topic: the one topic that it is published to.
        signature: the author's.
        id: what IHAVE and IWANT call it: author and sequence number.
    """

    author: bytes
    data: bytes
    seqno: bytes
    topic: str
    signature: bytes = b""
    id: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.author + self.seqno)

    @property
    def number(self) -> int:
        """The sequence number."""
        return int.from_bytes(self.seqno, "big")

    def signed_part(self) -> bytes:
        """The protobuf of everything but the signature."""
        topic = self.topic.encode("utf-8")
        return b"".join(
            (
                _AUTHOR, varint(len(self.author)), self.author,
                _DATA, varint(len(self.data)), self.data,
                _SEQNO, varint(len(self.seqno)), self.seqno,
                _TOPIC, varint(len(topic)), topic,
            )
        )  # fmt: skip

    def encode(self) -> bytes:
        """The message's protobuf."""
        return b"".join((self.signed_part(), _SIGNATURE, varint(len(self.signature)), self.signature))


def sign_message(key: PrivateKey, author: bytes, topic: str, data: bytes, number: int) -> GossipMessage:
    """Return a signed message.

    Args:
        key: the author's key.
        author: its PeerId as a multihash.
        topic: where it is published.
        data: the payload.
        number: the sequence number, higher than any that this author has used before.
    """
    seqno = number.to_bytes(SEQNO_BYTES, "big")
    unsigned = GossipMessage(author, data, seqno, topic)
    return GossipMessage(author, data, seqno, topic, key.sign(_PREFIX + unsigned.signed_part()))


def verify_message(message: GossipMessage) -> None:
    """Check that a message's signature is its author's.

    Raises:
        SignatureInvalid: it is not, or the author's PeerId holds no Ed25519 key.
    """
    if len(message.author) != PEER_BYTES or not message.author.startswith(_IDENTITY):
        raise SignatureInvalid("the author's PeerId holds no Ed25519 key")
    key = from_libp2p_public_key(message.author[len(_IDENTITY) :])
    verify(key, message.signature, _PREFIX + message.signed_part())


def varint(value: int) -> bytes:
    """Return the unsigned varint of a number that is not negative (https://github.com/multiformats/unsigned-varint)."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
