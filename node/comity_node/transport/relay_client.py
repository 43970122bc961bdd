"""Being reached through relays, and reaching others through them (circuit relay v2, `transport.relay`).

A node that nobody can dial keeps a reservation at each relay that it is told to use: as soon as links have attested
the relay, again before it runs out, and again after it was lost. While it has one it can be reached at the relay's
address with `/p2p-circuit`. A relay carries bytes; who is at the other end the two ends prove to each other inside.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from comity.errors import (
    ComityError,
    ConfigError,
    LinkClosed,
    PeerUnreachable,
    ProtocolError,
    TrustError,
    UnexpectedMessage,
)
from comity_node.transport.address import Address, parse_address
from comity_node.transport.base import ByteStream, Priority
from comity_node.transport.connections import Connections
from comity_node.transport.messages import MessageStream, StreamRaw
from comity_node.transport.relay import (
    HOP,
    MAX_MESSAGE,
    Answer,
    Connect,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    expect_answer,
    open_voucher,
)
from comity_node.transport.wire import RawStream

_log = logging.getLogger("comity.relay")
#: Renewed when this part of its time is over.
_RENEW_AFTER: Final = 0.75
#: Whatever a relay says, a reservation is renewed no sooner and no later than after so many seconds.
_RENEW_S: Final = (30.0, 3600.0)
#: Addresses of a relay that it names itself.
_MAX_OTHERS: Final = 3


@dataclass(frozen=True, slots=True)
class RelayClientLimits:
    """How a node uses relays.

    Attributes:
        answer_s: a relay, and the peer behind it, have so long for an answer.
        link_s: a relay that we are not linked with has so long to be, before it is of use.
        backoff_first_s: before a reservation is tried again; doubles with each failure, with jitter.
        backoff_max_s: the longest time between attempts.
    """

    answer_s: float = 15.0
    link_s: float = 10.0
    backoff_first_s: float = 0.5
    backoff_max_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ReservationState:
    """A reservation, for a person.

    Attributes:
        relay: its address, with its PeerId.
        is_held: whether we can be reached through it.
        reason: why not.
        renewals: how often it was made or renewed.
    """

    relay: str
    is_held: bool
    reason: str
    renewals: int


class RelayUser(Protocol):
    """What the client of relays needs of the transport."""

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        ...

    @property
    def connections(self) -> Connections:
        """All connections."""
        ...

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        """See `Transport.open_stream`."""
        ...

    async def welcome(self, raw: RawStream, *, relay: str, peer_id: str) -> None:
        """Serve a connection that comes through a relay from (so the relay says) `peer_id`, until it ends."""
        ...

    async def learn_observed(self, relay: str) -> None:
        """Ask the relay where it sees us. Raises LinkError, ProtocolError."""
        ...


class _Relay:
    """One relay that we use to be reached."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.peer_id = address.peer_id
        self.held = False
        self.reason = "not linked with it yet"
        self.renewals = 0
        self.others: tuple[Address, ...] = ()

    def addresses(self) -> list[Address]:
        return [each.through() for each in dict.fromkeys((self.address, *self.others))] if self.held else []


class RelayClient:
    """The relays of one node."""

    def __init__(
        self,
        transport: RelayUser,
        relays: Sequence[str],
        *,
        now_s: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        limits: RelayClientLimits | None = None,
    ) -> None:
        """Make a client; `run` keeps the reservations.

        Args:
            transport: whose connections these are.
            relays: multiaddrs with /p2p of the relays through which we want to be reached.
            now_s: seconds since the Unix epoch.
            random_bytes: for jitter.
            limits: times and bounds.

        Raises:
            ConfigError: an address is malformed, or does not say whose it is.
        """
        self._transport, self._now_s, self._random_bytes = transport, now_s, random_bytes
        self._limits = limits or RelayClientLimits()
        self._relays = {each.peer_id: _Relay(each) for each in map(_relay_address, relays)}
        #: Links with a relay that a peer is behind: it adds the peer and waits until it is attested.
        self.link_with: Callable[[Address, float], Awaitable[None]] | None = None

    def addresses(self) -> list[Address]:
        """Where we can be reached through relays at this moment: first as we know them, then as they say themselves.

        Others take few addresses of a node, and one relay that names many must not push out the rest.
        """
        by_relay = [relay.addresses() for relay in self._relays.values()]
        return [each for tier in itertools.zip_longest(*by_relay) for each in tier if each is not None]

    def reservations(self) -> list[ReservationState]:
        """What became of each relay."""
        return [
            ReservationState(str(each.address), each.held, each.reason, each.renewals) for each in self._relays.values()
        ]

    async def run(self) -> None:
        """Keep a reservation at each relay, until cancelled."""
        async with trio.open_nursery() as nursery:
            for relay in self._relays.values():
                nursery.start_soon(self._keep, relay)

    async def _keep(self, relay: _Relay) -> None:
        failures = 0
        connections = self._transport.connections
        while True:
            await connections.until(lambda: connections.is_confirmed(relay.peer_id))
            try:
                renew_s = await self._reserve(relay)
            except (ComityError, trio.TooSlowError) as error:
                self._set(relay, str(error) or "the relay does not answer")
                _log.info("no reservation at %s: %s", relay.address, relay.reason)
                await trio.sleep(self._backoff_s(failures))
                failures += 1
                continue
            failures = 0
            self._set(relay, "")
            with trio.move_on_after(renew_s):
                await connections.until(lambda: not connections.is_confirmed(relay.peer_id))
                self._set(relay, "the connection to it is gone")

    def _set(self, relay: _Relay, reason: str) -> None:
        relay.held, relay.reason = not reason, reason
        self._transport.connections.changed()

    async def _reserve(self, relay: _Relay) -> float:
        """Reserve, and return after how many seconds to do it again."""
        with trio.fail_after(self._limits.answer_s):
            answer, _ = await self._ask(relay.address, Reserve())
            if not answer.expires_s:
                raise ProtocolError("the relay has accepted without a reservation")
            if answer.voucher:
                _check_voucher(answer, relay.peer_id, self._transport.peer_id)
            named = (each for each in answer.addresses if each.peer_id == relay.peer_id and not each.relay)
            relay.others = tuple(each for each in named if not each.is_wildcard)[:_MAX_OTHERS]
            await self._learn_observed(relay)
        relay.renewals += 1
        shortest_s, longest_s = _RENEW_S
        return min(max((answer.expires_s - self._now_s()) * _RENEW_AFTER, shortest_s), longest_s)

    async def _learn_observed(self, relay: _Relay) -> None:
        try:
            await self._transport.learn_observed(relay.peer_id)
        except ComityError as error:  # a relay that does not say it is still a relay
            _log.debug("%s does not say where it sees us: %s", relay.address, error)

    def _backoff_s(self, failures: int) -> float:
        longest_s = min(self._limits.backoff_first_s * (1 << min(failures, 16)), self._limits.backoff_max_s)
        return longest_s * (0.5 + int.from_bytes(self._random_bytes(2), "big") / 131072)

    async def open_circuit(self, address: Address, peer_id: str) -> RawStream:
        """Ask the relay of an address for a circuit to a peer.

        Raises:
            PeerUnreachable: the relay cannot be reached, is no member, or does not carry us to this peer.
            LinkError: the connection broke.
        """
        relay = address.relay_address
        try:
            with trio.fail_after(self._limits.link_s + self._limits.answer_s):
                if not self._transport.connections.is_confirmed(relay.peer_id):
                    await self._link_with(relay)
                _, messages = await self._ask(relay, Connect(peer_id))
        except trio.TooSlowError as error:
            raise PeerUnreachable(f"the relay {relay} does not answer") from error
        return StreamRaw(messages.stream, messages.rest, address.without_peer)

    async def _link_with(self, relay: Address) -> None:
        if self.link_with is None:
            raise PeerUnreachable(f"there is no link with the relay {relay}")
        await self.link_with(relay, self._limits.link_s)

    async def _ask(self, relay: Address, question: Reserve | Connect) -> tuple[Answer, MessageStream]:
        """Ask a relay; return its answer, and of a circuit the stream, on which it goes on."""
        stream = await self._transport.open_stream(relay.peer_id, [str(relay)], HOP)
        messages = MessageStream(stream, MAX_MESSAGE)
        try:
            await stream.send(encode_hop(question))
            answer = expect_answer(decode_hop(await messages.receive()))
            if answer.status != Status.OK:
                raise PeerUnreachable(f"the relay {relay.peer_id} says {answer.says}")
            if isinstance(question, Reserve):
                await stream.aclose()
        except BaseException:  # also a cancellation leaves no stream behind; raised again
            stream.reset()
            raise
        return answer, messages

    async def serve_stop(self, stream: ByteStream) -> None:
        """Serve a circuit that a relay opens to us; only one at which we have reserved may."""
        relay = self._relays.get(stream.remote_peer)
        messages = MessageStream(stream, MAX_MESSAGE)
        try:
            with trio.fail_after(self._limits.answer_s):
                asked = decode_stop(await messages.receive())
        except trio.TooSlowError as error:
            raise LinkClosed("the relay does not say for whom its circuit is") from error
        if not isinstance(asked, Connect):
            await stream.send(encode_stop(Answer(Status.UNEXPECTED_MESSAGE)))
            raise UnexpectedMessage("a relay answers what nobody has asked")
        if relay is None or not relay.held or asked.peer == self._transport.peer_id:
            await stream.send(encode_stop(Answer(Status.PERMISSION_DENIED)))
            await stream.aclose()
            return
        await stream.send(encode_stop(Answer(Status.OK)))
        raw = StreamRaw(stream, messages.rest, relay.address.through().without_peer)
        await self._transport.welcome(raw, relay=relay.peer_id, peer_id=asked.peer)


def _relay_address(text: str) -> Address:
    address = parse_address(text)
    if not address.peer_id or address.relay:
        raise ConfigError(f"{text} does not name a relay: an address ending with /p2p/<PeerId> is needed")
    return address


def _check_voucher(answer: Answer, relay: str, peer: str) -> None:
    try:
        open_voucher(answer.voucher, relay=relay, peer=peer)
    except TrustError as error:
        raise ProtocolError(f"the relay's voucher is not good: {error}") from error
