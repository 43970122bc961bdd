"""From a connection to an encrypted one on which Yamux is agreed, and the agreement on what a stream speaks.

A dialler speaks before it is answered wherever a refusal would end the connection anyway: its proposal of the
security protocol, and that protocol's first message, leave together; so do the proposal of Yamux and Yamux's first
frames, where the handshake has not settled that already. With ours at the other end a connection costs one round trip
after TCP's, and the dialler's first frames follow its last message.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from comity.errors import ConfigError, FrameTooLarge, LinkClosed, LinkError, PeerUnreachable, ProtocolError
from comity.signing import PrivateKey
from comity_node.transport import noise, tls, yamux
from comity_node.transport.base import ByteStream, Priority, SendsAtOnce
from comity_node.transport.multistream import Listener, Opener
from comity_node.transport.muxed import SecureChannel
from comity_node.transport.noise import NoiseHandshake, NoiseIdentity
from comity_node.transport.pace import Pace
from comity_node.transport.secured import Channel, Handshake, Proved
from comity_node.transport.tls import TlsHandshake, TlsIdentity
from comity_node.transport.wire import Wire

if TYPE_CHECKING:
    from comity_node.transport.stock import StockUpgrader

#: What can be asked for as `security`, and how it is called on the wire.
SECURITY = {"noise": noise.PROTOCOL_ID, "tls": tls.PROTOCOL_ID}
_MUXERS = (yamux.PROTOCOL_ID,)
#: What the negotiation of one stream may cost, in bytes each way; protocol names are some 20 bytes.
_NEGOTIATION_BYTES = 1024
#: A stream that is closed before its peer has answered waits so long for the answer.
_ANSWER_S = 10.0
#: Peers that are remembered to have refused the security protocol that they were spoken to in.
_MAX_REMEMBERED = 256


class Upgrader:
    """Makes a secured connection, with an agreed multiplexer, of a connection."""

    def __init__(
        self,
        key: PrivateKey,
        pace: Pace,
        *,
        security: Sequence[str] = ("noise", "tls"),
        stock: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Make an upgrader that proves `key`; Noise's static key and TLS's certificate are made anew for each process.

        Args:
            key: the node's.
            pace: of the handshakes that others begin, each of which costs some tenths of a millisecond of computing.
            security: `noise`, `tls` or both, the best first.
            stock: leave all of it to py-libp2p, which speaks Noise here; it is not even imported otherwise.
            now: the time, against which certificates are checked.

        Raises:
            ConfigError: `security` names something else or nothing, or `stock` is to speak something else than Noise.
        """
        if not security or len(set(security)) != len(security) or not set(security) <= set(SECURITY):
            raise ConfigError(f"security is {', '.join(security) or 'empty'}; name noise, tls or both, the best first")
        self._pace = pace
        self._now = now
        self._protocols = [SECURITY[each] for each in security]
        self._noise = NoiseIdentity.of(key, X25519PrivateKey.generate(), _MUXERS)
        self._tls = TlsIdentity(key, _MUXERS, now())
        self._ask_first: deque[str | None] = deque(maxlen=_MAX_REMEMBERED)
        self._stock = _stock_upgrader(key, pace, security) if stock else None

    async def upgrade(self, wire: Wire, expected_peer: str | None) -> tuple[SecureChannel, str]:
        """Agree on Noise or TLS, prove keys, agree on Yamux.

        Args:
            wire: the connection; its budget bounds what the peer may send here.
            expected_peer: the PeerId to find there, where that is known, as when we dialled.

        Returns:
            The channel and the PeerId that the other end has proved.

        Raises:
            PeerUnreachable: the peer does not speak the security protocol that it was spoken to in; the next connection
                to it first asks.
            LinkClosed: the connection broke.
            Busy: others begin more handshakes than are computed.
            ProtocolError: the peer speaks something else, or is somebody else.
        """
        if self._stock is not None:
            return await self._stock.upgrade(wire, expected_peer)
        proved = await (self._dial if wire.is_initiator else self._accept)(wire, expected_peer)
        channel = await self._agree_on_muxer(wire, proved)
        wire.lift_budget()
        return channel, proved.peer_id

    async def _dial(self, wire: Wire, expected_peer: str | None) -> Proved:
        """Propose the best protocol and speak it in the same breath, unless the peer is known to refuse it."""
        asks_first = expected_peer in self._ask_first
        opener = Opener(self._protocols)
        handshake = None if asks_first else self._handshake(wire, self._protocols[0], expected_peer)
        await wire.write(opener.start() + (handshake.start() if handshake else b""))
        while opener.chosen is None:
            out = opener.receive(await _some(wire.receive))
            if opener.refused:
                raise PeerUnreachable(f"the peer speaks none of {', '.join(self._protocols)}")
            if out and not asks_first:
                # What follows the refusal is lost on the peer: it has taken our handshake for a proposal.
                self._ask_first.append(expected_peer)
                raise PeerUnreachable(
                    f"the peer does not speak {self._protocols[0]}; dial again to be asked for others"
                )
            if out:
                await wire.write(out)
        wire.unread(opener.rest())
        if handshake is None:
            handshake = self._handshake(wire, opener.chosen, expected_peer)
            await wire.write(handshake.start())
        return await _shake_hands(wire, handshake)

    async def _accept(self, wire: Wire, expected_peer: str | None) -> Proved:
        protocol = await _listen(Listener(self._protocols), wire.receive, wire.write, wire.unread)
        await self._pace.turn()
        return await _shake_hands(wire, self._handshake(wire, protocol, expected_peer))

    def _handshake(self, wire: Wire, protocol: str, expected_peer: str | None) -> Handshake:
        initiator = wire.is_initiator
        if protocol == tls.PROTOCOL_ID:
            return TlsHandshake(self._tls, initiator=initiator, now=self._now(), expected_peer=expected_peer)
        ephemeral = X25519PrivateKey.generate()
        return NoiseHandshake(self._noise, initiator=initiator, ephemeral=ephemeral, expected_peer=expected_peer)

    async def _agree_on_muxer(self, wire: Wire, proved: Proved) -> SecureChannel:
        """Return the channel that speaks Yamux: at once if the handshake has settled it, or by a negotiation inside."""
        channel = Channel(wire, proved.session)
        if proved.muxer:
            return channel
        if wire.is_initiator:
            opener = Opener(_MUXERS)
            await channel.write(opener.start())
            return _AnsweredChannel(channel, opener)
        await _listen(Listener(_MUXERS), channel.read, channel.write, channel.unread)
        return channel


class _AnsweredChannel:
    """A `SecureChannel` on which the answer to a proposal still has to be read."""

    def __init__(self, channel: Channel, opener: Opener) -> None:
        self._channel = channel
        self._opener = opener

    async def read(self) -> bytes:
        if self._opener.wanted:
            while self._opener.wanted:
                self._opener.receive(await _some(self._channel.read))
            self._channel.unread(self._opener.rest())
        if self._opener.refused:
            raise ProtocolError("the peer does not speak Yamux")
        return await self._channel.read()

    async def write(self, data: bytes) -> None:
        await self._channel.write(data)

    async def close(self) -> None:
        await self._channel.close()


class ProposedStream:
    """A `ByteStream` of which the peer has not yet said whether it speaks the protocol.

    What is sent goes out at once. The first `receive`, or `confirmed`, reads the answer. Only the end of this side
    waits for it: js-libp2p resets a stream that ends before it has answered.
    """

    def __init__(self, stream: ByteStream, opener: Opener) -> None:
        """Wrap a stream on which the opening of `opener`, with its one proposal, has been sent."""
        self._stream = stream
        self._opener = opener
        self._protocol = opener.proposed
        self._reading = trio.Lock()
        self._send_nowait = stream.send_nowait if isinstance(stream, SendsAtOnce) else None

    @property
    def remote_peer(self) -> str:
        """See `ByteStream.remote_peer`."""
        return self._stream.remote_peer

    async def confirmed(self) -> None:
        """Wait until the peer has agreed.

        Raises:
            PeerUnreachable: it does not speak the protocol; the stream is reset.
            LinkClosed: the stream or its connection broke.
            ProtocolError: it answers something else; the stream is reset.
        """
        async with self._reading:
            while wanted := self._opener.wanted:
                await self._read_answer(wanted)
        if self._opener.refused:
            self._stream.reset()
            raise PeerUnreachable(f"{self.remote_peer} does not speak {self._protocol}")

    async def _read_answer(self, wanted: int) -> None:
        data = await self._stream.receive(wanted)
        if not data:
            raise LinkClosed(f"the peer ended the stream before it agreed to {self._protocol}")
        try:
            self._opener.receive(data)
        except ProtocolError:
            self._stream.reset()
            raise

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """See `ByteStream.receive`; the first one raises as `confirmed` does."""
        if self._opener.chosen is None:
            await self.confirmed()
        return await self._stream.receive(max_bytes)

    async def send(self, data: bytes) -> None:
        """See `ByteStream.send`."""
        await self._stream.send(data)

    def send_nowait(self, data: bytes) -> bool:
        """See `SendsAtOnce.send_nowait`."""
        return self._send_nowait is not None and self._send_nowait(data)

    async def send_eof(self) -> None:
        """See `ByteStream.send_eof`; raises as `confirmed` does."""
        if self._opener.chosen is None:
            await self.confirmed()
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """See `ByteStream.aclose`; waits for the answer for ten seconds at most."""
        if self._opener.chosen is None:
            try:
                with trio.move_on_after(_ANSWER_S), contextlib.suppress(LinkError, ProtocolError):  # it is closed, then
                    await self.confirmed()
            except trio.Cancelled:
                self._stream.reset()
                raise
        await self._stream.aclose()

    def reset(self) -> None:
        """See `ByteStream.reset`."""
        self._stream.reset()

    def set_priority(self, priority: Priority) -> None:
        """See `ByteStream.set_priority`."""
        self._stream.set_priority(priority)


async def propose(stream: ByteStream, protocol: str) -> ProposedStream:
    """Ask the peer to speak `protocol` on a new stream, without waiting for its answer.

    Use the stream that is returned instead of the one that was given; await its `confirmed` to know at once.

    Raises:
        LinkClosed: the connection broke.
    """
    opener = Opener([protocol])
    await stream.send(opener.start())
    return ProposedStream(stream, opener)


async def agree(stream: ByteStream, protocols: Collection[str]) -> str:
    """Let the peer choose one of `protocols` for a stream that it has opened.

    Raises:
        LinkClosed: the connection broke.
        ProtocolError: the peer does not speak multistream-select, or chooses none within the bytes it may send. The
            stream is closed already if the peer was refused something before.
    """
    listener = Listener(protocols)
    await stream.send(listener.start())
    try:
        return await _choose(listener, stream)
    except ProtocolError:
        # What a dialler sends after a proposal that is refused is no negotiation. The refusal still has to reach it.
        if listener.has_refused:
            await stream.aclose()
        raise


async def _choose(listener: Listener, stream: ByteStream) -> str:
    left = _NEGOTIATION_BYTES
    while listener.chosen is None:
        wanted = listener.wanted
        if wanted > left:
            raise FrameTooLarge(f"the peer proposes protocols for more than {_NEGOTIATION_BYTES} bytes")
        data = await stream.receive(wanted)
        if not data:
            raise LinkClosed("the peer ended the stream")
        left -= len(data)
        if out := listener.receive(data):
            await stream.send(out)
    return listener.chosen


async def _shake_hands(wire: Wire, handshake: Handshake) -> Proved:
    while handshake.proved is None:
        out = handshake.receive(await _some(wire.receive))
        if out:
            await wire.write(out)
    return handshake.proved


async def _listen(
    listener: Listener,
    read: Callable[[], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    unread: Callable[[bytes], None],
) -> str:
    """Return the protocol that the peer chooses; what it has sent after its proposal is put back."""
    await write(listener.start())
    while listener.chosen is None:
        out = listener.receive(await _some(read))
        while out:
            await write(out)
            out = b"" if listener.chosen else listener.receive(b"")
    unread(listener.rest())
    return listener.chosen


async def _some(read: Callable[[], Awaitable[bytes]]) -> bytes:
    data = await read()
    if not data:
        raise LinkClosed("the peer closed the connection")
    return data


def _stock_upgrader(key: PrivateKey, pace: Pace, security: Sequence[str]) -> StockUpgrader:
    if "noise" not in security:
        raise ConfigError("py-libp2p's own security is Noise here; name noise as security or leave stock out")
    from comity_node.transport.stock import StockUpgrader  # imports py-libp2p, which takes seconds

    return StockUpgrader(key, pace)
