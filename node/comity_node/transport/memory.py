"""A network inside one process, with the interface of the real one and faults to order.

For tests: streams are bounded pipes, so back-pressure is real; `partition` makes two nodes deaf to each
other without telling them, as a network does; `kill` breaks their streams.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from comity.errors import ComityError, LinkClosed, PeerUnreachable
from comity_node.transport.base import ByteStream, ConnectionInfo, Priority, StreamHandler

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.transport")
_PIPE_BYTES = 64 * 1024


@dataclass(slots=True, eq=False)
class _Pipe:
    """Bytes on their way in one direction."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    broken: bool = False
    blocked: bool = False
    #: Nobody reads any more: what is sent is lost.
    unread: bool = False
    lot: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class MemoryStream:
    """A `ByteStream` over two bounded pipes."""

    def __init__(self, remote_peer: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._remote_peer = remote_peer
        self._in, self._out = incoming, outgoing
        self._closed = False
        #: As it was set last; it changes nothing here.
        self.priority = Priority.WORK

    @property
    def remote_peer(self) -> str:
        """The PeerId of the other end."""
        return self._remote_peer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """See `ByteStream.receive`."""
        pipe = self._in
        await trio.lowlevel.checkpoint()
        while pipe.blocked or not (pipe.data or pipe.ended or pipe.broken):
            await pipe.lot.park()
        if self._closed or (pipe.broken and not pipe.data):
            raise LinkClosed("the stream was reset")
        data = bytes(pipe.data[:max_bytes])
        del pipe.data[:max_bytes]
        pipe.lot.unpark_all()
        return data

    async def send(self, data: bytes) -> None:
        """See `ByteStream.send`."""
        pipe = self._out
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            if pipe.broken or pipe.ended:
                raise LinkClosed("the stream was reset" if pipe.broken else "this side of the stream is ended")
            if pipe.unread:
                return
            room = 0 if pipe.blocked else _PIPE_BYTES - len(pipe.data)
            if room <= 0:
                await pipe.lot.park()
                continue
            pipe.data += view[:room]
            view = view[room:]
            pipe.lot.unpark_all()

    async def send_eof(self) -> None:
        """See `ByteStream.send_eof`."""
        await trio.lowlevel.checkpoint()
        self._end()

    async def aclose(self) -> None:
        """See `ByteStream.aclose`."""
        self._closed = True
        self._end()
        self._in.unread = True
        self._in.lot.unpark_all()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """See `ByteStream.reset`; no effect on a stream that is closed."""
        if self._closed:
            return
        for pipe in (self._in, self._out):
            pipe.broken = True
            pipe.lot.unpark_all()

    def set_priority(self, priority: Priority) -> None:
        """See `ByteStream.set_priority`; pipes do not compete."""
        self.priority = priority

    def _end(self) -> None:
        self._out.ended = True
        self._out.lot.unpark_all()


@dataclass(slots=True, eq=False)
class _Wire:
    """What connects two ends, for the faults."""

    ends: frozenset[str]
    pipes: tuple[_Pipe, _Pipe]


class MemoryNetwork:
    """The nodes that can reach each other, and what is wrong between them."""

    def __init__(self) -> None:
        self._nodes: dict[str, MemoryTransport] = {}
        self._wires: list[_Wire] = []
        self._partitions: set[frozenset[str]] = set()

    def transport(self, peer_id: str) -> MemoryTransport:
        """Return a new node of the network."""
        return MemoryTransport(self, peer_id)

    def partition(self, a: str, b: str) -> None:
        """Let nothing through between two nodes, without telling them."""
        self._partitions.add(frozenset((a, b)))
        self._set_blocked(frozenset((a, b)), blocked=True)

    def heal(self, a: str, b: str) -> None:
        """End a partition; what was on its way arrives."""
        self._partitions.discard(frozenset((a, b)))
        self._set_blocked(frozenset((a, b)), blocked=False)

    def kill(self, a: str, b: str) -> None:
        """Break every stream between two nodes."""
        for wire in self._between(frozenset((a, b))):
            for pipe in wire.pipes:
                pipe.broken, pipe.blocked = True, False
                pipe.lot.unpark_all()

    def connect(self, a: str, b: str) -> tuple[MemoryStream, MemoryStream]:
        """Make a stream between two nodes: the end of `a`, then that of `b`."""
        there, back = _Pipe(), _Pipe()
        self._wires = [wire for wire in self._wires if not all(pipe.ended or pipe.broken for pipe in wire.pipes)]
        self._wires.append(_Wire(frozenset((a, b)), (there, back)))
        return MemoryStream(b, back, there), MemoryStream(a, there, back)

    def reachable(self, source: str, target: str) -> MemoryTransport | None:
        """Return the target's transport, if it runs and no partition is in between."""
        if frozenset((source, target)) in self._partitions:
            return None
        return self._nodes.get(target)

    def join(self, node: MemoryTransport) -> None:
        """Let a node that runs be found."""
        self._nodes[node.peer_id] = node

    def leave(self, node: MemoryTransport) -> None:
        """Forget a node that has stopped, and break its streams, as a process that dies does."""
        self._nodes.pop(node.peer_id, None)
        for other in {end for wire in self._wires if node.peer_id in wire.ends for end in wire.ends}:
            self.kill(node.peer_id, other)

    def _between(self, ends: frozenset[str]) -> list[_Wire]:
        return [wire for wire in self._wires if wire.ends == ends]

    def _set_blocked(self, ends: frozenset[str], *, blocked: bool) -> None:
        for wire in self._between(ends):
            for pipe in wire.pipes:
                pipe.blocked = blocked
                pipe.lot.unpark_all()


class MemoryTransport:
    """A `Transport` whose peers are in the same process."""

    def __init__(self, network: MemoryNetwork, peer_id: str) -> None:
        self._network = network
        self._peer_id = peer_id
        self._handlers: dict[str, tuple[StreamHandler, bool]] = {}
        self._nursery: trio.Nursery | None = None
        self._better: list[Callable[[str], None]] = []
        #: The peers that have been attested, in order.
        self.confirmed: list[str] = []
        #: The peers that were cut, in order.
        self.disconnected: list[str] = []

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        return self._peer_id

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Transport.run`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._network.join(self)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._network.leave(self)

    def addresses(self) -> list[str]:
        """An address to tell others; a memory network finds peers by their PeerId alone."""
        return ["/dns4/memory.example/tcp/4001"]

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        """See `Transport.open_stream`; the addresses are not used."""
        await trio.lowlevel.checkpoint()
        peer = self._network.reachable(self._peer_id, peer_id)
        if peer is None:
            raise PeerUnreachable(f"{peer_id} cannot be reached")
        ours, theirs = self._network.connect(self._peer_id, peer_id)
        peer.deliver(protocol, theirs)
        ours.set_priority(priority)
        return ours

    def deliver(self, protocol: str, stream: MemoryStream) -> None:
        """Take a stream that a peer has opened."""
        handler, _strangers = self._handlers.get(protocol, (None, False))
        if handler is None or self._nursery is None:
            raise PeerUnreachable(f"{self._peer_id} does not speak {protocol}")
        self._nursery.start_soon(self._serve, handler, stream)

    async def _serve(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except ComityError as error:
            _log.debug("a stream of %s failed: %s", stream.remote_peer, error)
        finally:
            stream.reset()

    def serve(self, protocol: str, handler: StreamHandler, *, strangers: bool = False) -> None:
        """See `Transport.serve`."""
        self._handlers[protocol] = handler, strangers

    def connection_info(self, peer_id: str) -> ConnectionInfo | None:
        """See `Transport.connection_info`: whoever can be reached is connected."""
        if self._network.reachable(self._peer_id, peer_id) is None:
            return None
        return ConnectionInfo(peer_id, address="", relay="", inbound=False, age_s=0.0)

    def on_better_path(self, listener: Callable[[str], None]) -> None:
        """See `Transport.on_better_path`; a test says so with `better_path`."""
        self._better.append(listener)

    def better_path(self, peer_id: str) -> None:
        """Tell whoever listens that there is a better connection to the peer."""
        for listener in self._better:
            listener(peer_id)

    def confirm(self, peer_id: str, organization: str = "") -> None:
        """See `Transport.confirm`."""
        self.confirmed.append(peer_id)

    async def disconnect(self, peer_id: str) -> None:
        """See `Transport.disconnect`."""
        self.disconnected.append(peer_id)
        self._network.kill(self._peer_id, peer_id)
        await trio.lowlevel.checkpoint()
