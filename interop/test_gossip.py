"""GossipSub with js-libp2p: each publishes to the other, forwards for it, and asks it for what it has missed."""

from __future__ import annotations

import random
import time

import trio

from comity.signing import PrivateKey, peer_id_bytes
from comity_node.discovery.pubsub import PubSub, Received, Verdict
from comity_node.protocol.gossip_message import GossipMessage, sign_message
from comity_node.protocol.gossip_rpc import MESHSUB, Rpc, encode_frame
from jslab.ours import Node, running
from jslab.peer import JsPeer, js_peer
from kit.gossiping import LinkTable

TOPIC = "comity/interop/cards"
#: A peer that takes nobody into its mesh, and only tells what it has.
LAZY = {"D": 0, "Dlo": 0, "Dhi": 0, "Dscore": 0, "Dout": 0, "floodPublish": False}


class Gossiper(Node):
    """One of ours that gossips."""

    def __init__(self) -> None:
        super().__init__()
        self.links = LinkTable()
        self.pubsub = PubSub(
            self.transport, self.links, self.key, now_ms=lambda: time.time_ns() // 1_000_000, random=random.Random(7)
        )
        self._got: list[Received] = []

    async def run(self, nursery: trio.Nursery) -> None:
        await super().run(nursery)
        await nursery.start(self.pubsub.run)

    def subscribe(self) -> None:
        self.pubsub.subscribe(TOPIC, self._accept, self._take)

    async def got(self, count: int) -> list[tuple[str, bytes, str]]:
        """Wait until so many messages came: author, payload, and who has brought each."""
        while len(self._got) < count:
            await self._news.park()
        return [(each.author, each.data, each.source) for each in self._got]

    async def meet(self, js: JsPeer) -> None:
        """Connect with a peer and take it for a linked one."""
        await self.transport.dial(js.peer_id, js.addresses)
        self.links.up(js.peer_id)

    async def _accept(self, _: Received) -> Verdict:
        await trio.lowlevel.checkpoint()
        return Verdict.ACCEPT

    async def _take(self, received: Received) -> None:
        await trio.lowlevel.checkpoint()
        self._got.append(received)
        self._news.unpark_all()


def messages(author: str, *payloads: bytes) -> list[dict[str, str]]:
    """What `peer.mjs` says that it has heard."""
    return [{"from": author, "data": each.hex()} for each in payloads]


def test_each_side_takes_what_the_other_publishes() -> None:
    node = Gossiper()
    small, large = b"from us", bytes(range(256)) * 128

    async def main() -> None:
        async with running(node), js_peer() as js:
            node.subscribe()
            await js.do("subscribe", topic=TOPIC)
            await node.meet(js)
            assert (await js.do("mesh", topic=TOPIC, count=1))["peers"] == [node.peer_id]
            for payload in (small, large):
                assert await node.pubsub.publish(TOPIC, payload) == 1
            assert (await js.do("heard", topic=TOPIC, count=2))["messages"] == messages(node.peer_id, small, large)
            for payload in (b"from js", large[::-1]):
                assert (await js.do("publish", topic=TOPIC, data=payload.hex()))["recipients"] == [node.peer_id]
            assert await node.got(2) == [(js.peer_id, b"from js", js.peer_id), (js.peer_id, large[::-1], js.peer_id)]
            counts = node.pubsub.counters()
            assert counts["gossip.accept"] == 2
            assert not {"gossip.malformed", "gossip.reject", "gossip.forged"} & set(counts)

    trio.run(main)


def test_each_side_forwards_what_others_have_signed() -> None:
    node, far = Gossiper(), Gossiper()

    async def main() -> None:
        # far - js - node - other: neither end is connected with the other's neighbour.
        async with running(node, far), js_peer() as js, js_peer() as other:
            for each in (node, far):
                each.subscribe()
            for peer in (js, other):
                await peer.do("subscribe", topic=TOPIC)
            await far.meet(js)
            await node.meet(js)
            await node.meet(other)
            await js.do("mesh", topic=TOPIC, count=2)
            await other.do("mesh", topic=TOPIC, count=1)
            await far.pubsub.publish(TOPIC, b"from far")
            assert (await other.do("heard", topic=TOPIC, count=1))["messages"] == messages(far.peer_id, b"from far")
            assert await node.got(1) == [(far.peer_id, b"from far", js.peer_id)]
            await other.do("publish", topic=TOPIC, data=b"from other".hex())
            assert await far.got(1) == [(other.peer_id, b"from other", js.peer_id)]
            assert (await node.got(2))[1] == (other.peer_id, b"from other", other.peer_id)

    trio.run(main)


def test_js_asks_us_for_what_it_has_missed() -> None:
    node = Gossiper()

    async def main() -> None:
        async with running(node), js_peer() as js:
            node.subscribe()
            assert await node.pubsub.publish(TOPIC, b"before js came") == 0
            await js.do("subscribe", topic=TOPIC)
            await node.meet(js)
            assert (await js.do("heard", topic=TOPIC, count=1))["messages"] == messages(node.peer_id, b"before js came")
            assert node.pubsub.counters()["gossip.sent_on_demand"] == 1

    trio.run(main)


def test_we_ask_js_for_what_it_only_gossips_about() -> None:
    node = Gossiper()

    async def main() -> None:
        async with running(node), js_peer(gossip=LAZY) as js:
            node.subscribe()
            await js.do("subscribe", topic=TOPIC)
            assert (await js.do("publish", topic=TOPIC, data=b"before we came".hex()))["recipients"] == []
            await node.meet(js)
            assert await node.got(1) == [(js.peer_id, b"before we came", js.peer_id)]
            counts = node.pubsub.counters()
            assert (counts["gossip.size.promises"], counts.get("gossip.promises_broken", 0)) == (0, 0)

    trio.run(main)


def test_js_refuses_what_is_not_signed_by_its_author() -> None:
    node, author = Node(), PrivateKey.generate()
    own = peer_id_bytes(author.public_key)

    async def main() -> None:
        async with running(node), js_peer() as js:
            await js.do("subscribe", topic=TOPIC)
            good = sign_message(author, own, TOPIC, b"signed", 2)
            forged = GossipMessage(own, b"forged", (1).to_bytes(8, "big"), TOPIC, good.signature)
            stream = await node.transport.open_stream(js.peer_id, js.addresses, MESHSUB)
            await stream.send(encode_frame(Rpc(messages=(forged,))) + encode_frame(Rpc(messages=(good,))))
            assert (await js.do("heard", topic=TOPIC, count=1))["messages"] == messages(author.peer_id, b"signed")

    trio.run(main)


def test_we_refuse_what_js_does_not_sign() -> None:
    node = Gossiper()

    async def main() -> None:
        async with (
            running(node),
            js_peer(gossip={"globalSignaturePolicy": "StrictNoSign"}) as unsigned,
            js_peer() as js,
        ):
            node.subscribe()
            for each in (unsigned, js):
                await each.do("subscribe", topic=TOPIC)
                await node.meet(each)
                await each.do("mesh", topic=TOPIC, count=1)
            assert (await unsigned.do("publish", topic=TOPIC, data=b"unsigned".hex()))["recipients"] == [node.peer_id]
            await unsigned.do("ping", address=node.url)
            await js.do("publish", topic=TOPIC, data=b"signed".hex())
            assert await node.got(1) == [(js.peer_id, b"signed", js.peer_id)]
            assert node.pubsub.counters()["gossip.malformed"] == 1

    trio.run(main)
