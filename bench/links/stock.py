"""py-libp2p as it comes: its host, its Noise, its Yamux, and a new stream for each request.

That is how its own request-response helper does it. Many requests on one long-lived stream are faster, but then
correlation, deadlines, limits and cancellation are the user's own to write.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import trio

from bench.links.arm import Order, next_order, say

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

REQUEST, BULK = "/bench/request/1", "/bench/bulk/1"
_PREFIX = 4


def serve(name: str, directory: Path) -> None:
    """Serve until the input ends."""
    logging.disable(logging.CRITICAL)
    trio.run(_serve)


def drive(name: str, directory: Path, ready: dict[str, Any]) -> None:
    """Do what is ordered."""
    logging.disable(logging.CRITICAL)
    trio.run(_drive, ready["address"])


async def _exactly(stream: Any, count: int) -> bytes:  # noqa: ANN401  (py-libp2p's types are not followed)
    data = b""
    while len(data) < count:
        piece = await stream.read(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


async def _answer(stream: Any) -> None:  # noqa: ANN401
    size = int.from_bytes(await _exactly(stream, _PREFIX), "big")
    await stream.write(await _exactly(stream, size))
    await stream.close()


async def _count(stream: Any) -> None:  # noqa: ANN401
    left = int.from_bytes(await _exactly(stream, 8), "big")
    while left:
        left -= len(await stream.read(min(left, 65536)))
    await stream.write(b"!")
    await stream.close()


async def _serve() -> None:
    host = new_host(key_pair=create_new_key_pair())
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(REQUEST, _answer)
        host.set_stream_handler(BULK, _count)
        say(address=str(host.get_addrs()[0]))
        await trio.to_thread.run_sync(sys.stdin.read)


async def _drive(address: str) -> None:
    info = info_from_p2p_addr(Multiaddr(address))
    host = new_host(key_pair=create_new_key_pair())
    async with host.run(listen_addrs=[]):
        await host.connect(info)
        while (order := await trio.to_thread.run_sync(next_order)) is not None:
            if order.work == "connect":
                await host.disconnect(info.peer_id)
                began = time.perf_counter()
                await host.connect(info)
                say(seconds=time.perf_counter() - began)
            elif order.work == "request":
                await _request(host, info.peer_id, order)
            else:
                await _send(host, info.peer_id, order)


async def _request(host: Any, peer: Any, order: Order) -> None:  # noqa: ANN401
    payload, count = bytes(order.size), 0
    began = time.perf_counter()
    stop = began + order.seconds

    async def one() -> None:
        nonlocal count
        while time.perf_counter() < stop:
            stream = await host.new_stream(peer, [REQUEST])
            await stream.write(order.size.to_bytes(_PREFIX, "big") + payload)
            await _exactly(stream, order.size)
            await stream.close()
            count += 1

    async with trio.open_nursery() as nursery:
        for _ in range(order.in_flight):
            nursery.start_soon(one)
    say(count=count, seconds=time.perf_counter() - began)


async def _send(host: Any, peer: Any, order: Order) -> None:  # noqa: ANN401
    piece = bytes(order.piece)
    began = time.perf_counter()
    stream = await host.new_stream(peer, [BULK])
    await stream.write(order.bytes.to_bytes(8, "big"))
    for _ in range(order.bytes // order.piece):
        await stream.write(piece)
    await _exactly(stream, 1)
    seconds = time.perf_counter() - began
    await stream.close()
    say(count=order.bytes, seconds=seconds)
