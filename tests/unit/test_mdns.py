"""Multicast DNS on the loopback interface, and what garbage in it does."""

from __future__ import annotations

import os
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import DNSOutgoing, DNSPointer, DNSText  # type: ignore[attr-defined]

from comity.signing import PrivateKey
from comity_node.discovery.mdns import SERVICE, Mdns, read_strings
from comity_node.protocol.kad import Contact

A, B = PrivateKey(bytes(32)).peer_id, PrivateKey(bytes(31) + b"\x01").peer_id


def strings(*each: bytes) -> bytes:
    return b"".join(bytes([len(one)]) + one for one in each)


def test_two_nodes_on_one_network_find_each_other() -> None:
    async def main() -> None:
        found: dict[str, Contact] = {}
        both = trio.Event()

        def on_found(contact: Contact) -> None:
            found[contact.peer_id] = contact
            if len(found) == 2:
                both.set()

        async with trio.open_nursery() as nursery:
            for number, peer in enumerate((A, B)):
                addresses = [f"/ip4/127.0.0.1/tcp/{4000 + number}"]
                mdns = Mdns(peer, addresses.copy, on_found, random_bytes=os.urandom, interfaces=["127.0.0.1"])
                await nursery.start(mdns.run)
            with trio.fail_after(60):
                await both.wait()
            nursery.cancel_scope.cancel()
        assert found == {
            A: Contact(A, ("/ip4/127.0.0.1/tcp/4000",)),
            B: Contact(B, ("/ip4/127.0.0.1/tcp/4001",)),
        }

    trio.run(main)


def hostile_answer(alias: str, *, text: bytes = b"", claims: str = "") -> bytes:
    """A packet of multicast DNS: a service's name that is any text, its TXT, and a claim to somebody else's name."""
    out = DNSOutgoing(0x8400)  # an authoritative answer
    for name in filter(None, (alias, claims)):
        out.add_answer_at_time(DNSPointer(SERVICE, 12, 1, 4500, name), 0)
        out.add_answer_at_time(DNSText(name, 16, 1, 4500, text), 0)
    return out.packets()[0]


@pytest.mark.invariant("S7")
def test_what_others_on_the_network_say_ends_no_node() -> None:
    """Names that are none, text that is garbage, and a claim that our own random name is taken."""
    name = f"{bytes(20).hex()}.{SERVICE}"
    packets = [
        hostile_answer("evil.example."),
        hostile_answer("a.local."),
        hostile_answer(f"x.{SERVICE}", text=b"\xff\xff\xff", claims=name),
        hostile_answer("." + SERVICE),
        hostile_answer(f"{'y' * 60}.{SERVICE}", text=strings(b"dnsaddr=/ip4/127.0.0.1/tcp/1/p2p/" + B.encode())),
        b"\x00\x00\x84\x00\x00\x00\x00\x01" + b"\xc0" * 40,
    ]

    async def main() -> None:
        found = trio.Event()
        mdns = Mdns(A, list, lambda contact: found.set(), random_bytes=bytes, interfaces=["127.0.0.1"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))

            async def flood() -> None:
                while True:
                    for packet in packets:
                        sender.sendto(packet, ("224.0.0.251", 5353))
                    await trio.sleep(0.05)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                with trio.fail_after(60):
                    await nursery.start(mdns.run)
                    await found.wait()
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_only_addresses_of_one_peer_are_read() -> None:
    text = strings(
        b"",
        b"other=1",
        b"dnsaddr=/ip4/192.0.2.1/udp/1/quic-v1/p2p/" + A.encode(),
        b"dnsaddr=/ip4/0.0.0.0/tcp/1/p2p/" + A.encode(),
        b"dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/" + A.encode(),
        b"dnsaddr=/ip4/192.0.2.2/tcp/1/p2p/" + B.encode(),
        b"dnsaddr=/ip4/192.0.2.3/tcp/1",
        b"dnsaddr=\xff",
    )
    assert read_strings(text) == Contact(A, ("/ip4/192.0.2.1/tcp/1",))
    assert read_strings(b"") is None
    many = strings(*(b"dnsaddr=/ip4/192.0.2.1/tcp/%d/p2p/%s" % (port, A.encode()) for port in range(1, 100)))
    read = read_strings(many)
    assert read is not None
    assert len(read.addresses) == 16


@pytest.mark.invariant("S7")
@given(st.binary(max_size=600))
def test_garbage_names_nobody_or_somebody_and_never_fails(text: bytes) -> None:
    contact = read_strings(text)
    assert contact is None or len(contact.addresses) <= 16
