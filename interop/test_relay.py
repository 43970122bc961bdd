"""Circuit relay v2 with js-libp2p: each as relay, as the end that dials, and as the end that is reached."""

from __future__ import annotations

import pytest
import trio

from comity.errors import LinkClosed, PeerUnreachable
from jslab.ours import ECHO, WIRE_NAMES, YAMUX, Carried, Echoed, Node, running
from jslab.peer import JsFailed, JsPeer, js_peer

MB = 1024 * 1024
SECURITY = pytest.mark.parametrize("security", ["noise", "tls"])
#: What a js relay is asked to carry; by default it carries 128 KiB.
CARRIES = {"reservations": {"defaultDataLimit": 16 * MB}}


async def reachable_js(js: JsPeer, relay: str) -> str:
    """Wait until a js peer can be reached through a relay; returns that address."""
    [address] = (await js.do("reserved", relay=relay))["addresses"]
    assert address == f"{relay}/p2p-circuit/p2p/{js.peer_id}"
    return str(address)


async def check_js_reaches_us(js: JsPeer, node: Node, relay: str, through: str, security: str) -> None:
    """js-libp2p dials us through a relay and has us echo a megabyte."""
    dialled = await js.do("dial", address=through)
    assert (dialled["peer"], dialled["security"], dialled["muxer"]) == (node.peer_id, WIRE_NAMES[security], YAMUX)
    assert (dialled["address"], dialled["limited"]) == (through, True)
    echoed = await js.do("echo", address=through, bytes=MB)
    assert (echoed["bytes"], echoed["sent"]) == (MB, echoed["back"])
    assert await node.echoed() == [Echoed(js.peer_id, MB, echoed["sent"])]
    info = node.transport.connection_info(js.peer_id)
    assert info is not None
    assert (info.peer_id, info.relay, info.inbound) == (js.peer_id, relay, True)


async def check_we_reach_js(node: Node, js: JsPeer, relay: str, through: str) -> None:
    """The same, with a js peer at the other end."""
    digest = await check_we_reach(node, js.peer_id, relay, through)
    assert (await js.do("echoed", count=1))["streams"] == [{"peer": node.peer_id, "bytes": MB, "sha256": digest}]
    [seen] = (await js.do("connections", peer=node.peer_id))["connections"]
    assert (seen["direction"], seen["limited"]) == ("inbound", True)


def check_carried(carried: Carried, *, circuits: int) -> None:
    """Our relay has carried a megabyte each way, and could not read what it was.

    js-libp2p does not use a relayed connection again that it has dialled, but makes another one for each protocol.
    """
    counters = carried.service.counters()
    assert [(each.circuits_total, each.refused) for each in counters.values()] == [(circuits, 0)] * 2
    assert all(2 * MB < each.bytes_carried < 3 * MB for each in counters.values())
    assert len(carried.seen) > 2 * MB
    assert ECHO.encode() not in carried.seen


async def check_we_reach(node: Node, peer_id: str, relay: str, through: str) -> str:
    """We dial a peer through a relay and have it echo a megabyte; returns its digest."""
    digest = await node.echo(peer_id, [through], MB)
    info = node.transport.connection_info(peer_id)
    assert info is not None
    assert (info.peer_id, info.relay, info.inbound) == (peer_id, relay, False)
    return digest


@SECURITY
def test_js_carries_from_us_to_us(security: str) -> None:
    async def main() -> None:
        async with js_peer(relay=CARRIES) as relay:
            reached = Node(security=[security], listen=[], relays=relay.addresses)
            dialler = Node(security=[security], listen=[])
            async with running(reached, dialler):
                through = await reached.reachable()
                assert through == f"{relay.addresses[0]}/p2p-circuit/p2p/{reached.peer_id}"
                digest = await check_we_reach(dialler, reached.peer_id, relay.peer_id, through)
                assert await reached.echoed() == [Echoed(dialler.peer_id, MB, digest)]

    trio.run(main)


@SECURITY
def test_js_carries_from_js_to_us(security: str) -> None:
    async def main() -> None:
        async with js_peer(relay=CARRIES) as relay, js_peer(security=[security], listen=[]) as js:
            node = Node(security=[security], listen=[], relays=relay.addresses)
            async with running(node):
                await check_js_reaches_us(js, node, relay.peer_id, await node.reachable(), security)

    trio.run(main)


@SECURITY
def test_js_carries_from_us_to_js(security: str) -> None:
    node = Node(security=[security], listen=[])

    async def main() -> None:
        async with js_peer(relay=CARRIES) as relay:
            [at] = relay.addresses
            async with running(node), js_peer(security=[security], listen=[f"{at}/p2p-circuit"]) as js:
                await check_we_reach_js(node, js, relay.peer_id, await reachable_js(js, at))

    trio.run(main)


@SECURITY
def test_we_carry_from_js_to_js(security: str) -> None:
    relay = Node()
    carried = relay.offer_relay()

    async def main() -> None:
        async with running(relay):
            listen = [f"{relay.url}/p2p-circuit"]
            async with (
                js_peer(security=[security], listen=[]) as dialler,
                js_peer(security=[security], listen=listen) as reached,
            ):
                through = await reachable_js(reached, relay.url)
                dialled = await dialler.do("dial", address=through)
                assert (dialled["peer"], dialled["address"], dialled["limited"]) == (reached.peer_id, through, True)
                echoed = await dialler.do("echo", address=through, bytes=MB)
                assert (echoed["bytes"], echoed["sent"]) == (MB, echoed["back"])
                assert (await reached.do("echoed", count=1))["streams"] == [
                    {"peer": dialler.peer_id, "bytes": MB, "sha256": echoed["sent"]}
                ]
                check_carried(carried, circuits=2)

    trio.run(main)


@SECURITY
def test_we_carry_from_js_to_us(security: str) -> None:
    relay = Node()
    carried = relay.offer_relay()

    async def main() -> None:
        async with running(relay):
            node = Node(security=[security], listen=[], relays=[relay.url])
            async with running(node), js_peer(security=[security], listen=[]) as js:
                await check_js_reaches_us(js, node, relay.peer_id, await node.reachable(), security)
                check_carried(carried, circuits=2)

    trio.run(main)


@SECURITY
def test_we_carry_from_us_to_js(security: str) -> None:
    relay, node = Node(), Node(security=[security], listen=[])
    carried = relay.offer_relay()

    async def main() -> None:
        async with running(relay, node), js_peer(security=[security], listen=[f"{relay.url}/p2p-circuit"]) as js:
            await check_we_reach_js(node, js, relay.peer_id, await reachable_js(js, relay.url))
            check_carried(carried, circuits=1)

    trio.run(main)


def test_a_circuit_that_js_cuts_at_its_limit_breaks_here() -> None:
    async def main() -> None:
        async with js_peer(relay={"reservations": {"defaultDataLimit": MB // 2}}) as relay:
            reached, dialler = Node(listen=[], relays=relay.addresses), Node(listen=[])
            async with running(reached, dialler):
                through = await reached.reachable()
                await dialler.echo(reached.peer_id, [through], 1000)
                with pytest.raises(ExceptionGroup) as broken:
                    await dialler.echo(reached.peer_id, [], MB)
                assert broken.value.split(LinkClosed)[1] is None

    trio.run(main)


def test_who_has_not_reserved_is_not_reached() -> None:
    relay = Node()
    relay.offer_relay()

    async def main() -> None:
        async with js_peer(relay=CARRIES) as theirs, js_peer() as js:
            node, dialler = Node(), Node(listen=[])
            async with running(relay, node, dialler):
                await node.transport.dial(theirs.peer_id, theirs.addresses)
                through = f"{theirs.addresses[0]}/p2p-circuit/p2p/{node.peer_id}"
                with pytest.raises(PeerUnreachable, match="NO_RESERVATION"):
                    await dialler.echo(node.peer_id, [through], 1000)
                await node.transport.dial(relay.peer_id, [relay.url])
                with pytest.raises(JsFailed, match="NO_RESERVATION"):
                    await js.do("dial", address=f"{relay.url}/p2p-circuit/p2p/{node.peer_id}")

    trio.run(main)
