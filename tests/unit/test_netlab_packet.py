"""The lab's packets: what is refused, and that rewriting keeps every checksum true."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import netlab_packets as packets
from kit.netlab.packet import Header, PacketError, parse, with_destination, with_source
from kit.netlab_packets import TCP, UDP

A, B, NEW = ("192.168.1.2", 4001), ("11.0.0.9", 80), ("11.0.0.1", 61000)
endpoints = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535))


def packed(endpoint: tuple[str, int]) -> tuple[bytes, int]:
    return socket.inet_aton(endpoint[0]), endpoint[1]


def test_the_endpoints_are_read() -> None:
    header = parse(packets.make(A, B, flags=packets.SYN, options=b"\1\1\1\1"))
    assert header == Header(TCP, packed(A), packed(B), 24, packets.SYN)


@given(
    old=endpoints,
    new=endpoints,
    other=endpoints,
    protocol=st.sampled_from([TCP, UDP]),
    payload=st.binary(max_size=40),
    options=st.sampled_from([b"", b"\1\1\1\1"]),
)
def test_rewritten_packets_have_true_checksums(
    old: tuple[str, int],
    new: tuple[str, int],
    other: tuple[str, int],
    protocol: int,
    payload: bytes,
    options: bytes,
) -> None:
    sent = packets.make(old, other, protocol=protocol, payload=payload, options=options)
    out = packets.read(with_source(sent, parse(sent), packed(new)))
    assert (out.source, out.destination, out.payload) == (new, other, payload)
    sent = packets.make(other, old, protocol=protocol, payload=payload, options=options)
    out = packets.read(with_destination(sent, parse(sent), packed(new)))
    assert (out.source, out.destination, out.payload) == (other, new, payload)


def test_udp_without_a_checksum_stays_without() -> None:
    sent = packets.make(A, B, protocol=UDP, payload=b"x", udp_checksum=False)
    out = with_source(sent, parse(sent), packed(NEW))
    assert out[26:28] == b"\0\0"
    assert packets.read(out).source == NEW


def test_a_checksum_that_becomes_zero_is_written_as_ones() -> None:
    found = 0
    for port in range(65536):
        sent = packets.make(A, B, protocol=UDP, payload=b"\x12\x34")
        out = with_source(sent, parse(sent), (socket.inet_aton("11.0.0.1"), port))
        assert out[26:28] != b"\0\0"
        found += out[26:28] == b"\xff\xff"
    assert found >= 1


good = packets.make(A, B, payload=b"hello")


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "no IPv4"),
        (b"\x60" + bytes(39), "no IPv4"),
        (good[:19], "no IPv4"),
        (good[:-1], "length in the header"),
        (good + b"x", "length in the header"),
        (b"\x4f" + good[1:], "cut off"),
        (b"\x44" + good[1:], "cut off"),
        (good[:6] + b"\x20\x00" + good[8:], "fragment"),
        (good[:6] + b"\x00\x01" + good[8:], "fragment"),
        (good[:9] + b"\x01" + good[10:], "neither TCP nor UDP"),
    ],
)
def test_what_is_no_packet_to_forward(packet: bytes, reason: str) -> None:
    with pytest.raises(PacketError, match=reason):
        parse(packet)


@given(st.binary(max_size=60), st.integers(0, 44))
def test_any_bytes_are_a_packet_or_refused(noise: bytes, at: int) -> None:
    for data in (noise, good[:at] + noise, good[:at] + noise[: len(good) - at] + good[at + len(noise) :]):
        try:
            parse(data)
        except PacketError:
            continue
