"""py-libp2p's own GossipSub reads our RPCs and signatures, and we read its."""

from __future__ import annotations

from typing import Any

import pytest

from comity.errors import SignatureInvalid
from comity.signing import PrivateKey, peer_id_bytes
from comity_node.protocol.gossip_message import sign_message, verify_message
from comity_node.protocol.gossip_params import GossipLimits
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc, decode_rpc, encode_rpc

ed25519: Any = pytest.importorskip("libp2p.crypto.ed25519")
peers: Any = pytest.importorskip("libp2p.peer.id")
rpc_pb2: Any = pytest.importorskip("libp2p.pubsub.pb.rpc_pb2")
pubsub: Any = pytest.importorskip("libp2p.pubsub.pubsub")
validators: Any = pytest.importorskip("libp2p.pubsub.validators")

KEY = PrivateKey(bytes(range(32)))
AUTHOR = peer_id_bytes(KEY.public_key)
LIMITS = GossipLimits()


def stock_message(data: bytes = b"of theirs") -> Any:
    """A message as py-libp2p's Pubsub.publish makes it, the key beside it."""
    pair = ed25519.create_new_key_pair(bytes([7]) * 32)
    message = rpc_pb2.Message(
        data=data,
        topicIDs=["topic"],
        from_id=peers.ID.from_pubkey(pair.public_key).to_bytes(),
        seqno=bytes([0] * 7 + [9]),
    )
    signature = pair.private_key.sign(validators.PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
    message.key = pair.public_key.serialize()
    message.signature = signature
    return message


def test_they_take_our_signature_and_refuse_a_changed_one() -> None:
    theirs = rpc_pb2.Message.FromString(sign_message(KEY, AUTHOR, "topic", b"of ours", 5).encode())
    assert validators.signature_validator(theirs)
    assert (theirs.from_id, theirs.data, list(theirs.topicIDs)) == (AUTHOR, b"of ours", ["topic"])
    theirs.data = b"changed"
    assert not validators.signature_validator(theirs)


def test_we_take_their_signature_and_refuse_a_changed_one() -> None:
    rpc = decode_rpc(rpc_pb2.RPC(publish=[stock_message()]).SerializeToString(), LIMITS)
    [message] = rpc.messages
    verify_message(message)
    assert message.id == pubsub.get_peer_and_seqno_msg_id(stock_message())
    changed = stock_message()
    changed.data = b"changed"
    [message] = decode_rpc(rpc_pb2.RPC(publish=[changed]).SerializeToString(), LIMITS).messages
    with pytest.raises(SignatureInvalid):
        verify_message(message)


def test_what_we_forward_of_theirs_they_still_take() -> None:
    [message] = decode_rpc(rpc_pb2.RPC(publish=[stock_message()]).SerializeToString(), LIMITS).messages
    forwarded = rpc_pb2.RPC.FromString(encode_rpc(Rpc(messages=(message,))))
    assert validators.signature_validator(forwarded.publish[0])


def test_a_message_of_two_topics_or_with_more_in_it_than_is_signed_does_not_verify() -> None:
    two = stock_message()
    two.topicIDs.append("second")
    [message] = decode_rpc(rpc_pb2.RPC(publish=[two]).SerializeToString(), LIMITS).messages
    with pytest.raises(SignatureInvalid):
        verify_message(message)


def test_they_read_our_control_and_we_theirs() -> None:
    ours = Rpc(
        subscriptions=(("a", True), ("b", False)),
        ihave=(IHave("a", (AUTHOR + bytes(8), b"\xff")),),
        iwant=(b"\x00\x80",),
        graft=("a", "b"),
        prune=(Prune("c", 60),),
    )
    theirs = rpc_pb2.RPC.FromString(encode_rpc(ours))
    assert [(one.topicid, one.subscribe) for one in theirs.subscriptions] == [("a", True), ("b", False)]
    assert [(one.topicID, list(one.messageIDs)) for one in theirs.control.ihave] == [
        ("a", [AUTHOR + bytes(8), b"\xff"])
    ]
    assert [list(one.messageIDs) for one in theirs.control.iwant] == [[b"\x00\x80"]]
    assert [one.topicID for one in theirs.control.graft] == ["a", "b"]
    assert [(one.topicID, one.backoff, len(one.peers)) for one in theirs.control.prune] == [("c", 60, 0)]
    assert decode_rpc(theirs.SerializeToString(), LIMITS) == ours


def test_their_peer_exchange_and_extensions_are_read_over() -> None:
    theirs = rpc_pb2.RPC(senderRecord=b"record")
    prune = theirs.control.prune.add(topicID="a", backoff=30)
    prune.peers.add(peerID=AUTHOR, signedPeerRecord=b"x")
    theirs.control.idontwant.add(messageIDs=[b"x"])
    assert decode_rpc(theirs.SerializeToString(), LIMITS) == Rpc(prune=(Prune("a", 30),))
