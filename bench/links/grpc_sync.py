"""gRPC with threads and mutual TLS."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import grpc

from bench.links.arm import Order, orders, say
from bench.links.grpc_common import BULK, OPTIONS, UNARY, Service, channel_credentials, server_credentials

_THREADS = 16


def serve(name: str, directory: Path) -> None:
    """Serve until the input ends."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=OPTIONS)
    handlers = {
        UNARY: grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        BULK: grpc.stream_unary_rpc_method_handler(_bulk),
    }
    server.add_generic_rpc_handlers((Service(handlers),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(directory))
    server.start()
    say(port=port)
    sys.stdin.read()
    server.stop(0)


def _bulk(requests: Iterator[bytes], context: object) -> bytes:
    return str(sum(map(len, requests))).encode()


def drive(name: str, directory: Path, ready: dict[str, Any]) -> None:
    """Do what is ordered."""

    def channel() -> Any:  # noqa: ANN401  (gRPC's stubs want serializers where there are none)
        options = (*OPTIONS, ("grpc.ssl_target_name_override", "localhost"))
        return grpc.secure_channel(f"127.0.0.1:{ready['port']}", channel_credentials(directory), options=options)

    with channel() as open_channel:
        grpc.channel_ready_future(open_channel).result(10)
        for order in orders():
            if order.work == "connect":
                began = time.perf_counter()
                with channel() as fresh:
                    grpc.channel_ready_future(fresh).result(10)
                    say(seconds=time.perf_counter() - began)
            elif order.work == "request":
                _request(open_channel, order)
            else:
                began = time.perf_counter()
                pieces = repeat(bytes(order.piece), order.bytes // order.piece)
                assert int(open_channel.stream_unary(BULK)(pieces)) == order.bytes
                say(count=order.bytes, seconds=time.perf_counter() - began)


def _request(channel: Any, order: Order) -> None:  # noqa: ANN401
    call, payload = channel.unary_unary(UNARY), bytes(order.size)
    began = time.perf_counter()
    stop = began + order.seconds

    def one(_: int) -> int:
        count = 0
        while time.perf_counter() < stop:
            assert len(call(payload)) == order.size
            count += 1
        return count

    with ThreadPoolExecutor(order.in_flight) as threads:
        count = sum(threads.map(one, range(order.in_flight)))
    say(count=count, seconds=time.perf_counter() - began)
