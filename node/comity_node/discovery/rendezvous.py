"""Meeting points over the transport: a member where others register, and ask who else has.

libp2p's protocol (`protocol.rendezvous`), among attested peers. A registration is a signed peer record of the peer
that registers it and of nobody else; who is found still has to attest itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio
from google.protobuf.message import DecodeError

from comity.errors import Busy, ComityError, ProtocolError
from comity.signing import PrivateKey
from comity_node.discovery.paces import PeerPaces
from comity_node.p2p.v1 import rendezvous_pb2 as pb
from comity_node.protocol.kad import Contact
from comity_node.protocol.rendezvous import Registrations, RendezvousLimits
from comity_node.transport.address import may_dial, parse_address
from comity_node.transport.base import ByteStream, Priority, Transport
from comity_node.transport.messages import MessageStream
from comity_node.transport.peer_record import open_record, sign_record

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.discovery")

RENDEZVOUS: Final = "/rendezvous/1.0.0"
_MAX_REQUEST: Final = 16 * 1024
_MAX_ANSWER: Final = 1024 * 1024
_MAX_NAMESPACE: Final = 255
_COOKIE_BYTES: Final = 8
#: When a node starts, its links are up in less.
_FIRST_RETRY_S: Final = 0.5
#: Questions that one peer may ask at once: enough to be told of a full table.
_BURST: Final = 32


@dataclass(frozen=True, slots=True)
class RendezvousSettings:
    """Times and bounds.

    Attributes:
        ask_s: for one answer.
        every_s: between two registrations, each followed by a question.
        retry_s: the same, at most, while the meeting point does not answer or is not linked.
        idle_s: a stream on which nothing is asked for so long is closed.
        questions_per_s: that one peer is answered, in the long run.
        limits: of the table that this node keeps for others.
        allow_private: whether loopback and private addresses that peers name are dialled.
    """

    ask_s: float = 10.0
    every_s: float = 300.0
    retry_s: float = 5.0
    idle_s: float = 60.0
    questions_per_s: float = 10.0
    limits: RendezvousLimits = field(default_factory=RendezvousLimits)
    allow_private: bool = False


class RendezvousPoint:
    """A node that others meet at."""

    def __init__(
        self, transport: Transport, *, now_ms: Callable[[], int], settings: RendezvousSettings | None = None
    ) -> None:
        """Serve the protocol on a transport that is not yet running."""
        self._now_ms = now_ms
        self._settings = settings or RendezvousSettings()
        self._table = Registrations(self._settings.limits)
        self._paces = PeerPaces(
            self._settings.questions_per_s, burst=_BURST, longest_wait_s=self._settings.idle_s
        )  # fmt: skip
        transport.serve(RENDEZVOUS, self._serve)

    def __len__(self) -> int:
        """The number of registrations that are kept."""
        return len(self._table)

    async def _serve(self, stream: ByteStream) -> None:
        stream.set_priority(Priority.CONTROL)
        messages = MessageStream(stream, _MAX_REQUEST)
        with trio.CancelScope() as scope:
            while True:
                scope.deadline = trio.current_time() + self._settings.idle_s
                question = read_message(await messages.receive())
                await self._paces.turn(stream.remote_peer)
                answer = self.answer(stream.remote_peer, question)
                if answer is not None:
                    await messages.send(answer.SerializeToString())

    def answer(self, sender: str, question: pb.RendezvousMessage) -> pb.RendezvousMessage | None:
        """Return the answer to a peer's question; None to what has none.

        Raises:
            ProtocolError: it is no question.
        """
        match question.type:
            case pb.RENDEZVOUS_TYPE_REGISTER_UNSPECIFIED:
                return pb.RendezvousMessage(
                    type=pb.RENDEZVOUS_TYPE_REGISTER_RESPONSE,
                    register_response=self._register(sender, question.register),
                )
            case pb.RENDEZVOUS_TYPE_UNREGISTER:
                self._table.unregister(question.unregister.ns, sender)
                return None
            case pb.RENDEZVOUS_TYPE_DISCOVER:
                return pb.RendezvousMessage(
                    type=pb.RENDEZVOUS_TYPE_DISCOVER_RESPONSE, discover_response=self._discover(question.discover)
                )
            case _:
                raise ProtocolError("an answer to a meeting point that asked nothing")

    def _register(self, sender: str, asked: pb.RendezvousRegister) -> pb.RendezvousRegisterResponse:
        if not 0 < len(asked.ns) <= _MAX_NAMESPACE:
            return pb.RendezvousRegisterResponse(status=pb.RENDEZVOUS_STATUS_INVALID_NAMESPACE)
        try:
            record = open_record(asked.signed_peer_record)
        except ProtocolError as error:
            return pb.RendezvousRegisterResponse(
                status=pb.RENDEZVOUS_STATUS_INVALID_SIGNED_PEER_RECORD, status_text=str(error)
            )
        if record.peer_id != sender:
            return pb.RendezvousRegisterResponse(
                status=pb.RENDEZVOUS_STATUS_NOT_AUTHORIZED, status_text="a peer registers itself and nobody else"
            )
        try:
            ttl_s = self._table.register(asked.ns, sender, asked.signed_peer_record, asked.ttl, self._now_ms())
        except Busy as error:
            return pb.RendezvousRegisterResponse(status=pb.RENDEZVOUS_STATUS_UNAVAILABLE, status_text=str(error))
        return pb.RendezvousRegisterResponse(ttl=ttl_s)

    def _discover(self, asked: pb.RendezvousDiscover) -> pb.RendezvousDiscoverResponse:
        if len(asked.cookie) not in (0, _COOKIE_BYTES):
            return pb.RendezvousDiscoverResponse(status=pb.RENDEZVOUS_STATUS_INVALID_COOKIE)
        now_ms = self._now_ms()
        after = int.from_bytes(asked.cookie, "big")
        entries, last = self._table.discover(asked.ns, after, asked.limit, now_ms)
        return pb.RendezvousDiscoverResponse(
            registrations=[
                pb.RendezvousRegister(ns=asked.ns, signed_peer_record=each.record, ttl=(each.until_ms - now_ms) // 1000)
                for each in entries
            ],
            cookie=last.to_bytes(_COOKIE_BYTES, "big"),
        )


class RendezvousClient:
    """Registers at meeting points, and learns who else has."""

    def __init__(
        self,
        transport: Transport,
        key: PrivateKey,
        namespace: str,
        points: Sequence[Contact],
        on_found: Callable[[str, Contact], None],
        *,
        now_ms: Callable[[], int],
        settings: RendezvousSettings | None = None,
    ) -> None:
        """Make it; `run` starts it.

        Args:
            transport: the network.
            key: of this node, whose record it signs.
            namespace: where the consortium's nodes meet.
            points: the meeting points. Whoever made this links with them: nobody else is told where we are.
            on_found: told (the point, whom it names).
            now_ms: milliseconds since the Unix epoch.
            settings: times and bounds.
        """
        self._transport, self._key, self._namespace = transport, key, namespace
        self._points, self._on_found, self._now_ms = points, on_found, now_ms
        self._settings = settings or RendezvousSettings()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register and ask, again and again, until cancelled."""
        async with trio.open_nursery() as nursery:
            for point in self._points:
                nursery.start_soon(self._meet, point)
            task_status.started()

    async def _meet(self, point: Contact) -> None:
        failures = 0
        while True:
            try:
                with trio.fail_after(self._settings.ask_s):
                    for found in await self.ask(point):
                        self._on_found(point.peer_id, found)
            except (ComityError, trio.TooSlowError) as error:
                _log.debug("the meeting point %s does not answer: %s", point.peer_id, error)
                await trio.sleep(min(_FIRST_RETRY_S * 2.0 ** min(failures, 16), self._settings.retry_s))
                failures += 1
            else:
                failures = 0
                await trio.sleep(self._settings.every_s)

    async def ask(self, point: Contact) -> list[Contact]:
        """Register at a meeting point and return who else has.

        Raises:
            LinkError: it cannot be reached, or does not answer.
            ProtocolError: its answer is malformed.
            Busy: it does not take the registration.
        """
        # No addresses: links dial, with a back-off of their own, and attest.
        stream = await self._transport.open_stream(point.peer_id, [], RENDEZVOUS, priority=Priority.CONTROL)
        try:
            messages = MessageStream(stream, _MAX_ANSWER)
            await self._register(messages)
            found = await self._discover_all(messages)
        finally:
            stream.reset()
        return found

    async def _register(self, messages: MessageStream) -> None:
        addresses = [parse_address(text) for text in self._transport.addresses()]
        record = sign_record(self._key, self._now_ms(), addresses)
        request = pb.RendezvousMessage(register=pb.RendezvousRegister(ns=self._namespace, signed_peer_record=record))
        await messages.send(request.SerializeToString())
        answer = read_message(await messages.receive()).register_response
        if answer.status != pb.RENDEZVOUS_STATUS_OK_UNSPECIFIED:
            raise Busy(f"the meeting point does not register us ({answer.status}): {answer.status_text[:200]}")

    async def _discover_all(self, messages: MessageStream) -> list[Contact]:
        """Ask on and on, each time for what comes after the last answer, as often as a full table takes."""
        limits = self._settings.limits
        found: dict[str, Contact] = {}
        cookie = b""
        for _ in range(limits.registrations // limits.answer + 1):
            answer = await self._discover(messages, cookie)
            for contact in read_registrations(answer, limits, allow_private=self._settings.allow_private):
                if contact.peer_id != self._key.peer_id:
                    found[contact.peer_id] = contact
            if len(answer.registrations) < limits.answer or answer.cookie in (b"", cookie):
                break
            cookie = answer.cookie
        return list(found.values())

    async def _discover(self, messages: MessageStream, cookie: bytes) -> pb.RendezvousDiscoverResponse:
        request = pb.RendezvousMessage(
            type=pb.RENDEZVOUS_TYPE_DISCOVER, discover=pb.RendezvousDiscover(ns=self._namespace, cookie=cookie)
        )
        await messages.send(request.SerializeToString())
        return read_message(await messages.receive()).discover_response


def read_registrations(
    answer: pb.RendezvousDiscoverResponse, limits: RendezvousLimits, *, allow_private: bool
) -> list[Contact]:
    """Read who has registered, as far as the peers have signed it themselves; what is malformed is left out."""
    found = []
    for each in answer.registrations[: limits.answer]:
        try:
            record = open_record(each.signed_peer_record)
        except ProtocolError as error:
            _log.debug("a registration was dropped: %s", error)
            continue
        usable = [one for one in record.addresses if may_dial(one, allow_private=allow_private)]
        found.append(Contact(record.peer_id, tuple(one.without_peer for one in usable)))
    return found


def read_message(data: bytes) -> pb.RendezvousMessage:
    """Read a message. Raises ProtocolError."""
    try:
        return pb.RendezvousMessage.FromString(data)
    except DecodeError as error:
        raise ProtocolError("a malformed message of a meeting point") from error
