"""Messages and RPCs on the wire: the bytes of the specification, signatures, and what is refused before it is held."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comity.errors import Busy, FrameTooLarge, ProtocolError, SignatureInvalid
from comity.signing import PrivateKey, peer_id_bytes
from comity_node.p2p.v1.pubsub_pb2 import PubSubMessage, PubSubRpc
from comity_node.protocol.gossip_message import GossipMessage, sign_message, varint, verify_message
from comity_node.protocol.gossip_params import GossipLimits
from comity_node.protocol.gossip_queue import SendQueue
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc, RpcReader, decode_rpc, encode_frame, encode_rpc

LIMITS = GossipLimits()
KEY = PrivateKey(bytes(range(32)))
AUTHOR = peer_id_bytes(KEY.public_key)
FULL = Rpc(
    subscriptions=(("a", True), ("b", False)),
    messages=(sign_message(KEY, AUTHOR, "a", b"one", 1), sign_message(KEY, AUTHOR, "b", b"two" * 100, 2**63)),
    ihave=(IHave("a", (b"\xff\x00", b"id")), IHave("b", ())),
    iwant=(b"x", b"y"),
    graft=("a",),
    prune=(Prune("b", 60), Prune("c")),
)


def signed(data: bytes = b"news", number: int = 1) -> GossipMessage:
    return sign_message(KEY, AUTHOR, "topic", data, number)


def read(data: bytes) -> Rpc | None:
    reader = RpcReader(LIMITS)
    reader.feed(data)
    return reader.next_rpc()


def test_the_bytes_that_are_signed_are_those_of_the_specification() -> None:
    """from = 1, data = 2, seqno = 3, topic = 4, in this order, after "libp2p-pubsub:"."""
    message = signed(b"\x01\x02", 258)
    expected = (
        bytes([0x0A, 38])
        + AUTHOR
        + b"\x12\x02\x01\x02"
        + b"\x1a\x08"
        + bytes([0, 0, 0, 0, 0, 0, 1, 2])
        + b"\x22\x05topic"
    )
    assert message.signed_part() == expected
    assert message.encode() == expected + b"\x2a\x40" + message.signature
    assert KEY.sign(b"libp2p-pubsub:" + expected) == message.signature
    assert message.id == AUTHOR + message.seqno
    assert message.number == 258


def test_our_encoding_is_protobufs() -> None:
    message = signed(bytes(300))
    wire = PubSubMessage.FromString(message.encode())
    assert wire.SerializeToString() == message.encode()
    assert (wire.author, wire.topic, wire.seqno) == (AUTHOR, "topic", message.seqno)
    assert not wire.HasField("key"), "the PeerId holds it"


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**32])
def test_varints(value: int) -> None:
    decoded = sum((byte & 0x7F) << (7 * index) for index, byte in enumerate(varint(value)))
    assert decoded == value
    assert all(byte & 0x80 for byte in varint(value)[:-1])


@pytest.mark.parametrize(
    "change",
    [
        {"data": b"other"},
        {"seqno": bytes(8)},
        {"topic": "other"},
        {"author": peer_id_bytes(PrivateKey(bytes(32)).public_key)},
        {"signature": bytes(64)},
        {"author": b"\x12\x20" + bytes(32)},  # a SHA-256 PeerId: it holds no key
        {"author": b""},
    ],
)
def test_a_message_that_was_changed_does_not_verify(change: dict[str, object]) -> None:
    verify_message(signed())
    with pytest.raises(SignatureInvalid):
        verify_message(replace(signed(), **change))  # type: ignore[arg-type]


def test_an_rpc_comes_out_as_it_went_in() -> None:
    assert decode_rpc(encode_rpc(FULL), LIMITS) == FULL
    assert decode_rpc(b"", LIMITS) == Rpc()


def test_rpcs_are_cut_from_the_stream_however_it_is_chunked() -> None:
    stream = encode_frame(FULL) + encode_frame(Rpc()) + encode_frame(Rpc(graft=("z",)))
    for size in (1, 2, 7, 1000):
        reader, found = RpcReader(LIMITS), []
        for begin in range(0, len(stream), size):
            reader.feed(stream[begin : begin + size])
            while (rpc := reader.next_rpc()) is not None:
                found.append(rpc)
        assert found == [FULL, Rpc(), Rpc(graft=("z",))]
        assert reader.buffered == 0


@pytest.mark.invariant("S7")
def test_a_gigabyte_is_refused_by_its_length_alone() -> None:
    reader = RpcReader(LIMITS)
    reader.feed(varint(2**30))
    with pytest.raises(FrameTooLarge):
        reader.next_rpc()
    assert reader.buffered == 0
    with pytest.raises(ProtocolError, match="before"):
        reader.next_rpc()


@pytest.mark.parametrize("bad", [b"\x80" * 20, b"\x02\xff\xff", b"\x05\x12\x03\x22\x01\xff"])
def test_what_is_no_rpc_breaks_the_stream(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(bad)


@pytest.mark.parametrize(
    "bad",
    [
        PubSubMessage(),
        PubSubMessage(author=AUTHOR, data=b"x", seqno=b"1", topic="t", signature=bytes(64)),
        PubSubMessage(author=AUTHOR, data=b"x", seqno=bytes(8), topic="t"),
        PubSubMessage(author=AUTHOR, data=b"x", seqno=bytes(8), signature=bytes(64)),
        PubSubMessage(data=b"x", seqno=bytes(8), topic="t", signature=bytes(64)),
        PubSubMessage(author=AUTHOR, seqno=bytes(8), topic="t", signature=bytes(64)),
        PubSubMessage(author=AUTHOR, data=bytes(64 * 1024 + 1), seqno=bytes(8), topic="t", signature=bytes(64)),
    ],
)
def test_a_message_that_is_not_well_formed_is_counted_and_left_out(bad: PubSubMessage) -> None:
    good = signed()
    wire = PubSubRpc(publish=[bad, PubSubMessage.FromString(good.encode())])
    rpc = decode_rpc(wire.SerializeToString(), LIMITS)
    assert (rpc.messages, rpc.malformed) == ((good,), 1)


def test_the_key_beside_the_message_is_not_looked_at() -> None:
    """The PeerId holds the key; stock implementations send it all the same, or leave it out."""
    wire = PubSubMessage.FromString(signed().encode())
    wire.key = b"anything"
    rpc = decode_rpc(PubSubRpc(publish=[wire]).SerializeToString(), LIMITS)
    assert rpc.messages == (signed(),)


@pytest.mark.invariant("S7")
def test_of_each_list_so_much_is_taken_and_no_more() -> None:
    wire = PubSubRpc()
    for number in range(2000):
        wire.subscriptions.add(topic_id=str(number), subscribe=True)
        wire.publish.add()
        wire.control.graft.add(topic_id="t")
        wire.control.prune.add(topic_id="t")
        wire.control.ihave.add(topic_id="t", message_ids=[b"%d" % number])
    wire.control.ihave[0].message_ids.extend(b"%d" % number for number in range(5000))
    wire.control.iwant.add(message_ids=[b"%d" % number for number in range(5000)])
    wire.control.iwant.add(message_ids=[bytes(1000)])
    rpc = decode_rpc(wire.SerializeToString(), LIMITS)
    assert (len(rpc.subscriptions), len(rpc.graft), len(rpc.prune), len(rpc.ihave)) == (64, 64, 64, 64)
    assert (rpc.malformed, len(rpc.ihave[0].ids), len(rpc.iwant)) == (256, 512, 512)


def test_ids_that_are_too_long_are_left_out() -> None:
    wire = PubSubRpc()
    wire.control.iwant.add(message_ids=[bytes(129), b"good"])
    assert decode_rpc(wire.SerializeToString(), LIMITS).iwant == (b"good",)


def test_control_goes_before_gossip() -> None:
    queue = SendQueue(most_bytes=10_000, most_control=4)
    queue.put(Rpc(messages=(signed(),)))
    queue.put(Rpc(graft=("t",)))
    assert read(queue.take(1)) == Rpc(graft=("t",))
    assert read(queue.take(1)) == Rpc(messages=(signed(),))
    assert (len(queue), queue.bytes, queue.take(1)) == (0, 0, b"")


def test_several_frames_are_taken_at_once() -> None:
    queue = SendQueue(most_bytes=10_000, most_control=4)
    rpcs = [Rpc(messages=(signed(number=number),)) for number in range(3)]
    for rpc in rpcs:
        queue.put(rpc)
    assert queue.take(64 * 1024) == b"".join(encode_frame(rpc) for rpc in rpcs)


@pytest.mark.invariant("S7")
@pytest.mark.invariant("R4")
def test_a_slow_peer_loses_the_oldest_gossip_and_never_control() -> None:
    queue = SendQueue(most_bytes=100_000, most_control=3)
    dropped = 0
    for number in range(1000):
        dropped += len(queue.put(Rpc(messages=(signed(bytes(9_000), number),))))
        assert queue.bytes <= 100_000
    assert dropped == 1000 - len(queue)
    for topic in "abc":
        assert queue.put(Rpc(subscriptions=((topic, True),))) == []
    with pytest.raises(Busy):
        queue.put(Rpc(prune=(Prune("t"),)))
    for topic in "abc":
        assert read(queue.take(1)) == Rpc(subscriptions=((topic, True),))
    first = read(queue.take(1))
    assert first is not None
    assert first.messages[0].number == dropped, "the newest are there"
