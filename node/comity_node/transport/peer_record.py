"""Signed peer records: where a peer can be dialled, in its own words.

A Routing Record (https://github.com/libp2p/specs/blob/master/RFC/0003-routing-records.md) in a signed envelope
(`transport.signed_envelope`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from comity import signing
from comity.errors import ProtocolError, TrustError
from comity.signing import PrivateKey
from comity_node.p2p.v1.peer_record_pb2 import AddressInfo, PeerRecord
from comity_node.transport.address import Address
from comity_node.transport.multiaddr import decode_known, encode_multiaddr
from comity_node.transport.signed_envelope import EnvelopeKind

_RECORD: Final = EnvelopeKind(b"libp2p-peer-record", b"\x03\x01")
MAX_RECORD: Final = 8 * 1024
_MAX_ADDRESSES: Final = 32


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record whose signature verified.

    Attributes:
        peer_id: who says so.
        seq: which of two records of a peer is the newer one.
        addresses: those that Comity can dial.
    """

    peer_id: str
    seq: int
    addresses: tuple[Address, ...]


def sign_record(key: PrivateKey, seq: int, addresses: Sequence[Address]) -> bytes:
    """Return the signed record of a node's own addresses."""
    record = PeerRecord(
        peer_id=signing.peer_id_to_bytes(key.peer_id),
        seq=seq,
        addresses=[AddressInfo(multiaddr=encode_multiaddr(each)) for each in addresses[:_MAX_ADDRESSES]],
    ).SerializeToString()
    return _RECORD.seal(key, record)


def open_record(data: bytes) -> SignedRecord:
    """Verify a signed record.

    Raises:
        ProtocolError: it is too large, malformed, of another key than Ed25519, not signed by the peer that it is of.
    """
    if len(data) > MAX_RECORD:
        raise ProtocolError(f"a peer record of {len(data)} bytes")
    try:
        peer_id, payload = _RECORD.open(data)
        record = PeerRecord.FromString(payload)
    except (DecodeError, TrustError) as error:
        raise ProtocolError(f"a peer record that does not verify: {error}") from error
    if record.peer_id != signing.peer_id_to_bytes(peer_id):
        raise ProtocolError("a peer record of somebody else than its signer")
    known = decode_known([each.multiaddr for each in record.addresses[:_MAX_ADDRESSES]])
    return SignedRecord(peer_id, record.seq, tuple(known))
