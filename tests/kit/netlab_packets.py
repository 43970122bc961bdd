"""Packets made and checked independently of the lab's router: checksums are summed up from scratch."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

TCP, UDP = 6, 17
SYN, ACK, FIN, RST = 0x02, 0x10, 0x01, 0x04


@dataclass(frozen=True, slots=True)
class Packet:
    """What a test wants to know of a packet."""

    protocol: int
    source: tuple[str, int]
    destination: tuple[str, int]
    flags: int
    payload: bytes


def ones_complement_sum(data: bytes) -> int:
    """The 16-bit one's complement sum of RFC 1071, word by word."""
    padded = data + b"\0" * (len(data) % 2)
    total = 0
    for at in range(0, len(padded), 2):
        total += padded[at] << 8 | padded[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def make(
    source: tuple[str, int],
    destination: tuple[str, int],
    *,
    protocol: int = TCP,
    flags: int = 0,
    payload: bytes = b"",
    options: bytes = b"",
    udp_checksum: bool = True,
) -> bytes:
    """Build a packet with true checksums."""
    if protocol == TCP:
        head = struct.pack("!HHIIBBHHH", source[1], destination[1], 1, 2, 5 << 4, flags, 1024, 0, 0)
        at = 16
    else:
        head = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0)
        at = 6
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    body = head + payload
    if protocol == TCP or udp_checksum:
        pseudo = addresses + struct.pack("!BBH", 0, protocol, len(body))
        checksum = 0xFFFF - ones_complement_sum(pseudo + body)
        if protocol == UDP:
            checksum = checksum or 0xFFFF
        body = body[:at] + struct.pack("!H", checksum) + body[at + 2 :]
    words = (20 + len(options)) // 4
    fixed = struct.pack("!BBHHHBBH", 4 << 4 | words, 0, 20 + len(options) + len(body), 7, 0x4000, 64, protocol, 0)
    ip = fixed + addresses + options
    ip = ip[:10] + struct.pack("!H", 0xFFFF - ones_complement_sum(ip)) + ip[12:]
    return ip + body


def read(packet: bytes) -> Packet:
    """Read a packet.

    Raises:
        AssertionError: a length or a checksum in it is wrong.
    """
    size = (packet[0] & 0xF) * 4
    assert packet[0] >> 4 == 4
    assert struct.unpack("!H", packet[2:4])[0] == len(packet)
    assert ones_complement_sum(packet[:size]) == 0xFFFF, "the header's checksum is wrong"
    protocol, body = packet[9], packet[size:]
    pseudo = packet[12:20] + struct.pack("!BBH", 0, protocol, len(body))
    if protocol == TCP or body[6:8] != b"\0\0":
        assert ones_complement_sum(pseudo + body) == 0xFFFF, "the transport checksum is wrong"
    ports = struct.unpack("!HH", body[:4])
    return Packet(
        protocol,
        (socket.inet_ntoa(packet[12:16]), ports[0]),
        (socket.inet_ntoa(packet[16:20]), ports[1]),
        body[13] if protocol == TCP else 0,
        body[20:] if protocol == TCP else body[8:],
    )
