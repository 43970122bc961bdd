"""One of two linked nodes, as a process that works on orders until its memory is measured.

    python endurance_peer.py server DIRECTORY
    python endurance_peer.py client DIRECTORY

DIRECTORY is made by `bench.links.consortium.found`. The server writes one line of JSON, how it is reached; the client
reads that first. Then both take one order a line, and answer it with a line, what they hold, once it is carried out.
An order is `{}` or `{"work": WORK, "count": N}`, where WORK is one of

    requests    over the link, 1 KB each way, 128 at a time
    streams     opened on the connection, 1 KB each way, closed, 16 at a time
    tunnels     the same, and both sides attest themselves on each
    reconnects  the connection is cut, the link comes up again, a request
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from bench.links import consortium
from comity.trust import Attested
from comity_node.links import Links
from comity_node.transport.base import ByteStream
from comity_node.transport.libp2p_transport import Libp2pTransport

PAYLOAD = bytes(range(256)) * 4
_DEADLINE_S = 60.0
_STREAMS = "/endurance/1"


async def _echo(_: Attested, payload: bytes) -> bytes:
    return payload


async def _echo_stream(stream: ByteStream) -> None:
    await stream.send(await _rest_of(stream))
    await stream.aclose()


async def _echo_tunnel(_: Attested, name: str, stream: ByteStream) -> None:
    await _echo_stream(stream)


async def _rest_of(stream: ByteStream) -> bytes:
    received = b""
    while data := await stream.receive():
        received += data
    return received


class Node:
    """The node, and its orders."""

    def __init__(self, directory: Path, organization: str, listen: list[str]) -> None:
        identity = consortium.identity(directory, organization)
        self.transport = Libp2pTransport(identity.key, listen)
        self.transport.serve(_STREAMS, _echo_stream)
        self.links = Links(
            self.transport,
            identity,
            consortium.trust(directory),
            _echo,
            now_ms=lambda: time.time_ns() // 1_000_000,
            random_bytes=os.urandom,
            on_tunnel=_echo_tunnel,
            allow_private=True,
        )
        self.peer, self.addresses = "", list[str]()

    async def requests(self, count: int) -> None:
        async def ask() -> None:
            assert await self.links.request(self.peer, PAYLOAD, _DEADLINE_S) == PAYLOAD

        await _repeat(ask, count, at_a_time=128)

    async def streams(self, count: int) -> None:
        async def open_and_use() -> None:
            await _use(await self.transport.open_stream(self.peer, [], _STREAMS))

        await _repeat(open_and_use, count, at_a_time=16)

    async def tunnels(self, count: int) -> None:
        async def open_and_use() -> None:
            await _use(await self.links.open_tunnel(self.peer, "echo"))

        await _repeat(open_and_use, count, at_a_time=16)

    async def reconnects(self, count: int) -> None:
        for _ in range(count):
            await self.links.remove_peer(self.peer)
            self.links.add_peer(self.peer, self.addresses)
            await self.links.wait_for(self.peer, _DEADLINE_S)
            await self.requests(1)

    def state(self) -> dict[str, Any]:
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {
            "resident": resident,
            "files": len(os.listdir("/proc/self/fd")),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "objects": len(gc.get_objects()),
            "peers": len(self.links.peers()),
        }


async def _use(stream: ByteStream) -> None:
    await stream.send(PAYLOAD)
    await stream.send_eof()
    assert await _rest_of(stream) == PAYLOAD
    await stream.aclose()


async def _repeat(work: Callable[[], Awaitable[None]], count: int, *, at_a_time: int) -> None:
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            await work()

    async with trio.open_nursery() as nursery:
        for _ in range(min(at_a_time, count)):
            nursery.start_soon(some)


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


async def main(role: str, directory: Path) -> None:
    serves = role == "server"
    organization = consortium.SERVER if serves else consortium.CLIENT
    node = Node(directory, organization, ["/ip4/127.0.0.1/tcp/0"] if serves else [])
    async with trio.open_nursery() as nursery:
        await nursery.start(node.links.run)
        if serves:
            _say(peer=node.links.peer_id, addresses=node.links.addresses())
        else:
            ready = json.loads(await trio.to_thread.run_sync(sys.stdin.readline))
            node.peer, node.addresses = ready["peer"], ready["addresses"]
            node.links.add_peer(node.peer, node.addresses)
            await node.links.wait_for(node.peer, _DEADLINE_S)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            if order := json.loads(line):
                await getattr(node, order["work"])(order["count"])
            _say(**node.state())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]))
