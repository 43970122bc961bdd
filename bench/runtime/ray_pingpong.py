"""Ray's actor ping-pong, as a process of its own: `python -m bench.runtime.ray_pingpong SECONDS BYTES`.

Two actors in two processes on one machine. One calls the other with a message and gets it back. `sequential` waits for
each answer before the next call; `pipelined` has many calls under way; `async` is `pipelined` with an asyncio actor.
One call, with its answer, counts as one hop: Comity's hop, too, is a message and its acknowledgement.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

_IN_FLIGHT: Final = 1000


def available() -> bool:
    """Whether Ray is installed."""
    return find_spec("ray") is not None


def measure(seconds: float, size: int) -> dict[str, float]:
    """Return calls a second, by the way of calling."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray: Any = import_module("ray")  # an extra: only this process needs it

    class Pong:
        """Gives back what it gets."""

        def pong(self, message: bytes) -> bytes:
            """Return the message."""
            return message

    class AsyncPong:
        """The same on asyncio."""

        async def pong(self, message: bytes) -> bytes:
            """Return the message."""
            return message

    class Ping:
        """Calls another actor for a while."""

        def sequential(self, other: Any, message: bytes, seconds: float) -> float:  # noqa: ANN401  (a Ray handle)
            """Return calls a second, one after the other."""
            count, began = 0, time.perf_counter()
            while (passed := time.perf_counter() - began) < seconds:
                ray.get(other.pong.remote(message))
                count += 1
            return count / passed

        def pipelined(self, other: Any, message: bytes, seconds: float) -> float:  # noqa: ANN401  (a Ray handle)
            """Return calls a second with many under way."""
            count, began = 0, time.perf_counter()
            while (passed := time.perf_counter() - began) < seconds:
                count += len(ray.get([other.pong.remote(message) for _ in range(_IN_FLIGHT)]))
            return count / passed

    scratch = tempfile.mkdtemp(prefix="ray-")  # its sockets' paths have to be short
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=scratch)
    try:
        ping = ray.remote(Ping).options(num_cpus=0).remote()
        pong = ray.remote(Pong).options(num_cpus=0).remote()
        async_pong = ray.remote(AsyncPong).options(num_cpus=0, max_concurrency=_IN_FLIGHT).remote()
        message = os.urandom(size)
        for other in (pong, async_pong):
            ray.get(ping.sequential.remote(other, message, 0.3))
        return {
            "sequential": ray.get(ping.sequential.remote(pong, message, seconds)),
            "pipelined": ray.get(ping.pipelined.remote(pong, message, seconds)),
            "async": ray.get(ping.pipelined.remote(async_pong, message, seconds)),
        }
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)  # its last processes may still write


def main() -> None:
    """Print the rates as one line of JSON."""
    rates = measure(float(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
