"""From a connection to an encrypted one: fast with ours at the other end, and never with the wrong peer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from comity.errors import Busy, ConfigError, FrameTooLarge, LinkClosed, PeerUnreachable, ProtocolError
from comity.signing import PrivateKey
from comity_node.transport import upgrade
from comity_node.transport.multistream import HEADER, Listener, encode
from comity_node.transport.noise import NoiseHandshake, NoiseIdentity
from comity_node.transport.pace import Pace
from comity_node.transport.secured import Channel
from comity_node.transport.upgrade import Upgrader
from comity_node.transport.wire import SocketRaw, Wire
from kit.wires import BUDGET, attempt, echoes, fast_pace, raw_pair, secure, wire_pair

ALICE, BOB = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)


def upgrader(key: PrivateKey, *security: str, **options: Any) -> Upgrader:
    return Upgrader(key, options.pop("pace", None) or fast_pace(), security=security or ("noise", "tls"), **options)


@pytest.mark.parametrize("max_piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("security", ["noise", "tls"])
def test_ours_and_ours(security: str, max_piece: int) -> None:
    async def main() -> None:
        wires = wire_pair(max_piece)
        secured = await secure(upgrader(ALICE, security), upgrader(BOB, security), BOB, wires)
        assert secured.found == (BOB.peer_id, ALICE.peer_id)
        await echoes(secured, b"x" * 3000 if max_piece < 10 else b"y" * 1_000_000)

    trio.run(main)


@pytest.mark.parametrize("stock_dials", [False, True])
def test_ours_and_py_libp2p_s_noise(stock_dials: bool) -> None:
    """py-libp2p sends no multiplexers in its handshake: Yamux is agreed on after it."""

    async def main() -> None:
        ours, stock = upgrader(ALICE), upgrader(BOB, stock=True)
        dialler, listener, expected = (stock, ours, ALICE) if stock_dials else (ours, stock, BOB)
        secured = await secure(dialler, listener, expected, wire_pair())
        assert set(secured.found) == {ALICE.peer_id, BOB.peer_id}
        await echoes(secured, b"z" * 200_000)

    trio.run(main)


@pytest.mark.parametrize("security", ["noise", "tls"])
def test_a_dialler_says_all_it_can_before_it_is_answered(security: str) -> None:
    """Its proposal and first message are one write, its last message the other: one round trip."""

    async def main() -> None:
        here, there = raw_pair()
        wires = Wire(here, initiator=True, budget=BUDGET), Wire(there, initiator=False, budget=BUDGET)
        await secure(upgrader(ALICE, security), upgrader(BOB, security), BOB, wires)
        opening = encode(HEADER) + encode(upgrade.SECURITY[security])
        assert here.written[0].startswith(opening)
        assert len(here.written[0]) > len(opening)
        assert len(here.written) == 2

    trio.run(main)


def test_a_peer_without_our_first_choice_is_reached_by_the_second_connection() -> None:
    async def main() -> None:
        ours, theirs = upgrader(ALICE, "noise", "tls"), upgrader(BOB, "tls")
        outcome, _ = await attempt(ours, theirs, BOB.peer_id, wire_pair())
        assert isinstance(outcome, PeerUnreachable)
        assert "does not speak /noise; dial again" in str(outcome)
        secured = await secure(ours, theirs, BOB, wire_pair())
        assert secured.found == (BOB.peer_id, ALICE.peer_id)
        await echoes(secured, b"hello")

    trio.run(main)


def test_a_peer_that_speaks_nothing_of_ours_is_not_reached() -> None:
    async def main() -> None:
        ours, theirs = upgrader(ALICE, "noise"), upgrader(BOB, "tls")
        for _ in range(2):
            outcome, _ = await attempt(ours, theirs, BOB.peer_id, wire_pair())
            assert isinstance(outcome, PeerUnreachable)
            assert "speaks none of /noise" in str(outcome)

    trio.run(main)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize("security", ["noise", "tls"])
def test_the_wrong_peer_is_refused_and_learns_nothing(security: str) -> None:
    async def main() -> None:
        expected = PrivateKey.generate().peer_id
        ours, theirs = await attempt(upgrader(ALICE, security), upgrader(BOB, security), expected, wire_pair())
        assert isinstance(ours, ProtocolError)
        assert f"does not correspond to {expected}" in str(ours)
        assert isinstance(theirs, LinkClosed)

    trio.run(main)


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(64),
    "a gigabyte": b"\x80\x80\x80\x80\x04",
    "noise of zeros": encode(HEADER) + encode("/noise") + b"\x00\x20" + bytes(32),
    "long noise": encode(HEADER) + encode("/noise") + b"\xff\xff",
    "tls of zeros": encode(HEADER) + encode("/tls/1.0.0") + bytes(100),
    "a gigabyte of tls": encode(HEADER) + encode("/tls/1.0.0") + b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
}


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(name: str) -> None:
    async def main() -> None:
        here, there = raw_pair()
        await here.send_all(GARBAGE[name])
        if name == "http":  # the first letter is a length, and the rest too short for it
            here.abort()
        with pytest.raises(LinkClosed if name == "http" else ProtocolError):
            await upgrader(ALICE).upgrade(Wire(there, initiator=False, budget=BUDGET), None)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_handshake_costs_no_more_bytes_than_the_budget() -> None:
    async def main() -> None:
        here, there = raw_pair()
        hello = b"\x16\x03\x01\x40\x00\x01\x00\xff\xff\x03\x03" + bytes(16377)  # a TLS hello that goes on and on
        await here.send_all(encode(HEADER) + encode("/tls/1.0.0") + hello * 4)
        with pytest.raises(FrameTooLarge):
            await upgrader(ALICE).upgrade(Wire(there, initiator=False, budget=BUDGET), None)

    trio.run(main)


@pytest.mark.invariant("S7")
def test_handshakes_of_others_are_paced_and_ours_are_not() -> None:
    async def main() -> None:
        slow = Pace(0.001, burst=1, longest_wait_s=0.1)
        listener = upgrader(BOB, pace=slow)
        silent, _ = raw_pair()
        with trio.move_on_after(0.01):
            await listener.upgrade(Wire(silent, initiator=False, budget=BUDGET), None)  # has cost no turn
        await secure(upgrader(ALICE), listener, BOB, wire_pair())
        _, refused = await attempt(upgrader(ALICE), listener, BOB.peer_id, wire_pair())
        assert isinstance(refused, Busy)
        await secure(listener, upgrader(ALICE), ALICE, wire_pair())

    trio.run(main)


def test_a_connection_that_ends_in_the_handshake_is_closed() -> None:
    async def main() -> None:
        for said in (b"", encode(HEADER), encode(HEADER) + encode("/noise") + b"\x00"):
            here, there = raw_pair()
            await here.send_all(said)
            here.abort()
            with pytest.raises(LinkClosed):
                await upgrader(ALICE).upgrade(Wire(there, initiator=False, budget=BUDGET), None)

    trio.run(main)


def without_muxers(key: PrivateKey) -> Upgrader:
    """An upgrader whose handshake names no multiplexers, like older implementations."""
    made = upgrader(key, "noise")
    made._noise = NoiseIdentity.of(key, X25519PrivateKey.generate(), ())
    return made


def test_yamux_is_negotiated_after_a_handshake_that_does_not_name_it() -> None:
    async def main() -> None:
        for ours, theirs in ((without_muxers(ALICE), upgrader(BOB)), (upgrader(ALICE), without_muxers(BOB))):
            await echoes(await secure(ours, theirs, BOB, wire_pair()), b"hello" * 1000)

    trio.run(main)


def test_a_peer_without_yamux_is_refused_when_it_says_so() -> None:
    async def main() -> None:
        here, there = wire_pair()

        async def other() -> None:
            listener = Listener(["/noise"])
            while listener.chosen is None:
                listener.receive(await there.receive())
            there.unread(listener.rest())
            handshake = NoiseHandshake(
                NoiseIdentity.of(BOB, X25519PrivateKey.generate(), ()),
                initiator=False,
                ephemeral=X25519PrivateKey.generate(),
            )
            await there.write(listener.start() + encode("/noise"))
            while handshake.proved is None:
                if out := handshake.receive(await there.receive()):
                    await there.write(out)
            await Channel(there, handshake.proved.session).write(encode(HEADER) + encode("na"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            channel, _ = await upgrader(ALICE).upgrade(here, BOB.peer_id)
            await channel.write(b"the first frames of Yamux")
            with pytest.raises(ProtocolError, match="does not speak Yamux"):
                await channel.read()

    trio.run(main)


def test_a_connection_that_is_cut_in_a_message_is_told_from_one_that_ends() -> None:
    async def main() -> None:
        here, there = raw_pair()
        wires = Wire(here, initiator=True, budget=BUDGET), Wire(there, initiator=False, budget=BUDGET)
        secured = await secure(upgrader(ALICE, "noise"), upgrader(BOB, "noise"), BOB, wires)
        await here.send_all(b"\x00\x20half")
        await here.aclose()
        with pytest.raises(LinkClosed, match="cut in the middle"):
            await secured.listener.read()
        secured = await secure(upgrader(ALICE, "noise"), upgrader(BOB, "noise"), BOB, wire_pair())
        await secured.dialler.close()
        assert await secured.listener.read() == b""

    trio.run(main)


@pytest.mark.parametrize(
    ("security", "stock"), [((), False), (("ssh",), False), (("noise", "noise"), False), (("tls",), True)]
)
def test_security_that_is_not_there_is_refused(security: tuple[str, ...], stock: bool) -> None:
    with pytest.raises(ConfigError, match="name noise"):
        Upgrader(ALICE, fast_pace(), security=security, stock=stock)


def python(script: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, timeout=100, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_node_does_not_import_py_libp2p() -> None:
    script = "import comity_node.transport.libp2p_transport, sys; sys.exit('libp2p' in sys.modules)"
    assert python(script) == (0, b"", b"")


def test_importing_py_libp2p_leaves_logging_and_warnings_alone() -> None:
    script = (
        "import logging, sys\n"
        "def look(): return [(l.level, l.propagate, l.handlers) for l in map(logging.getLogger, (None, 'libp2p'))]\n"
        "before = look()\n"
        "import comity_node.transport.stock\n"
        "sys.exit(before != look() or 'libp2p' not in sys.modules)"
    )
    assert python(script) == (0, b"", b"")


# The wire below.


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        here = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return here, await listener.accept()


def test_a_socket_sends_at_once_and_knows_its_peer() -> None:
    async def main() -> None:
        here, there = await tcp_pair()
        raw = SocketRaw(here)
        assert here.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY)
        host, port = there.socket.getsockname()
        assert raw.remote_address == f"/ip4/{host}/tcp/{port}"
        await raw.send_all(b"hello")
        assert await there.receive_some(10) == b"hello"
        raw.abort()
        assert await there.receive_some(10) == b""
        with pytest.raises(LinkClosed):
            await raw.receive_some(1)
        with pytest.raises(LinkClosed):
            await raw.send_all(b"more")
        assert raw.remote_address == f"/ip4/{host}/tcp/{port}"
        await there.aclose()

    trio.run(main)


@dataclass
class Scripted:
    """A raw stream that gives out what it is told."""

    pieces: list[bytes]
    asked: list[int] = field(default_factory=list)
    remote_address: str = ""

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append(max_bytes)
        return self.pieces.pop(0) if self.pieces else b""

    async def send_all(self, data: bytes) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        raise AssertionError


def test_a_wire_hands_on_what_the_socket_gave_without_a_copy() -> None:
    async def main() -> None:
        piece = bytes(1000)
        wire = Wire(Scripted([piece]), initiator=True, budget=BUDGET)
        wire.lift_budget()
        assert await wire.receive() is piece
        wire.unread(piece)
        assert await wire.receive() is piece
        assert await wire.receive() == b""

    trio.run(main)


@pytest.mark.invariant("S7")
def test_a_wire_asks_for_no_more_than_is_left_of_the_budget() -> None:
    async def main() -> None:
        raw = Scripted([bytes(60), bytes(40), bytes(1)])
        wire = Wire(raw, initiator=False, budget=100)
        assert await wire.read(10) == bytes(10)
        wire.unread(b"ab")
        assert await wire.read(3) == b"ab\x00"
        assert await wire.receive() == bytes(49)
        assert await wire.receive() == bytes(40)
        assert raw.asked == [100, 40]
        with pytest.raises(FrameTooLarge):
            await wire.receive()
        with pytest.raises(FrameTooLarge):
            await wire.read(1_000_000_000)
        wire.lift_budget()
        assert await wire.read() == bytes(1)
        with pytest.raises(LinkClosed):
            await wire.read()

    trio.run(main)
