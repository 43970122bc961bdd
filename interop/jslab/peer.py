"""A js-libp2p peer: a process of Node.js that does what it is told, one line of JSON each way (`peer.mjs`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from bench.links.javascript import command

#: One answer; the longest is that of ten megabytes' echo.
_ANSWER_S: Final = 45.0
_MAX_LINE: Final = 1024 * 1024


class JsFailed(Exception):
    """js-libp2p could not do what it was told; the message is its own."""


class JsPeer:
    """One peer, which listens on loopback."""

    def __init__(self, process: trio.Process) -> None:
        """Take over a process that was started with pipes."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._pending = bytearray()
        self._turn = trio.Lock()
        self.peer_id = ""
        self.addresses: list[str] = []

    async def begin(self) -> None:
        """Wait until it listens."""
        ready = await self._line()
        self.peer_id, self.addresses = ready["peer"], ready["addresses"]

    async def do(self, action: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401  (any JSON value)
        """Have it do something, and return what it answers.

        Raises:
            JsFailed: it could not.
        """
        async with self._turn:
            await self._stdin.send_all(json.dumps({"do": action, **arguments}).encode() + b"\n")
            answer = await self._line()
        if "error" in answer:
            raise JsFailed(answer["error"])
        return answer

    async def end(self) -> None:
        """Have it stop."""
        await self._stdin.aclose()

    async def _line(self) -> dict[str, Any]:
        with trio.fail_after(_ANSWER_S):
            while b"\n" not in self._pending:
                piece = await self._stdout.receive_some()
                if not piece or len(self._pending) > _MAX_LINE:
                    raise JsFailed("the process has ended; its last words are on standard error")
                self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def js_peer(**options: Any) -> AsyncIterator[JsPeer]:  # noqa: ANN401  (any JSON value)
    """Start a peer with these options of `peer.mjs`; it is gone when the block ends."""
    process = await trio.lowlevel.open_process(
        [*command("peer.mjs"), json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    peer = JsPeer(process)
    try:
        await peer.begin()
        yield peer
    finally:
        with trio.CancelScope(shield=True):
            await peer.end()
            with trio.move_on_after(5):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()  # type: ignore[union-attr]  # it was started with a pipe
