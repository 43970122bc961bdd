"""gRPC on asyncio with mutual TLS: unary calls, and requests that share one stream a task."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench.links.arm import Order, next_order, say
from bench.links.grpc_common import BULK, OPTIONS, STREAM, UNARY, Service, channel_credentials, server_credentials


def serve(name: str, directory: Path) -> None:
    """Serve until the input ends."""
    asyncio.run(_serve(directory))


def drive(name: str, directory: Path, ready: dict[str, Any]) -> None:
    """Do what is ordered."""
    asyncio.run(_drive(name, directory, ready["port"]))


async def _unary(request: bytes, context: object) -> bytes:
    return request


async def _stream(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def _bulk(requests: AsyncIterator[bytes], context: object) -> bytes:
    count = 0
    async for request in requests:
        count += len(request)
    return str(count).encode()


async def _serve(directory: Path) -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers = {
        UNARY: grpc.unary_unary_rpc_method_handler(_unary),
        STREAM: grpc.stream_stream_rpc_method_handler(_stream),
        BULK: grpc.stream_unary_rpc_method_handler(_bulk),
    }
    server.add_generic_rpc_handlers((Service(handlers),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(directory))
    await server.start()
    say(port=port)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def _drive(name: str, directory: Path, port: int) -> None:
    def channel() -> grpc.aio.Channel:
        options = (*OPTIONS, ("grpc.ssl_target_name_override", "localhost"))
        return grpc.aio.secure_channel(f"127.0.0.1:{port}", channel_credentials(directory), options=options)

    async with channel() as open_channel:
        await open_channel.channel_ready()
        one = _unary_caller if name == "grpcio-aio-unary-mtls" else _stream_caller
        while (order := await asyncio.to_thread(next_order)) is not None:
            if order.work == "connect":
                say(seconds=await _connect(channel))
            elif order.work == "request":
                count, seconds = await _request(order, partial(one, open_channel, order.size))
                say(count=count, seconds=seconds)
            else:
                say(count=order.bytes, seconds=await _send(open_channel, order))


async def _connect(channel: Callable[[], grpc.aio.Channel]) -> float:
    began = time.perf_counter()
    async with channel() as fresh:
        await fresh.channel_ready()
        return time.perf_counter() - began


async def _request(order: Order, one: Callable[[float], Awaitable[int]]) -> tuple[int, float]:
    began = time.perf_counter()
    stop = began + order.seconds
    counts = await asyncio.gather(*(one(stop) for _ in range(order.in_flight)))
    return sum(counts), time.perf_counter() - began


# gRPC's stubs want serializers where there are none: hence Any.
async def _unary_caller(channel: Any, size: int, stop: float) -> int:  # noqa: ANN401
    call, payload, count = channel.unary_unary(UNARY), bytes(size), 0
    while time.perf_counter() < stop:
        assert len(await call(payload)) == size
        count += 1
    return count


async def _stream_caller(channel: Any, size: int, stop: float) -> int:  # noqa: ANN401
    call, payload, count = channel.stream_stream(STREAM)(), bytes(size), 0
    while time.perf_counter() < stop:
        await call.write(payload)
        assert len(await call.read()) == size
        count += 1
    await call.done_writing()
    return count


async def _send(channel: Any, order: Order) -> float:  # noqa: ANN401
    piece = bytes(order.piece)
    began = time.perf_counter()
    call = channel.stream_unary(BULK)()
    for _ in range(order.bytes // order.piece):
        await call.write(piece)
    await call.done_writing()
    assert int(await call) == order.bytes
    return time.perf_counter() - began
