"""Multiaddrs as text and as bytes, varints and the messages that they delimit."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import ConfigError, FrameTooLarge, ProtocolError, SignatureInvalid
from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.transport.address import Address, is_own_machine, may_dial, parse_address
from comity_node.transport.multiaddr import decode_known, decode_multiaddr, encode_multiaddr
from comity_node.transport.varint import Delimited, decode_varint, delimit, encode_varint

RELAY = PrivateKey(bytes(32)).peer_id
PEER = PrivateKey(bytes([1] * 32)).peer_id

FORMS = [
    "/ip4/192.0.2.1/tcp/4001",
    "/ip6/2001:db8::1/tcp/65535",
    "/dns/node.mercy.example/tcp/0",
    "/dns4/node.mercy.example/tcp/4001",
    "/dns6/node.mercy.example/tcp/4001",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY}/p2p-circuit",
    f"/dns4/relay.hope.example/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
]


@pytest.mark.parametrize("text", FORMS)
def test_every_form_comes_back_as_text_and_as_bytes(text: str) -> None:
    address = parse_address(text)
    assert str(address) == text
    assert decode_multiaddr(encode_multiaddr(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/192.0.2.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{RELAY}",
        f"/ip4/192.0.2.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{PEER}/p2p-circuit",
        f"/ip4/192.0.2.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p",
        f"/ip4/192.0.2.1/tcp/1/p2p/{RELAY}/p2p/{PEER}",
        f"/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
        "/ip4/192.0.2.1/tcp/1/p2p-circuit",
        "/ip4/192.0.2.1/tcp/1/p2p/nobody/p2p-circuit",
        f"/ip4/192.0.2.1/udp/1/p2p/{RELAY}/p2p-circuit",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/1/",
        "",
    ],
)
def test_what_is_none_of_the_forms_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text)


def test_the_parts_of_an_address_through_a_relay() -> None:
    address = parse_address(FORMS[-1])
    assert (address.relay, address.peer_id) == (RELAY, PEER)
    assert str(address.relay_address) == f"/dns4/relay.hope.example/tcp/4001/p2p/{RELAY}"
    assert str(address.relay_address.through()) == address.without_peer == FORMS[-1].removesuffix(f"/p2p/{PEER}")


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1", "0.0.0.0"])
def test_a_relay_at_a_private_address_is_judged_like_a_node_there(host: str) -> None:
    circuit = parse_address(f"/ip4/{host}/tcp/1/p2p/{RELAY}/p2p-circuit")
    assert not may_dial(circuit, allow_private=False)
    assert may_dial(circuit, allow_private=True) is (host != "0.0.0.0")
    assert may_dial(parse_address(f"/ip4/1.1.1.1/tcp/1/p2p/{RELAY}/p2p-circuit"), allow_private=False)


def test_the_binary_form_is_that_of_the_table_of_protocols() -> None:
    """Codes 4, 6, 41, 54, 290 and 421 of multiformats' protocols.csv."""
    assert encode_multiaddr(parse_address("/ip4/127.0.0.1/tcp/4001")) == bytes.fromhex("047f000001060fa1")
    assert encode_multiaddr(parse_address("/ip6/::1/tcp/1")) == bytes.fromhex("29" + "00" * 15 + "01" + "060001")
    assert encode_multiaddr(parse_address("/dns4/a.example/tcp/1")) == b"\x36\x09a.example\x06\x00\x01"
    circuit = encode_multiaddr(Address("ip4", "1.2.3.4", 5, relay=RELAY))
    assert circuit[:8] == b"\x04\x01\x02\x03\x04\x06\x00\x05"
    assert circuit[8:12] == b"\xa5\x03\x26\x00"  # p2p, 38 bytes, the multihash "identity"
    assert circuit[-2:] == b"\xa2\x02"


def test_addresses_of_other_transports_are_left_out() -> None:
    quic = bytes.fromhex("047f000001910203e8cd03")  # /ip4/127.0.0.1/udp/1000/quic-v1
    good = encode_multiaddr(parse_address("/ip4/1.1.1.1/tcp/1"))
    assert decode_known([quic, good, b"", b"\x04\x01", good + b"\x00"]) == [parse_address("/ip4/1.1.1.1/tcp/1")]


@given(st.binary(max_size=600))
def test_bytes_that_are_no_address_are_refused_and_nothing_else_happens(data: bytes) -> None:
    try:
        address = decode_multiaddr(data)
    except ProtocolError:
        return
    assert decode_multiaddr(encode_multiaddr(address)) == address


@given(st.integers(0, 2**35 - 1))
def test_a_varint_comes_back(number: int) -> None:
    assert decode_varint(b"x" + encode_varint(number) + b"y", 1) == (number, 1 + len(encode_varint(number)))


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff\xff\xff\xff\xff", b"\x80\x80\x80\x80\x80\x01"])
def test_a_varint_that_is_too_long_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_varint(data)


@given(st.lists(st.binary(max_size=300), max_size=5), st.binary(max_size=50), st.integers(1, 64))
def test_messages_come_out_however_the_bytes_are_cut_and_the_rest_is_left(
    messages: list[bytes], rest: bytes, cut: int
) -> None:
    stream = b"".join(map(delimit, messages)) + rest
    delimited = Delimited(300)
    taken: list[bytes] = []
    for start in range(0, len(stream), cut):
        delimited.receive(stream[start : start + cut])
        while len(taken) < len(messages) and (message := delimited.take()) is not None:
            taken.append(message)
    assert (taken, delimited.rest) == (messages, rest)


@pytest.mark.invariant("S7")
def test_a_length_over_the_limit_is_refused_before_anything_is_stored() -> None:
    delimited = Delimited(4096)
    delimited.receive(encode_varint(4097))
    with pytest.raises(FrameTooLarge):
        delimited.take()
    fresh = Delimited(4096)
    assert fresh.wanted == 4096 + 5
    fresh.receive(encode_varint(4096) + bytes(4000))
    assert fresh.take() is None
    assert fresh.wanted <= 101


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(
    "host",
    [
        "::ffff:10.0.0.1",  # IPv4-mapped
        "::10.0.0.1",  # IPv4-compatible
        "64:ff9b::10.0.0.1",  # NAT64
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::8.8.8.8",  # a translator of some network's own
        "2002:a00:1::1",  # 6to4 to 10.0.0.1
        "fec0::1",  # site-local
        "ff02::1",  # multicast
        "ff0e::1",
    ],
)
def test_no_form_of_an_address_leads_into_our_own_network(host: str) -> None:
    assert not may_dial(Address("ip6", host, 1), allow_private=False)


@pytest.mark.parametrize("host", ["2606:4700::1", "64:ff9b::8.8.8.8", "2002:808:808::1"])
def test_what_is_reached_by_everybody_is_dialled(host: str) -> None:
    assert may_dial(Address("ip6", host, 1), allow_private=False)
    assert not is_own_machine(host)


def test_a_name_that_leads_through_a_translator_to_this_machine_is_seen_through() -> None:
    assert is_own_machine("64:ff9b::127.0.0.1")
    assert is_own_machine("2002:7f00:1::")
    assert is_own_machine("64:ff9b::169.254.169.254")


@pytest.mark.invariant("S7")
def test_a_peer_id_has_one_form_and_its_length_is_looked_at_first() -> None:
    for other in (f"{PEER} ", f"{PEER}\n", f" {PEER}", f"1{PEER}"):
        with pytest.raises(SignatureInvalid):
            peer_id_to_bytes(other)
    with pytest.raises(ConfigError):
        parse_address(f"/ip4/192.0.2.1/tcp/1/p2p/{PEER} ")
    began = time.process_time()
    with pytest.raises(SignatureInvalid) as raised:
        peer_id_to_bytes("z" * 1_000_000)  # decoding it takes minutes
    assert time.process_time() - began < 0.1
    assert len(str(raised.value)) < 200
