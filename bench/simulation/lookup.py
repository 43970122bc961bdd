"""What finding a provider costs: Kademlia's table, records and search, as nodes run them, on a virtual clock.

A question goes to whoever is linked; a peer that is not is linked with first, which takes a place at both ends, and it
is refused where there is none (`LinkLimits.max_peers`). A link that is there is a place in both tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from random import Random

from bench.simulation.world import Clock, Figure, Figures, random_links
from comity.errors import Busy
from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.discovery.kad import KademliaSettings
from comity_node.links import LinkLimits
from comity_node.p2p.v1 import kad_pb2 as pb
from comity_node.protocol.kad import Contact, K, Providers, RoutingTable, Search, skill_key
from comity_node.transport.address import parse_address
from comity_node.transport.multiaddr import encode_multiaddr

_ADDRESS = "/ip4/192.0.2.1/tcp/4001"
FIND_NODE, GET_PROVIDERS = pb.KAD_MESSAGE_TYPE_FIND_NODE, pb.KAD_MESSAGE_TYPE_GET_PROVIDERS
ADD_PROVIDER = pb.KAD_MESSAGE_TYPE_ADD_PROVIDER


@dataclass(frozen=True, slots=True)
class LookupWorld:
    """How the simulated consortium is linked, and what is looked for.

    Attributes:
        links: of each node before anybody searches, about.
        latency_ms: of a message, one way, from and to; a new link takes two round trips more.
        max_peers: links of a node, at most.
        casual: links from which on a node dials nobody whom it does not search for, as `Network` does.
        guests: links that a node has for searches when it has so many.
        search_ms: for one search.
        publishers: organizations that say what they provide, at most.
        providers: of each skill.
        lookups: by somebody at random, of a skill at random.
    """

    links: int = 20
    latency_ms: tuple[int, int] = (10, 100)
    max_peers: int = LinkLimits().max_peers
    casual: int = LinkLimits().max_peers * 7 // 8
    guests: int = 16
    search_ms: int = round(KademliaSettings().search_s * 1000)
    publishers: int = 200
    providers: int = 4
    lookups: int = 100


@dataclass(slots=True, eq=False)
class Node:
    """A node's part in the table: what `discovery.kad.Kademlia` keeps."""

    contact: Contact
    table: RoutingTable
    records: Providers = field(default_factory=Providers)
    linked: dict[str, None] = field(default_factory=dict)
    guests: dict[str, None] = field(default_factory=dict)
    provided: set[bytes] = field(default_factory=set)
    answers: int = 0


@dataclass(slots=True)
class Trace:
    """What one search cost, and what it found.

    Attributes:
        who: searches.
        began_ms: when it began.
        messages: questions, answers and records that were sent, whoever sent them.
        bytes: of them.
        asked: peers.
        refused: of them, those that had no place for a link.
        links: that were made for it.
        hops: of the peer that named the first provider: 1 for one that the searcher knew itself; 0 if it knew the
            provider; None if nobody did.
        first_messages: that were sent until then.
        first_ms: until then.
        took_ms: until its end.
        depth: hops of each peer that was heard of.
        found: providers.
    """

    who: str
    began_ms: int
    messages: int = 0
    bytes: int = 0
    asked: int = 0
    refused: int = 0
    links: int = 0
    hops: int | None = None
    first_messages: int = 0
    first_ms: int = 0
    took_ms: int = 0
    depth: dict[str, int] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)


class LookupNet:
    """So many nodes that ask each other."""

    def __init__(self, count: int, seed: int, world: LookupWorld) -> None:
        self.clock, self.random, self._world = Clock(), Random(seed), world
        self.nodes: dict[str, Node] = {}
        for _ in range(count):
            peer_id = PrivateKey(self.random.randbytes(32)).peer_id
            self.nodes[peer_id] = Node(Contact(peer_id, (_ADDRESS,)), RoutingTable(peer_id))
        self.names = list(self.nodes)
        for a, b in random_links(count, world.links, self.random):
            if len(self.nodes[self.names[a]].linked) < world.casual:
                self.link(self.names[a], self.names[b])

    def link(self, a: str, b: str) -> bool:
        """Link two nodes, each of which takes the other into its table; False where one has no place left."""
        first, second = self.nodes[a], self.nodes[b]
        if b in first.linked:
            return True
        if max(len(first.linked), len(second.linked)) >= self._world.max_peers:
            return False
        for node, other in ((first, b), (second, a)):
            node.linked[other] = None
            node.table.add(other)
        return True

    def unlink(self, a: str, b: str) -> None:
        """End a link; the place of each in the other's table is for one that had none, as `Kademlia.peer_down` does."""
        for node, other in ((self.nodes[a], b), (self.nodes[b], a)):
            node.linked.pop(other, None)
            node.guests.pop(other, None)
            node.table.remove(other)
            for each in node.linked:
                node.table.add(each)

    def _reach(self, who: str, whom: str) -> bool:
        """Link with a peer for a search; the oldest guests give their place, as in `Network`."""
        me, world = self.nodes[who], self._world
        while me.guests and (
            len(me.linked) >= world.max_peers or (len(me.guests) >= world.guests and len(me.linked) >= world.casual)
        ):
            self.unlink(who, next(iter(me.guests)))
        if not self.link(who, whom):
            return False
        me.guests[whom] = None
        return True

    def publish(self, who: str, skill: str) -> Trace:
        """Let a node tell the nearest to a skill's key that it provides the skill."""
        key = skill_key(skill)
        self.nodes[who].provided.add(key)
        return self._search(who, key, FIND_NODE, then=partial(self._tell, who, key))

    def find(self, who: str, skill: str) -> Trace:
        """Let a node look for who provides a skill."""
        key = skill_key(skill)
        return self._search(who, key, GET_PROVIDERS)

    def answer(
        self, at: str, sender: str, kind: pb.KadMessageType.ValueType, key: bytes
    ) -> tuple[list[str], list[Contact]]:
        """Return whom a node names as nearer, and the providers that it knows, to a question of `sender`.

        As `Kademlia.answer` does, without the encoding.
        """
        node = self.nodes[at]
        closer = [peer for peer in node.table.closest(key, K + 1) if peer != sender][:K]
        if kind != GET_PROVIDERS:
            return closer, []
        own = [node.contact] if key in node.provided else []
        return closer, (own + node.records.of(key, self.clock.now_ms))[:K]

    def _search(
        self,
        who: str,
        key: bytes,
        kind: pb.KadMessageType.ValueType,
        then: Callable[[Search, Trace], None] | None = None,
    ) -> Trace:
        """Run one search to its end, as `Kademlia` does, and then `then`."""
        me = self.nodes[who]
        start = me.table.closest(key)
        search, trace = Search(key, start, me=who), Trace(who, self.clock.now_ms)
        trace.depth = dict.fromkeys(start, 1)
        if kind == GET_PROVIDERS:
            self._note(trace, me.records.of(key, self.clock.now_ms), 0)

        def ask() -> None:
            trace.took_ms = self.clock.now_ms - trace.began_ms
            for contact in search.next():
                trace.asked += 1
                self._ask(who, contact.peer_id, key, kind, search, trace, ask)

        ask()
        self.clock.drain()
        if then is not None:
            then(search, trace)
        return trace

    def _ask(
        self, who: str, whom: str, key: bytes, kind: pb.KadMessageType.ValueType, search: Search, trace: Trace,
        go_on: Callable[[], None],
    ) -> None:  # fmt: skip
        way = 1
        if whom not in self.nodes[who].linked:
            if not self._reach(who, whom):
                trace.refused += 1
                # At once where there is no place here; if there is none there, after the two round trips of a new link.
                after_ms = 0 if len(self.nodes[who].linked) >= self._world.max_peers else self._way_ms(4)
                self.clock.after(after_ms, partial(self._end, search, trace, whom, None, go_on))
                return
            trace.links += 1
            way += 4
        _count(trace, message_bytes(kind, 0, 0, asks=True))

        def arrive() -> None:
            closer, known = self.answer(whom, who, kind, key)
            self.nodes[whom].answers += 1
            _count(trace, message_bytes(kind, len(closer), len(known)))
            self.clock.after(self._way_ms(1), partial(back, closer, known))

        def back(closer: Sequence[str], known: Sequence[Contact]) -> None:
            if self._is_over(trace):
                return
            hops = trace.depth[whom]
            for peer in closer:
                trace.depth.setdefault(peer, hops + 1)
            self._note(trace, known, hops)
            self._end(search, trace, whom, [self.nodes[peer].contact for peer in closer], go_on)

        self.clock.after(self._way_ms(way), arrive)

    def _end(
        self, search: Search, trace: Trace, whom: str, closer: Sequence[Contact] | None, go_on: Callable[[], None]
    ) -> None:  # fmt: skip
        if self._is_over(trace):
            return
        if closer is None:
            search.failed(whom)
        else:
            search.answered(whom, closer)
        go_on()

    def _is_over(self, trace: Trace) -> bool:
        """Whether a search's time is over, whatever still comes."""
        if self.clock.now_ms - trace.began_ms < self._world.search_ms:
            return False
        trace.took_ms = self._world.search_ms
        return True

    def _tell(self, who: str, key: bytes, search: Search, trace: Trace) -> None:
        for contact in search.nearest():
            _count(trace, message_bytes(ADD_PROVIDER, 0, 1))
            try:
                self.nodes[contact.peer_id].records.add(key, self.nodes[who].contact, self.clock.now_ms)
            except Busy:
                trace.refused += 1

    def _note(self, trace: Trace, contacts: Sequence[Contact], hops: int) -> None:
        known = [each for each in contacts if each.peer_id != trace.who]
        if known and trace.hops is None:
            trace.hops, trace.first_messages = hops, trace.messages
            trace.first_ms = self.clock.now_ms - trace.began_ms
        trace.found.update(each.peer_id for each in known)

    def _way_ms(self, times: int) -> int:
        return sum(self.random.randint(*self._world.latency_ms) for _ in range(times))


def _count(trace: Trace, size: int) -> None:
    trace.messages += 1
    trace.bytes += size


@lru_cache(maxsize=1024)
def message_bytes(kind: pb.KadMessageType.ValueType, closer: int, providers: int, *, asks: bool = False) -> int:
    """Return the bytes of a message on the wire, all of whose peers have one IPv4 address; without its length."""
    peer_id = peer_id_to_bytes(PrivateKey(bytes(32)).peer_id)
    peer = pb.KadPeer(
        id=peer_id, addrs=[encode_multiaddr(parse_address(_ADDRESS))], connection=pb.KAD_CONNECTION_CAN_CONNECT
    )
    message = pb.KadMessage(type=kind, closer_peers=[peer] * closer, provider_peers=[peer] * providers)
    if asks or kind != FIND_NODE:
        message.key = skill_key("")
    return len(message.SerializeToString())


def measure(part: str, count: int, seed: int, world: LookupWorld) -> list[Figure]:
    """Simulate `count` organizations with a node each; return what saying and finding who provides what cost."""
    net = LookupNet(count, seed, world)
    figures = Figures(part, count)
    figures.mean("links-before", "links", [len(node.linked) for node in net.nodes.values()])
    publishers = net.random.sample(net.names, min(world.publishers, count))
    skills = max(len(publishers) // world.providers, 1)
    said = [net.publish(who, f"skill-{number % skills}") for number, who in enumerate(publishers)]
    _searches(figures, "publish", said)
    found = [
        net.find(net.random.choice(net.names), f"skill-{net.random.randrange(skills)}") for _ in range(world.lookups)
    ]
    _searches(figures, "find", found)
    good = [trace for trace in found if trace.hops is not None]
    figures.one("found", "share", len(good) / len(found))
    figures.mean("providers-found", "providers", [len(trace.found) for trace in found])
    if good:
        figures.mean("hops-to-first", "hops", [trace.hops or 0 for trace in good])
        figures.mean("messages-to-first", "messages", [trace.first_messages for trace in good])
        figures.mean("time-to-first", "ms", [trace.first_ms for trace in good])
    nodes = net.nodes.values()
    answers = [node.answers for node in nodes]
    figures.one("busiest-node-answers", "times the mean", max(answers) * count / sum(answers))
    figures.mean("links-after", "links", [len(node.linked) for node in nodes])
    figures.mean("table", "peers", [len(node.table) for node in nodes])
    return figures.all


def _searches(figures: Figures, what: str, traces: Sequence[Trace]) -> None:
    for name, unit, values in (
        ("messages", "messages", [trace.messages for trace in traces]),
        ("bytes", "bytes", [trace.bytes for trace in traces]),
        ("asked", "peers", [trace.asked for trace in traces]),
        ("refused", "peers", [trace.refused for trace in traces]),
        ("links-made", "links", [trace.links for trace in traces]),
        ("time", "ms", [trace.took_ms for trace in traces]),
    ):
        figures.mean(f"{what}-{name}", unit, values)
