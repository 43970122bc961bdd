"""The multiaddrs that Comity uses (https://github.com/multiformats/multiaddr): TCP over IP or DNS.

`/ip4/192.0.2.1/tcp/4001`, `/ip6/2001:db8::1/tcp/4001`, `/dns4/node.mercy.example/tcp/4001`, each
optionally followed by `/p2p/<PeerId>`; and, through one relay,
`/ip4/192.0.2.1/tcp/4001/p2p/<relay>/p2p-circuit`, again optionally followed by `/p2p/<PeerId>`.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from dataclasses import dataclass, replace
from typing import Literal

from comity import signing
from comity.errors import ConfigError, TrustError

#: A name of 253 characters, a port and two PeerIds.
MAX_ADDRESS_LENGTH = 420
_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9-]{1,63})*\.?")
#: IPv6 networks whose addresses end with an IPv4 address.
_NAT64, _COMPATIBLE = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

HostKind = Literal["ip4", "ip6", "dns", "dns4", "dns6"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens, or where its relay does, and optionally which node it is.

    Attributes:
        kind: of the host.
        host: an IP address or a name.
        port: of TCP.
        peer_id: the node that is reached; "" if that is not said.
        relay: the PeerId of the relay through which it is reached, which is what listens on host and port;
            "" for a node that listens itself.
    """

    kind: HostKind
    host: str
    port: int
    peer_id: str = ""
    relay: str = ""

    def __str__(self) -> str:
        return f"{self.without_peer}/p2p/{self.peer_id}" if self.peer_id else self.without_peer

    @property
    def without_peer(self) -> str:
        """The address as text, without the PeerId of the node that is reached."""
        circuit = f"/p2p/{self.relay}/p2p-circuit" if self.relay else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{circuit}"

    @property
    def relay_address(self) -> Address:
        """Where the relay listens, with its PeerId. Only of an address that has a relay."""
        return Address(self.kind, self.host, self.port, self.relay)

    def through(self) -> Address:
        """The address of whoever this node, whose PeerId is known, relays for."""
        return replace(self, peer_id="", relay=self.peer_id)

    @property
    def is_private(self) -> bool:
        """Whether it means something else to everybody (loopback, private, ...); of a name its form alone tells."""
        if self.kind in ("ip4", "ip6"):
            return any(not each.is_global or each.is_multicast for each in _leads_to(self.host))
        return f".{self.host.rstrip('.')}".endswith(".localhost")

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the machine: good to listen on, not to dial."""
        return self.kind in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_unspecified


def may_dial(address: Address, *, allow_private: bool) -> bool:
    """Whether an address that a peer has named is dialled: it must not lead back into our own machine or network.

    Of an address through a relay the relay's is judged: that is what is dialled.

    Args:
        address: what the peer said.
        allow_private: whether this node's own network is one of private addresses.
    """
    return not address.is_wildcard and (allow_private or not address.is_private)


def is_own_machine(host: str) -> bool:
    """Whether an IP address, such as one that a name led to, is of this machine or its link alone.

    `169.254.169.254`, where clouds hand out credentials, is among them.
    """
    return any(each.is_loopback or each.is_link_local or each.is_unspecified for each in _leads_to(host))


def _leads_to(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """An IP address, and the IPv4 address in it to which a translator or a tunnel would lead.

    Those are IPv4-mapped and -compatible addresses (RFC 4291), NAT64 (RFC 6052) and 6to4 (RFC 3056). Translation that
    is local to a network (RFC 8215) and site-local addresses (RFC 3879) are of that network, as `fc00::/7` is.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.is_site_local or address in _LOCAL_NAT64:
        return [address, ipaddress.IPv6Address("fc00::")]
    within = address.ipv4_mapped or address.sixtofour
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return [address] if within is None else [address, within]


def parse_address(text: str) -> Address:
    """Parse a multiaddr.

    Raises:
        ConfigError: it is not one of the forms above.
    """
    try:
        return _parse(text)
    except (ValueError, TrustError) as error:
        shown = text if len(text) <= 80 else text[:80] + "..."
        raise ConfigError(f"{shown!r} is no address like /ip4/192.0.2.1/tcp/4001 ({error})") from error


def ip_address(host: str, port: int) -> Address:
    """The address of a socket: an IP address, with or without a zone, and a port."""
    plain = ipaddress.ip_address(host.partition("%")[0])
    mapped = plain.ipv4_mapped if isinstance(plain, ipaddress.IPv6Address) else None
    plain = mapped or plain
    return Address("ip6" if plain.version == 6 else "ip4", str(plain), port)


def _parse(text: str) -> Address:
    if len(text) > MAX_ADDRESS_LENGTH:
        raise ValueError(f"longer than {MAX_ADDRESS_LENGTH} characters")
    empty, *parts = text.split("/")
    if empty or len(parts) < 4 or parts[2] != "tcp":
        raise ValueError("not /<ip4, ip6 or dns>/<host>/tcp/<port>, with or without /p2p/<PeerId>")
    kind, host, port_text = parts[0], parts[1], parts[3]
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or int(port_text) > 65535:
        raise ValueError(f"{port_text!r} is no port")
    relay, peer_id = _checked_peers(parts[4:])
    return _checked_host(kind, host, int(port_text), peer_id, relay)


def _checked_peers(parts: list[str]) -> tuple[str, str]:
    """The relay and the peer that the end of an address names."""
    match parts:
        case []:
            relay, peer_id = "", ""
        case ["p2p", peer_id]:
            relay = ""
        case ["p2p", relay, "p2p-circuit"]:
            peer_id = ""
        case ["p2p", relay, "p2p-circuit", "p2p", peer_id]:
            pass
        case _:
            raise ValueError("after the port only /p2p/<PeerId>, or /p2p/<relay>/p2p-circuit and /p2p/<PeerId>")
    named = [peer for part, peer in itertools.pairwise(parts) if part == "p2p"]
    for peer in named:
        signing.peer_id_to_bytes(peer)
    if len(set(named)) < len(named):
        raise ValueError("a node is not its own relay")
    return relay, peer_id


def _checked_host(kind: str, host: str, port: int, peer_id: str, relay: str) -> Address:
    match kind:
        case "ip4":
            return Address("ip4", str(ipaddress.IPv4Address(host)), port, peer_id, relay)
        case "ip6":
            if "%" in host:
                raise ValueError("an address with a zone means something on one machine only")
            return Address("ip6", str(ipaddress.IPv6Address(host)), port, peer_id, relay)
        case "dns" | "dns4" | "dns6":
            if not _DNS_NAME.fullmatch(host):
                raise ValueError(f"{host!r} is no host name")
            if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
                raise ValueError(f"{host!r} is no host name: resolvers take it for an IP address")
            return Address(kind, host.lower(), port, peer_id, relay)
        case _:
            raise ValueError(f"{kind!r} is not ip4, ip6, dns, dns4 or dns6")
