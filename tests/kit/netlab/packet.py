"""IPv4 packets as the wire needs them: endpoints read, endpoints rewritten, checksums kept true.

RFC 791 (IPv4), RFC 9293 (TCP), RFC 768 (UDP), RFC 1071 (the checksum), RFC 1624 (its incremental update).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

TCP: Final = socket.IPPROTO_TCP
UDP: Final = socket.IPPROTO_UDP
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04

#: An IPv4 address, four bytes, and a port.
Endpoint = tuple[bytes, int]

_IP_CHECKSUM = 10
_SOURCE, _DESTINATION = 12, 16
#: Where the checksum lies in the transport header.
_TRANSPORT_CHECKSUM = {TCP: 16, UDP: 6}
_TRANSPORT_HEADER = {TCP: 20, UDP: 8}
_MIN_HEADER = 20
_FRAGMENT = 0x3FFF  # more fragments follow, or this one has an offset
_WORD = struct.Struct("!H")


class PacketError(ValueError):
    """The bytes are no IPv4 packet that can be forwarded."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a router reads of a TCP or UDP packet.

    Attributes:
        protocol: TCP or UDP.
        source: who sent it.
        destination: to whom.
        offset: where the transport header begins.
        flags: TCP's flags; 0 for UDP.
    """

    protocol: int
    source: Endpoint
    destination: Endpoint
    offset: int
    flags: int


def addresses(packet: bytes) -> tuple[bytes, bytes]:
    """Return source and destination address.

    Raises:
        PacketError: it is not IPv4, or cut off.
    """
    if len(packet) < _MIN_HEADER or packet[0] >> 4 != 4:
        raise PacketError("no IPv4 packet")
    if _WORD.unpack_from(packet, 2)[0] != len(packet):
        raise PacketError("the length in the header is not that of the packet")
    return packet[_SOURCE:_DESTINATION], packet[_DESTINATION:_MIN_HEADER]


def parse(packet: bytes) -> Header:
    """Read the endpoints of a whole TCP or UDP packet.

    Raises:
        PacketError: it is not IPv4, cut off, a fragment, or of another protocol.
    """
    source, destination = addresses(packet)
    offset = (packet[0] & 0x0F) * 4
    protocol = packet[9]
    if protocol not in _TRANSPORT_HEADER:
        raise PacketError(f"IP protocol {protocol} is neither TCP nor UDP")
    if offset < _MIN_HEADER or len(packet) < offset + _TRANSPORT_HEADER[protocol]:
        raise PacketError("the header is cut off")
    if _WORD.unpack_from(packet, 6)[0] & _FRAGMENT:
        raise PacketError("a fragment has no ports")
    ports = struct.unpack_from("!HH", packet, offset)
    flags = packet[offset + 13] if protocol == TCP else 0
    return Header(protocol, (source, ports[0]), (destination, ports[1]), offset, flags)


def with_source(packet: bytes, header: Header, source: Endpoint) -> bytes:
    """Return the packet as if `source` had sent it."""
    return _rewritten(packet, header, _SOURCE, header.offset, header.source, source)


def with_destination(packet: bytes, header: Header, destination: Endpoint) -> bytes:
    """Return the packet with another destination."""
    return _rewritten(packet, header, _DESTINATION, header.offset + 2, header.destination, destination)


def _rewritten(packet: bytes, header: Header, at: int, port_at: int, old: Endpoint, new: Endpoint) -> bytes:
    changed = bytearray(packet)
    changed[at : at + 4] = new[0]
    _WORD.pack_into(changed, port_at, new[1])
    before, after = struct.unpack("!HH", old[0]), struct.unpack("!HH", new[0])
    _patch(changed, _IP_CHECKSUM, before, after)
    checksum_at = header.offset + _TRANSPORT_CHECKSUM[header.protocol]
    no_checksum = header.protocol == UDP and not _WORD.unpack_from(changed, checksum_at)[0]
    if not no_checksum:
        # The pseudo-header covers the addresses, so they count here once more.
        _patch(changed, checksum_at, (*before, old[1]), (*after, new[1]))
        if header.protocol == UDP and not _WORD.unpack_from(changed, checksum_at)[0]:
            _WORD.pack_into(changed, checksum_at, 0xFFFF)  # 0 would mean that there is none
    return bytes(changed)


def _patch(packet: bytearray, at: int, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Update the checksum at `at` for words that change (RFC 1624, equation 3)."""
    total = ~_WORD.unpack_from(packet, at)[0] & 0xFFFF
    total += sum(~word & 0xFFFF for word in before) + sum(after)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    _WORD.pack_into(packet, at, ~total & 0xFFFF)
