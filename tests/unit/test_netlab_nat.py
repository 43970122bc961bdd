"""The lab's NAT: who may come in, for how long, and how much it remembers (RFC 4787, RFC 5382)."""

from __future__ import annotations

import socket
from dataclasses import replace
from random import Random

import pytest

from kit import netlab_packets as packets
from kit.netlab.nat import Nat, NatSettings
from kit.netlab_packets import ACK, FIN, RST, SYN, TCP, UDP, Packet

INSIDE, PUBLIC = "192.168.1.2", "11.0.0.1"
PEER, SAME_HOST, STRANGER = ("11.0.0.9", 80), ("11.0.0.9", 81), ("11.0.0.8", 80)
CONE, SYMMETRIC = NatSettings.named("cone"), NatSettings.named("symmetric")


def nat(settings: NatSettings = CONE) -> Nat:
    return Nat(socket.inet_aton(PUBLIC), settings, Random(1))


def out(
    router: Nat, to: tuple[str, int], *, port: int = 4001, protocol: int = TCP, flags: int = SYN, now: float = 0.0
) -> Packet | None:
    sent = packets.make((INSIDE, port), to, protocol=protocol, flags=flags, payload=b"there")
    translated = router.outbound(sent, now)
    return packets.read(translated) if translated else None


def back(
    router: Nat, source: tuple[str, int], port: int, *, protocol: int = TCP, flags: int = SYN | ACK, now: float = 0.0
) -> Packet | None:
    sent = packets.make(source, (PUBLIC, port), protocol=protocol, flags=flags, payload=b"back")
    translated = router.inbound(sent, now)
    return packets.read(translated) if translated else None


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_out_and_back(protocol: int) -> None:
    router = nat()
    sent = out(router, PEER, protocol=protocol)
    assert sent is not None
    assert (sent.source, sent.destination, sent.payload) == ((PUBLIC, 4001), PEER, b"there")
    answer = back(router, PEER, 4001, protocol=protocol)
    assert answer is not None
    assert (answer.source, answer.destination, answer.payload) == (PEER, (INSIDE, 4001), b"back")


def test_nobody_comes_in_uninvited() -> None:
    router = nat()
    assert back(router, PEER, 4001, flags=SYN) is None
    out(router, PEER)
    for source in (SAME_HOST, STRANGER):
        assert back(router, source, 4001, flags=SYN) is None
    assert back(router, PEER, 4002) is None
    assert back(router, PEER, 4001, protocol=UDP) is None


@pytest.mark.parametrize(
    ("filtering", "passes"),
    [("address-and-port", [PEER]), ("address", [PEER, SAME_HOST]), ("none", [PEER, SAME_HOST, STRANGER])],
)
def test_filtering(filtering: str, passes: list[tuple[str, int]]) -> None:
    router = nat(replace(CONE, filtering=filtering))  # type: ignore[arg-type]  # a parameter of the test
    out(router, PEER, protocol=UDP)
    for source in (PEER, SAME_HOST, STRANGER):
        assert (back(router, source, 4001, protocol=UDP) is not None) == (source in passes)


def test_a_cone_keeps_one_port_and_a_symmetric_nat_takes_another_for_each_peer() -> None:
    cone, symmetric = nat(), nat(SYMMETRIC)
    seen: dict[str, set[int]] = {"cone": set(), "symmetric": set()}
    for peer in (PEER, SAME_HOST, STRANGER):
        for name, router in (("cone", cone), ("symmetric", symmetric)):
            sent = out(router, peer)
            assert sent is not None
            seen[name].add(sent.source[1])
            answer = back(router, peer, sent.source[1])
            assert answer is not None
            assert answer.destination == (INSIDE, 4001)
    assert seen["cone"] == {4001}
    assert len(seen["symmetric"]) == 3


def test_two_that_send_at_the_same_moment_reach_each_other() -> None:
    """Simultaneous open (RFC 9293, figure 8) passes two cones, and fails when one of them is symmetric."""
    other = ("11.0.0.8", 4100)
    here, there = nat(), Nat(socket.inet_aton(other[0]), CONE, Random(2))
    out(here, other, flags=SYN)
    syn = there.outbound(packets.make(("192.168.2.2", other[1]), (PUBLIC, 4001), flags=SYN), 0.0)
    assert syn is not None
    arrived = here.inbound(syn, 0.0)
    assert arrived is not None
    assert packets.read(arrived).destination == (INSIDE, 4001)
    symmetric = Nat(socket.inet_aton(other[0]), SYMMETRIC, Random(2))
    syn = symmetric.outbound(packets.make(("192.168.2.2", other[1]), (PUBLIC, 4001), flags=SYN), 0.0)
    assert syn is not None
    assert here.inbound(syn, 0.0) is None


def test_a_taken_port_is_not_given_twice() -> None:
    router = nat(replace(CONE, first_port=4000, last_port=4002))
    ports = [sent.source[1] for port in (4001, 4003, 4004) if (sent := out(router, PEER, port=port))]
    assert ports[0] == 4001
    assert sorted(ports) == [4000, 4001, 4002]
    assert out(router, PEER, port=4005) is None, "no port is left"
    assert out(router, PEER, port=4005, protocol=UDP) is not None, "UDP has its own"


def test_udp_is_forgotten_when_idle_and_only_the_inside_keeps_it() -> None:
    router = nat()
    out(router, PEER, protocol=UDP, now=0)
    out(router, PEER, protocol=UDP, now=100)
    assert back(router, PEER, 4001, protocol=UDP, now=219) is not None
    assert back(router, PEER, 4001, protocol=UDP, now=220.1) is None
    assert out(router, STRANGER, protocol=UDP, now=222) is not None
    assert router.sessions == 1, "the first is gone from the table"


def test_tcp_that_is_open_lives_longer_than_one_that_is_not() -> None:
    router = nat()
    out(router, PEER, flags=SYN, now=0)
    assert back(router, PEER, 4001, now=241) is None
    out(router, PEER, flags=SYN, now=300)
    assert back(router, PEER, 4001, now=301) is not None
    out(router, PEER, flags=ACK, now=302)
    assert back(router, PEER, 4001, flags=ACK, now=7000) is not None
    assert back(router, PEER, 4001, flags=ACK, now=7000 + 7441) is None


@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_tcp_that_ends_is_forgotten_soon(ending: str) -> None:
    router = nat()
    out(router, PEER, flags=SYN)
    back(router, PEER, 4001)
    out(router, PEER, flags=FIN | ACK if ending == "fin" else RST, now=10)
    if ending == "fin":
        back(router, PEER, 4001, flags=FIN | ACK, now=11)
    assert back(router, PEER, 4001, flags=ACK, now=200) is not None
    assert back(router, PEER, 4001, flags=ACK, now=450) is None
    # A new connection from the same port begins anew.
    out(router, PEER, flags=SYN, now=500)
    back(router, PEER, 4001, now=501)
    assert back(router, PEER, 4001, flags=ACK, now=5000) is not None


def test_the_table_is_bounded_and_makes_room_when_sessions_end() -> None:
    router = nat(replace(CONE, max_sessions=100))
    sent = [out(router, (f"11.0.{number}.9", 80), now=0) for number in range(150)]
    assert sum(each is not None for each in sent) == router.sessions == 100
    assert out(router, ("11.0.7.9", 80), flags=ACK, now=1) is not None, "those that are in it go on"
    assert out(router, STRANGER, now=242) is not None
    assert router.sessions <= 2


def test_other_protocols_and_fragments_do_not_pass() -> None:
    router = nat()
    packet = packets.make((INSIDE, 4001), PEER)
    for broken in (b"", packet[:9] + b"\x01" + packet[10:], packet[:6] + b"\x20\x00" + packet[8:]):
        assert router.outbound(broken, 0.0) is None
        assert router.inbound(broken, 0.0) is None


def test_kinds_have_names() -> None:
    with pytest.raises(ValueError, match="not 'round'"):
        NatSettings.named("round")
