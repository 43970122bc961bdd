"""identify and ping over streams in memory: bounded, patient for a while, and honest about what came."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from comity.errors import FrameTooLarge, LinkClosed, ProtocolError
from comity.signing import PrivateKey, libp2p_public_key
from comity_node.transport.address import Address
from comity_node.transport.identify import MAX_MESSAGE, ask_identity, identify_handler
from comity_node.transport.memory import MemoryNetwork, MemoryStream
from comity_node.transport.ping import ping, serve_ping
from comity_node.transport.varint import encode_varint

KEY = PrivateKey(bytes(32))
HERE, THERE = Address("ip4", "192.0.2.1", 4001), Address("ip4", "192.0.2.2", 50_000)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def streams() -> tuple[MemoryStream, MemoryStream]:
    return MemoryNetwork().connect("a", "b")


def test_a_node_says_who_it_is_and_where_it_sees_the_other() -> None:
    handle = identify_handler(
        KEY.public_key,
        "comity/test",
        addresses=lambda: [HERE],
        protocols=lambda: ["/a/1"],
        observed=lambda stream: THERE if stream.remote_peer == "a" else None,
    )

    async def main() -> None:
        ours, theirs = streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle, theirs)
            identity = await ask_identity(ours)
        assert (identity.agent, identity.addresses, identity.protocols) == ("comity/test", (HERE,), ("/a/1",))
        assert (identity.observed, identity.public_key) == (THERE, libp2p_public_key(KEY.public_key))

    run(main)


@pytest.mark.invariant("S7")
def test_an_identity_that_is_too_long_malformed_or_never_comes_is_given_up() -> None:
    async def main() -> None:
        for said, expected in (
            (encode_varint(MAX_MESSAGE + 1), FrameTooLarge),
            (b"\x02\xff\xff", ProtocolError),
            (b"\x05\x08", LinkClosed),
        ):
            ours, theirs = streams()
            await theirs.send(said)
            if expected is not LinkClosed:
                await theirs.send_eof()
            began = trio.current_time()
            with pytest.raises(expected):
                await ask_identity(ours)
            assert trio.current_time() - began == (10.0 if expected is LinkClosed else 0.0)

    run(main)


def test_a_ping_comes_back_and_takes_its_time() -> None:
    async def main() -> None:
        ours, theirs = streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_ping, theirs)
            assert await ping(ours, bytes(range(32))) == 0.0
            assert await ping(ours, bytes(32)) == 0.0
            await ours.send_eof()

    run(main)


def test_another_answer_is_no_ping() -> None:
    async def main() -> None:
        ours, theirs = streams()
        await theirs.send(bytes(32))
        with pytest.raises(ProtocolError, match="something else"):
            await ping(ours, bytes(range(32)))
        await theirs.send_eof()
        with pytest.raises(LinkClosed):
            await ping(ours, bytes(32))

    run(main)


@pytest.mark.invariant("S7")
def test_pings_are_answered_at_a_bounded_pace_and_silence_ends_the_stream() -> None:
    async def main() -> None:
        ours, theirs = streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_ping, theirs)
            began = trio.current_time()
            for _ in range(120):
                await ping(ours, bytes(32))
            assert trio.current_time() - began == pytest.approx(5.0)  # 20 at once, then 20 a second
            assert await ours.receive() == b""
            assert trio.current_time() - began == pytest.approx(65.0)

    run(main)
