"""Connections in memory, and what tests of the upgrade need around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing

from comity.errors import ComityError, LinkClosed
from comity.signing import PrivateKey
from comity_node.transport.muxed import SecureChannel
from comity_node.transport.pace import Pace
from comity_node.transport.upgrade import Upgrader
from comity_node.transport.wire import Wire

BUDGET = 16 * 1024


@dataclass
class MemoryRaw:
    """One end of a connection in memory: a `RawStream` that keeps what was written."""

    stream: Any
    max_piece: int = 1 << 20
    written: list[bytes] = field(default_factory=list)
    remote_address: str = "/memory/1"

    async def receive_some(self, max_bytes: int) -> bytes:
        try:
            return bytes(await self.stream.receive_some(min(max_bytes, self.max_piece)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error

    async def send_all(self, data: bytes) -> None:
        self.written.append(data)
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkClosed("the connection broke") from error

    async def aclose(self) -> None:
        await self.stream.aclose()

    def abort(self) -> None:
        self.stream.send_stream.close()
        self.stream.receive_stream.close()


def raw_pair(max_piece: int = 1 << 20) -> tuple[MemoryRaw, MemoryRaw]:
    here, there = trio.testing.memory_stream_pair()
    return MemoryRaw(here, max_piece), MemoryRaw(there, max_piece)


def wire_pair(max_piece: int = 1 << 20, budget: int = BUDGET) -> tuple[Wire, Wire]:
    """The dialler's end and the listener's."""
    here, there = raw_pair(max_piece)
    return Wire(here, initiator=True, budget=budget), Wire(there, initiator=False, budget=budget)


def fast_pace() -> Pace:
    return Pace(1e6, burst=1000, longest_wait_s=10)


@dataclass
class Secured:
    """What both ends have got of an upgrade."""

    dialler: SecureChannel
    listener: SecureChannel
    #: Who each end has found at the other.
    found: tuple[str, str]


Outcome = tuple[SecureChannel, str] | ComityError


async def attempt(
    dialler: Upgrader, listener: Upgrader, expected: str, wires: tuple[Wire, Wire]
) -> tuple[Outcome, Outcome]:
    """Upgrade both ends of a connection; an end that fails closes it."""
    outcomes: dict[bool, Outcome] = {}

    async def one(upgrader: Upgrader, wire: Wire, peer: str | None) -> None:
        try:
            outcomes[wire.is_initiator] = await upgrader.upgrade(wire, peer)
        except ComityError as error:
            outcomes[wire.is_initiator] = error
            wire.abort()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, dialler, wires[0], expected)
        nursery.start_soon(one, listener, wires[1], None)
    return outcomes[True], outcomes[False]


async def secure(dialler: Upgrader, listener: Upgrader, expected: PrivateKey, wires: tuple[Wire, Wire]) -> Secured:
    """Upgrade both ends of a connection."""
    here, there = await attempt(dialler, listener, expected.peer_id, wires)
    assert isinstance(here, tuple), here
    assert isinstance(there, tuple), there
    return Secured(here[0], there[0], (here[1], there[1]))


async def echoes(secured: Secured, data: bytes) -> None:
    """`data` goes there and back whole."""
    back = b""

    async def echo() -> None:
        left = len(data)
        while left:
            piece = await secured.listener.read()
            assert piece
            left -= len(piece)
            await secured.listener.write(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(secured.dialler.write, data)
        while len(back) < len(data):
            piece = await secured.dialler.read()
            assert piece
            back += piece
    assert back == data
