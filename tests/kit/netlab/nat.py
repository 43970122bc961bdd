"""A NAT router for one site: source translation with a bounded table, sans-IO.

In the words of RFC 4787 (UDP) and RFC 5382 (TCP): the *mapping* says which public port stands for an inside endpoint,
the *filtering* says which packets from outside may use it. By default the mapping is endpoint-independent and the
filtering address-and-port-dependent ("port-restricted cone"): nobody outside can open a connection, but two sides that
send at the same moment can (hole punching). Endpoint-dependent mapping ("symmetric") gives every remote endpoint
another public port. Packets that are neither TCP nor UDP, and fragments, do not pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from kit.netlab.packet import FIN, RST, SYN, TCP, Endpoint, Header, PacketError, parse, with_destination, with_source

Mapping = Literal["endpoint-independent", "endpoint-dependent"]
Filtering = Literal["none", "address", "address-and-port"]

_SWEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class NatSettings:
    """How a NAT router behaves.

    Attributes:
        mapping: whether the public port depends on the remote endpoint.
        filtering: what from outside may use a mapping.
        max_sessions: pairs of inside and remote endpoint that are remembered; a new one over that is dropped.
        udp_idle_s: a UDP session without a packet from inside for so long is forgotten.
        tcp_transitory_s: the same for TCP that is not open on both sides yet, or is closing.
        tcp_established_s: the same for open TCP connections.
        first_port: of the public ports.
        last_port: of them.
    """

    mapping: Mapping = "endpoint-independent"
    filtering: Filtering = "address-and-port"
    max_sessions: int = 4096
    udp_idle_s: float = 120.0
    tcp_transitory_s: float = 240.0
    tcp_established_s: float = 7440.0
    first_port: int = 1024
    last_port: int = 65535

    @classmethod
    def named(cls, name: str) -> NatSettings:
        """Return the settings of a kind: "cone" (the default) or "symmetric".

        Raises:
            ValueError: there is no such kind.
        """
        match name:
            case "cone":
                return cls()
            case "symmetric":
                return cls(mapping="endpoint-dependent")
        raise ValueError(f"a NAT is 'cone' or 'symmetric', not {name!r}")


@dataclass(slots=True)
class _Session:
    """One inside endpoint's dealings with one remote endpoint."""

    ends: float = 0.0
    from_inside: int = 0
    from_outside: int = 0


@dataclass(slots=True)
class _Mapping:
    protocol: int
    inside: Endpoint
    port: int
    key: tuple[int, Endpoint, Endpoint | None]
    sessions: dict[Endpoint, _Session] = field(default_factory=dict)


class Nat:
    """The translation of one site."""

    def __init__(self, public: bytes, settings: NatSettings, random: Random) -> None:
        """Make a router.

        Args:
            public: its address outside, four bytes.
            settings: how it behaves.
            random: chooses public ports where they are not kept.
        """
        self._public, self._settings, self._random = public, settings, random
        self._by_key: dict[tuple[int, Endpoint, Endpoint | None], _Mapping] = {}
        self._by_port: dict[tuple[int, int], _Mapping] = {}
        self._sessions = 0
        self._swept = 0.0

    @property
    def sessions(self) -> int:
        """How many are remembered."""
        return self._sessions

    def outbound(self, packet: bytes, now: float) -> bytes | None:
        """Translate a packet that leaves the site; None: it is dropped (no room, or not TCP or UDP)."""
        header = _parse(packet)
        if header is None:
            return None
        self._sweep(now)
        mapping = self._mapping_for(header, now)
        if mapping is None:
            return None
        session = mapping.sessions.get(header.destination)
        if session is None:
            session = mapping.sessions[header.destination] = _Session()
            self._sessions += 1
        if header.flags & SYN:
            session.from_inside = session.from_outside = 0  # a connection begins anew
        session.from_inside |= header.flags | (0x100)
        session.ends = now + self._idle_s(header.protocol, session)
        return with_source(packet, header, (self._public, mapping.port))

    def inbound(self, packet: bytes, now: float) -> bytes | None:
        """Translate a packet that comes for the public address; None: it is filtered."""
        header = _parse(packet)
        if header is None:
            return None
        mapping = self._by_port.get((header.protocol, header.destination[1]))
        if mapping is None or not self._passes(mapping, header.source, now):
            return None
        session = mapping.sessions.get(header.source)
        if session is not None:
            session.from_outside |= header.flags | 0x100
            if header.protocol == TCP:  # of UDP only what comes from inside keeps the mapping (RFC 4787, REQ-6)
                session.ends = now + self._idle_s(TCP, session)
        return with_destination(packet, header, mapping.inside)

    def _passes(self, mapping: _Mapping, source: Endpoint, now: float) -> bool:
        alive = (remote for remote, session in mapping.sessions.items() if session.ends > now)
        match self._settings.filtering:
            case "none":
                return any(True for _ in alive)
            case "address":
                return any(remote[0] == source[0] for remote in alive)
        session = mapping.sessions.get(source)
        return session is not None and session.ends > now

    def _idle_s(self, protocol: int, session: _Session) -> float:
        if protocol != TCP:
            return self._settings.udp_idle_s
        both = session.from_inside & session.from_outside
        either = session.from_inside | session.from_outside
        is_open = both & 0x100 and not both & FIN and not either & RST
        return self._settings.tcp_established_s if is_open else self._settings.tcp_transitory_s

    def _mapping_for(self, header: Header, now: float) -> _Mapping | None:
        """Return the mapping of an outbound packet, with room for its session; a new one if there is none."""
        dependent = self._settings.mapping == "endpoint-dependent"
        key = (header.protocol, header.source, header.destination if dependent else None)
        mapping = self._by_key.get(key)
        if mapping is not None and header.destination in mapping.sessions:
            return mapping
        if self._sessions >= self._settings.max_sessions:
            self._sweep(now, at_once=True)
            if self._sessions >= self._settings.max_sessions:
                return None
            mapping = self._by_key.get(key)
        if mapping is None:
            port = self._free_port(header.protocol, None if dependent else header.source[1])
            if port is None:
                return None
            mapping = _Mapping(header.protocol, header.source, port, key)
            self._by_key[key] = self._by_port[header.protocol, port] = mapping
        return mapping

    def _free_port(self, protocol: int, wanted: int | None) -> int | None:
        """Keep the inside port where possible; else begin at any and take the next that is free."""
        low, high = self._settings.first_port, self._settings.last_port
        count = high - low + 1
        first = wanted if wanted is not None and low <= wanted <= high else self._random.randint(low, high)
        for step in range(count):
            port = low + (first - low + step) % count
            if (protocol, port) not in self._by_port:
                return port
        return None

    def _sweep(self, now: float, *, at_once: bool = False) -> None:
        """Forget what has been idle for too long; once a second, or when room is needed."""
        if not at_once and now - self._swept < _SWEEP_S:
            return
        self._swept = now
        for mapping in list(self._by_port.values()):
            over = [remote for remote, session in mapping.sessions.items() if session.ends <= now]
            for remote in over:
                del mapping.sessions[remote]
            self._sessions -= len(over)
            if not mapping.sessions:
                del self._by_port[mapping.protocol, mapping.port]
                del self._by_key[mapping.key]


def _parse(packet: bytes) -> Header | None:
    try:
        return parse(packet)
    except PacketError:
        return None
