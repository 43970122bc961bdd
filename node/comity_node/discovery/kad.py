"""Kademlia over the transport: which members provide a skill, found without asking everybody.

The protocol is libp2p's (`protocol.kad`) under a name of our own, so that nobody takes a consortium's table for the
public one. Only attested peers are answered and asked; a record is taken of the provider itself and of nobody else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Final

import base58
import trio
from google.protobuf.message import DecodeError

from comity.errors import Busy, ComityError, ProtocolError, SignatureInvalid
from comity.signing import peer_id_to_bytes
from comity_node.discovery.paces import PeerPaces
from comity_node.p2p.v1 import kad_pb2 as pb
from comity_node.protocol.kad import Contact, K, ProviderLimits, Providers, RoutingTable, Search, skill_key
from comity_node.transport.address import may_dial, parse_address
from comity_node.transport.base import ByteStream, Priority, Transport
from comity_node.transport.messages import MessageStream
from comity_node.transport.multiaddr import decode_known, encode_multiaddr
from comity_node.transport.pace import Pace

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.discovery")

KADEMLIA: Final = "/comity/kad/1.0.0"
#: Twenty peers with a few addresses each, twice.
_MAX_MESSAGE: Final = 32 * 1024
_MAX_KEY: Final = 64
_MAX_ADDRESSES: Final = 8
#: Times that a node says what it provides without waiting in between.
_ROUNDS_AT_ONCE: Final = 4

#: Makes sure that a peer is linked and attested; False if it cannot be had.
Reach = Callable[[Contact], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class KademliaSettings:
    """Times and bounds.

    Attributes:
        ask_s: for one answer, the link to the peer included.
        search_s: for one search.
        idle_s: a stream on which nothing is asked for so long is closed.
        republish_s: between two times that a node says what it provides.
        news_s: between two such times when peers come or skills change again and again; the first few are at once.
        questions_per_s: that one peer is answered, in the long run.
        searches: at a time; others wait.
        providers: what others may have this node remember.
        allow_private: whether loopback and private addresses that peers name are dialled.
    """

    ask_s: float = 10.0
    search_s: float = 60.0
    idle_s: float = 60.0
    republish_s: float = 1200.0
    news_s: float = 30.0
    questions_per_s: float = 20.0
    searches: int = 4
    providers: ProviderLimits = field(default_factory=ProviderLimits)
    allow_private: bool = False


class Kademlia:
    """A node's part in the table."""

    def __init__(
        self,
        transport: Transport,
        reach: Reach,
        *,
        now_ms: Callable[[], int],
        settings: KademliaSettings | None = None,
        strangers: bool = False,
    ) -> None:
        """Make it, and serve the protocol; `run` says what this node provides.

        Args:
            transport: not yet running.
            reach: links with a peer that another one has named.
            now_ms: milliseconds since the Unix epoch.
            settings: times and bounds.
            strangers: whether peers that are not attested are answered: for tests against other implementations.
        """
        self._transport, self._reach, self._now_ms = transport, reach, now_ms
        self._settings = settings or KademliaSettings()
        self._table = RoutingTable(transport.peer_id)
        self._linked: dict[str, tuple[str, ...]] = {}
        self._paces = PeerPaces(
            self._settings.questions_per_s, burst=2 * K, longest_wait_s=self._settings.idle_s
        )  # fmt: skip
        self._providers = Providers(self._settings.providers)
        self._provided: frozenset[bytes] = frozenset()
        self._news = trio.Event()
        self._searches = trio.CapacityLimiter(self._settings.searches)
        transport.serve(KADEMLIA, self._serve, strangers=strangers)

    # What the node says.

    def peer_up(self, peer_id: str, addresses: Sequence[str]) -> None:
        """An attested peer can be asked."""
        self._linked[peer_id] = tuple(addresses[:_MAX_ADDRESSES])
        if self._table.add(peer_id):
            self._news.set()

    def peer_down(self, peer_id: str) -> None:
        """It cannot any more; its place in the table is for one that had none."""
        self._linked.pop(peer_id, None)
        self._table.remove(peer_id)
        for other in self._linked:
            self._table.add(other)

    def provide(self, skills: Sequence[str]) -> None:
        """Say from now on that this node provides `skills`, and nothing else."""
        provided = frozenset(map(skill_key, skills))
        if provided != self._provided:
            self._provided = provided
            self._news.set()

    @property
    def peers(self) -> int:
        """How many peers can be asked."""
        return len(self._table)

    @property
    def records(self) -> int:
        """Of how many keys providers are known here."""
        return len(self._providers)

    async def find(self, skill: str) -> list[Contact]:
        """Return who provides a skill, as far as that is found in `search_s`, ourselves left out.

        They still have to attest themselves when they are linked with.
        """
        key = skill_key(skill)
        found = {each.peer_id: replace(each, named_by=each.peer_id) for each in self.providers(key)}

        async def ask(contact: Contact) -> list[Contact]:
            answer = await self._ask(contact, pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_GET_PROVIDERS, key=key))
            for each in read_contacts(answer.provider_peers, contact.peer_id, self._settings):
                found.setdefault(each.peer_id, each)
            return read_contacts(answer.closer_peers, contact.peer_id, self._settings)

        await self._search(key, ask)
        found.pop(self._transport.peer_id, None)
        return list(found.values())

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish what this node provides, again and again, until cancelled."""
        task_status.started()
        # A peer that comes and goes does not make all of us say the same all the time.
        pace = Pace(1 / self._settings.news_s, burst=_ROUNDS_AT_ONCE, longest_wait_s=inf)
        while True:
            if self._provided:
                await pace.turn()
            self._news = trio.Event()
            for key in self._provided:
                await self._publish(key)
            with trio.move_on_after(self._settings.republish_s):
                await self._news.wait()
                await trio.sleep(1)  # peers come in crowds

    async def _publish(self, key: bytes) -> None:
        """Tell the peers nearest to a key that we provide it."""

        async def ask(contact: Contact) -> list[Contact]:
            answer = await self._ask(contact, pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_FIND_NODE, key=key))
            return read_contacts(answer.closer_peers, contact.peer_id, self._settings)

        me = Contact(self._transport.peer_id, tuple(self._transport.addresses()))
        record = pb.KadMessage(type=pb.KAD_MESSAGE_TYPE_ADD_PROVIDER, key=key, provider_peers=[_encode(me)])
        for contact in await self._search(key, ask):
            try:
                await self._tell(contact, record)
            except (ComityError, trio.TooSlowError) as error:
                _log.debug("%s does not take a provider record: %s", contact.peer_id, error)

    # Searching.

    async def _search(self, key: bytes, ask: Callable[[Contact], Awaitable[list[Contact]]]) -> list[Contact]:
        """Ask nearer and nearer peers; returns the nearest that answered."""
        search = Search(key, self._table.closest(key), me=self._transport.peer_id)
        progress = trio.Event()

        async def one(contact: Contact) -> None:
            try:
                with trio.fail_after(self._settings.ask_s):
                    search.answered(contact.peer_id, await ask(contact))
            except (ComityError, trio.TooSlowError) as error:
                _log.debug("%s does not answer a search: %s", contact.peer_id, error)
                search.failed(contact.peer_id)
            progress.set()

        async with self._searches:
            with trio.move_on_after(self._settings.search_s):
                async with trio.open_nursery() as nursery:
                    while not search.done:
                        progress = trio.Event()
                        for contact in search.next():
                            nursery.start_soon(one, contact)
                        await progress.wait()
        return search.nearest()

    async def _ask(self, contact: Contact, question: pb.KadMessage) -> pb.KadMessage:
        stream = await self._open(contact)
        try:
            messages = MessageStream(stream, _MAX_MESSAGE)
            await messages.send(question.SerializeToString())
            answer = read_message(await messages.receive())
        finally:
            await _close(stream)
        if answer.type != question.type:
            raise ProtocolError(f"{contact.peer_id} answers another question")
        return answer

    async def _tell(self, contact: Contact, message: pb.KadMessage) -> None:
        """Send what has no answer."""
        with trio.fail_after(self._settings.ask_s):
            stream = await self._open(contact)
            try:
                await MessageStream(stream, _MAX_MESSAGE).send(message.SerializeToString())
                await stream.send_eof()
                await stream.receive(1)  # until the peer has taken it
            finally:
                await _close(stream)

    async def _open(self, contact: Contact) -> ByteStream:
        if contact.peer_id not in self._linked and not await self._reach(contact):
            raise ProtocolError(f"{contact.peer_id} cannot be linked with")
        # No addresses: links dial, and attest; only by a connection that is there anybody is asked.
        return await self._transport.open_stream(contact.peer_id, [], KADEMLIA, priority=Priority.CONTROL)

    # Answering.

    async def _serve(self, stream: ByteStream) -> None:
        stream.set_priority(Priority.CONTROL)
        messages = MessageStream(stream, _MAX_MESSAGE)
        with trio.CancelScope() as scope:
            while True:
                scope.deadline = trio.current_time() + self._settings.idle_s
                question = read_message(await messages.receive())
                await self._paces.turn(stream.remote_peer)
                answer = self.answer(stream.remote_peer, question)
                if answer is not None:
                    await messages.send(answer.SerializeToString())

    def answer(self, sender: str, question: pb.KadMessage) -> pb.KadMessage | None:
        """Return the answer to a peer's question; None to what has none.

        Raises:
            ProtocolError: it is no question that is answered here.
        """
        if not 0 < len(question.key) <= _MAX_KEY and question.type != pb.KAD_MESSAGE_TYPE_PING:
            raise ProtocolError(f"a key of {len(question.key)} bytes")
        match question.type:
            case pb.KAD_MESSAGE_TYPE_PING:
                return pb.KadMessage(type=question.type)
            case pb.KAD_MESSAGE_TYPE_FIND_NODE:
                return pb.KadMessage(type=question.type, closer_peers=self._closer(sender, question.key))
            case pb.KAD_MESSAGE_TYPE_GET_PROVIDERS:
                return pb.KadMessage(
                    type=question.type,
                    key=question.key,
                    closer_peers=self._closer(sender, question.key),
                    provider_peers=[_encode(each) for each in self._known_providers(question.key)[:K]],
                )
            case pb.KAD_MESSAGE_TYPE_ADD_PROVIDER:
                self._take(sender, question)
                return None
            case _:
                raise ProtocolError("values are neither stored nor found here")

    def _known_providers(self, key: bytes) -> list[Contact]:
        own = [Contact(self._transport.peer_id, tuple(self._transport.addresses()))] if key in self._provided else []
        return own + self.providers(key)

    def providers(self, key: bytes) -> list[Contact]:
        """Return who has told this node that it provides a key."""
        return self._providers.of(key, self._now_ms())

    def _closer(self, sender: str, key: bytes) -> list[pb.KadPeer]:
        nearest = (peer_id for peer_id in self._table.closest(key, K + 1) if peer_id != sender)
        return [_encode(Contact(peer_id, self._linked[peer_id])) for peer_id in list(nearest)[:K]]

    def _take(self, sender: str, question: pb.KadMessage) -> None:
        """Record that the sender provides a key; what it says of others is left out, and not even read."""
        sender_id = peer_id_to_bytes(sender)
        own = [peer for peer in question.provider_peers[:K] if peer.id == sender_id]
        for contact in read_contacts(own[:1], sender, self._settings):
            try:
                self._providers.add(question.key, contact, self._now_ms())
            except Busy as error:
                _log.debug("a provider record of %s was dropped: %s", sender, error)


def read_contacts(peers: Sequence[pb.KadPeer], named_by: str, settings: KademliaSettings) -> list[Contact]:
    """Read what a peer says of others; what is malformed is left out."""
    return [contact for peer in peers[:K] if (contact := _contact(peer, named_by, settings)) is not None]


def _contact(peer: pb.KadPeer, named_by: str, settings: KademliaSettings) -> Contact | None:
    peer_id = base58.b58encode(peer.id[:_MAX_KEY]).decode("ascii")
    try:
        peer_id_to_bytes(peer_id)
    except SignatureInvalid:
        return None
    known = decode_known(peer.addrs[:_MAX_ADDRESSES])
    usable = [each for each in known if may_dial(each, allow_private=settings.allow_private)]
    addresses = tuple(each.without_peer for each in usable if each.peer_id in ("", peer_id))
    return Contact(peer_id, addresses, named_by)


@lru_cache(maxsize=1024)
def _encode(contact: Contact) -> pb.KadPeer:
    return pb.KadPeer(
        id=peer_id_to_bytes(contact.peer_id),
        addrs=[encode_multiaddr(parse_address(text)) for text in contact.addresses[:_MAX_ADDRESSES]],
        connection=pb.KAD_CONNECTION_CAN_CONNECT,
    )


def read_message(data: bytes) -> pb.KadMessage:
    """Read a message. Raises ProtocolError."""
    try:
        return pb.KadMessage.FromString(data)
    except DecodeError as error:
        raise ProtocolError("a malformed message of the provider table") from error


async def _close(stream: ByteStream) -> None:
    """Close a stream, also when cancelled."""
    try:
        await stream.aclose()
    except BaseException:  # also a cancellation leaves no stream behind; raised again
        stream.reset()
        raise
