"""Sockets and streams at their ends: what breaks or is cancelled there is let go, and stops nothing else."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock

from comity_node.transport.base import Priority
from comity_node.transport.upgrade import propose
from comity_node.transport.wire import SocketRaw

PEER = "12D3KooWAknGNDQ2V3oeErGz85jQqiRChGNxNrtBavixqnA4PsXE"


class SilentStream:
    """A `ByteStream` whose peer never says anything."""

    def __init__(self) -> None:
        self.remote_peer = PEER
        self.said: list[str] = []

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.said.append("closed")
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        self.said.append("reset")

    def set_priority(self, priority: Priority) -> None:
        self.said.append(priority.name)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize(("after_s", "said"), [(1, ["reset"]), (60, ["closed"])])
def test_a_stream_whose_peer_never_agrees_is_let_go_however_its_closing_ends(after_s: float, said: list[str]) -> None:
    """Its place, and the peer's, would be taken for as long as the connection lasts."""

    async def main() -> None:
        stream = SilentStream()
        proposed = await propose(stream, "/some/protocol/1")
        began = trio.current_time()
        with trio.move_on_after(after_s):
            await proposed.aclose()
        assert trio.current_time() - began == pytest.approx(min(after_s, 10))
        assert stream.said == said

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.invariant("S7")
def test_a_socket_that_was_reset_before_it_was_looked_at_is_a_connection_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some systems refuse to set an option of such a socket; no peer can stop a node by that."""

    def refuse(*_: object) -> None:
        raise OSError("invalid argument")

    async def main() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        async with listener:
            stream = await trio.open_tcp_stream(*listener.socket.getsockname())
            monkeypatch.setattr(trio.SocketStream, "setsockopt", refuse)
            try:
                assert SocketRaw(stream).remote_address.startswith("/ip4/127.0.0.1/tcp/")
            finally:
                await stream.aclose()

    trio.run(main)


def test_a_tcp_socket_sends_at_once_what_it_is_given() -> None:
    async def main() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        async with listener:
            stream = await trio.open_tcp_stream(*listener.socket.getsockname())
            SocketRaw(stream)
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await stream.aclose()

    trio.run(main)
