"""Addresses (`transport.address`) in the binary form of multiaddrs, in which libp2p's messages carry them.

The codes are those of https://github.com/multiformats/multiaddr/blob/master/protocols.csv.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

import base58

from comity.errors import ConfigError, ProtocolError
from comity.signing import peer_id_to_bytes
from comity_node.transport.address import Address, parse_address
from comity_node.transport.varint import decode_varint, encode_varint

_IP4: Final = 4
_TCP: Final = 6
_IP6: Final = 41
_P2P_CIRCUIT: Final = 290
_P2P: Final = 421
_NAMES: Final = {"dns": 53, "dns4": 54, "dns6": 55}
_NAME_OF: Final = {code: name for name, code in _NAMES.items()}
#: More than the longest address of `transport.address` takes.
_MAX_BYTES: Final = 512


def encode_multiaddr(address: Address) -> bytes:
    """Return the binary form of an address."""
    if address.kind in ("ip4", "ip6"):
        packed = ipaddress.ip_address(address.host).packed
        encoded = encode_varint(_IP4 if address.kind == "ip4" else _IP6) + packed
    else:
        name = address.host.encode("ascii")
        encoded = encode_varint(_NAMES[address.kind]) + encode_varint(len(name)) + name
    encoded += encode_varint(_TCP) + address.port.to_bytes(2, "big")
    if address.relay:
        encoded += _encode_peer(address.relay) + encode_varint(_P2P_CIRCUIT)
    return encoded + (_encode_peer(address.peer_id) if address.peer_id else b"")


def decode_multiaddr(data: bytes) -> Address:
    """Read the binary form of an address.

    Raises:
        ProtocolError: it is malformed, or of another transport than TCP.
    """
    if len(data) > _MAX_BYTES:
        raise ProtocolError(f"an address of {len(data)} bytes")
    parts: list[str] = []
    position = 0
    while position < len(data):
        code, position = _number(data, position)
        text, position = _decode_part(code, data, position)
        parts.append(text)
    try:
        return parse_address("".join(parts))
    except ConfigError as error:
        raise ProtocolError(str(error)) from error


def decode_known(encoded: Iterable[bytes]) -> list[Address]:
    """Read those addresses that are well formed and of TCP; others name transports that Comity does not have."""
    known = []
    for data in encoded:
        try:
            known.append(decode_multiaddr(data))
        except ProtocolError:
            continue
    return known


def _encode_peer(peer_id: str) -> bytes:
    multihash = peer_id_to_bytes(peer_id)
    return encode_varint(_P2P) + encode_varint(len(multihash)) + multihash


def _decode_part(code: int, data: bytes, position: int) -> tuple[str, int]:
    if code == _P2P_CIRCUIT:
        return "/p2p-circuit", position
    if code in _NAME_OF or code == _P2P:
        length, position = _number(data, position)
    else:
        length = {_IP4: 4, _IP6: 16, _TCP: 2}.get(code, -1)
    value = data[position : position + length]
    if length < 0 or len(value) != length:
        raise ProtocolError(f"an address has a part {code} that is unknown or cut short")
    position += length
    match code:
        case 4:
            return f"/ip4/{ipaddress.IPv4Address(value)}", position
        case 41:
            return f"/ip6/{ipaddress.IPv6Address(value)}", position
        case 6:
            return f"/tcp/{int.from_bytes(value, 'big')}", position
        case 421:
            return f"/p2p/{base58.b58encode(value).decode('ascii')}", position
        case _:
            return f"/{_NAME_OF[code]}/{value.decode('ascii', 'replace')}", position


def _number(data: bytes, position: int) -> tuple[int, int]:
    read = decode_varint(data, position)
    if read is None:
        raise ProtocolError("an address ends in the middle of a number")
    return read
