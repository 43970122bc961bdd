"""py-libp2p's own Noise and multistream-select, for whoever prefers them to ours.

This is the only module that imports py-libp2p, and it is imported only when a node is told to use it. Importing
py-libp2p warns about its own dependencies and takes over its loggers; both are undone here. Whatever its code raises
on a peer's bytes comes out as a `LinkError` or a `ProtocolError`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Awaitable
from typing import Any, TypeVar

from comity.errors import ComityError, LinkClosed, ProtocolError
from comity.signing import PrivateKey
from comity_node.transport import yamux
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
    from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
    from libp2p.security.noise.transport import Transport as NoiseTransport
if not os.environ.get("LIBP2P_DEBUG"):  # whoever sets it wants libp2p's own logging
    _logger.setLevel(_before[0])
    _logger.propagate, _logger.handlers[:] = _before[1:]

T = TypeVar("T")


class StockUpgrader:
    """`Upgrader.upgrade`, by py-libp2p."""

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

    async def upgrade(self, wire: Wire, expected_peer: str | None) -> tuple[StockChannel, str]:
        """See `Upgrader.upgrade`.

        Raises:
            LinkClosed: the connection broke.
            Busy: others begin more handshakes than are computed.
            ProtocolError: the peer speaks something else, or is somebody else.
        """
        return await _translated(self._upgrade(wire, expected_peer), "the handshake failed")

    async def _upgrade(self, wire: Wire, expected_peer: str | None) -> tuple[StockChannel, str]:
        connection = _Connection(wire)
        _, noise = await self._security.select(connection, wire.is_initiator)
        if wire.is_initiator:
            session = await noise.secure_outbound(connection, ID.from_base58(expected_peer) if expected_peer else None)
        else:
            await self._pace.turn()
            session = await noise.secure_inbound(connection)
        peer_id = str(session.get_remote_peer().to_base58())
        if expected_peer is not None and peer_id != expected_peer:
            raise ProtocolError(f"the key there does not correspond to {expected_peer}: it is that of {peer_id}")
        await self._muxers.select(session, wire.is_initiator)
        wire.lift_budget()
        return StockChannel(session), peer_id


class StockChannel:
    """A `SecureChannel` over libp2p's Noise session."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401  (py-libp2p's types are not followed)
        """Wrap a session."""
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


class _Connection:
    """A wire as libp2p's `IRawConnection`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.is_initiator = wire.is_initiator

    async def read(self, n: int | None = None) -> bytes:
        return await self._wire.read(n)

    async def write(self, data: bytes) -> None:
        await self._wire.write(data)

    async def close(self) -> None:
        await self._wire.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


async def _translated(call: Awaitable[T], what: str) -> T:
    try:
        return await call
    except ComityError:
        raise
    except ConnectionClosedError as error:
        raise LinkClosed("the peer closed the connection") from error
    except Exception as error:  # raised again as ours:
        # libp2p, noiseprotocol, cryptography and protobuf raise whatever a peer's bytes make them raise.
        raise ProtocolError(f"{what}: {str(error) or type(error).__name__}") from error
