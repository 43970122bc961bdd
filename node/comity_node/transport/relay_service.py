"""Carrying connections for members that cannot be dialled (circuit relay v2, `transport.relay`).

Only members are served, each within its organization's quotas (`RelayLimits`), and only if the node's policy lets
them: `allow` is asked for every reservation and every circuit. What is carried is ciphertext between the two ends.
It is copied piece by piece, so that whoever reads slowly slows down whoever sends, and nothing looks into it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from comity.errors import Busy, ComityError, LinkClosed, LinkError, PeerUnreachable, PolicyDenied, ProtocolError
from comity.signing import PrivateKey
from comity.trust import Attested
from comity_node.transport.address import Address
from comity_node.transport.base import ByteStream, ConnectionInfo, Priority, StreamHandler
from comity_node.transport.messages import MessageStream
from comity_node.transport.relay import (
    HOP,
    MAX_MESSAGE,
    STOP,
    Answer,
    Connect,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    expect_answer,
    seal_voucher,
)
from comity_node.transport.relay_circuit import Circuit, End, Payment
from comity_node.transport.relay_limits import Account, RelayCounters, RelayLimits

_log = logging.getLogger("comity.relay")

#: Raises PolicyDenied unless we carry for the first; the second is whom it wants to reach, None for a reservation.
Allow = Callable[[Attested, Attested | None], Awaitable[None]]


class Carrier(Protocol):
    """What the relay needs of the transport."""

    def serve(self, protocol: str, handler: StreamHandler, *, strangers: bool = False) -> None:
        """See `Transport.serve`."""
        ...

    def connection_info(self, peer_id: str) -> ConnectionInfo | None:
        """See `Transport.connection_info`."""
        ...

    async def open_stream(
        self, peer_id: str, addresses: Sequence[str], protocol: str, *, priority: Priority = Priority.WORK
    ) -> ByteStream:
        """See `Transport.open_stream`."""
        ...


class _Refused(LinkError):
    """The peer is told a status."""

    def __init__(self, status: Status, why: str, *, level: int = logging.INFO) -> None:
        super().__init__(why)
        self.status, self.level = status, level


@dataclass(frozen=True, slots=True)
class _Reservation:
    account: Account
    expires_s: int


class RelayService:
    """The relay of one node; it begins when it is made, before the transport runs."""

    def __init__(
        self,
        transport: Carrier,
        key: PrivateKey,
        *,
        attested: Callable[[str], Attested | None],
        allow: Allow,
        addresses: Callable[[], Sequence[Address]],
        now_s: Callable[[], int],
        limits: RelayLimits | None = None,
    ) -> None:
        """Offer to carry.

        Args:
            transport: whose peers are served.
            key: the node's, which signs vouchers.
            attested: who a PeerId is; None if it is not linked with this node.
            allow: asked for each reservation and each circuit.
            addresses: where this node can be dialled, without PeerId.
            now_s: seconds since the Unix epoch.
            limits: quotas.
        """
        self._transport, self._key = transport, key
        self._attested, self._allow, self._addresses, self._now_s = attested, allow, addresses, now_s
        self._limits = limits or RelayLimits()
        self._accounts: dict[str, Account] = {}
        self._reservations: dict[str, _Reservation] = {}
        self._circuits = 0
        self._changed = trio.Event()
        transport.serve(HOP, self._serve)

    def counters(self) -> dict[str, RelayCounters]:
        """What was carried, by organization."""
        self._drop_reservations()
        return {name: account.counters() for name, account in sorted(self._accounts.items())}

    def look_again(self) -> None:
        """The policy is another one: ask it about every circuit that is open, now."""
        self._changed.set()
        self._changed = trio.Event()

    async def _serve(self, stream: ByteStream) -> None:
        messages = MessageStream(stream, MAX_MESSAGE)
        account: Account | None = None
        try:
            with trio.fail_after(self._limits.request_s):
                asked = decode_hop(await messages.receive())
            who = self._member(stream.remote_peer)
            account = self._account(who)
            _take_turn(account, who)
            match asked:
                case Reserve():
                    answer = await self._reserve(who, account)
                    await stream.send(encode_hop(answer))
                    await stream.aclose()
                case Connect(peer):
                    await self._connect(messages, who, account, peer)
                case Answer():
                    raise _Refused(Status.UNEXPECTED_MESSAGE, "an answer to nothing")
        except _Refused as refusal:
            if account is not None:
                account.refused += 1
            _log.log(refusal.level, "nothing is carried for %s: %s", stream.remote_peer, refusal)
            await self._refuse(stream, refusal.status)
        except ProtocolError as error:
            await self._refuse(stream, Status.MALFORMED_MESSAGE)
            raise LinkClosed(str(error)) from error
        except trio.TooSlowError as error:
            raise LinkClosed(f"nothing was said in {self._limits.request_s:g} s") from error

    async def _refuse(self, stream: ByteStream, status: Status) -> None:
        with trio.fail_after(self._limits.request_s):
            await stream.send(encode_hop(Answer(status)))
            await stream.aclose()

    # Reservations.

    async def _reserve(self, who: Attested, account: Account) -> Answer:
        info = self._transport.connection_info(who.peer_id)
        if info is not None and info.is_relayed:
            raise _Refused(Status.PERMISSION_DENIED, f"{who.peer_id} is behind a relay itself")
        await self._ask_policy(who, None)
        self._drop_reservations()
        if who.peer_id not in self._reservations:
            if account.reservations >= self._limits.reservations_per_organization:
                raise _Refused(
                    Status.RESERVATION_REFUSED, f"{who.organization} has {account.reservations} reservations"
                )
            if len(self._reservations) >= self._limits.max_reservations:
                raise _Refused(Status.RESERVATION_REFUSED, f"{len(self._reservations)} reservations are taken")
            account.reservations += 1
        expires_s = self._now_s() + self._limits.reservation_s
        self._reservations[who.peer_id] = _Reservation(account, expires_s)
        return Answer(
            Status.OK,
            limit_s=self._limits.circuit_s,
            limit_bytes=self._limits.circuit_bytes,
            expires_s=expires_s,
            addresses=tuple(
                Address(each.kind, each.host, each.port, self._key.peer_id)
                for each in self._addresses()
                if not each.relay
            ),
            voucher=seal_voucher(self._key, who.peer_id, expires_s),
        )

    def _drop_reservations(self) -> None:
        """Forget those that have expired, and those of peers that are gone."""
        now_s = self._now_s()
        for peer_id, reservation in list(self._reservations.items()):
            if reservation.expires_s <= now_s or self._transport.connection_info(peer_id) is None:
                del self._reservations[peer_id]
                reservation.account.reservations -= 1

    # Circuits.

    async def _connect(self, messages: MessageStream, who: Attested, account: Account, peer: str) -> None:
        self._drop_reservations()
        if peer not in self._reservations or peer == who.peer_id:
            raise _Refused(Status.NO_RESERVATION, f"{peer} has no reservation")
        target = self._member(peer)
        await self._ask_policy(who, target)
        if account.asked_circuits >= self._limits.circuits_per_organization or not account.has_bytes_left:
            raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED, f"the quota of {who.organization} is used up")
        if self._circuits >= self._limits.max_circuits:
            raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED, f"{self._circuits} circuits are open")
        other = self._account(target)
        others = [other] if other is not account else []
        self._count_circuit(account, others, 1)
        try:
            await self._carry(messages, who, target, Payment(account, others))
        finally:
            self._count_circuit(account, others, -1)

    def _count_circuit(self, payer: Account, others: list[Account], change: int) -> None:
        self._circuits += change
        payer.asked_circuits += change
        for account in (payer, *others):
            account.circuits += change
            account.circuits_total += max(change, 0)

    async def _carry(self, messages: MessageStream, who: Attested, target: Attested, payment: Payment) -> None:
        limits = Answer(Status.OK, limit_s=self._limits.circuit_s, limit_bytes=self._limits.circuit_bytes)
        try:
            with trio.fail_after(self._limits.connect_s):
                far = await self._open_stop(who, target)
        except (ComityError, trio.TooSlowError) as error:
            raise _Refused(Status.CONNECTION_FAILED, f"{target.peer_id} does not take a circuit: {error}") from error
        near = messages.stream
        try:
            await near.send(encode_hop(limits))
            circuit = Circuit(self._limits, payment, lambda: self._until_not_wanted(who, target))
            await circuit.run(End(near, messages.rest), End(far.stream, far.rest))
        finally:
            far.stream.reset()  # no effect if it is closed

    async def _open_stop(self, who: Attested, target: Attested) -> MessageStream:
        # No addresses: only a peer that is connected is reached, by the connection that is there.
        stream = await self._transport.open_stream(target.peer_id, [], STOP)
        try:
            far = MessageStream(stream, MAX_MESSAGE)
            await stream.send(encode_stop(Connect(who.peer_id, self._limits.circuit_s, self._limits.circuit_bytes)))
            answer = expect_answer(decode_stop(await far.receive()))
            if answer.status != Status.OK:
                raise PeerUnreachable(answer.says)
        except BaseException:  # also a cancellation leaves no stream behind; raised again
            stream.reset()
            raise
        return far

    async def _until_not_wanted(self, who: Attested, target: Attested) -> None:
        """Return when an end of a circuit is no member any more, or the policy carries for it no more."""
        ask_at = trio.current_time() + self._limits.ask_again_s
        missed = 0
        while missed < 2:  # a link that is being made anew is no reason
            changed = self._changed
            with trio.move_on_after(self._limits.check_s):
                await changed.wait()
            if not changed.is_set():
                missed = 0 if all(self._attested(each.peer_id) == each for each in (who, target)) else missed + 1
            if changed.is_set() or trio.current_time() >= ask_at:
                try:
                    await self._ask_policy(who, target)
                except _Refused as refusal:
                    _log.info("a circuit from %s to %s is cut: %s", who.peer_id, target.peer_id, refusal)
                    return
                ask_at = trio.current_time() + self._limits.ask_again_s
        _log.info("a circuit from %s to %s is cut: not both are members now", who.peer_id, target.peer_id)

    # Who.

    def _member(self, peer_id: str) -> Attested:
        attested = self._attested(peer_id)
        if attested is None:
            raise _Refused(Status.PERMISSION_DENIED, f"{peer_id} is not attested")
        return attested

    def _account(self, who: Attested) -> Account:
        return self._accounts.setdefault(who.organization, Account(self._limits))

    async def _ask_policy(self, who: Attested, target: Attested | None) -> None:
        try:
            await self._allow(who, target)
        except PolicyDenied as error:
            raise _Refused(Status.PERMISSION_DENIED, str(error)) from error


def _take_turn(account: Account, who: Attested) -> None:
    try:
        account.questions.claim()
    except Busy as error:
        # Said once in a while, by the counters: a flood of questions must not be one of log lines.
        why = f"{who.organization} asks too often"
        raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED, why, level=logging.DEBUG) from error
