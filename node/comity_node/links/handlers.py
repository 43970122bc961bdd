"""Who answers what peers ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from comity.errors import PeerUnreachable
from comity.trust import Attested


class Sink(Protocol):
    """Where the items of a stream go."""

    async def send(self, item: bytes) -> None:
        """Send an item; waits for as long as the peer takes no more.

        Raises:
            FrameTooLarge: it is over the limit of a payload.
            LinkClosed: the peer is gone.
        """
        ...


RequestHandler = Callable[[Attested, bytes], Awaitable[bytes]]
NoticeHandler = Callable[[Attested, bytes], Awaitable[None]]
StreamAnswerer = Callable[[Attested, bytes, Sink], Awaitable[None]]


class Handlers:
    """One for each kind of call; each may raise a ComityError, whose code and text the peer gets."""

    __slots__ = ("notice", "request", "stream")

    def __init__(self, request: RequestHandler) -> None:
        self.request = request
        self.notice: NoticeHandler = _no_notice
        self.stream: StreamAnswerer = _no_stream


async def _no_notice(_: Attested, __: bytes) -> None:
    raise PeerUnreachable("this node takes no notifications")


async def _no_stream(_: Attested, __: bytes, ___: Sink) -> None:
    raise PeerUnreachable("this node serves no streams")
