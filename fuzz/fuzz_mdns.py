"""Fuzzes packets of multicast DNS, as far as this node looks at them: names of services, and their text.

Run: python -m fuzz.run mdns
"""

from __future__ import annotations

from typing import Any

from zeroconf import DNSCache, DNSIncoming, DNSOutgoing, DNSPointer, DNSText, ServiceInfo  # type: ignore[attr-defined]
from zeroconf import Error as ZeroconfError

from comity.signing import PrivateKey
from comity_node.discovery.mdns import SERVICE, read_strings
from comity_node.transport.address import parse_address

_PEER = PrivateKey(bytes(32)).peer_id
_TEXT = b"".join(
    bytes([len(each)]) + each
    for each in (
        b"dnsaddr=/ip4/192.0.2.1/tcp/4001/p2p/" + _PEER.encode(),
        b"dnsaddr=/dns4/a.example/tcp/4001/p2p/" + _PEER.encode(),
        b"other=1",
    )
)


def _packet(alias: str, text: bytes) -> bytes:
    out = DNSOutgoing(0x8400)  # an authoritative answer
    out.add_answer_at_time(DNSPointer(SERVICE, 12, 1, 4500, alias), 0)
    out.add_answer_at_time(DNSText(alias, 16, 1, 4500, text), 0)
    return bytes(out.packets()[0])


#: Where a fuzzer begins.
SEEDS = (
    _TEXT,
    _packet(f"x.{SERVICE}", _TEXT),
    _packet("evil.example.", b"\xff\xff"),
    _packet("." + SERVICE, b""),
    b"",
)


class _Zeroconf:
    """What looking a name up needs where nothing is asked: records that came before."""

    def __init__(self, records: list[Any]) -> None:
        self.cache = DNSCache()
        self.cache.async_add_records(records)


def one(data: bytes) -> None:
    """Read the bytes as a service's text, and as a packet."""
    _read(data)
    packet = DNSIncoming(data)
    try:
        records = packet.answers()
    except (ZeroconfError, ValueError, IndexError):  # logged, and passed over, by zeroconf's own listener
        return
    cache: Any = _Zeroconf(list(records))
    for record in records:
        if isinstance(record, DNSPointer):
            try:
                info = ServiceInfo(SERVICE, record.alias)
                info.load_from_cache(cache)
            except (OSError, ValueError, ZeroconfError):  # as `Mdns` takes it: no node
                continue
            _read(info.text or b"")


def _read(text: bytes) -> None:
    contact = read_strings(text)
    if contact is None:
        return
    assert len(contact.addresses) <= 16
    for address in contact.addresses:
        parsed = parse_address(address)
        assert str(parsed) == address
        assert not parsed.peer_id
        assert not parsed.is_wildcard
