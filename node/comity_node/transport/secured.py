"""What Noise and TLS have in common: a handshake that proves a peer, and the channel that comes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from comity.errors import LinkClosed, ProtocolError
from comity.signing import peer_id
from comity_node.transport.wire import Wire


class Session(Protocol):
    """Encryption in both directions, without I/O."""

    @property
    def is_ended(self) -> bool:
        """Whether the peer has said that it sends no more."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether a connection that ends here was cut in the middle of a message."""
        ...

    def seal(self, data: bytes) -> Iterable[bytes]:
        """Return what to write for `data`, in the order in which to write it. Raises LinkClosed."""
        ...

    def feed(self, data: bytes) -> None:
        """Take in bytes from the wire, after `take` has returned b"". Raises ProtocolError."""
        ...

    def take(self) -> bytes:
        """Return plain text, some 320 KiB at most; b"" when more bytes are needed. Raises ProtocolError."""
        ...


@dataclass(frozen=True, slots=True)
class Proved:
    """What a handshake has come to.

    Attributes:
        peer_id: who the other end has proved to be.
        muxer: the stream multiplexer that was agreed on in the handshake; "" if it is still to be negotiated.
        session: the encryption from here on.
    """

    peer_id: str
    muxer: str
    session: Session


class Handshake(Protocol):
    """One end of a handshake, without I/O."""

    @property
    def proved(self) -> Proved | None:
        """The outcome, once there is one."""
        ...

    def start(self) -> bytes:
        """Return what this end sends without having heard anything."""
        ...

    def receive(self, data: bytes) -> bytes:
        """Take in bytes and return those to send, which are the last when `proved` is set.

        Raises:
            ProtocolError: the peer does not keep to the protocol, or has not proved its key or another than expected.
        """
        ...


class Channel:
    """A `SecureChannel`: a session over a wire."""

    def __init__(self, wire: Wire, session: Session) -> None:
        """Take over `wire`."""
        self._wire = wire
        self._session = session
        self._front = b""

    def unread(self, data: bytes) -> None:
        """Put back plain text that belongs to whoever reads next."""
        self._front = data + self._front if self._front else data

    async def read(self) -> bytes:
        """See `SecureChannel.read`: at most some 320 KiB."""
        if self._front:
            data, self._front = self._front, b""
            return data
        while not (data := self._session.take()):
            if self._session.is_ended:
                return b""
            sealed = await self._wire.receive()
            if not sealed:
                if self._session.is_cut:
                    raise LinkClosed("the connection was cut in the middle of a message")
                return b""
            self._session.feed(sealed)
        return data

    async def write(self, data: bytes) -> None:
        """See `SecureChannel.write`."""
        for sealed in self._session.seal(data):
            await self._wire.write(sealed)

    def write_some(self, data: bytes) -> bytes:
        """See `WritesAtOnce.write_some`."""
        rest = b""
        for sealed in self._session.seal(data):
            sent = 0 if rest else self._wire.write_some(sealed)
            if sent < len(sealed):
                rest += sealed[sent:]
        return rest

    async def write_rest(self, rest: bytes) -> None:
        """See `WritesAtOnce.write_rest`."""
        await self._wire.write(rest)

    async def close(self) -> None:
        """See `SecureChannel.close`."""
        await self._wire.close()


def check_peer(public_key: bytes, expected: str | None) -> str:
    """Return the PeerId of the key that the other end has proved.

    Raises:
        ProtocolError: it is not the expected one.
    """
    found = peer_id(public_key)
    if expected is not None and found != expected:
        raise ProtocolError(f"the key there does not correspond to {expected}: it is that of {found}")
    return found
