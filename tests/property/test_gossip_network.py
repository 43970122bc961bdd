"""Whatever happens between nodes: once it is over everybody has everything once, and no table outgrows its bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity.errors import ProtocolError
from comity_node.protocol.gossip_message import GossipMessage
from comity_node.protocol.gossip_params import GossipLimits, GossipParams
from comity_node.protocol.gossip_queue import SendQueue
from comity_node.protocol.gossip_rpc import IHave, Prune, Rpc, RpcReader, decode_rpc, encode_frame, encode_rpc
from kit.gossipnet import GossipNet

LIMITS = GossipLimits()
#: What can happen: (what, one node, another node or a time).
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish", "cut", "connect", "wait", "leave", "join"]),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    max_size=60,
)


@pytest.mark.invariant("S7")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(2, 12),
    seed=st.integers(0, 2**32),
    steps=STEPS,
    loss=st.sampled_from([0.0, 0.2, 0.9]),
    duplication=st.sampled_from([0.0, 0.5]),
    slow=st.sampled_from([50, 900, 3000]),
)
def test_every_subscriber_gets_every_message_exactly_once_when_the_network_heals(
    count: int, seed: int, steps: list[tuple[str, int, int]], loss: float, duplication: float, slow: int
) -> None:
    net = GossipNet(count, seed=seed, latency_ms=(1, slow), wire=True)
    net.connect_all()
    net.loss, net.duplication = loss, duplication
    sent = []
    for what, a, b in steps:
        a, b = a % count, b % count
        if what == "publish":
            sent.append(net.publish(a))
        elif what == "cut" and a != b:
            net.cut(a, b)
        elif what == "connect" and a != b:
            net.connect(a, b)
        elif what == "wait":
            net.run(b * 300)
        elif what == "leave":
            for other in range(count):
                net.cut(a, other)
        elif what == "join":
            for other in range(count):
                if other != a:
                    net.connect(a, other)
    net.loss = net.duplication = 0.0
    net.connect_all()
    net.run(20_000)
    assert net.missing(sent) == []
    assert all(times == 1 for times in net.delivered.values())
    for node in net.nodes:
        sizes = node.sizes()
        assert sizes["validating"] == sizes["promises"] == 0
        assert sizes["seen"] <= len(sent)
        assert sizes["cache_messages"] <= len(sent)
        assert min(node.score(peer, net.now_ms) for peer in net.index) > net.params.score.gossip_threshold


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), steps=STEPS, loss=st.sampled_from([0.0, 0.5]))
@pytest.mark.invariant("S7")
@pytest.mark.invariant("R4")
def test_small_tables_stay_small_and_nothing_is_handed_out_twice(
    seed: int, steps: list[tuple[str, int, int]], loss: float
) -> None:
    limits = replace(
        LIMITS, seen=12, authors=3, cache_messages=5, cache_bytes=60, validating=4, peer_validating=2, promises=3,
        retained=2, backoffs=6, ihave_ids=4, rpc_ids=4,
    )  # fmt: skip
    net = GossipNet(8, seed=seed, params=GossipParams(limits=limits), wire=True)
    net.connect_all()
    net.loss = loss
    for what, a, b in steps:
        a, b = a % 8, b % 8
        if what == "publish":
            net.publish(a, data=bytes(1 + b))
        elif what in ("cut", "leave") and a != b:
            net.cut(a, b)
        elif what in ("connect", "join") and a != b:
            net.connect(a, b)
        else:
            net.run(b * 500)
        for node in net.nodes:
            bounded = {name: size for name, size in node.sizes().items() if name not in ("topics", "memberships")}
            assert all(size <= getattr(limits, name) for name, size in bounded.items()), bounded
    net.run(5000)
    assert all(times == 1 for times in net.delivered.values())


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
ids = st.lists(st.binary(max_size=60), max_size=5, unique=True).map(tuple)
messages = st.builds(
    GossipMessage,
    author=st.binary(min_size=1, max_size=40),
    data=st.binary(min_size=1, max_size=200),
    seqno=st.binary(min_size=8, max_size=8),
    topic=names,
    signature=st.binary(min_size=64, max_size=64),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.tuples(names, st.booleans()), max_size=4).map(tuple),
    messages=st.lists(messages, max_size=4).map(tuple),
    ihave=st.lists(st.builds(IHave, topic=names, ids=ids), max_size=3).map(tuple),
    iwant=ids,
    graft=st.lists(names, max_size=3).map(tuple),
    prune=st.lists(st.builds(Prune, topic=names, backoff_s=st.integers(0, 2**64 - 1)), max_size=3).map(tuple),
)


@given(rpcs)
def test_rpcs_survive_the_wire(rpc: Rpc) -> None:
    assert decode_rpc(encode_rpc(rpc), LIMITS) == rpc


@given(st.lists(rpcs, max_size=4), st.lists(st.integers(1, 200), min_size=1))
def test_rpcs_survive_any_chunking(sent: list[Rpc], sizes: list[int]) -> None:
    stream, reader, got = b"".join(encode_frame(rpc) for rpc in sent), RpcReader(LIMITS), []
    while stream:
        size = sizes[len(stream) % len(sizes)]
        reader.feed(stream[:size])
        stream = stream[size:]
        while (rpc := reader.next_rpc()) is not None:
            got.append(rpc)
    assert got == sent


@given(st.binary(max_size=300))
def test_any_bytes_are_an_rpc_or_a_protocol_error(data: bytes) -> None:
    reader = RpcReader(LIMITS)
    reader.feed(data)
    try:
        while reader.next_rpc() is not None:
            pass
    except ProtocolError:
        assert reader.buffered == 0


@given(st.lists(rpcs, max_size=20), st.integers(100, 2000))
def test_a_queue_keeps_control_in_order_and_its_bound(sent: list[Rpc], most: int) -> None:
    queue = SendQueue(most_bytes=most, most_control=100)
    for rpc in sent:
        queue.put(rpc)
        assert queue.bytes <= most
    reader, got = RpcReader(LIMITS), []
    reader.feed(queue.take(10**9))
    while (one := reader.next_rpc()) is not None:
        got.append(one)
    assert [one for one in got if one.is_control] == [one for one in sent if one.is_control]
    gossip = [one for one in sent if not one.is_control]
    kept = [one for one in got if not one.is_control]
    assert kept == gossip[len(gossip) - len(kept) :], "the newest"
