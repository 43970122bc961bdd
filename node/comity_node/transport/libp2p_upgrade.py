"""The parts of py-libp2p that Comity uses, behind plain functions: Noise and multistream-select.

Importing py-libp2p warns about its own dependencies and takes over its loggers; both are undone here.
Whatever its code raises on a peer's bytes comes out as a `LinkError` or a `ProtocolError`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Awaitable, Collection
from typing import Any, TypeVar

from comity.errors import ComityError, FrameTooLarge, LinkClosed, PeerUnreachable, ProtocolError
from comity.signing import PrivateKey
from comity_node.transport import yamux
from comity_node.transport.muxed import MuxedStream
from comity_node.transport.pace import Pace
from comity_node.transport.wire import Wire

_logger = logging.getLogger("libp2p")
_before = _logger.level, _logger.propagate, list(_logger.handlers)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
    from libp2p.io.exceptions import ConnectionClosedError
    from libp2p.peer.id import ID
    from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
    from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
    from libp2p.protocol_muxer.multiselect import Multiselect
    from libp2p.protocol_muxer.multiselect_client import MultiselectClient
    from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
    from libp2p.security.noise.transport import Transport as NoiseTransport
if not os.environ.get("LIBP2P_DEBUG"):  # whoever sets it wants libp2p's own logging
    _logger.setLevel(_before[0])
    _logger.propagate, _logger.handlers[:] = _before[1:]

T = TypeVar("T")
#: What the negotiation of one stream may cost, in bytes each way; protocol names are some 20 bytes.
_NEGOTIATION_BYTES = 1024


class Upgrader:
    """Makes a secured connection, with an agreed multiplexer, of a TCP connection."""

    def __init__(self, key: PrivateKey, pace: Pace) -> None:
        """Make an upgrader that proves `key`; the Noise static key is made anew for each process.

        Args:
            key: the node's.
            pace: of the handshakes that others begin, each of which costs some milliseconds of computing.
        """
        self._pace = pace
        noise = NoiseTransport(create_new_key_pair(key.seed), create_noise_key_pair().private_key)
        self._security: Any = GenericMultistreamSelector()
        self._security.add_handler(NOISE_PROTOCOL_ID, noise)
        self._muxers: Any = GenericMultistreamSelector()
        self._muxers.add_handler(yamux.PROTOCOL_ID, None)

    async def upgrade(self, wire: Wire, expected_peer: str | None) -> tuple[NoiseChannel, str]:
        """Agree on Noise, prove keys, agree on Yamux.

        Args:
            wire: the connection; its budget bounds what the peer may send here.
            expected_peer: the PeerId to find there, when we dialled.

        Returns:
            The channel and the PeerId that the other end has proved.

        Raises:
            LinkClosed: the connection broke.
            Busy: others begin more handshakes than are computed.
            ProtocolError: the peer speaks something else, or is somebody else.
        """
        return await _translated(self._upgrade(wire, expected_peer), "the handshake failed")

    async def _upgrade(self, wire: Wire, expected_peer: str | None) -> tuple[NoiseChannel, str]:
        _, noise = await self._security.select(wire, wire.is_initiator)
        if expected_peer is None:
            await self._pace.turn()
            session = await noise.secure_inbound(wire)
        else:
            session = await noise.secure_outbound(wire, ID.from_base58(expected_peer))
        peer_id = str(session.get_remote_peer().to_base58())
        if expected_peer is not None and peer_id != expected_peer:
            raise ProtocolError(f"found {peer_id} there instead of {expected_peer}")
        await self._muxers.select(session, wire.is_initiator)
        wire.lift_budget()
        return NoiseChannel(session), peer_id


class NoiseChannel:
    """A `SecureChannel` over libp2p's Noise session."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401  (py-libp2p's types are not followed)
        self._session = session

    async def read(self) -> bytes:
        """See `SecureChannel.read`: one Noise message, at most 64 KiB."""
        data: bytes = await _translated(self._session.read(), "the encryption broke")
        return data

    async def write(self, data: bytes) -> None:
        """See `SecureChannel.write`."""
        await _translated(self._session.write(data), "the encryption broke")

    async def close(self) -> None:
        """See `SecureChannel.close`."""
        await self._session.close()


async def propose(stream: MuxedStream, protocol: str) -> None:
    """Ask the peer to speak `protocol` on a new stream.

    Raises:
        PeerUnreachable: it does not speak it.
        LinkClosed: the connection broke.
        ProtocolError: it answers something else.
    """
    communicator = MultiselectCommunicator(_Negotiation(stream))
    try:
        await _translated(MultiselectClient().select_one_of([protocol], communicator), "the negotiation failed")
    except ProtocolError as error:
        if isinstance(error.__cause__, ProtocolNotSupportedError) or "not supported" in str(error.__cause__):
            raise PeerUnreachable(f"{stream.remote_peer} does not speak {protocol}") from error
        raise


async def agree(stream: MuxedStream, protocols: Collection[str]) -> str:
    """Let the peer choose one of `protocols` for a stream that it has opened.

    Raises:
        LinkClosed: the connection broke.
        ProtocolError: the peer does not speak multistream-select, or chooses none within the bytes it may send.
    """
    communicator = MultiselectCommunicator(_Negotiation(stream))
    server = Multiselect(dict.fromkeys(protocols))
    chosen, _ = await _translated(server.negotiate(communicator), "the negotiation failed")
    return str(chosen)


class _Negotiation:
    """A stream as libp2p's multistream-select reads it: no more bytes than a negotiation needs."""

    def __init__(self, stream: MuxedStream) -> None:
        self._stream = stream
        self._left = _NEGOTIATION_BYTES

    async def read(self, n: int) -> bytes:
        self._left -= n
        if self._left < 0:
            raise FrameTooLarge("the peer's negotiation is too long")
        data = bytearray()
        while len(data) < n:
            piece = await self._stream.receive(n - len(data))
            if not piece:
                raise LinkClosed("the peer ended the stream")
            data += piece
        return bytes(data)

    async def write(self, data: bytes) -> None:
        await self._stream.send(data)


async def _translated(call: Awaitable[T], what: str) -> T:
    try:
        return await call
    except ComityError:
        raise
    except ConnectionClosedError as error:
        raise LinkClosed("the peer closed the connection") from error
    except Exception as error:
        # libp2p, noiseprotocol, cryptography and protobuf raise whatever a peer's bytes make them raise.
        raise ProtocolError(f"{what}: {str(error) or type(error).__name__}") from error
