"""Two nodes with real certificates, linked over the memory network."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from trio.testing import MockClock

from comity.trust import Attested, NodeIdentity
from comity_node.links import LinkLimits, Links
from comity_node.transport.memory import MemoryNetwork, MemoryTransport
from kit.consortium import consortium

MERCY, STLUKES = "mercy.example", "stlukes.example"

Answer = Callable[[Attested, bytes], Awaitable[bytes]]


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run on a clock that jumps as soon as everybody waits."""
    trio.run(main, clock=MockClock(autojump_threshold=0))


async def echo(_: Attested, payload: bytes) -> bytes:
    return payload


@dataclass(frozen=True)
class Pair:
    """`a` has a link to `b`, and the other way round."""

    network: MemoryNetwork
    a: Links
    b: Links
    a_transport: MemoryTransport
    b_transport: MemoryTransport

    async def ask(self, payload: bytes, deadline_s: float = 5) -> bytes:
        """Send a request from `a` to `b`."""
        return await self.a.request(self.b.peer_id, payload, deadline_s)


@asynccontextmanager
async def linked(
    answer: Answer = echo, *, limits: LinkLimits | None = None, a_limits: LinkLimits | None = None
) -> AsyncIterator[Pair]:
    """Run two nodes that are linked; `answer` and `limits` are those of `b`."""
    world = consortium(MERCY, STLUKES)
    network = MemoryNetwork()

    def node(identity: NodeIdentity, limits: LinkLimits | None, answer: Answer) -> tuple[Links, MemoryTransport]:
        transport = network.transport(identity.peer_id)
        links = Links(
            transport,
            identity,
            world.trust,
            answer,
            now_ms=lambda: time.time_ns() // 1_000_000,
            random_bytes=bytes,
            limits=limits,
        )
        return links, transport

    a, a_transport = node(world.nodes[MERCY], a_limits, echo)
    b, b_transport = node(world.nodes[STLUKES], limits, answer)
    async with trio.open_nursery() as nursery:
        await nursery.start(a.run)
        await nursery.start(b.run)
        a.add_peer(b.peer_id)
        await a.wait_for(b.peer_id, 10)
        await b.wait_for(a.peer_id, 10)
        yield Pair(network, a, b, a_transport, b_transport)
        nursery.cancel_scope.cancel()
