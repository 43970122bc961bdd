"""The connections of a node: which peers they lead to, which of them new streams use, and which have to go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from comity_node.transport.address import Address
from comity_node.transport.base import ConnectionInfo
from comity_node.transport.budget import Budget, Budgets
from comity_node.transport.limits import Libp2pLimits
from comity_node.transport.muxed import MuxedConnection
from comity_node.transport.pace import FairPace
from comity_node.transport.slots import FairSlots

_log = logging.getLogger("comity.transport")


@dataclass(slots=True, eq=False)
class Connection:
    """One connection whose other end has proved its key.

    Attributes:
        mux: carries its streams.
        address: the other end as a multiaddr; "" if not known.
        relay: the PeerId of the relay that carries it; "" for a direct one.
        inbound: whether the peer dialled.
        opened_at: by trio's clock.
        source: what it counts for (`pace.source_of`).
        local_port: of a connection that we dialled: other connections may be made from it; 0 for others.
        observed: where the peer sees us, if it has told.
    """

    mux: MuxedConnection
    address: str
    relay: str
    inbound: bool
    opened_at: float
    source: str
    local_port: int = 0
    observed: Address | None = None

    @property
    def peer_id(self) -> str:
        """Whose it is."""
        return self.mux.remote_peer

    @property
    def is_usable(self) -> bool:
        """Whether new streams can be opened."""
        return self.mux.is_usable


class Connections:
    """All connections, by peer."""

    def __init__(self, limits: Libp2pLimits, pace: FairPace) -> None:
        """Begin with none.

        Args:
            limits: how many there may be, and what they may cost.
            pace: is told from which sources members come.
        """
        self._limits, self._pace = limits, pace
        self._peers: dict[str, list[Connection]] = {}
        self._confirmed: dict[str, Budget] = {}
        self._strangers: FairSlots[Connection] = FairSlots(limits.max_strangers, limits.max_strangers, knows=pace.knows)
        self._lot = trio.lowlevel.ParkingLot()
        self._better: list[Callable[[str], None]] = []
        #: The memory that peers may make us hold.
        self.budgets = Budgets(limits.budget)

    def __len__(self) -> int:
        return sum(len(each) for each in self._peers.values())

    def __iter__(self) -> Iterator[Connection]:
        return iter([connection for each in self._peers.values() for connection in each])

    @property
    def strangers(self) -> int:
        """Of them, those whose peer is not attested."""
        return len(self._strangers)

    def of(self, peer_id: str) -> list[Connection]:
        """All connections of a peer, the oldest first."""
        return list(self._peers.get(peer_id, ()))

    def best(self, peer_id: str) -> Connection | None:
        """The connection on which new streams to a peer open: a direct one before a relayed one, then the newest."""
        usable = [each for each in self._peers.get(peer_id, ()) if each.is_usable]
        return max(usable, key=lambda each: (not each.relay, each.opened_at), default=None)

    def is_confirmed(self, peer_id: str) -> bool:
        """Whether the peer is attested and connected."""
        return peer_id in self._confirmed

    def on_better_path(self, listener: Callable[[str], None]) -> None:
        """See `Transport.on_better_path`."""
        self._better.append(listener)

    def add(self, connection: Connection) -> None:
        """A connection has proved its key."""
        peer_id = connection.peer_id
        siblings = self._peers.setdefault(peer_id, [])
        siblings.append(connection)
        usable = [each for each in siblings if each.is_usable]
        if len(usable) > self._limits.max_per_peer:
            worst = min(usable, key=lambda each: (not each.relay, each.opened_at))
            worst.mux.close("the peer has newer connections")
        if peer_id in self._confirmed:
            self._trust(connection)
        elif (evicted := self._strangers.add(connection.source, connection)) is not None:
            evicted.mux.close("there are too many strangers")
        self.changed()
        if not connection.relay and peer_id in self._confirmed and any(each.relay for each in usable):
            for listener in self._better:
                listener(peer_id)

    def remove(self, connection: Connection) -> None:
        """A connection is gone."""
        peer_id = connection.peer_id
        self._strangers.remove(connection.source, connection)
        siblings = self._peers[peer_id]
        siblings.remove(connection)
        if not siblings:
            del self._peers[peer_id]
            self._confirmed.pop(peer_id, None)
        self.changed()

    def confirm(self, peer_id: str, organization: str) -> None:
        """See `Transport.confirm`; whose node it is, once said, stays said for as long as it is connected."""
        if peer_id not in self._peers:
            return
        if organization or peer_id not in self._confirmed:
            self._confirmed[peer_id] = self.budgets.of(peer_id, organization)
        for connection in self._peers[peer_id]:
            self._strangers.remove(connection.source, connection)
            self._trust(connection)
            if connection.inbound:
                self._pace.remember(connection.source)
        self.changed()

    def doubt(self, peer_id: str) -> None:
        """The peer is not attested any more."""
        self._confirmed.pop(peer_id, None)
        self.changed()

    def changed(self) -> None:
        """Let those who wait look again."""
        self._lot.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is looked at again whenever `changed` is called.

        That is when a connection comes, goes or is confirmed, and when a reservation at a relay is made or lost.
        """
        await trio.lowlevel.checkpoint()
        while not condition():
            await self._lot.park()

    async def cut_unconfirmed(self, connection: Connection) -> None:
        """Close a connection if its peer is not attested in time."""
        await trio.sleep(self._limits.confirm_s)
        if not self.is_confirmed(connection.peer_id):
            connection.mux.close(f"the peer was not attested in {self._limits.confirm_s:g} s")

    async def retire(self, connection: Connection) -> None:
        """Close a relayed connection some time after there is a direct one, once its streams are closed."""

        def replaced() -> bool:
            best = self.best(connection.peer_id)
            return best is not None and not best.relay

        while True:
            await self.until(replaced)
            await trio.sleep(self._limits.retire_s)
            if replaced():
                await connection.mux.drain(10 * self._limits.retire_s)
                return

    def info(self, peer_id: str) -> ConnectionInfo | None:
        """See `Transport.connection_info`."""
        connection = self.best(peer_id)
        if connection is None:
            return None
        metrics = connection.mux.metrics()
        return ConnectionInfo(
            peer_id=peer_id,
            address=connection.address,
            relay=connection.relay,
            inbound=connection.inbound,
            age_s=trio.current_time() - connection.opened_at,
            streams=metrics.streams,
            rtt_ms=metrics.rtt_ms,
            queued_bytes=metrics.queued_bytes,
            window_bytes=metrics.window_bytes,
            bytes_sent=metrics.bytes_sent,
            bytes_received=metrics.bytes_received,
        )

    def _trust(self, connection: Connection) -> None:
        connection.mux.set_limits(self._limits.mux, self._confirmed[connection.peer_id])
