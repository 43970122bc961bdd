"""ping: 32 bytes there and back (https://github.com/libp2p/specs/blob/master/ping/ping.md)."""

from __future__ import annotations

from typing import Final

import trio

from comity.errors import LinkClosed, ProtocolError
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.pace import Pace

PING: Final = "/ipfs/ping/1.0.0"
PING_BYTES: Final = 32
#: A stream on which nothing comes for so long is closed.
_IDLE_S: Final = 60.0
_PINGS_PER_S: Final = 20.0


async def serve_ping(stream: ByteStream) -> None:
    """Send back what comes, 32 bytes at a time, twenty times a second at most."""
    stream.set_priority(Priority.CONTROL)
    pace = Pace(_PINGS_PER_S, burst=_PINGS_PER_S, longest_wait_s=float("inf"))
    with trio.CancelScope() as scope:
        while True:
            scope.deadline = trio.current_time() + _IDLE_S
            data = await _read(stream)
            if data is None:
                break
            await pace.turn()
            await stream.send(data)
    await stream.aclose()


async def ping(stream: ByteStream, payload: bytes) -> float:
    """Send a ping on a stream that was opened for `PING`, and return the round trip in seconds.

    Args:
        stream: may be used again; the caller closes it.
        payload: 32 random bytes.

    Raises:
        ProtocolError: something else came back.
        LinkClosed: the stream broke or ended.
    """
    since = trio.current_time()
    await stream.send(payload)
    answer = await _read(stream)
    if answer is None:
        raise LinkClosed("the peer ended the stream")
    if answer != payload:
        raise ProtocolError("the peer answered a ping with something else")
    return trio.current_time() - since


async def _read(stream: ByteStream) -> bytes | None:
    """The next 32 bytes; None at the end."""
    data = b""
    while len(data) < PING_BYTES:
        piece = await stream.receive(PING_BYTES - len(data))
        if not piece:
            return None
        data += piece
    return data
