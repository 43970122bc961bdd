"""PubSub services on a memory network, whose links are up and down as the test says."""

from __future__ import annotations

import random
from collections.abc import Iterable

import trio

from comity.signing import PrivateKey
from comity_node.discovery.pubsub import PubSub, PubSubSettings, Received, Verdict
from comity_node.links import Changes, LinkState
from comity_node.transport.memory import MemoryNetwork, MemoryTransport

TOPIC = "comity/lab/cards"
#: A wall clock for tests: trio's, moved to some day.
EPOCH_MS = 1_800_000_000_000


def now_ms() -> int:
    return EPOCH_MS + int(trio.current_time() * 1000)


class LinkTable:
    """Links as the service sees them."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.states: dict[str, LinkState] = {}

    def peers(self) -> list[LinkState]:
        return list(self.states.values())

    def up(self, peer_id: str, organization: str = "some.example") -> None:
        self.states[peer_id] = LinkState(peer_id, organization, "n", (), "connected", "", 0, 0, 0, 0, 0, 0)
        self.changes.note()

    def down(self, peer_id: str) -> None:
        del self.states[peer_id]
        self.changes.note()


class Gossiper:
    """One node: its service, and what it was handed."""

    def __init__(self, network: MemoryNetwork, key: PrivateKey, settings: PubSubSettings | None = None) -> None:
        self.key, self.peer_id = key, key.peer_id
        self.transport: MemoryTransport = network.transport(key.peer_id)
        self.links = LinkTable()
        self.pubsub = PubSub(
            self.transport, self.links, key, now_ms=now_ms, random=random.Random(key.peer_id), settings=settings
        )
        self.got: list[Received] = []
        self.verdict = Verdict.ACCEPT

    def listen(self, topic: str = TOPIC) -> None:
        self.pubsub.subscribe(topic, self._judge, self._take)

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.transport.run)
        await nursery.start(self.pubsub.run)

    async def _judge(self, _: Received) -> Verdict:
        await trio.lowlevel.checkpoint()
        return self.verdict

    async def _take(self, received: Received) -> None:
        await trio.lowlevel.checkpoint()
        self.got.append(received)


def link(a: Gossiper, b: Gossiper) -> None:
    """Both know that they are linked."""
    a.links.up(b.peer_id)
    b.links.up(a.peer_id)


def link_all(nodes: Iterable[Gossiper]) -> None:
    nodes = list(nodes)
    for index, one in enumerate(nodes):
        for other in nodes[index + 1 :]:
            link(one, other)
