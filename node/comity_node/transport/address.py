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
        """Whether it is a literal address that means something else to everybody (loopback, private, ...)."""
        return self.kind in ("ip4", "ip6") and not ipaddress.ip_address(self.host).is_global

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the machine: good to listen on, not to dial."""
        return self.kind in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_unspecified


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
            return Address("ip6", str(ipaddress.IPv6Address(host)), port, peer_id)
        case "dns" | "dns4" | "dns6":
            if not _DNS_NAME.fullmatch(host):
                raise ValueError(f"{host!r} is no host name")
            return Address(kind, host.lower(), port, peer_id)
        case _:
            raise ValueError(f"{kind!r} is not ip4, ip6, dns, dns4 or dns6")
