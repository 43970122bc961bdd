"""The part of `node.yaml` that says how a node is reached, and how it finds others."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from comity.errors import SignatureInvalid
from comity.signing import peer_id_to_bytes
from comity_node.strictyaml import Node, Section

KEYS: Final = ("listen", "announce", "bootstrap", "relays", "relay", "discovery", "transport", "metrics")
SECURITY: Final = ("noise", "tls")
IMPLEMENTATIONS: Final = ("comity", "py-libp2p")
_MAX_ADDRESSES = 64
_DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """What this node carries for members that cannot be dialled. The policy's `relay.carry` says for whom.

    Attributes:
        serve: whether it carries anything.
        reservations_per_organization: nodes of one organization that may be reached through this one.
        circuits_per_organization: connections of one organization that are carried at a time.
        megabytes_per_hour: what is carried for one organization, both directions together.
    """

    serve: bool = False
    reservations_per_organization: int = 4
    circuits_per_organization: int = 32
    megabytes_per_hour: int = 4096


@dataclass(frozen=True, slots=True)
class RendezvousConfig:
    """Meeting points: whether this node is one, and the multiaddrs (with /p2p) of those it registers with and asks."""

    serve: bool = False
    at: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiscoveryConfig:
    """How members are found beside `bootstrap`. Whoever is found still has to attest itself.

    Attributes:
        gossip: pass on signed news (cards, reliability, revocations) between members.
        kademlia: find the providers of a skill in a distributed table.
        mdns: find nodes on the local network; for a lab.
        rendezvous: meeting points.
    """

    gossip: bool = True
    kademlia: bool = True
    mdns: bool = False
    rendezvous: RendezvousConfig = RendezvousConfig()


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """How connections are secured.

    Attributes:
        security: `noise`, `tls`, or both in order of preference.
        noise: whose implementation of Noise: `comity` (fast) or `py-libp2p` (the stock one).
    """

    security: tuple[str, ...] = SECURITY
    noise: str = IMPLEMENTATIONS[0]


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Where Prometheus asks for metrics: an IP address and a port; nowhere if `host` is empty."""

    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """How a node is reached and how it finds others.

    Attributes:
        listen: multiaddrs to listen on; none: this node only dials.
        announce: multiaddrs under which others dial it, where those listened on do not say it.
        bootstrap: multiaddrs (with /p2p) of nodes to begin with.
        relays: multiaddrs (with /p2p) of members through which this node is reached.
        relay: what it carries for others.
        discovery: how it finds others.
        transport: how connections are secured.
        metrics: where they are served.
    """

    listen: tuple[str, ...]
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    relay: RelayConfig = RelayConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    transport: TransportConfig = TransportConfig()
    metrics: MetricsConfig = MetricsConfig()


def read_network(top: Section) -> NetworkConfig:
    """Read the keys of `KEYS`.

    Raises:
        ConfigError: a key says something that cannot be.
    """
    listen = top.required("listen")
    network = NetworkConfig(
        listen=() if _is_none(listen) else multiaddrs(listen, with_peer=False, dialled=False),
        announce=multiaddrs(top.optional("announce"), with_peer=False),
        bootstrap=multiaddrs(top.optional("bootstrap"), with_peer=True),
        relays=multiaddrs(top.optional("relays"), with_peer=True),
        relay=_relay(top),
        discovery=_discovery(top.section("discovery", "gossip", "kademlia", "mdns", "rendezvous")),
        transport=_transport(top.section("transport", "security", "noise")),
        metrics=_metrics(top.section("metrics", "listen")),
    )
    if not network.listen:
        _check_unlistened(network, top, listen)
    return network


def multiaddrs(node: Node | None, *, with_peer: bool, dialled: bool = True) -> tuple[str, ...]:
    """Read one multiaddr or a list of them.

    Args:
        node: what to read.
        with_peer: whether they name the peer, too.
        dialled: whether somebody dials them; else they are listened on.

    Raises:
        ConfigError: one is malformed, or there are too many.
    """
    if node is None or node.is_empty or (node.is_list and not node.items()):
        return ()
    items = node.one_or_more()
    if len(items) > _MAX_ADDRESSES:
        node.fail(f"at most {_MAX_ADDRESSES} addresses, not {len(items)}")
    for item in items:
        _check_multiaddr(item, with_peer=with_peer, dialled=dialled)
    return node.strings()


def _is_none(node: Node) -> bool:
    return not node.is_list and node.value == "none"


def _check_unlistened(network: NetworkConfig, top: Section, listen: Node) -> None:
    """Refuse what needs a listening address of a node that has none."""
    if network.relay.serve:
        top.required("relay").fail("a node that does not listen cannot carry connections of others")
    if network.announce:
        top.required("announce").fail("a node that does not listen has no address to announce")
    if not (network.bootstrap or network.relays):
        listen.fail("a node that does not listen finds nobody without `bootstrap` or `relays`")


def _check_multiaddr(node: Node, *, with_peer: bool, dialled: bool) -> None:
    """Refuse what is not `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`, followed by `/p2p/PEERID` if `with_peer`."""
    form = "/ip4/HOST/tcp/PORT" + ("/p2p/PEERID" if with_peer else "")
    match node.string(max_length=512).split("/"):
        case ["", ("ip4" | "ip6" | "dns" | "dns4" | "dns6") as family, host, "tcp", port] if not with_peer:
            pass
        case ["", ("ip4" | "ip6" | "dns" | "dns4" | "dns6") as family, host, "tcp", port, "p2p", peer] if with_peer:
            _check_peer(node, peer)
        case _:
            node.fail(f"expected an address of the form {form}, got {node.value!r}")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        node.fail(f"{port!r} is no port")
    is_wildcard = _check_host(node, family, host)
    if dialled and (is_wildcard or int(port) == 0):
        node.fail(f"nobody can dial {node.value!r}")
    if not dialled and family.startswith("dns"):
        node.fail(f"listen on an IP address such as /ip4/0.0.0.0/tcp/{port}, not on a name")


def _check_peer(node: Node, peer: str) -> None:
    try:
        peer_id_to_bytes(peer)
    except SignatureInvalid as error:
        node.fail(str(error))


def _check_host(node: Node, family: str, host: str) -> bool:
    """Refuse what is no host; return whether it stands for every address of a machine."""
    if family.startswith("dns"):
        if not _DNS_NAME.fullmatch(host):
            node.fail(f"{host!r} is no host name")
        return False
    try:
        address = ipaddress.IPv4Address(host) if family == "ip4" else ipaddress.IPv6Address(host)
    except ValueError:
        node.fail(f"{host!r} is no {'IPv4' if family == 'ip4' else 'IPv6'} address")
    if "%" in host:  # a zone means something on one machine only
        node.fail(f"{host!r} is no IPv6 address without a zone")
    return address.is_unspecified


def _relay(top: Section) -> RelayConfig:
    default = RelayConfig()
    section = top.section(
        "relay", "serve", "reservations_per_organization", "circuits_per_organization", "megabytes_per_hour"
    )
    return RelayConfig(
        serve=section.boolean("serve", default.serve),
        reservations_per_organization=section.integer(
            "reservations_per_organization", default.reservations_per_organization, 1, 1_000
        ),
        circuits_per_organization=section.integer(
            "circuits_per_organization", default.circuits_per_organization, 1, 10_000
        ),
        megabytes_per_hour=section.integer("megabytes_per_hour", default.megabytes_per_hour, 1, 10_000_000),
    )


def _discovery(section: Section) -> DiscoveryConfig:
    default = DiscoveryConfig()
    meeting = section.section("rendezvous", "serve", "at")
    return DiscoveryConfig(
        gossip=section.boolean("gossip", default.gossip),
        kademlia=section.boolean("kademlia", default.kademlia),
        mdns=section.boolean("mdns", default.mdns),
        rendezvous=RendezvousConfig(
            serve=meeting.boolean("serve", False),
            at=multiaddrs(meeting.optional("at"), with_peer=True),
        ),
    )


def _transport(section: Section) -> TransportConfig:
    default = TransportConfig()
    security, noise = section.optional("security"), section.optional("noise")
    read = TransportConfig(
        security=default.security if security is None else security.choices(SECURITY, "security protocol"),
        noise=default.noise if noise is None else noise.choice(IMPLEMENTATIONS, "implementation"),
    )
    if noise is not None and read.noise != default.noise and "noise" not in read.security:
        noise.fail(f"{read.noise} speaks noise alone, which `security` does not name")
    return read


def _metrics(section: Section) -> MetricsConfig:
    node = section.optional("listen")
    if node is None or _is_none(node):
        return MetricsConfig()
    match = _HOST_AND_PORT.fullmatch(node.string(max_length=64))
    if match is None or int(match["port"]) > 65535:
        node.fail(f"expected an IP address and a port such as 127.0.0.1:9464, got {node.value!r}")
    host = match["six"] or match["four"]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        node.fail(f"{host!r} is no IP address")
    return MetricsConfig(host, int(match["port"]))
