"""Gossip over TCP, Noise and Yamux, between attested nodes; strangers are not served."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import pytest
import trio

from comity.errors import ComityError, LinkClosed, PeerUnreachable
from comity.signing import PrivateKey
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.discovery.pubsub import PubSub, Received, Verdict
from comity_node.links import Links
from comity_node.protocol.gossip_rpc import MESHSUB
from comity_node.transport.libp2p_transport import Libp2pTransport
from kit.gossiping import TOPIC

Consortium = Callable[..., tuple[TrustStore, dict[str, NodeIdentity]]]
NAMES = ("a.example", "b.example", "c.example")


class Node:
    """A transport, links and gossip, as a node has them."""

    def __init__(self, identity: NodeIdentity, trust: TrustStore) -> None:
        self.transport = Libp2pTransport(identity.key, ["/ip4/127.0.0.1/tcp/0"])
        self.links = Links(
            self.transport, identity, trust, _refuse,
            now_ms=lambda: time.time_ns() // 1_000_000, random_bytes=random.randbytes,
        )  # fmt: skip
        self.pubsub = PubSub(
            self.transport, self.links, identity.key,
            now_ms=lambda: time.time_ns() // 1_000_000, random=random.Random(1),
        )  # fmt: skip
        self.got: list[Received] = []
        self.more = trio.Event()
        self.pubsub.subscribe(TOPIC, self._judge, self._take)

    async def wait(self, count: int) -> list[bytes]:
        with trio.fail_after(20):
            while len(self.got) < count:
                self.more = trio.Event()
                await self.more.wait()
        return [one.data for one in self.got]

    async def _judge(self, _: Received) -> Verdict:
        await trio.lowlevel.checkpoint()
        return Verdict.ACCEPT

    async def _take(self, received: Received) -> None:
        await trio.lowlevel.checkpoint()
        self.got.append(received)
        self.more.set()


async def _refuse(_: Attested, __: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return b""


def with_nodes(consortium: Consortium, test: Callable[[Sequence[Node]], Awaitable[None]]) -> None:
    trust, identities = consortium(*NAMES)

    async def main() -> None:
        nodes = [Node(identities[name], trust) for name in NAMES]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.links.run)
                await nursery.start(node.pubsub.run)
            for left, right in pairwise(nodes):
                left.links.add_peer(right.links.peer_id, right.transport.addresses())
                await left.links.wait_for(right.links.peer_id, 10)
            await test(nodes)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_message_goes_from_end_to_end_of_a_line(consortium: Consortium) -> None:
    async def test(nodes: Sequence[Node]) -> None:
        a, b, c = nodes
        await a.pubsub.publish(TOPIC, b"news" + bytes(50_000))
        assert await c.wait(1) == [b"news" + bytes(50_000)]
        assert await b.wait(1) == [b"news" + bytes(50_000)]
        assert (c.got[0].author, c.got[0].source) == (a.links.peer_id, b.links.peer_id)

    with_nodes(consortium, test)


@pytest.mark.invariant("R3")
def test_a_connection_that_is_cut_loses_nothing(consortium: Consortium) -> None:
    async def test(nodes: Sequence[Node]) -> None:
        a, b, _ = nodes
        await a.pubsub.publish(TOPIC, b"before")
        await b.wait(1)
        await a.transport.disconnect(b.links.peer_id)
        for number in range(5):
            await a.pubsub.publish(TOPIC, b"%d" % number)
        assert sorted(await b.wait(6)) == [b"0", b"1", b"2", b"3", b"4", b"before"]

    with_nodes(consortium, test)


@pytest.mark.invariant("S7")
def test_a_stranger_gets_no_gossip(consortium: Consortium) -> None:
    async def test(nodes: Sequence[Node]) -> None:
        stranger = Libp2pTransport(PrivateKey.generate(), [])
        async with trio.open_nursery() as nursery:
            await nursery.start(stranger.run)
            address = f"{nodes[0].transport.addresses()[0]}"
            with pytest.raises((PeerUnreachable, LinkClosed)):
                await _read(stranger, nodes[0].links.peer_id, address)
            nursery.cancel_scope.cancel()
        assert nodes[0].pubsub.router.sizes()["peers"] <= 1

    with_nodes(consortium, test)


async def _read(stranger: Libp2pTransport, peer_id: str, address: str) -> None:
    stream = await stranger.open_stream(peer_id, [address], MESHSUB)
    try:
        await stream.send(b"\x00")
        if not await stream.receive():
            raise LinkClosed("refused")
    except ComityError:
        stream.reset()
        raise
