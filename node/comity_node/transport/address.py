"""The multiaddrs that Comity uses (https://github.com/multiformats/multiaddr): TCP over IP or DNS.

`/ip4/192.0.2.1/tcp/4001`, `/ip6/2001:db8::1/tcp/4001`, `/dns4/node.mercy.example/tcp/4001`, each
optionally followed by `/p2p/<PeerId>`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from comity import signing
from comity.errors import ConfigError, TrustError

MAX_ADDRESS_LENGTH = 320
_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9-]{1,63})*\.?")

_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

HostKind = Literal["ip4", "ip6", "dns", "dns4", "dns6"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens, and optionally which one."""

    kind: HostKind
    host: str
    port: int
    peer_id: str = ""

    def __str__(self) -> str:
        suffix = f"/p2p/{self.peer_id}" if self.peer_id else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{suffix}"

    @property
    def without_peer(self) -> str:
        """The address as text, without its PeerId."""
        return f"/{self.kind}/{self.host}/tcp/{self.port}"

    @property
    def is_private(self) -> bool:
        """Whether it means something else to everybody (loopback, private, ...); of a name its form alone tells."""
        if self.kind in ("ip4", "ip6"):
            return not ipaddress.ip_address(self.host).is_global
        return f".{self.host.rstrip('.')}".endswith(".localhost")

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the machine: good to listen on, not to dial."""
        return self.kind in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_unspecified


def may_dial(address: Address, *, allow_private: bool) -> bool:
    """Whether an address that a peer has named is dialled: it must not lead back into our own machine or network.

    Args:
        address: what the peer said.
        allow_private: whether this node's own network is one of private addresses.
    """
    return not address.is_wildcard and (allow_private or not address.is_private)


def is_own_machine(host: str) -> bool:
    """Whether an IP address, such as one that a name led to, is of this machine or its link alone.

    `169.254.169.254`, where clouds hand out credentials, is among them.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any(each.is_loopback or each.is_link_local or each.is_unspecified for each in (address, mapped or address))


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


def _parse(text: str) -> Address:
    if len(text) > MAX_ADDRESS_LENGTH:
        raise ValueError(f"longer than {MAX_ADDRESS_LENGTH} characters")
    empty, *parts = text.split("/")
    if empty or len(parts) not in (4, 6) or parts[2] != "tcp" or (len(parts) == 6 and parts[4] != "p2p"):
        raise ValueError("not /<ip4, ip6 or dns>/<host>/tcp/<port>, with or without /p2p/<PeerId>")
    kind, host, port_text = parts[0], parts[1], parts[3]
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or int(port_text) > 65535:
        raise ValueError(f"{port_text!r} is no port")
    peer_id = parts[5] if len(parts) == 6 else ""
    if peer_id:
        signing.peer_id_to_bytes(peer_id)
    return _checked_host(kind, host, int(port_text), peer_id)


def _checked_host(kind: str, host: str, port: int, peer_id: str) -> Address:
    match kind:
        case "ip4":
            return Address("ip4", str(ipaddress.IPv4Address(host)), port, peer_id)
        case "ip6":
            if "%" in host:
                raise ValueError("an address with a zone means something on one machine only")
            return Address("ip6", str(ipaddress.IPv6Address(host)), port, peer_id)
        case "dns" | "dns4" | "dns6":
            if not _DNS_NAME.fullmatch(host):
                raise ValueError(f"{host!r} is no host name")
            if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
                raise ValueError(f"{host!r} is no host name: resolvers take it for an IP address")
            return Address(kind, host.lower(), port, peer_id)
        case _:
            raise ValueError(f"{kind!r} is not ip4, ip6, dns, dns4 or dns6")
