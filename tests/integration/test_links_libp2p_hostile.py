"""Strangers on the port: garbage, silence, floods; and stock py-libp2p as the other end."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from comity.errors import ConfigError, FrameTooLarge, LinkClosed, PeerUnreachable
from comity.signing import PrivateKey
from comity_node.transport.address import parse_address
from comity_node.transport.base import ByteStream
from comity_node.transport.libp2p_transport import Libp2pLimits, Libp2pTransport
from comity_node.transport.wire import SocketRaw, Wire
from comity_node.transport.yamux import MuxLimits
from kit.relayed import answer

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ECHO = "/echo/1"


@asynccontextmanager
async def echo_node(limits: Libp2pLimits | None = None) -> AsyncIterator[tuple[Libp2pTransport, trio.Nursery]]:
    transport = Libp2pTransport(PrivateKey.generate(), [LOOPBACK], limits=limits)

    async def echo(stream: ByteStream) -> None:
        transport.confirm(stream.remote_peer)
        while data := await stream.receive():
            await stream.send(data)
        await stream.aclose()

    transport.serve(ECHO, echo, strangers=True)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            yield transport, nursery
            nursery.cancel_scope.cancel()


async def echoes(target: Libp2pTransport, nursery: trio.Nursery) -> None:
    """A newcomer gets an answer."""
    client = Libp2pTransport(PrivateKey.generate(), [])
    await nursery.start(client.run)
    stream = await client.open_stream(target.peer_id, target.addresses(), ECHO)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    await stream.aclose()


async def dial(target: Libp2pTransport) -> trio.SocketStream:
    address = parse_address(target.addresses()[0])
    return await trio.open_tcp_stream(address.host, address.port)


async def drained(stream: trio.SocketStream) -> bytes:
    """Everything until the node closes the connection."""
    data = b""
    async with stream:
        try:
            while piece := await stream.receive_some():
                data += piece
        except trio.BrokenResourceError:
            pass
    return data


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(64),
    "not utf-8": b"\x05\xff\xfe\xfd\xfc\n",
    "endless varint": b"\xff" * 64,
    "empty message": b"\x00",
    "wrong version": b"\x13/multistream/9.9.9\n",
    "noise of zeros": b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\x00\x20" + bytes(32),
    "noise, short": b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\x00\x01\x00",
}


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_the_port_hurts_nobody(name: str) -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=0.5)) as (target, nursery):
            stream = await dial(target)
            await stream.send_all(GARBAGE[name])
            await drained(stream)  # the node closes it
            await echoes(target, nursery)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_huge_length_prefix_costs_nothing() -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=20)) as (target, nursery):
            stream = await dial(target)
            await stream.send_all(b"\x13/multistream/1.0.0\n")
            await stream.receive_some()
            tracemalloc.start()
            try:
                await stream.send_all(b"\x80\x80\x80\x80\x04")  # 1 GiB
                # It is refused by its prefix, long before the time is up and without reading what follows.
                with trio.fail_after(5):
                    await drained(stream)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 2_000_000
            await echoes(target, nursery)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_flood_of_small_messages_before_the_key_is_cut() -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=50, handshake_bytes=4096)) as (target, nursery):
            stream = await dial(target)
            await stream.send_all(b"\x13/multistream/1.0.0\n" + b"\x03ls\n" * 2000)  # each would get an answer
            with trio.fail_after(10):
                said = await drained(stream)
            assert said.count(b"/noise") <= 1024
            await echoes(target, nursery)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_wire_reads_its_budget_and_no_more_until_it_is_lifted() -> None:
    async def main() -> None:
        here, there = (trio.SocketStream(each) for each in trio.socket.socketpair())
        async with here, there:
            wire = Wire(SocketRaw(here), initiator=False, budget=100)
            await there.send_all(bytes(1000))
            for _ in range(10):
                assert await wire.read(10) == bytes(10)
            with pytest.raises(FrameTooLarge):
                await wire.read(1)
            wire.lift_budget()
            assert await wire.read(900) == bytes(900)
            await there.aclose()
            with pytest.raises(LinkClosed):
                await wire.read(1)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_silent_sockets_make_room_for_newcomers() -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=50, max_unproved=32)) as (target, nursery):
            silent = [await dial(target) for _ in range(100)]
            with trio.fail_after(10):
                await echoes(target, nursery)
                for stream in silent[:68]:
                    await drained(stream)
            for stream in silent[68:]:
                await stream.aclose()

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_silent_socket_is_closed_in_time() -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(handshake_s=0.3)) as (target, _):
            with trio.fail_after(10):
                await drained(await dial(target))

    trio.run(main)


@pytest.mark.invariant("S7")
def test_strangers_with_keys_are_few_get_little_and_make_room_for_newcomers() -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(max_strangers=8, max_connections=20)) as (target, nursery):
            strangers = []
            for _ in range(30):
                client = Libp2pTransport(PrivateKey.generate(), [])
                await nursery.start(client.run)
                with pytest.raises(PeerUnreachable):
                    await answer(client, target.peer_id, target.addresses(), "/nothing/1")
                strangers.append(client)
            await echoes(target, nursery)
            for client in strangers[:21]:
                for connection in client.connections.of(target.peer_id):
                    await connection.mux.closed.wait()
            # Streams that are opened and not negotiated: four, and the rest are reset.
            [connection] = strangers[-1].connections.of(target.peer_id)
            connection.mux.set_limits(MuxLimits())
            streams = [connection.mux.open() for _ in range(10)]
            outcomes = []
            for stream in reversed(streams):
                try:
                    outcomes.append(await stream.receive(20))
                except LinkClosed:
                    outcomes.append(b"")
            assert outcomes == [b""] * 6 + [b"\x13/multistream/1.0.0\n"[:20]] * 4

    trio.run(main)


@pytest.mark.invariant("S7")
def test_handshakes_are_computed_at_a_bounded_pace_and_silent_sockets_use_none_up() -> None:
    async def main() -> None:
        limits = Libp2pLimits(
            handshakes_per_s=0.001,
            handshake_burst=3,
            handshake_wait_s=0.1,
            handshake_s=20,
            reserved_handshakes_per_s=0.001,
        )
        async with echo_node(limits) as (target, nursery):
            silent = [await dial(target) for _ in range(10)]
            for _ in range(3):
                await echoes(target, nursery)
            client = Libp2pTransport(PrivateKey.generate(), [])
            await nursery.start(client.run)
            with trio.fail_after(5), pytest.raises(PeerUnreachable):
                await client.open_stream(target.peer_id, target.addresses(), ECHO)
            for stream in silent:
                await stream.aclose()

    trio.run(main)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("allow_private", [False, True])
def test_a_name_that_leads_to_this_machine_is_told_nothing(allow_private: bool) -> None:
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: bytes, port: str | int | None, *_: int, **__: int) -> list[Any]:
            await trio.lowlevel.checkpoint()
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        async def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int) -> tuple[str, str]:
            raise OSError("addresses have no names here")

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver())
        async with echo_node() as (target, nursery):
            port = parse_address(target.addresses()[0]).port
            client = Libp2pTransport(PrivateKey.generate(), [], allow_private=allow_private)
            await nursery.start(client.run)
            named = [f"/dns4/evil.example/tcp/{port}"]
            if allow_private:
                await (await client.open_stream(target.peer_id, named, ECHO)).aclose()
            else:
                with pytest.raises(PeerUnreachable, match=r"leads to 127\.0\.0\.1"):
                    await client.open_stream(target.peer_id, named, ECHO)

    trio.run(main)


def test_more_connections_over_its_lifetime_than_the_swarm_would_have_slots() -> None:
    async def main() -> None:
        async with echo_node() as (target, _):
            for _ in range(255):
                async with trio.open_nursery() as one:
                    await echoes(target, one)
                    one.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.invariant("S7")
def test_connections_of_one_peer_are_bounded_and_the_newest_wins() -> None:
    async def main() -> None:
        async with echo_node(Libp2pLimits(max_per_peer=2)) as (target, nursery):
            key = PrivateKey.generate()
            clients = [Libp2pTransport(key, []) for _ in range(4)]
            streams = []
            for client in clients:
                await nursery.start(client.run)
                streams.append(await client.open_stream(target.peer_id, target.addresses(), ECHO))
                client.confirm(target.peer_id)
            with trio.fail_after(10):
                for client in clients[:2]:
                    for connection in client.connections.of(target.peer_id):
                        await connection.mux.closed.wait()
            for stream in streams[2:]:
                await stream.send(b"here")
                assert await stream.receive() == b"here"

    trio.run(main)


def test_the_wrong_key_at_an_address_is_not_accepted() -> None:
    async def main() -> None:
        async with echo_node() as (target, nursery):
            client = Libp2pTransport(PrivateKey.generate(), [])
            await nursery.start(client.run)
            somebody = PrivateKey.generate().peer_id
            with pytest.raises(PeerUnreachable, match="does not correspond"):
                await client.open_stream(somebody, target.addresses(), ECHO)
            with pytest.raises(PeerUnreachable, match="no address is known"):
                await client.open_stream(somebody, [], ECHO)

    trio.run(main)


def test_a_dead_address_does_not_keep_a_good_one_from_being_dialled_again() -> None:
    async def main() -> None:
        async with echo_node() as (target, nursery):
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                dead = f"/ip4/127.0.0.1/tcp/{unused.getsockname()[1]}"
            client = Libp2pTransport(PrivateKey.generate(), [])
            await nursery.start(client.run)
            with pytest.raises(PeerUnreachable):
                await client.open_stream(target.peer_id, [dead], ECHO)
            stream = await client.open_stream(target.peer_id, [dead, *target.addresses()], ECHO)
            await stream.aclose()

    trio.run(main)


def test_importing_the_transport_leaves_logging_alone() -> None:
    script = (
        "import logging, sys\n"
        "def look(): return [(l.level, l.propagate, l.handlers) for l in map(logging.getLogger, (None, 'libp2p'))]\n"
        "before = look()\n"
        "import comity_node.transport.libp2p_transport\n"
        "sys.exit(before != look() or 'libp2p' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_only_ip_addresses_can_be_listened_on() -> None:
    with pytest.raises(ConfigError, match="names a host"):
        Libp2pTransport(PrivateKey.generate(), ["/dns4/node.mercy.example/tcp/4001"])


def test_stock_libp2p_and_ours_understand_each_other() -> None:
    """Noise, multistream-select and Yamux against py-libp2p's own host, both ways."""
    importlib.import_module("comity_node.transport.stock")  # imports libp2p without the warnings of its dependencies
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    size = 700_000  # more than a window each way

    async def main() -> None:
        host = new_host(key_pair=create_new_key_pair())
        got = 0

        async def stock_echo(stream: object) -> None:
            left = size
            while left:
                data = await stream.read(65536)  # type: ignore[attr-defined]
                await stream.write(data)  # type: ignore[attr-defined]
                left -= len(data)
            await stream.close()  # type: ignore[attr-defined]

        async with echo_node() as (target, nursery), host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            host.set_stream_handler(ECHO, stock_echo)
            # Stock dials us.
            us = info_from_p2p_addr(Multiaddr(f"{target.addresses()[0]}/p2p/{target.peer_id}"))
            await host.connect(us)
            stream = await host.new_stream(us.peer_id, [ECHO])

            async def feed() -> None:
                for _ in range(size // 10_000):
                    await stream.write(b"s" * 10_000)

            nursery.start_soon(feed)
            while got < size:
                got += len(await stream.read(65536))
            # We dial stock.
            client = Libp2pTransport(PrivateKey.generate(), [])
            await nursery.start(client.run)
            stock_addresses = [str(address).split("/p2p/")[0] for address in host.get_addrs()]
            ours = await client.open_stream(str(host.get_id()), stock_addresses, ECHO)

            async def feed_ours() -> None:
                await ours.send(b"c" * size)

            nursery.start_soon(feed_ours)
            back = 0
            while data := await ours.receive():
                back += len(data)
            assert (got, back) == (size, size)
            await host.disconnect(us.peer_id)  # it does not close its sockets by itself
        await host.close()

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_mistake_of_ours_that_a_peer_can_reach_stops_nobody_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a handler, and in a handshake: said in the log with its traceback, and the next peer is served."""

    async def main() -> None:
        async with echo_node() as (target, nursery):

            async def broken(stream: ByteStream) -> None:
                raise ZeroDivisionError("in a handler")

            target.serve("/broken/1", broken, strangers=True)
            client = Libp2pTransport(PrivateKey.generate(), [])
            await nursery.start(client.run)
            for _ in range(3):
                stream = await client.open_stream(target.peer_id, target.addresses(), "/broken/1")
                with pytest.raises(LinkClosed):
                    await stream.receive()
            await echoes(target, nursery)

            async def broken_handshake(*_: object, **__: object) -> None:
                raise ZeroDivisionError("in a handshake")

            with monkeypatch.context() as patch:
                patch.setattr(target, "_secure", broken_handshake)
                async with await dial(target) as stranger:
                    try:
                        assert await stranger.receive_some() == b""
                    except trio.BrokenResourceError:
                        pass  # reset
            await echoes(target, nursery)

    trio.run(main)
    said = [record for record in caplog.records if "mistake of ours" in record.getMessage()]
    assert [record.exc_info is not None for record in said if record.levelname == "ERROR"] == [True]
