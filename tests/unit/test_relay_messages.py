"""The messages of circuit relay v2, identify and DCUtR: what goes comes back, what is malformed is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import ComityError, ProtocolError, SignatureInvalid, UnexpectedMessage
from comity.signing import PrivateKey, libp2p_public_key, peer_id_to_bytes
from comity_node.p2p.v1.circuit_pb2 import CircuitPeer, HopMessage, SignedEnvelope
from comity_node.transport.address import Address, parse_address
from comity_node.transport.dcutr import PunchConnect, PunchSync, decode_punch, encode_punch
from comity_node.transport.identify import Identity, decode_identity, encode_identity
from comity_node.transport.relay import (
    Answer,
    Connect,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    expect_answer,
    open_voucher,
    seal_voucher,
)
from comity_node.transport.varint import Delimited

KEY, OTHER = PrivateKey(bytes(32)), PrivateKey(bytes([1] * 32))
RELAYS = (parse_address(f"/ip4/192.0.2.1/tcp/4001/p2p/{KEY.peer_id}"),)


def taken(data: bytes) -> bytes:
    delimited = Delimited(4096)
    delimited.receive(data)
    message = delimited.take()
    assert message is not None
    assert delimited.rest == b""
    return message


@pytest.mark.parametrize(
    "message",
    [
        Reserve(),
        Connect(OTHER.peer_id),
        Answer(Status.PERMISSION_DENIED),
        Answer(Status.OK, limit_s=7, limit_bytes=2**40),
        Answer(Status.OK, expires_s=1_800_000_000, addresses=RELAYS, voucher=b"v"),
    ],
)
def test_hop_messages_come_back(message: Reserve | Connect | Answer) -> None:
    assert decode_hop(taken(encode_hop(message))) == message


@pytest.mark.parametrize("message", [Connect(OTHER.peer_id), Connect(OTHER.peer_id, 3, 4), Answer(Status.OK)])
def test_stop_messages_come_back(message: Connect | Answer) -> None:
    assert decode_stop(taken(encode_stop(message))) == message


def test_the_bytes_are_those_of_the_specification() -> None:
    """Required fields of proto2 are written even when they are zero."""
    assert encode_hop(Reserve()) == bytes.fromhex("020800")
    assert encode_hop(Answer(Status.OK)) == bytes.fromhex("0408022864")
    multihash = peer_id_to_bytes(OTHER.peer_id)
    assert encode_hop(Connect(OTHER.peer_id)) == b"\x2c\x08\x01\x12\x28\x0a\x26" + multihash
    assert encode_stop(Answer(Status.CONNECTION_FAILED)) == bytes.fromhex("050801" + "20cb01")
    assert encode_stop(Connect(OTHER.peer_id, 1, 2))[-6:] == bytes.fromhex("1a0408011002")
    assert encode_punch(PunchSync()) == bytes.fromhex("08ac02")
    assert encode_punch(PunchConnect((Address("ip4", "1.2.3.4", 5),))) == bytes.fromhex(
        "0864" + "1208" + "0401020304060005"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\x07",
        b"\xff",
        HopMessage(type=1).SerializeToString(),  # type: ignore[arg-type]
        HopMessage(type=1, peer=CircuitPeer(id=b"x" * 38)).SerializeToString(),  # type: ignore[arg-type]
        HopMessage(type=1, peer=CircuitPeer(id=b"x" * 3000)).SerializeToString(),  # type: ignore[arg-type]
    ],
    ids=["no type", "unknown type", "no protobuf", "no peer", "no PeerId", "a long PeerId"],
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_hop(data)
    if data[:2] != b"\x08\x01":  # in the stop protocol 1 is an answer
        with pytest.raises(ProtocolError):
            decode_stop(data)


def test_a_question_is_no_answer_and_an_unknown_status_is_shown() -> None:
    with pytest.raises(UnexpectedMessage, match="Reserve"):
        expect_answer(Reserve())
    assert expect_answer(Answer(777)).says == "status 777"
    assert Answer(Status.NO_RESERVATION).says == "NO_RESERVATION"


def test_a_voucher_is_good_for_its_relay_and_its_peer_alone() -> None:
    voucher = seal_voucher(KEY, OTHER.peer_id, 1_800_000_000)
    assert open_voucher(voucher, relay=KEY.peer_id, peer=OTHER.peer_id) == 1_800_000_000
    with pytest.raises(SignatureInvalid):
        open_voucher(voucher, relay=OTHER.peer_id, peer=OTHER.peer_id)
    with pytest.raises(ProtocolError):
        open_voucher(voucher, relay=KEY.peer_id, peer=KEY.peer_id)
    forged = SignedEnvelope.FromString(voucher)
    forged.payload = forged.payload[:-1] + b"\x01"
    with pytest.raises(SignatureInvalid):
        open_voucher(forged.SerializeToString(), relay=KEY.peer_id, peer=OTHER.peer_id)
    # The signature is over domain, type and payload, each after its length (RFC 0002 of libp2p).
    envelope = SignedEnvelope.FromString(voucher)
    signed = b"\x11libp2p-relay-rsvp\x02\x03\x02" + bytes([len(envelope.payload)]) + envelope.payload
    assert envelope.signature == KEY.sign(signed)
    assert envelope.public_key == libp2p_public_key(KEY.public_key)


def test_identify_comes_back_and_lists_are_bounded() -> None:
    identity = Identity(
        "comity/1", RELAYS, ("/a/1", "/b/1"), Address("ip4", "192.0.2.9", 9), libp2p_public_key(KEY.public_key)
    )
    assert decode_identity(taken(encode_identity(identity))) == identity
    assert decode_identity(b"") == Identity()
    delimited = Delimited(1_000_000)
    delimited.receive(encode_identity(Identity("x" * 1000, RELAYS * 1000, ("/p/1" * 100,) * 1000)))
    message = delimited.take()
    assert message is not None
    read = decode_identity(message)
    assert (len(read.agent), len(read.addresses), len(read.protocols), len(read.protocols[0])) == (128, 32, 64, 128)


def test_only_ip_addresses_without_relays_can_be_met() -> None:
    named = (
        parse_address("/dns4/evil.example/tcp/1"),
        parse_address(f"/ip4/1.1.1.1/tcp/1/p2p/{KEY.peer_id}/p2p-circuit"),
        *(Address("ip4", f"1.1.1.{number}", 1) for number in range(9)),
    )
    assert decode_punch(encode_punch(PunchConnect(named))) == PunchConnect(
        (Address("ip4", "1.1.1.0", 1), Address("ip4", "1.1.1.1", 1))
    )


def test_a_reservation_without_an_end_is_none() -> None:
    message = HopMessage(type=2, status=100)  # type: ignore[arg-type]  # open enumerations
    message.reservation.voucher = b"signed"
    message.reservation.addrs.append(b"\x04\x08\x08\x08\x08\x06\x00\x01")
    assert decode_hop(message.SerializeToString()) == Answer(Status.OK)
    message.reservation.expire = 7
    answer = decode_hop(message.SerializeToString())
    assert isinstance(answer, Answer)
    assert (answer.expires_s, len(answer.addresses), answer.voucher) == (7, 1, b"signed")


@given(st.binary(max_size=400))
def test_whatever_comes_only_errors_of_the_tree_are_raised(data: bytes) -> None:
    for decode in (decode_hop, decode_stop, decode_punch, decode_identity):
        try:
            decode(data)
        except ComityError:
            continue
