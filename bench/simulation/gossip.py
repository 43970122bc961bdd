"""What a published message costs each node: the routers that nodes run, linked at random, on a virtual clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from bench.simulation.gossipnet import TOPIC, GossipNet
from bench.simulation.world import Figure, Figures, quantile
from comity_node.discovery.news_store import NewsSettings
from comity_node.protocol.gossip_message import GossipMessage
from comity_node.protocol.gossip_rpc import Rpc, encode_frame


@dataclass(frozen=True, slots=True)
class GossipWorld:
    """How the simulated consortium is linked, and what is published.

    Attributes:
        links: of each node, about.
        latency_ms: of a link, one way, from and to.
        settle_ms: until the meshes are made.
        quiet_ms: in which nothing is published, and upkeep is measured.
        messages: that are published, each by somebody at random; as many at every size, as what is gossiped about them
            shares RPCs.
        gap_ms: between two of them.
        drain_ms: after the last one: longer than it is gossiped about.
        data_bytes: of a message: about an agent's card.
    """

    links: int = 20
    latency_ms: tuple[int, int] = (10, 100)
    settle_ms: int = 8_000
    quiet_ms: int = 3_000
    messages: int = 5
    gap_ms: int = 500
    drain_ms: int = 5_000
    data_bytes: int = 1024


class _Meter:
    """Counts what goes over the links, and by how many hops messages came."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.verified = 0
        self.hops: dict[tuple[int, bytes], int] = {}
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self.rpcs, self.copies, self.bytes_out, self.bytes_in = ([0] * self._count for _ in range(4))

    def sent(self, source: int, target: int, rpc: Rpc) -> None:
        size = _size(rpc.messages[0]) if rpc.messages and not rpc.is_control else len(encode_frame(rpc))
        self.rpcs[source] += 1
        self.copies[source] += len(rpc.messages)
        self.bytes_out[source] += size
        self.bytes_in[target] += size

    def verify(self, _: GossipMessage) -> None:
        self.verified += 1


@lru_cache(maxsize=1024)
def _size(message: GossipMessage) -> int:
    """Return the bytes of an RPC that carries one message and nothing else, as the router makes them."""
    return len(encode_frame(Rpc(messages=(message,))))


def measure(part: str, count: int, seed: int, world: GossipWorld) -> list[Figure]:
    """Simulate `count` organizations with a node each; return what each paid."""
    meter = _Meter(count)

    def delivered(number: int, message: GossipMessage, by: bytes) -> None:
        meter.hops[number, message.id] = meter.hops[net.index[by], message.id] + 1

    net = GossipNet(
        count, seed=seed, latency_ms=world.latency_ms, verify=meter.verify, on_sent=meter.sent, on_delivered=delivered
    )  # fmt: skip
    net.connect_at_random(world.links)
    net.run(world.settle_ms)
    figures = Figures(part, count)
    figures.mean("links", "links", [node.sizes()["peers"] for node in net.nodes])
    figures.mean("mesh", "links", [len(node.mesh(TOPIC)) for node in net.nodes])
    meter.reset()
    net.run(world.quiet_ms)
    seconds = world.quiet_ms / 1000
    figures.mean("upkeep-bytes-sent", "bytes/s", [each / seconds for each in meter.bytes_out])
    meter.reset()
    published = _publish(net, meter, world)
    _per_message(figures, meter, net, world.messages)
    _spread(figures, meter, net, published)
    # Reckoned, not simulated: what it comes to when each organization repeats one card as often as nodes do.
    a_message = sum(meter.bytes_out) / count / world.messages
    figures.one("all-cards-bytes-sent", "bytes/s", a_message * count / NewsSettings().repeat_s)
    for table in ("seen", "cache_messages", "memberships", "authors", "backoffs"):
        figures.mean(f"table-{table.replace('_', '-')}", "entries", [node.sizes()[table] for node in net.nodes])
    return figures.all


def _publish(net: GossipNet, meter: _Meter, world: GossipWorld) -> list[tuple[GossipMessage, int]]:
    """Publish one message after the other; returns each with the time at which it was."""
    published = []
    meter.verified = 0
    for _ in range(world.messages):
        author = net.random.randrange(len(net.nodes))
        at_ms = net.now_ms
        message = net.publish(author, data=bytes(world.data_bytes))
        meter.hops[author, message.id] = 0
        published.append((message, at_ms))
        net.run(world.gap_ms)
    net.run(world.drain_ms)
    return published


def _per_message(figures: Figures, meter: _Meter, net: GossipNet, messages: int) -> None:
    """Add what one published message costs each node; control and lazy gossip of that time are shared out to them."""
    counts: Counter[str] = Counter()
    for node in net.nodes:
        counts.update(node.counts)
    for name, unit, values in (
        ("rpcs-sent", "RPCs", meter.rpcs),
        ("copies-sent", "messages", meter.copies),
        ("bytes-sent", "bytes", meter.bytes_out),
        ("bytes-received", "bytes", meter.bytes_in),
    ):
        figures.mean(name, unit, [each / messages for each in values])
    figures.mean("duplicates", "messages", [node.counts["duplicates"] / messages for node in net.nodes])
    figures.one("verifications", "signatures", meter.verified / messages / len(net.nodes))
    figures.one("sent-on-demand", "messages", counts["sent_on_demand"] / messages / len(net.nodes))


def _spread(
    figures: Figures, meter: _Meter, net: GossipNet, published: Sequence[tuple[GossipMessage, int]]
) -> None:  # fmt: skip
    """Add how far and how long messages went."""
    half: list[float] = []
    nearly: list[float] = []
    last: list[float] = []
    hops: list[float] = []
    most_hops: list[float] = []
    for message, at_ms in published:
        others = [number for number in range(len(net.nodes)) if number != net.index[message.author]]
        times = [net.delivered_ms[number, message.id] - at_ms for number in others if net.delivered[number, message.id]]
        ways = [meter.hops[number, message.id] for number in others if net.delivered[number, message.id]]
        half.append(quantile(times, 0.5))
        nearly.append(quantile(times, 0.99))
        last.append(max(times))
        hops.append(sum(ways) / len(ways))
        most_hops.append(max(ways))
    missing = len(net.missing([message for message, _ in published]))
    figures.one("reached", "share", 1 - missing / (len(published) * (len(net.nodes) - 1)))
    figures.mean("time-to-half", "ms", half)
    figures.mean("time-to-99-percent", "ms", nearly)
    figures.mean("time-to-all", "ms", last)
    figures.mean("hops", "hops", hops)
    figures.mean("longest-way", "hops", most_hops)
