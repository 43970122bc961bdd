"""One end of one arm, as a process that is told over standard input what to do.

    python -m bench.links.arm ARM server DIRECTORY
    python -m bench.links.arm ARM client DIRECTORY

A server writes one line of JSON, what its client must know to reach it, and serves until its input ends. A client
reads that line first, then one order a line, and answers each with a line:

    {"work": "connect"}                                               -> {"seconds": 0.004}
    {"work": "request", "size": 1024, "in_flight": 128, "seconds": 1} -> {"count": 4711, "seconds": 1.001}
    {"work": "bulk", "piece": 65536, "bytes": 268435456}              -> {"count": 268435456, "seconds": 0.5}

Every request is answered with as many bytes as it has. The first order may find nothing connected.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: Which module has which arm.
MODULES: Final = {
    "plain": "bench.links.ours",
    "secured": "bench.links.ours",
    "admitted": "bench.links.ours",
    "grpcio-aio-unary-mtls": "bench.links.grpc_aio",
    "grpcio-aio-stream-mtls": "bench.links.grpc_aio",
    "grpcio-sync-mtls": "bench.links.grpc_sync",
    "py-libp2p-stock": "bench.links.stock",
}


@dataclass(frozen=True, slots=True)
class Order:
    """What a client is to do; see the module."""

    work: str
    size: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    piece: int = 0
    bytes: int = 0


def orders() -> Iterator[Order]:
    """Read orders until the input ends; blocks."""
    for line in sys.stdin:
        yield Order(**json.loads(line))


def next_order() -> Order | None:
    """Read one order, None at the end; blocks."""
    line = sys.stdin.readline()
    return Order(**json.loads(line)) if line else None


def say(**values: Any) -> None:  # noqa: ANN401  (any JSON value)
    """Answer an order, or say that a server is ready."""
    print(json.dumps(values), flush=True)


def main() -> None:
    """Run one end of an arm."""
    name, role, directory = sys.argv[1:]
    module = importlib.import_module(MODULES[name])
    if role == "server":
        module.serve(name, Path(directory))
    else:
        module.drive(name, Path(directory), json.loads(sys.stdin.readline()))


if __name__ == "__main__":
    main()
