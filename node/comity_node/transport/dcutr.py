"""From a relayed connection to a direct one, where address translation lets it (DCUtR).

https://github.com/libp2p/specs/blob/master/relay/DCUtR.md. The end that was dialled through the relay

1. dials the other end, if that says that it listens somewhere;
2. or else tells it where the relay sees us (CONNECT), and is told the same;
3. says SYNC, and half a round trip later both dial each other from the very port from which they have dialled the
   relay: each end's packets open its own translation for the other's;
4. and does so three times at most.

Whoever has dialled through the relay begins the handshake on the new connection, as the specification has it (Go does
it the other way round: go-libp2p#3171), whichever TCP connection that is: two that cross each other become one, or one
is accepted, because each end also listens on its port for these few seconds.
Only attested members are met like this. If it does not work, the relayed connection stays and nobody notices.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio
from google.protobuf.message import DecodeError

from comity.errors import Busy, ComityError, LinkClosed, ProtocolError, UnexpectedMessage
from comity_node.p2p.v1.dcutr_pb2 import HolePunch, HolePunchType
from comity_node.transport.address import Address, may_dial
from comity_node.transport.base import ByteStream
from comity_node.transport.connections import Connection, Connections
from comity_node.transport.messages import MessageStream
from comity_node.transport.multiaddr import decode_known, encode_multiaddr

DCUTR: Final = "/libp2p/dcutr"
#: What the specification recommends.
MAX_MESSAGE: Final = 4096
_MAX_ADDRESSES: Final = 4
_MAX_REMEMBERED: Final = 1024

_log = logging.getLogger("comity.dcutr")


@dataclass(frozen=True, slots=True)
class PunchConnect:
    """Where the sender is seen."""

    observed: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class PunchSync:
    """Now."""


@dataclass(frozen=True, slots=True)
class PunchLimits:
    """How hard it is tried.

    Attributes:
        attempts: as the specification recommends.
        attempt_s: for one of them, from SYNC to a proved key.
        answer_s: the peer has so long for an answer.
        forget_s: a peer with which it did not work is not tried again for so long; and when it asks us, for half of it.
        serving: peers that are met at a time because they have asked.
        settle_s: after a relayed connection is attested, before its upgrade begins.
    """

    attempts: int = 3
    attempt_s: float = 5.0
    answer_s: float = 10.0
    forget_s: float = 600.0
    serving: int = 8
    settle_s: float = 0.1


class PunchHost(Protocol):
    """What hole punching needs of the transport."""

    @property
    def connections(self) -> Connections:
        """All connections."""
        ...

    def observed_through(self, relay: str) -> tuple[int, Address] | None:
        """The local port of a connection to a relay and where the relay sees it; None if that is not known."""
        ...

    async def open_stream(self, peer_id: str, addresses: Sequence[str], protocol: str) -> ByteStream:
        """See `Transport.open_stream`."""
        ...

    async def listens_at(self, peer_id: str) -> Sequence[Address]:
        """Ask a peer where it listens itself. Raises LinkError, ProtocolError."""
        ...

    async def dial_directly(self, peer_id: str, addresses: Sequence[Address]) -> None:
        """Make a direct connection. Raises LinkError."""
        ...

    async def meet(self, peer_id: str, port: int, addresses: Sequence[Address], *, initiator: bool) -> None:
        """Make a direct connection with a peer that dials us at the same time. Raises LinkError."""
        ...


def encode_punch(message: PunchConnect | PunchSync) -> bytes:
    """Return a message, without its length."""
    match message:
        case PunchConnect(observed):
            encoded = HolePunch(
                type=HolePunchType.HOLE_PUNCH_TYPE_CONNECT,
                observed_addrs=[encode_multiaddr(each) for each in observed[:_MAX_ADDRESSES]],
            )
        case PunchSync():
            encoded = HolePunch(type=HolePunchType.HOLE_PUNCH_TYPE_SYNC)
    return encoded.SerializeToString(deterministic=True)


def decode_punch(data: bytes) -> PunchConnect | PunchSync:
    """Read a message, without its length; addresses that cannot be dialled over TCP are left out.

    Raises:
        ProtocolError: it is malformed.
    """
    try:
        message = HolePunch.FromString(data)
    except DecodeError as error:
        raise ProtocolError("the peer's hole-punching message is malformed") from error
    match message.type:
        case HolePunchType.HOLE_PUNCH_TYPE_CONNECT:
            known = decode_known(message.observed_addrs[:_MAX_ADDRESSES])
            return PunchConnect(tuple(each for each in known if each.kind in ("ip4", "ip6") and not each.relay))
        case HolePunchType.HOLE_PUNCH_TYPE_SYNC:
            return PunchSync()
        case _:
            raise ProtocolError(f"a hole-punching message of the unknown type {message.type}")


class Puncher:
    """Upgrades the relayed connections of one node."""

    def __init__(self, host: PunchHost, *, allow_private: bool, limits: PunchLimits | None = None) -> None:
        """Make a puncher.

        Args:
            host: the transport.
            allow_private: whether private addresses that a peer names are dialled.
            limits: how hard it is tried.
        """
        self._host, self._allow_private = host, allow_private
        self._limits = limits or PunchLimits()
        self._failed: OrderedDict[str, float] = OrderedDict()
        self._refused: OrderedDict[str, float] = OrderedDict()
        self._serving: set[str] = set()
        #: Upgrades that have worked and that have not.
        self.upgraded = 0
        self.failed = 0

    async def upgrade(self, connection: Connection) -> None:
        """Upgrade a connection that has come through a relay, once its peer is attested; never raises a LinkError."""
        peer_id = connection.peer_id
        connections = self._host.connections
        await connections.until(lambda: connections.is_confirmed(peer_id))
        await trio.sleep(self._limits.settle_s)  # let the peer attest us, too
        if self._is_direct(peer_id) or self._has_failed(peer_id):
            return
        try:
            await self._upgrade(connection)
        except (ComityError, trio.TooSlowError) as error:
            self._note_failure(peer_id)
            _log.info("%s stays behind its relay: %s", peer_id, error or "no answer in time")
        else:
            self.upgraded += 1
            _log.info("%s is now connected directly", peer_id)
        connections.changed()

    async def _upgrade(self, connection: Connection) -> None:
        peer_id = connection.peer_id
        if await self._dial_back(peer_id):
            return
        ours = self._ours(connection.relay)
        with trio.fail_after(self._limits.answer_s):
            stream = await self._host.open_stream(peer_id, [], DCUTR)
        try:
            await self._punch(MessageStream(stream, MAX_MESSAGE), ours)
            await stream.aclose()
        finally:
            stream.reset()  # no effect if it is closed

    async def _dial_back(self, peer_id: str) -> bool:
        """Try the one-sided way: the peer may listen somewhere."""
        try:
            with trio.fail_after(self._limits.answer_s):
                addresses = self._dialable(await self._host.listens_at(peer_id))
                if addresses:
                    await self._host.dial_directly(peer_id, addresses)
                return bool(addresses)
        except (ComityError, trio.TooSlowError) as error:
            _log.debug("%s does not listen: %s", peer_id, error)
            return False

    async def _punch(self, messages: MessageStream, ours: tuple[int, Address]) -> None:
        port, observed = ours
        peer_id = messages.stream.remote_peer
        failure: ComityError = LinkClosed("no attempt was made")
        for _ in range(self._limits.attempts):
            asked_at = trio.current_time()
            with trio.fail_after(self._limits.answer_s):
                await messages.send(encode_punch(PunchConnect((observed,))))
                theirs = decode_punch(await messages.receive())
            if not isinstance(theirs, PunchConnect):
                raise UnexpectedMessage("the peer says SYNC before it is its turn")
            round_trip_s = trio.current_time() - asked_at
            await messages.send(encode_punch(PunchSync()))
            await trio.sleep(round_trip_s / 2)
            try:
                await self._meet(peer_id, port, theirs, initiator=False)
            except ComityError as error:
                failure = error
                continue
            return
        raise failure

    async def serve(self, stream: ByteStream) -> None:
        """Serve a peer that upgrades the connection that we have dialled through a relay.

        For some seconds we try to connect to whatever addresses it names: so one peer is served once at a time, few at
        all, and one that was not met there has to wait before it may name others.

        Raises:
            Busy: it has to wait.
        """
        peer_id = stream.remote_peer
        if peer_id in self._serving or len(self._serving) >= self._limits.serving or _waits(self._refused, peer_id):
            raise Busy(f"{peer_id} asks to be met too often")
        self._serving.add(peer_id)
        try:
            await self._serve(stream, peer_id)
        finally:
            self._serving.remove(peer_id)

    async def _serve(self, stream: ByteStream, peer_id: str) -> None:
        current = self._host.connections.best(peer_id)
        if current is None or not current.relay:
            raise LinkClosed(f"{peer_id} is connected directly: there is nothing to upgrade")
        port, observed = self._ours(current.relay)
        messages = MessageStream(stream, MAX_MESSAGE)
        for _ in range(self._limits.attempts):
            with trio.fail_after(self._limits.answer_s + self._limits.attempt_s):
                theirs = decode_punch(await messages.receive())
                if not isinstance(theirs, PunchConnect):
                    raise UnexpectedMessage("the peer says SYNC before CONNECT")
                await messages.send(encode_punch(PunchConnect((observed,))))
                if not isinstance(decode_punch(await messages.receive()), PunchSync):
                    raise UnexpectedMessage("the peer does not say SYNC")
            _note(self._refused, peer_id, trio.current_time() + self._limits.forget_s / 2)
            try:
                await self._meet(peer_id, port, theirs, initiator=True)
            except ComityError as error:
                _log.debug("%s was not met: %s", peer_id, error)
            else:
                self._refused.pop(peer_id, None)
                return

    async def _meet(self, peer_id: str, port: int, theirs: PunchConnect, *, initiator: bool) -> None:
        addresses = self._dialable(theirs.observed)
        if not addresses:
            raise LinkClosed("the peer names no address that may be dialled")
        with trio.move_on_after(self._limits.attempt_s):
            await self._host.meet(peer_id, port, addresses, initiator=initiator)
            return
        raise LinkClosed(f"we did not meet in {self._limits.attempt_s:g} s")

    def _ours(self, relay: str) -> tuple[int, Address]:
        ours = self._host.observed_through(relay)
        if ours is None:
            raise LinkClosed("the relay has not told where it sees us")
        return ours

    def _dialable(self, addresses: Sequence[Address]) -> list[Address]:
        return [
            each
            for each in addresses[:_MAX_ADDRESSES]
            if not each.relay and may_dial(each, allow_private=self._allow_private)
        ]

    def _is_direct(self, peer_id: str) -> bool:
        best = self._host.connections.best(peer_id)
        return best is None or not best.relay

    def _has_failed(self, peer_id: str) -> bool:
        return _waits(self._failed, peer_id)

    def _note_failure(self, peer_id: str) -> None:
        self.failed += 1
        _note(self._failed, peer_id, trio.current_time() + self._limits.forget_s)


def _waits(until: OrderedDict[str, float], peer_id: str) -> bool:
    return trio.current_time() < until.get(peer_id, float("-inf"))


def _note(until: OrderedDict[str, float], peer_id: str, time: float) -> None:
    until[peer_id] = time
    until.move_to_end(peer_id)
    if len(until) > _MAX_REMEMBERED:
        until.popitem(last=False)
