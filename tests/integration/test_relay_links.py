"""Nodes that listen on nothing, linked through a member's relay: real sockets, certificates and links."""

from __future__ import annotations

import pytest
import trio

from comity.errors import LinkClosed, PeerUnreachable, PolicyDenied
from comity.signing import PrivateKey
from comity.trust import Attested
from comity_node.transport.address import parse_address
from comity_node.transport.base import ByteStream
from comity_node.transport.libp2p_transport import Libp2pTransport
from comity_node.transport.messages import StreamRaw
from comity_node.transport.relay import HOP, Answer, Status, encode_hop
from comity_node.transport.relay_limits import RelayLimits
from kit.consortium import consortium
from kit.relayed import HOPE, LOOPBACK, MERCY, STLUKES, answer, member, of, reachable, relaying, running, url

MARKER = b"the patient's name is nobody's business"


@pytest.mark.invariant("S1")
def test_two_nodes_that_listen_on_nothing_talk_through_a_relay_that_sees_ciphertext_only() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        service, seen = relaying(relay, r_id)
        async with running(relay) as nursery:
            b = member(b_id, everybody.trust, relays=[url(relay)])
            a = member(a_id, everybody.trust)
            await nursery.start(b.run)
            await nursery.start(a.run)
            address = await reachable(b)
            assert address == f"{relay.transport.own_addresses()[0]}/p2p/{relay.peer_id}/p2p-circuit"
            a.links.add_peer(b.peer_id, [address])  # a has never heard of the relay
            await a.links.wait_for(b.peer_id, 30)
            assert await a.links.request(b.peer_id, MARKER, 10) == MARKER[::-1]
            await b.links.wait_for(a.peer_id, 30)
            assert await b.links.request(a.peer_id, MARKER * 10_000, 10) == (MARKER * 10_000)[::-1]
            info = a.transport.connection_info(b.peer_id)
            assert info is not None
            assert (info.relay, info.is_relayed, info.address) == (relay.peer_id, True, address)
            # The relay has carried it all and could read nothing of it.
            counters = service.counters()
            assert counters[MERCY].bytes_carried == counters[STLUKES].bytes_carried > 700_000
            assert (counters[MERCY].circuits, counters[STLUKES].reservations) == (1, 1)
            assert len(seen) > 700_000
            assert MARKER not in seen
            assert MARKER[::-1] not in seen

    trio.run(main)


def test_the_reservation_comes_back_when_the_relay_restarts() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        relaying(relay, r_id)
        async with running() as nursery:
            async with trio.open_nursery() as life:
                await life.start(relay.run)
                where = url(relay)
                a, b = (member(each, everybody.trust, relays=[where]) for each in (a_id, b_id))
                await nursery.start(a.run)
                await nursery.start(b.run)
                address = await reachable(b)
                a.links.add_peer(b.peer_id, [address])
                await a.links.wait_for(b.peer_id, 30)
                life.cancel_scope.cancel()
            await b.transport.connections.until(lambda: not b.transport.connections.is_confirmed(relay.peer_id))
            assert b.links.addresses() == []
            [lost] = b.transport.reach.relays.reservations()
            assert (lost.is_held, lost.reason) == (False, "the connection to it is gone")
            again = member(r_id, everybody.trust, listen=[where.partition("/p2p/")[0]])
            relaying(again, r_id)
            await nursery.start(again.run)
            assert await reachable(b) == address
            [state] = b.transport.reach.relays.reservations()
            assert (state.is_held, state.renewals) == (True, 2)
            await a.links.wait_for(b.peer_id, 30)
            assert await a.links.request(b.peer_id, b"again", 10) == b"niaga"

    trio.run(main)


@pytest.mark.invariant("S1")
def test_the_policy_of_the_relay_decides_for_whom_it_carries() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)
    asked: list[tuple[str, str]] = []

    async def not_for_mercy(who: Attested, target: Attested | None) -> None:
        await trio.lowlevel.checkpoint()
        asked.append((who.organization, target.organization if target else ""))
        if who.organization == MERCY:
            raise PolicyDenied("relay.carry is not allowed for mercy.example")

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        service, _ = relaying(relay, r_id, allow=not_for_mercy)
        async with running(relay) as nursery:
            a, b = (member(each, everybody.trust, relays=[url(relay)]) for each in (a_id, b_id))
            await nursery.start(a.run)
            await nursery.start(b.run)
            address = await reachable(b)
            with pytest.raises(PeerUnreachable, match="says PERMISSION_DENIED"):
                await answer(a.transport, b.peer_id, [address], "/anything/1")
            assert service.counters()[MERCY].refused >= 1
            assert {(STLUKES, ""), (MERCY, STLUKES)} <= set(asked)
            assert a.links.addresses() == []

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_stranger_does_not_even_find_the_relay() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    b_id, r_id = of(everybody, STLUKES, HOPE)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        service, _ = relaying(relay, r_id)
        async with running(relay) as nursery:
            b = member(b_id, everybody.trust, relays=[url(relay)])
            await nursery.start(b.run)
            address = await reachable(b)
            stranger = Libp2pTransport(PrivateKey.generate(), [])
            await nursery.start(stranger.run)
            with pytest.raises(PeerUnreachable, match="does not speak"):
                await answer(stranger, relay.peer_id, [url(relay)], HOP)
            with pytest.raises(PeerUnreachable, match="no link with the relay"):
                await answer(stranger, b.peer_id, [address], "/anything/1")
            assert set(service.counters()) == {STLUKES}

    trio.run(main)


@pytest.mark.invariant("S7")
def test_the_quotas_of_an_organization_refuse_what_is_over_them() -> None:
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])
        quotas = RelayLimits(circuits_per_organization=1, organization_bytes=200_000)
        service, _ = relaying(relay, r_id, limits=quotas)
        async with running(relay) as nursery:
            b = member(b_id, everybody.trust, relays=[url(relay)])
            a = member(a_id, everybody.trust)
            await nursery.start(b.run)
            await nursery.start(a.run)
            address = await reachable(b)
            a.links.add_peer(b.peer_id, [address])
            await a.links.wait_for(b.peer_id, 30)
            with pytest.raises(PeerUnreachable, match="RESOURCE_LIMIT_EXCEEDED"):  # a second circuit
                await a.transport.reach.relays.open_circuit(parse_address(address), b.peer_id)
            with pytest.raises(LinkClosed):  # more bytes than it may have in an hour
                await a.links.request(b.peer_id, bytes(400_000), 20)
            with pytest.raises(PeerUnreachable, match="RESOURCE_LIMIT_EXCEEDED"):  # and then none at all
                await a.transport.reach.relays.open_circuit(parse_address(address), b.peer_id)
            carried = service.counters()[MERCY]
            assert carried.bytes_carried <= 200_000 + 2 * 65_536
            assert (carried.circuits, carried.circuits_total) == (0, 1)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_circuit_leads_to_the_peer_that_was_asked_for_or_nowhere() -> None:
    """A relay that connects somebody else finds that out by itself: the keys are checked end to end."""
    everybody = consortium(MERCY, STLUKES, HOPE)
    a_id, b_id, r_id = of(everybody, MERCY, STLUKES, HOPE)

    async def main() -> None:
        relay = member(r_id, everybody.trust, listen=[LOOPBACK])

        async def lie(stream: ByteStream) -> None:
            """Say OK to everything, and be the other end."""
            await stream.receive()
            await stream.send(encode_hop(Answer(Status.OK)))
            await relay.transport.welcome(StreamRaw(stream, b"", ""), relay="", peer_id=a.peer_id)

        relay.transport.serve(HOP, lie)
        async with running(relay) as nursery:
            a = member(a_id, everybody.trust)
            await nursery.start(a.run)
            a.links.add_peer(relay.peer_id, [url(relay)])
            await a.links.wait_for(relay.peer_id, 30)
            await relay.links.wait_for(a.peer_id, 30)
            with pytest.raises(PeerUnreachable, match="cannot be reached") as caught:
                await answer(a.transport, b_id.peer_id, [f"{url(relay)}/p2p-circuit"], "/anything/1")
            assert relay.peer_id in str(caught.value)

    trio.run(main)
