"""The back-end as a process of its own: slots that are held for as long as the request says.

`python -m bench.runtime.backend SOCKET` listens on a unix socket. A request is (number, pool, site, microseconds), its
answer the number. Slots of a pool are given in the order in which requests came. On standard input it takes one JSON
object a line: {"begin": [slots of each pool], "stall": [site, after, for] or null} forgets what was and starts anew;
{"end": true} answers with the times, in seconds since `begin`, at which requests were done. A stalled site's requests
and answers stay where they are until its stall is over.

The loop waits with select(2), whose time-out is in microseconds: epoll's would round every latency up to a millisecond.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import struct
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, cast

#: number, pool, site, microseconds
REQUEST: Final = struct.Struct(">IBBI")
ANSWER: Final = struct.Struct(">I")


@dataclass(slots=True)
class _Request:
    client: asyncio.WriteTransport
    number: int
    pool: int
    site: int
    seconds: float


@dataclass(slots=True)
class _Pool:
    free: int
    done: list[float]
    waiting: deque[_Request] = field(default_factory=deque)


class Slots:
    """The pools, and what was done since the run began."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.begin([], None)

    def begin(self, slots: list[int], stall: tuple[int, float, float] | None) -> None:
        """Start a run: all slots free, nothing done."""
        self.done: list[float] = []  # each run has its own: what is left of the last one ends up in that one's
        self._pools = [_Pool(count, self.done) for count in slots]
        self._began = self._loop.time()
        self._stall = stall

    def ask(self, request: _Request) -> None:
        """Take a request, once its site moves."""
        if (wait := self._standstill(request.site)) > 0:
            self._loop.call_later(wait, self._enter, request)
        else:
            self._enter(request)

    def _enter(self, request: _Request) -> None:
        pool = self._pools[request.pool]
        if pool.free:
            pool.free -= 1
            self._hold(pool, request)
        else:
            pool.waiting.append(request)

    def _hold(self, pool: _Pool, request: _Request) -> None:
        self._loop.call_later(request.seconds, self._release, pool, request)

    def _release(self, pool: _Pool, request: _Request) -> None:
        if pool.waiting:
            self._hold(pool, pool.waiting.popleft())
        else:
            pool.free += 1
        pool.done.append(self._loop.time() - self._began)
        if (wait := self._standstill(request.site)) > 0:
            self._loop.call_later(wait, self._answer, request)
        else:
            self._answer(request)

    def _answer(self, request: _Request) -> None:
        if not request.client.is_closing():
            request.client.write(ANSWER.pack(request.number))

    def _standstill(self, site: int) -> float:
        """How long `site` stands still from now on."""
        if self._stall is None or self._stall[0] != site:
            return 0.0
        _, after, lasts = self._stall
        passed = self._loop.time() - self._began
        return after + lasts - passed if passed >= after else 0.0


class _Client(asyncio.Protocol):
    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % REQUEST.size
        for number, pool, site, micros in REQUEST.iter_unpack(data[:whole]):
            self._slots.ask(_Request(self._transport, number, pool, site, micros / 1e6))
        self._rest = data[whole:]


async def _serve(path: str) -> None:
    loop = asyncio.get_running_loop()
    slots = Slots(loop)
    server = await loop.create_unix_server(lambda: _Client(slots), path)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say({"ready": True})
    async with server:
        while line := await reader.readline():
            order: dict[str, Any] = json.loads(line)
            if "begin" in order:
                slots.begin(order["begin"], order.get("stall"))
                _say({"begun": True})
            else:
                _say({"done": slots.done})


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


def precise_loop() -> asyncio.SelectorEventLoop:
    """Return an asyncio loop whose timers are not rounded to milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    """Serve until standard input ends."""
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(_serve(sys.argv[1]))


if __name__ == "__main__":
    main()
