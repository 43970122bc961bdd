"""Circuit relay v2 with no I/O: its messages, and what a relay gives to whom.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md. A peer that cannot be dialled reserves a place
at a relay (`hop`, RESERVE). Whoever wants to reach it asks the relay (`hop`, CONNECT), which asks the peer
(`stop`, CONNECT); when both are content the two streams become one circuit of raw bytes, in which the two
ends make a secured connection of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

import base58
from google.protobuf.message import DecodeError, Message

from comity.errors import ProtocolError, SignatureInvalid, UnexpectedMessage
from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.p2p.v1.circuit_pb2 import (
    CircuitLimit,
    CircuitPeer,
    HopMessage,
    HopType,
    Reservation,
    StopMessage,
    StopType,
    Voucher,
)
from comity_node.transport.address import Address
from comity_node.transport.multiaddr import decode_known, encode_multiaddr
from comity_node.transport.signed_envelope import EnvelopeKind
from comity_node.transport.varint import delimit

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
#: The specification names no bound; a reservation with a voucher and some addresses takes a few hundred bytes.
MAX_MESSAGE: Final = 4096
#: Addresses of a relay that are written and read.
MAX_RELAY_ADDRESSES: Final = 8
_VOUCHER: Final = EnvelopeKind(b"libp2p-relay-rsvp", b"\x03\x02")

M = TypeVar("M", bound=Message)


class Status(IntEnum):
    """How a relay, or the peer at the end of a circuit, answers."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class Reserve:
    """Asks a relay for a place."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Asks a relay for a circuit to a peer, or (of `stop`) a peer whether it takes one from `peer`."""

    peer: str
    limit_s: int = 0
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it.

    Attributes:
        status: a `Status`, or a number of another implementation's.
        limit_s: how long a circuit may last; 0: as long as it likes.
        limit_bytes: what it may carry in each direction; 0: as much as it likes.
        expires_s: of a reservation, in seconds since the Unix epoch; 0 if it is none.
        addresses: of the relay, with its PeerId.
        voucher: the relay's signed word for it.
    """

    status: int
    limit_s: int = 0
    limit_bytes: int = 0
    expires_s: int = 0
    addresses: tuple[Address, ...] = ()
    voucher: bytes = b""

    @property
    def says(self) -> str:
        """The status for a person."""
        return Status(self.status).name if self.status in set(Status) else f"status {self.status}"


def encode_hop(message: Reserve | Connect | Answer) -> bytes:
    """Return a message of the `hop` protocol, after its length."""
    match message:
        case Reserve():
            encoded = HopMessage(type=HopType.HOP_TYPE_RESERVE)
        case Connect(peer):
            encoded = HopMessage(type=HopType.HOP_TYPE_CONNECT, peer=CircuitPeer(id=peer_id_to_bytes(peer)))
        case Answer(status):
            encoded = HopMessage(type=HopType.HOP_TYPE_STATUS, limit=_limit(message.limit_s, message.limit_bytes))
            encoded.status = status  # type: ignore[assignment]  # an open enumeration
            if message.expires_s:
                addresses = [encode_multiaddr(each) for each in message.addresses[:MAX_RELAY_ADDRESSES]]
                encoded.reservation.CopyFrom(
                    Reservation(expire=message.expires_s, addrs=addresses, voucher=message.voucher)
                )
    return delimit(encoded.SerializeToString(deterministic=True))


def decode_hop(data: bytes) -> Reserve | Connect | Answer:
    """Read a message of the `hop` protocol, without its length.

    Raises:
        ProtocolError: it is malformed.
    """
    message = _parsed(HopMessage(), data)
    if not message.HasField("type"):
        raise ProtocolError("a relay message without a type")
    match message.type:
        case HopType.HOP_TYPE_RESERVE:
            return Reserve()
        case HopType.HOP_TYPE_CONNECT:
            return Connect(_peer(message.peer))
        case HopType.HOP_TYPE_STATUS:
            reservation = message.reservation if message.reservation.expire else Reservation()  # without an end: none
            return Answer(
                status=message.status,
                limit_s=message.limit.duration,
                limit_bytes=message.limit.data,
                expires_s=reservation.expire,
                addresses=tuple(decode_known(reservation.addrs[:MAX_RELAY_ADDRESSES])),
                voucher=reservation.voucher,
            )
        case _:
            raise ProtocolError(f"a relay message of the unknown type {message.type}")


def encode_stop(message: Connect | Answer) -> bytes:
    """Return a message of the `stop` protocol, after its length."""
    match message:
        case Connect(peer, limit_s, limit_bytes):
            encoded = StopMessage(
                type=StopType.STOP_TYPE_CONNECT,
                peer=CircuitPeer(id=peer_id_to_bytes(peer)),
                limit=_limit(limit_s, limit_bytes),
            )
        case Answer(status):
            encoded = StopMessage(type=StopType.STOP_TYPE_STATUS)
            encoded.status = status  # type: ignore[assignment]  # an open enumeration
    return delimit(encoded.SerializeToString(deterministic=True))


def decode_stop(data: bytes) -> Connect | Answer:
    """Read a message of the `stop` protocol, without its length.

    Raises:
        ProtocolError: it is malformed.
    """
    message = _parsed(StopMessage(), data)
    if not message.HasField("type"):
        raise ProtocolError("a relay message without a type")
    match message.type:
        case StopType.STOP_TYPE_CONNECT:
            return Connect(_peer(message.peer), message.limit.duration, message.limit.data)
        case StopType.STOP_TYPE_STATUS:
            return Answer(status=message.status)
        case _:
            raise ProtocolError(f"a relay message of the unknown type {message.type}")


def expect_answer(message: Reserve | Connect | Answer) -> Answer:
    """Return the answer that a message is.

    Raises:
        UnexpectedMessage: it is a question.
    """
    if not isinstance(message, Answer):
        raise UnexpectedMessage(f"the peer said {type(message).__name__} where an answer belongs")
    return message


def seal_voucher(key: PrivateKey, peer: str, expires_s: int) -> bytes:
    """Return the relay's signed word that `peer` has a reservation.

    Args:
        key: the relay's.
        peer: the PeerId of whoever has reserved.
        expires_s: seconds since the Unix epoch.
    """
    payload = Voucher(
        relay=peer_id_to_bytes(key.peer_id), peer=peer_id_to_bytes(peer), expiration=expires_s
    ).SerializeToString(deterministic=True)
    return _VOUCHER.seal(key, payload)


def open_voucher(voucher: bytes, *, relay: str, peer: str) -> int:
    """Verify the relay's word for our reservation, and return when it expires, in seconds since the Unix epoch.

    Args:
        voucher: what the relay sent.
        relay: the PeerId of the relay.
        peer: the PeerId of whoever has reserved.

    Raises:
        ProtocolError: it is malformed, or speaks of others.
        SignatureInvalid: the relay has not signed it.
    """
    signer, payload = _VOUCHER.open(voucher)
    if signer != relay:
        raise SignatureInvalid("the voucher is not one of the relay's")
    content = _parsed(Voucher(), payload)
    if content.relay != peer_id_to_bytes(relay) or content.peer != peer_id_to_bytes(peer):
        raise ProtocolError("the voucher speaks of another relay or another peer")
    return content.expiration


def _limit(limit_s: int, limit_bytes: int) -> CircuitLimit | None:
    return CircuitLimit(duration=limit_s, data=limit_bytes) if limit_s or limit_bytes else None


def _parsed(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("a message of the relay protocol is malformed") from error
    return message


def _peer(peer: CircuitPeer) -> str:
    text = base58.b58encode(peer.id).decode("ascii") if len(peer.id) <= 64 else ""
    try:
        peer_id_to_bytes(text)
    except SignatureInvalid as error:
        raise ProtocolError("a relay message names no PeerId of an Ed25519 key") from error
    return text
