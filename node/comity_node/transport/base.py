"""What links need from a network: streams of bytes to peers whose key the transport has proved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # mypy sees trio through trio-typing's stubs, which libp2p brings


class ByteStream(Protocol):
    """One stream of a connection, both ways, with back-pressure.

    One task may receive while another sends. A cancelled `receive` loses nothing; after a cancelled
    `send` the stream can only be reset.
    """

    @property
    def remote_peer(self) -> str:
        """The PeerId that the transport has proved for the other end."""
        ...

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return at least one and at most `max_bytes` bytes; b"" when the peer has ended its side.

        Raises:
            LinkClosed: the stream or its connection broke.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send all of `data`, waiting for as long as the peer does not read.

        Raises:
            LinkClosed: the stream or its connection broke, or the stream was ended on this side.
        """
        ...

    async def send_eof(self) -> None:
        """End this side: the peer gets what was sent, then b""."""
        ...

    async def aclose(self) -> None:
        """End this side and read no more. What was sent still arrives."""
        ...

    def reset(self) -> None:
        """Tear the stream down at once, both ways; no effect on one that is closed."""
        ...


StreamHandler = Callable[[ByteStream], Awaitable[None]]


class Transport(Protocol):
    """A network of peers."""

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        ...

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled; the port is free again afterwards.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        ...

    def addresses(self) -> list[str]:
        """Where others can dial us, as multiaddrs without /p2p; known once `run` has started."""
        ...

    async def open_stream(self, peer_id: str, addresses: Sequence[str], protocol: str) -> ByteStream:
        """Open a stream over a connection that is there, or else dial the addresses in turn.

        Raises:
            PeerUnreachable: no address answers, or the peer does not speak the protocol.
        """
        ...

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Call `handler` with each stream that a peer opens for `protocol`. Before `run`."""
        ...

    def confirm(self, peer_id: str) -> None:
        """The peer is attested. Connections of peers that are not confirmed in time are cut."""
        ...

    async def disconnect(self, peer_id: str) -> None:
        """Cut every connection to the peer; what was sent before has a second to leave."""
        ...
