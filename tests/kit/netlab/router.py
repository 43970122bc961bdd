"""What the wire does with packets, sans-IO: site, NAT, line up, the middle, line down, NAT, site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from random import Random
from typing import Literal

from kit.netlab.line import Line, Shape
from kit.netlab.nat import Nat, NatSettings
from kit.netlab.packet import PacketError, addresses

Direction = Literal["up", "down"]


@dataclass(slots=True)
class Port:
    """A site as the router sees it.

    Attributes:
        name: of the site.
        inside: the address that its programs have.
        public: the address that others see; the same without NAT.
        nat: translates between them, if they differ.
        up: the line from the site.
        down: the line to it.
        counts: what happened to its packets.
    """

    name: str
    inside: bytes
    public: bytes
    nat: Nat | None
    up: Line
    down: Line
    counts: Counter[str] = field(default_factory=Counter)


class Router:
    """Carries packets between sites; told the time, tells what to deliver."""

    def __init__(self, seed: int) -> None:
        """Make a router without sites.

        Args:
            seed: of everything that is left to chance: loss, jitter, ports.
        """
        self._seed = seed
        self._ports: dict[str, Port] = {}
        self._by_public: dict[bytes, Port] = {}
        self._cuts: set[tuple[str, str]] = set()
        #: Packets that got from one site to another.
        self.carried: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, inside: str, public: str, nat: NatSettings | None = None) -> None:
        """Add a site.

        Raises:
            ValueError: the name or the public address is taken.
        """
        outside = IPv4Address(public).packed
        if name in self._ports or outside in self._by_public:
            raise ValueError(f"there is a site {name!r} or one at {public}")
        port = Port(
            name,
            IPv4Address(inside).packed,
            outside,
            Nat(outside, nat, self._random(name, "nat")) if nat else None,
            Line(self._random(name, "up")),
            Line(self._random(name, "down")),
        )
        self._ports[name] = self._by_public[outside] = port

    def _random(self, *names: str) -> Random:
        return Random("/".join((str(self._seed), *names)))

    def shape(self, name: str, shape: Shape, directions: Iterable[Direction] = ("up", "down")) -> None:
        """Change a site's line from now on; what is on its way arrives as it would have."""
        port = self._ports[name]
        for direction in directions:
            line = port.up if direction == "up" else port.down
            line.shape = shape

    def shape_of(self, name: str, direction: Direction) -> Shape:
        """Return how a line is now."""
        port = self._ports[name]
        return (port.up if direction == "up" else port.down).shape

    def cut(self, source: str, destination: str) -> None:
        """Let nothing pass from one site to another; what is on its way is lost."""
        self._cuts.add((self._ports[source].name, self._ports[destination].name))

    def heal(self, source: str | None = None, destination: str | None = None) -> None:
        """Undo cuts from `source` (or any) to `destination` (or any)."""
        self._cuts = {
            (here, there)
            for here, there in self._cuts
            if source not in (None, here) or destination not in (None, there)
        }

    def names(self) -> tuple[str, ...]:
        """Return the sites' names."""
        return tuple(self._ports)

    def send(self, name: str, packet: bytes, now: float) -> list[tuple[str, bytes]]:
        """Take a packet from a site; returns what may be delivered at once."""
        port = self._ports[name]
        port.counts["sent"] += 1
        try:
            source, _ = addresses(packet)
        except PacketError:
            port.counts["ignored"] += 1  # IPv6 and the like, which the kernel tries by itself
            return []
        if source != port.inside:
            port.counts["spoofed"] += 1
            return []
        if port.nat is not None:
            translated = port.nat.outbound(packet, now)
            if translated is None:
                port.counts["nat_refused"] += 1
                return []
            packet = translated
        if port.up.is_clear:
            return self._across(port, packet, now)
        port.up.offer(packet, now)
        return []

    def pump(self, now: float) -> list[tuple[str, bytes]]:
        """Return what has arrived by `now`: site and packet, in order."""
        out: list[tuple[str, bytes]] = []
        for port in self._ports.values():
            for packet in port.up.arrived(now):
                out += self._across(port, packet, now)
        for port in self._ports.values():
            for packet in port.down.arrived(now):
                out += self._into(port, packet, now)
        return out

    @property
    def next_due(self) -> float:
        """When `pump` has something next; infinity if nothing is on its way."""
        return min(
            (line.next_due for port in self._ports.values() for line in (port.up, port.down)), default=float("inf")
        )

    def stats(self) -> dict[str, dict[str, int]]:
        """Return, for each site, what happened to its packets since the beginning."""
        return {
            name: {
                **port.counts,
                "lost_up": port.up.lost,
                "lost_down": port.down.lost,
                "overflowed_up": port.up.overflowed,
                "overflowed_down": port.down.overflowed,
                "nat_sessions": port.nat.sessions if port.nat else 0,
            }
            for name, port in self._ports.items()
        }

    def _across(self, port: Port, packet: bytes, now: float) -> list[tuple[str, bytes]]:
        """From one site's line to another's."""
        target = self._by_public.get(packet[16:20])
        if target is None or target is port:  # no route; and no NAT here sends a packet back where it came from
            port.counts["no_route"] += 1
            return []
        if (port.name, target.name) in self._cuts:
            port.counts["cut"] += 1
            return []
        if target.down.is_clear:
            return self._into(target, packet, now)
        target.down.offer(packet, now)
        return []

    def _into(self, port: Port, packet: bytes, now: float) -> list[tuple[str, bytes]]:
        source = self._by_public[packet[12:16]]  # as it came off that site's line
        pair = (source.name, port.name)
        if pair in self._cuts:
            source.counts["cut"] += 1
            return []
        if port.nat is not None:
            translated = port.nat.inbound(packet, now)
            if translated is None:
                port.counts["nat_filtered"] += 1
                return []
            packet = translated
        port.counts["received"] += 1
        self.carried[pair] += 1
        return [(port.name, packet)]
