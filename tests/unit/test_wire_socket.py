"""A connection's socket: what it takes at once, what the system may hold of it, what becomes of one that is closed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from comity.errors import LinkClosed
from comity_node.transport.wire import SocketRaw, Wire

KIB = 1024


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[SocketRaw, trio.SocketStream]]:
    """Our end of a TCP connection, and the peer's."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    ours = await trio.open_tcp_stream(*listeners[0].socket.getsockname())
    theirs = await listeners[0].accept()
    async with listeners[0], ours, theirs:
        yield SocketRaw(ours), theirs


def mark_of(raw: SocketRaw) -> int:
    return raw._stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)


def fill(raw: SocketRaw, piece: bytes) -> bytes:
    """Send until the socket takes no more; what it has taken."""
    taken = b""
    while sent := raw.send_some(piece):
        taken += piece[:sent]
    return taken


async def read(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


def test_what_does_not_go_at_once_goes_when_there_is_room_and_in_order() -> None:
    async def main() -> None:
        async with connected() as (raw, peer):
            wire = Wire(raw, initiator=True, budget=1)
            taken = fill(raw, bytes(range(256)) * 512)
            assert taken
            assert wire.write_some(b"no room") == 0
            rest = bytes(reversed(range(256))) * 4096
            got = b""

            async def send() -> None:
                await wire.write(rest)
                raw.abort()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                got = await read(peer, len(taken) + len(rest))
            assert got == taken + rest

    trio.run(main)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system always takes as much as fits")
def test_the_system_may_hold_as_much_as_is_written_at_once_and_little_once_that_is_slow() -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with connected() as (raw, peer):
            marks = [mark_of(raw)]
            for size in (1 * KIB, 64 * KIB, 20 * KIB, 1024 * KIB):
                raw.send_some(bytes(size))
                marks.append(mark_of(raw))
            assert marks == [16 * KIB, 16 * KIB, 64 * KIB, 64 * KIB, 256 * KIB]
            fill(raw, bytes(256 * KIB))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raw.send_all, bytes(KIB))
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(0.1)
                while nursery.child_tasks:
                    await peer.receive_some(256 * KIB)
                    await trio.testing.wait_all_tasks_blocked()
            assert mark_of(raw) == 16 * KIB

    trio.run(main, clock=clock)


@pytest.mark.parametrize("end", [SocketRaw.abort, lambda raw: raw._stream.socket.close()])
def test_a_closed_socket_wakes_who_waits_and_is_never_taken_for_one_that_got_its_number(
    end: Callable[[SocketRaw], None],
) -> None:
    async def main() -> None:
        async with connected() as (raw, _):
            fill(raw, bytes(256 * KIB))
            failures: list[str] = []

            async def waits(what: Callable[[], object]) -> None:
                with pytest.raises(LinkClosed):
                    await what()  # type: ignore[misc]
                failures.append("broke")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(waits, lambda: raw.receive_some(10))
                nursery.start_soon(waits, lambda: raw.send_all(bytes(KIB)))
                await trio.testing.wait_all_tasks_blocked(0.01)
                end(raw)
            assert failures == ["broke", "broke"]
            here, there = socket.socketpair()  # one of them has the number now
            with here, there:
                here.setblocking(False)
                there.setblocking(False)
                with pytest.raises(LinkClosed):
                    raw.send_some(b"for nobody")
                with pytest.raises(LinkClosed):
                    await raw.receive_some(10)
                for other in (here, there):
                    with pytest.raises(BlockingIOError):
                        other.recv(10)

    trio.run(main)


def test_a_reader_that_never_has_to_wait_still_lets_others_run() -> None:
    async def main() -> None:
        async with connected() as (raw, peer):
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                await peer.send_all(bytes(1000))
                for _ in range(100):
                    assert len(await raw.receive_some(10)) == 10
                nursery.cancel_scope.cancel()
            assert turns >= 99

    trio.run(main)


def test_the_end_of_the_peer_is_read_after_what_it_has_sent() -> None:
    async def main() -> None:
        async with connected() as (raw, peer):
            await peer.send_all(b"last words")
            await peer.send_eof()
            assert await raw.receive_some(100) == b"last words"
            assert await raw.receive_some(100) == b""
            assert await raw.receive_some(100) == b""

    trio.run(main)


def test_a_peer_that_resets_breaks_the_connection() -> None:
    async def main() -> None:
        async with connected() as (raw, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            peer.socket.close()
            with pytest.raises(LinkClosed):
                await raw.receive_some(10)
            with pytest.raises(LinkClosed):
                await raw.send_all(b"x")

    trio.run(main)
