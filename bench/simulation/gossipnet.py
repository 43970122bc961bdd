"""GossipSub routers on a virtual clock, and what goes wrong between them: for tests, and for `make simulate`."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bench.simulation.world import Clock, random_links
from comity_node.protocol.gossip import Action, Deliver, GossipRouter, Send, Validate, Verdict
from comity_node.protocol.gossip_message import GossipMessage
from comity_node.protocol.gossip_params import GossipParams
from comity_node.protocol.gossip_rpc import Rpc, RpcReader, encode_frame

TOPIC = "comity/lab/cards"


def name(number: int) -> bytes:
    """The PeerId of a simulated node; signatures are not looked at."""
    return b"n%05d" % number


def unsigned(author: bytes, number: int, *, topic: str = TOPIC, data: bytes = b"news") -> GossipMessage:
    """Return a message whose signature nobody looks at."""
    return GossipMessage(author, data, number.to_bytes(8, "big"), topic, bytes(64))


class GossipNet:
    """So many routers; time passes only in `run`.

    Links are streams: what is sent arrives in order, or the link breaks and both ends know. A lossy sender drops gossip
    and messages, never control, and tells its router, as the service's send queue does.

    Args:
        count: nodes.
        seed: of all randomness.
        params: of the routers.
        latency_ms: of a link, from and to.
        wire: whether each RPC goes through its encoding.
        topics: what all subscribe to.
        judge: the validators.
        verify: looks at a message's signature.
        on_sent: told of each RPC that goes onto a link: from whom, to whom, what.
        on_delivered: told of each message that is handed out: at whom, what, by way of whom.
    """

    def __init__(
        self, count: int, *, seed: int = 0, params: GossipParams | None = None, latency_ms: tuple[int, int] = (10, 60),
        wire: bool = False, topics: Sequence[str] = (TOPIC,), judge: Callable[[GossipMessage], Verdict] | None = None,
        verify: Callable[[GossipMessage], None] = lambda _: None,
        on_sent: Callable[[int, int, Rpc], None] = lambda source, target, rpc: None,
        on_delivered: Callable[[int, GossipMessage, bytes], None] = lambda number, message, source: None,
    ) -> None:  # fmt: skip
        self.random = random.Random(seed)
        self.params = params or GossipParams()
        self.clock = Clock()
        self._verify, self._on_sent, self._on_delivered = verify, on_sent, on_delivered
        self.nodes = [self._router(name(number)) for number in range(count)]
        self.index = {name(number): number for number in range(count)}
        #: Messages handed out: (node, message id) to how often.
        self.delivered: Counter[tuple[int, bytes]] = Counter()
        self.delivered_ms: dict[tuple[int, bytes], int] = {}
        #: RPCs and messages that were sent, by node.
        self.rpcs: Counter[int] = Counter()
        self.messages: Counter[int] = Counter()
        self.loss = 0.0
        self.duplication = 0.0
        self.judge = judge or (lambda _: Verdict.ACCEPT)
        self._latency_ms, self._wire = latency_ms, wire
        self._links: dict[frozenset[int], int] = {}
        self._epochs = itertools.count()
        self._last_ms: dict[tuple[int, int], int] = {}
        self._numbers = itertools.count(1)
        for number, node in enumerate(self.nodes):
            for topic in topics:
                self.do(number, node.subscribe(topic, self.now_ms))
            self._beat(number, self.random.randrange(self.params.heartbeat_ms))

    def _router(self, own: bytes) -> GossipRouter:
        chance = random.Random(self.random.random())
        return GossipRouter(own, chance, self.params, verify=self._verify)

    @property
    def now_ms(self) -> int:
        """The virtual time."""
        return self.clock.now_ms

    @property
    def links(self) -> list[tuple[int, int]]:
        """Who is linked with whom."""
        return [(min(pair), max(pair)) for pair in self._links]

    def connect(self, a: int, b: int) -> None:
        """Link two nodes; `a` has dialled."""
        pair = frozenset((a, b))
        if pair not in self._links:
            self._links[pair] = next(self._epochs)
            first = self.nodes[a].add_peer(name(b), self.now_ms, outbound=True)
            second = self.nodes[b].add_peer(name(a), self.now_ms, outbound=False)
            self.do(a, first)
            self.do(b, second)

    def connect_at_random(self, degree: int) -> None:
        """Link every node with so many others, and all of them together."""
        for number, other in random_links(len(self.nodes), degree, self.random):
            self.connect(number, other)

    def connect_all(self) -> None:
        """Link everybody with everybody."""
        for a, b in itertools.combinations(range(len(self.nodes)), 2):
            self.connect(a, b)

    def cut(self, a: int, b: int) -> None:
        """Break a link: what is on its way is lost."""
        if self._links.pop(frozenset((a, b)), None) is not None:
            self.nodes[a].remove_peer(name(b), self.now_ms)
            self.nodes[b].remove_peer(name(a), self.now_ms)

    def publish(self, number: int, *, topic: str = TOPIC, data: bytes = b"news") -> GossipMessage:
        """Let a node publish a message."""
        message = unsigned(name(number), next(self._numbers), topic=topic, data=data)
        self.do(number, self.nodes[number].publish(message, self.now_ms))
        return message

    def run(self, ms: int) -> None:
        """Let time pass."""
        self.clock.run(ms)

    def after(self, ms: int, step: Callable[[], None]) -> None:
        """Call `step` in so many milliseconds."""
        self.clock.after(ms, step)

    def missing(self, messages: Iterable[GossipMessage]) -> list[tuple[int, bytes]]:
        """Who has not got what, the authors aside."""
        return [
            (number, message.id)
            for message in messages
            for number in range(len(self.nodes))
            if message.author != name(number) and not self.delivered[number, message.id]
        ]

    def do(self, number: int, actions: Iterable[Action]) -> None:
        """Do what a node's router wants done."""
        for action in actions:
            match action:
                case Send(peer, rpc):
                    self._send(number, self.index[peer], rpc)
                case Validate(message):
                    self.after(1, partial(self._judge, number, message.id, self.judge(message)))
                case Deliver(message, by):
                    self.delivered[number, message.id] += 1
                    self.delivered_ms[number, message.id] = self.now_ms
                    self._on_delivered(number, message, by)

    def _send(self, source: int, target: int, rpc: Rpc) -> None:
        epoch = self._links.get(frozenset((source, target)))
        if epoch is None:
            return
        if self.loss and not rpc.is_control and self.random.random() < self.loss:
            self.nodes[source].note_lost(name(target))
            return
        self.rpcs[source] += 1
        self.messages[source] += len(rpc.messages)
        self._on_sent(source, target, rpc)
        if self._wire:
            reader = RpcReader(self.params.limits)
            reader.feed(encode_frame(rpc))
            decoded = reader.next_rpc()
            assert decoded == rpc
            rpc = decoded
        copies = 2 if self.duplication and rpc.messages and self.random.random() < self.duplication else 1
        for _ in range(copies):
            due_ms = max(self.now_ms + self.random.randint(*self._latency_ms), self._last_ms.get((source, target), 0))
            self._last_ms[source, target] = due_ms
            self.after(due_ms - self.now_ms, partial(self._arrive, source, target, rpc, epoch))

    def _judge(self, number: int, message_id: bytes, verdict: Verdict) -> None:
        self.do(number, self.nodes[number].judge(message_id, verdict))

    def _arrive(self, source: int, target: int, rpc: Rpc, epoch: int) -> None:
        if self._links.get(frozenset((source, target))) == epoch:
            self.do(target, self.nodes[target].receive(name(source), rpc, self.now_ms))

    def _beat(self, number: int, ms: int) -> None:
        def step() -> None:
            self.do(number, self.nodes[number].heartbeat(self.now_ms))
            self._beat(number, self.params.heartbeat_ms)

        self.after(ms, step)
