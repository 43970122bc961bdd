"""identify and ping over real connections: for members, and for strangers only where that is asked for."""

from __future__ import annotations

import pytest
import trio

from comity.errors import PeerUnreachable
from comity.signing import PrivateKey
from comity_node.transport.base import ByteStream
from comity_node.transport.identify import IDENTIFY, ask_identity
from comity_node.transport.libp2p_transport import Libp2pTransport
from comity_node.transport.ping import PING, ping
from kit.relayed import LOOPBACK, answer


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("public", [False, True])
def test_strangers_learn_nothing_unless_that_is_wanted(public: bool) -> None:
    async def hello(stream: ByteStream) -> None:
        node.confirm(stream.remote_peer)
        await stream.send(b"confirmed")
        await stream.aclose()

    node = Libp2pTransport(PrivateKey.generate(), [LOOPBACK], identify_strangers=public)
    client = Libp2pTransport(PrivateKey.generate(), [])
    node.serve("/hello/1", hello, strangers=True)
    node.serve("/members/1", hello)

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                await nursery.start(client.run)
                where = node.addresses()
                if not public:
                    for protocol in (IDENTIFY, PING, "/members/1"):
                        with pytest.raises(PeerUnreachable, match=f"does not speak {protocol}"):
                            await answer(client, node.peer_id, where, protocol)
                    assert await answer(client, node.peer_id, where, "/hello/1") == b"confirmed"
                    assert await answer(client, node.peer_id, where, "/members/1") == b"confirmed"
                identity = await ask_identity(await client.open_stream(node.peer_id, where, IDENTIFY))
                assert identity.agent.startswith("comity/")
                assert [str(each) for each in identity.addresses] == where
                assert {IDENTIFY, PING, "/members/1"} <= set(identity.protocols)
                [connection] = client.connections.of(node.peer_id)
                assert identity.observed is not None
                assert (identity.observed.host, identity.observed.port) == ("127.0.0.1", connection.local_port)
                stream = await client.open_stream(node.peer_id, where, PING)
                assert 0 < await ping(stream, bytes(range(32))) < 10
                await stream.aclose()
                ours, theirs = client.connection_info(node.peer_id), node.connection_info(client.peer_id)
                assert ours is not None
                assert theirs is not None
                assert (ours.address, ours.inbound, theirs.inbound, ours.relay) == (where[0], False, True, "")
                assert theirs.address == f"/ip4/127.0.0.1/tcp/{connection.local_port}"
                assert min(ours.bytes_sent, ours.bytes_received, theirs.bytes_sent, ours.window_bytes + 1) > 0
                assert node.counters()["connections_of_strangers"] == int(public)
                nursery.cancel_scope.cancel()

    trio.run(main)
