"""What links need from a network: streams of bytes to peers whose key the transport has proved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import trio

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # mypy sees trio through trio-typing's stubs, which libp2p brings


class Priority(IntEnum):
    """Whose bytes go first on a connection that carries several streams; lower values go first.

    A class that waits is never starved by one before it: it gets a smaller share.
    """

    #: Signs of life, answers that somebody waits for, the relay's own messages.
    CONTROL = 0
    #: Requests and tunnels.
    WORK = 1
    #: Files and data sets: what nobody waits for by the millisecond.
    BULK = 2


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """How a peer is connected.

    Attributes:
        peer_id: who it is.
        address: the other end as a multiaddr, of the relay and with `/p2p-circuit` when relayed; "" if not known.
        relay: the PeerId of the relay that carries the connection; "" for a direct one.
        inbound: whether the peer dialled.
        age_s: seconds since the connection was made.
        streams: streams that are open.
        rtt_ms: round trip of the connection itself, in milliseconds; 0 if not measured.
        queued_bytes: bytes that wait to be written.
        window_bytes: what the peer may send of one stream before it waits.
        bytes_sent: on the connection, since it was made.
        bytes_received: the same, the other way.
    """

    peer_id: str
    address: str
    relay: str
    inbound: bool
    age_s: float
    streams: int = 0
    rtt_ms: float = 0.0
    queued_bytes: int = 0
    window_bytes: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def is_relayed(self) -> bool:
        """Whether a relay carries it."""
        return bool(self.relay)


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

    def set_priority(self, priority: Priority) -> None:
        """Say how what this side sends is scheduled against other streams; WORK unless said otherwise."""
        ...


@runtime_checkable
class SendsAtOnce(Protocol):
    """What a `ByteStream` may be, besides: one that takes bytes without waiting."""

    def send_nowait(self, data: bytes) -> bool:
        """Send all of `data` if there is room for it at once; else return False and send nothing."""
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

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        """Open a stream over the best connection that is there, or else dial the addresses.

        The peer has not answered yet when the stream is there. If it does not speak the protocol, the first
        `receive` raises PeerUnreachable.

        Raises:
            PeerUnreachable: no address answers.
            Busy: there are too many connections, or streams to this peer.
            LinkClosed: the connection broke, or the transport does not run.
        """
        ...

    def serve(self, protocol: str, handler: StreamHandler, *, strangers: bool = False) -> None:
        """Call `handler` with each stream that a peer opens for `protocol`. Before `run`.

        Args:
            protocol: its name, as multistream-select says it.
            handler: serves one stream; the stream is reset when it returns without having closed it.
            strangers: whether peers that are not confirmed are served. To them any other protocol is one that
                is not supported.
        """
        ...

    def connection_info(self, peer_id: str) -> ConnectionInfo | None:
        """How the peer is connected now, by the connection on which new streams open; None if it is not."""
        ...

    def on_better_path(self, listener: Callable[[str], None]) -> None:
        """Call `listener`, without waiting, with the PeerId of a peer to which a better connection is there.

        New streams open on it. Streams that are open stay on the worse connection, which is closed when
        none is left; whoever keeps long ones opens them anew.
        """
        ...

    def confirm(self, peer_id: str, organization: str = "") -> None:
        """The peer is attested. Connections of peers that are not confirmed in time are cut.

        Args:
            peer_id: who it is.
            organization: whose node it is; its nodes share one budget of memory. Without it a peer has one of its own.
        """
        ...

    async def disconnect(self, peer_id: str) -> None:
        """Cut every connection to the peer; what was sent before has a second to leave."""
        ...
