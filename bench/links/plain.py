"""Links without encryption, to show what it costs: PeerIds are exchanged and believed."""

from __future__ import annotations

from comity.signing import PrivateKey, peer_id_to_bytes
from comity_node.transport.libp2p_transport import Libp2pTransport
from comity_node.transport.pace import Pace
from comity_node.transport.upgrade import Upgrader
from comity_node.transport.wire import Wire

_LENGTH = 52


class PlainChannel:
    """A `SecureChannel` that is none."""

    def __init__(self, wire: Wire) -> None:
        """Read and write `wire` as it is."""
        self._wire = wire

    async def read(self) -> bytes:
        """See `SecureChannel.read`."""
        return await self._wire.read()

    async def write(self, data: bytes) -> None:
        """See `SecureChannel.write`."""
        await self._wire.write(data)

    async def close(self) -> None:
        """See `SecureChannel.close`."""
        await self._wire.close()


class _PlainUpgrader(Upgrader):
    def __init__(self, key: PrivateKey) -> None:
        super().__init__(key, Pace(1e6, burst=1e6, longest_wait_s=1.0))
        self._name = key.peer_id.encode()

    async def upgrade(self, wire: Wire, expected_peer: str | None) -> tuple[PlainChannel, str]:
        await wire.write(self._name)
        peer_id = (await wire.read(_LENGTH)).decode()
        peer_id_to_bytes(peer_id)
        wire.lift_budget()
        return PlainChannel(wire), peer_id


def plain_transport(key: PrivateKey, listen: list[str]) -> Libp2pTransport:
    """Return a transport whose connections are not encrypted."""
    return Libp2pTransport(key, listen, upgrader=_PlainUpgrader(key))
