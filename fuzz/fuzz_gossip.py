"""Fuzz target: whatever a peer sends on /meshsub/1.1.0, through the reader and the router.

`one` holds what must be true of any input: errors of the protocol and no others, tables within their bounds, nothing
accepted whose signature was not looked at.

Run: python -m fuzz.run gossip
"""

from __future__ import annotations

import random

from comity.errors import ProtocolError, SignatureInvalid
from comity_node.protocol.gossip import Deliver, GossipRouter, Send, Validate, Verdict
from comity_node.protocol.gossip_message import GossipMessage, verify_message
from comity_node.protocol.gossip_params import GossipLimits, GossipParams
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc, RpcReader, decode_rpc, encode_frame, encode_rpc

TOPIC = "t"
_LIMITS = GossipLimits(
    message_bytes=256, rpc_bytes=4096, rpc_ids=16, seen=8, authors=4, cache_messages=4, cache_bytes=512, validating=4,
    peer_validating=3, promises=3, retained=2, backoffs=4, peers=3, topics=3, peer_topics=3,
)  # fmt: skip
_PARAMS = GossipParams(limits=_LIMITS)
_PEERS = (b"a", b"b", b"c")


def one(data: bytes) -> None:
    """Feed one input: a byte that says how (the signature's verdict, chunks), then the stream."""
    how, stream = (data[0], data[1:]) if data else (0, b"")
    verified: set[bytes] = set()

    def verify(message: GossipMessage) -> None:
        if how & 1:
            verify_message(message)
        elif how & 2 and message.data[:1] == b"!":
            raise SignatureInvalid("so this input says")
        verified.add(message.id)

    router = GossipRouter(b"own", random.Random(how), _PARAMS, verify=verify)
    router.subscribe(TOPIC, 0)
    for peer in _PEERS:
        router.add_peer(peer, 0, outbound=peer == b"a")
    reader, chunk = RpcReader(_LIMITS), 1 + (how >> 4) * 50
    now_ms = 0
    for begin in range(0, len(stream), chunk):
        reader.feed(stream[begin : begin + chunk])
        now_ms += 100 * (how >> 2 & 3)
        try:
            now_ms = _take(router, reader, now_ms, verified)
        except ProtocolError:
            assert reader.buffered == 0
            break
        assert reader.buffered <= _LIMITS.rpc_bytes + 10
    router.heartbeat(now_ms + 400_000)
    assert router.sizes()["seen"] == router.sizes()["validating"] == 0


def _take(router: GossipRouter, reader: RpcReader, now_ms: int, verified: set[bytes]) -> int:
    while (rpc := reader.next_rpc()) is not None:
        again = decode_rpc(encode_rpc(rpc), GossipLimits())
        assert again.messages == rpc.messages
        assert again.prune == rpc.prune
        for action in router.receive(_PEERS[now_ms % len(_PEERS)], rpc, now_ms):
            assert not isinstance(action, Deliver), "nothing is handed out before it is judged"
            if isinstance(action, Validate):
                assert action.message.id in verified
                verdict = list(Verdict)[action.message.data[0] % len(Verdict)]
                handed = router.judge(action.message.id, verdict)
                assert any(isinstance(each, Deliver) for each in handed) == (verdict is Verdict.ACCEPT)
                assert all(isinstance(each, Deliver | Send) for each in handed)
        now_ms += 1
        if now_ms % 5 == 0:
            router.heartbeat(now_ms)
        for name, size in router.sizes().items():
            assert size <= getattr(_LIMITS, name, _LIMITS.peers * _LIMITS.peer_topics), (name, size)
    return now_ms


def _seeds() -> tuple[bytes, ...]:
    def message(number: int, data: bytes, topic: str = TOPIC) -> GossipMessage:
        return GossipMessage(b"a%d" % (number % 5), data, number.to_bytes(8, "big"), topic, bytes(64))

    first = message(1, b"1")
    rpcs = [
        Rpc(subscriptions=((TOPIC, True), ("u", True), (TOPIC, False))),
        Rpc(messages=(first, first, message(2, b"!"), message(3, b"22", "u"))),
        Rpc(ihave=(IHave(TOPIC, (first.id, b"x")),), iwant=(first.id, b"x")),
        Rpc(graft=(TOPIC, "u"), prune=(Prune(TOPIC, 2), Prune("", 0))),
        Rpc(messages=tuple(message(number, b"1") for number in range(4, 16))),
    ]
    frames = [encode_frame(rpc) for rpc in rpcs]
    return (*(b"\x12" + frame for frame in frames), b"\x00" + b"".join(frames), b"\x03" + b"".join(frames))


#: What every part of an RPC looks like, and all of them after each other.
SEEDS = _seeds()
