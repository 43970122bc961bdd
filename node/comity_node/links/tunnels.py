"""Tunnels: streams that are raw bytes both ways once both sides are attested and the server agrees."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from comity.errors import Busy, ComityError, LinkClosed, PeerRefused, UnexpectedMessage
from comity.trust import Attested
from comity_node.links.channel import Channel
from comity_node.links.greeting import NO_WINDOW, Greeter, greet_as_opener
from comity_node.protocol.session_events import GoingAway, Refused, TunnelAsked, TunnelOpened
from comity_node.transport.base import ByteStream, Priority

TUNNEL = "/comity/tunnel/2"
#: A tunnel may be of any class; it has no calls.
TUNNEL_WINDOWS = {priority: NO_WINDOW for priority in Priority}


class TunnelStream:
    """A `ByteStream` on top of a channel that has become raw."""

    def __init__(
        self, stream: ByteStream, rest: bytes, on_close: Callable[[], None], on_data: Callable[[], None]
    ) -> None:
        """Make a stream.

        Args:
            stream: the stream below.
            rest: raw bytes that were read with the last frame.
            on_close: called once, when the stream is closed or reset.
            on_data: called whenever something has come: it is a sign of life.
        """
        self._stream, self._rest = stream, rest
        self._on_close: Callable[[], None] | None = on_close
        self._on_data = on_data

    @property
    def remote_peer(self) -> str:
        """The PeerId of the other end."""
        return self._stream.remote_peer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """See `ByteStream.receive`."""
        await self._ready()
        if self._rest:
            data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
            await trio.lowlevel.checkpoint()
            return data
        data = await self._stream.receive(max_bytes)
        self._on_data()
        return data

    async def send(self, data: bytes) -> None:
        """See `ByteStream.send`."""
        await self._ready()
        await self._stream.send(data)

    async def send_eof(self) -> None:
        """See `ByteStream.send_eof`."""
        await self._ready()
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """See `ByteStream.aclose`."""
        self._released()
        await self._stream.aclose()

    def reset(self) -> None:
        """See `ByteStream.reset`."""
        self._released()
        self._stream.reset()

    def set_priority(self, priority: Priority) -> None:
        """See `ByteStream.set_priority`."""
        self._stream.set_priority(priority)

    async def _ready(self) -> None:
        """What has to happen before the first byte."""

    def _released(self) -> None:
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


class InboundTunnel(TunnelStream):
    """A tunnel that a peer wants. The first use of it accepts it; raising before that refuses it."""

    def __init__(self, channel: Channel, on_close: Callable[[], None], on_data: Callable[[], None]) -> None:
        super().__init__(channel.stream, b"", on_close, on_data)
        self._channel = channel
        self._lock = trio.Lock()
        self.accepted = False

    async def accept(self) -> None:
        """Tell the peer that the tunnel is open."""
        async with self._lock:
            if not self.accepted:
                self._rest = self._channel.session.accept_tunnel()
                self.accepted = True
                await self._channel.flush()

    async def refuse(self, code: str, reason: str) -> None:
        """Tell the peer that it does not get the tunnel, and why."""
        self._channel.session.refuse_tunnel(code, reason)
        await self._channel.say_goodbye()
        self._released()

    async def _ready(self) -> None:
        if not self.accepted:
            await self.accept()


TunnelHandler = Callable[[Attested, str, ByteStream], Awaitable[None]]


async def ask_for_tunnel(channel: Channel, greeter: Greeter, name: str, priority: Priority) -> bytes:
    """Greet a peer on a new tunnel stream of this class and ask for the tunnel of this name.

    Returns:
        Raw bytes that have already come.

    Raises:
        PeerNotAttested: either side refused the other.
        PeerRefused: the peer does not open this tunnel for us.
        Busy: the peer has too many tunnels of ours open.
        LinkClosed: the stream broke.
        ProtocolError: the peer broke the protocol.
    """
    await greet_as_opener(channel, greeter, priority, calls=False)
    channel.session.open_tunnel(name)
    await channel.flush()
    match await channel.next_event():
        case TunnelOpened(rest):
            return rest
        case Refused(code, reason):
            raise _refusal(name, code, reason)
        case GoingAway(code, reason):
            raise LinkClosed(f"the peer closed the stream ({code}): {reason}")
        case event:
            raise UnexpectedMessage(f"{type(event).__name__} instead of an answer to TunnelOpen")


async def asked_tunnel(channel: Channel) -> str:
    """Return the name of the tunnel that a greeted peer asks for.

    Raises:
        LinkClosed: the stream broke.
        ProtocolError: the peer broke the protocol.
    """
    event = await channel.next_event()
    if not isinstance(event, TunnelAsked):
        raise UnexpectedMessage(f"{type(event).__name__} instead of a TunnelOpen")
    return event.name


def _refusal(name: str, code: str, reason: str) -> ComityError:
    if code == Busy.code:
        return Busy(f"the peer does not open the tunnel {name!r} now: {reason}")
    return PeerRefused(f"the peer refuses the tunnel {name!r} ({code}): {reason}", remote_code=code)
