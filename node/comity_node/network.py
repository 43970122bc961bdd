"""A node's network, put together: transport, links, a relay for others, and every way of finding them.

What is found by whatever way (bootstrap, hints of peers, a meeting point, the provider table, the local network, a
card in the news) is an address and nothing more: it goes through `Discovery.learn`, within its bounds, and whoever is
dialled there attests itself or is cut.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from random import SystemRandom
from typing import TYPE_CHECKING

import trio

from comity.card import AgentCard
from comity.errors import ComityError, ConfigError, RevocationInvalid
from comity.evidence import Proven
from comity.ids import SpiffeId
from comity.revocation import Revocation, verify_revocation
from comity.signing import from_libp2p_public_key, peer_id_to_bytes
from comity.trust import Attested, NodeIdentity, TrustStore
from comity_node.admission import Gate, Question
from comity_node.config import NodeConfig
from comity_node.discovery import Discovery, DiscoverySettings, PeerHint
from comity_node.discovery.kad import Kademlia, KademliaSettings
from comity_node.discovery.mdns import Mdns
from comity_node.discovery.news import Hint, News
from comity_node.discovery.pubsub import PubSub
from comity_node.discovery.rendezvous import RendezvousClient, RendezvousPoint, RendezvousSettings
from comity_node.links import LinkLimits, Links, LinkState, RequestHandler
from comity_node.policy.model import Request
from comity_node.protocol.kad import Contact
from comity_node.storage import revocations
from comity_node.storage.database import Database
from comity_node.transport.address import Address, parse_address
from comity_node.transport.base import Priority
from comity_node.transport.libp2p_transport import Libp2pTransport
from comity_node.transport.pace import Pace
from comity_node.transport.relay_limits import RelayLimits
from comity_node.transport.relay_service import RelayService
from comity_node.transport.upgrade import Upgrader

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

#: Between two questions to the provider table while an organization is missing.
_SEEK_S = 15.0
_REACH_S = 8.0
#: Revocations that wait to be written down; over that one is not, and after a restart comes again with the news.
_MAX_UNWRITTEN = 64
#: Peers that stay linked for searches when places are few: more than the searches at a time ask at a time.
_MAX_GUESTS = 16
_MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Doings:
    """What the network has done, or asked for, by the rest of the node.

    Attributes:
        on_request: answers a peer's request.
        fetch_hints: asks the node of an organization whom it knows.
        own_cards: the node's own agent cards, signed now, if every member may see them.
        own_hints: what the node would tell every member about the others.
        skills: that the node's own workers offer now.
        changed: an event that is set when they change.
        own_evidence: of lies, what the node knows and every member may hear.
        on_evidence: takes verified evidence out of the news.
        seek: skills that workflows need, whose providers are looked for while an organization is missing.
        needed: whether there is something to do with an organization, so that it is linked with before others are.
    """

    on_request: RequestHandler
    fetch_hints: Callable[[str], Awaitable[Sequence[PeerHint]]]
    own_cards: Callable[[], Awaitable[Sequence[bytes]]]
    own_hints: Callable[[], Awaitable[Sequence[Hint]]]
    skills: Callable[[], Sequence[str]]
    changed: Callable[[], trio.Event]
    seek: Sequence[str]
    own_evidence: Callable[[], Awaitable[Sequence[bytes]]]
    on_evidence: Callable[[Proven], None]
    needed: Callable[[str], bool] = lambda organization: False


class Network:
    """How one node meets the others."""

    def __init__(
        self, config: NodeConfig, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, database: Database,
        doings: Doings,
    ) -> None:  # fmt: skip
        """Make it, as `config.network` says; `run` starts it.

        Raises:
            ConfigError: an address cannot be used.
        """
        self._config, self._network = config, config.network
        self._identity, self._trust, self._gate, self._database = identity, trust, gate, database
        self._doings = doings
        self._near = is_near(config)
        self.transport = self._transport()
        #: The links to peers.
        self.links = Links(
            self.transport, identity, trust, doings.on_request,
            now_ms=gate.now_ms, random_bytes=os.urandom, allow_private=self._near,
            limits=LinkLimits(max_peers=config.limits.peers, max_handlers=config.limits.requests_per_peer),
        )  # fmt: skip
        #: Finds the nodes of the consortium.
        self.discovery = Discovery(
            self.links, self._fetch_peers,
            organizations=lambda: set(trust.bundle.members) - {config.organization},
            bootstrap=self._named(), needed=doings.needed,
            settings=DiscoverySettings(allow_private=self._near, max_casual=_casual_places(config.limits.peers)),
        )  # fmt: skip
        self.relay = self._relay() if self._network.relay.serve else None
        self.kademlia = self._kademlia() if self._network.discovery.kademlia else None
        self.pubsub = self._pubsub() if self._network.discovery.gossip else None
        self.news = self._news(self.pubsub) if self.pubsub is not None else None
        self._meeting = self._rendezvous()
        #: Peers that were linked with for a search, oldest first.
        self._guests: dict[str, None] = {}
        self.transport.reach.relays.link_with = self._link_with
        #: Revocations that an earlier run wrote down.
        self._written: frozenset[bytes] = frozenset()
        self._unwritten, self._to_write = trio.open_memory_channel[Revocation](_MAX_UNWRITTEN)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run everything until cancelled.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        await self._restore()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.links.run)
            nursery.start_soon(self.discovery.run)
            if self.news is not None and self.pubsub is not None:
                nursery.start_soon(self._write_down)
                await nursery.start(self.pubsub.run)
                await nursery.start(self.news.run)
            if self.kademlia is not None:
                await nursery.start(self.kademlia.run)
                nursery.start_soon(self._follow_links, self.kademlia)
                nursery.start_soon(self._provide, self.kademlia)
                nursery.start_soon(self._seek, self.kademlia)
            if self._meeting is not None:
                await nursery.start(self._meeting.run)
            if self._network.discovery.mdns:
                await nursery.start(self._mdns().run)
            task_status.started()

    def counters(self) -> dict[str, int]:
        """What has been counted, by dotted name."""
        counts: dict[str, int] = {}
        if self.pubsub is not None and self.news is not None:
            counts |= self.pubsub.counters()
            counts |= {f"news.{name}": count for name, count in self.news.counts.items()}
        if self.kademlia is not None:
            counts |= {"kademlia.peers": self.kademlia.peers, "kademlia.keys": self.kademlia.records}
        if self.relay is not None:
            carried = self.relay.counters().values()
            counts |= {
                "relay.reservations": sum(each.reservations for each in carried),
                "relay.circuits": sum(each.circuits for each in carried),
                "relay.bytes": sum(each.bytes_carried for each in carried),
                "relay.refused": sum(each.refused for each in carried),
            }
        return counts

    def look_again(self) -> None:
        """The policy is another one: ask it about what is carried for others."""
        if self.relay is not None:
            self.relay.look_again()

    def bundle_changed(self) -> None:
        """The trust bundle is another one: cut who is no member, and look for who is now."""
        self.links.look_again()
        self.discovery.look_again()

    async def revoke(self, raw: bytes) -> Revocation:
        """Take a revocation of a node's certificate, write it down, and spread it.

        Raises:
            RevocationInvalid: it does not verify, or one that begins earlier is known.
            ConfigError: this node takes no part in the news.
        """
        if self.news is None:
            raise ConfigError("revocations travel with the news: set `gossip: true` under `discovery` in node.yaml")
        await self.news.revoke(raw)
        known = next((one for one in self.news.revocations() if one.raw == raw), None)
        if known is None:
            raise RevocationInvalid("the certificate is revoked already, from an earlier time on: that one holds")
        await self._database.transact(lambda c: revocations.keep(c, known, self._gate.now_ms()))
        return known

    # The parts.

    def _transport(self) -> Libp2pTransport:
        security = self._network.transport
        # Who comes has had its turn in the transport (`transport.arrivals`).
        pace = Pace(1e6, burst=1e6, longest_wait_s=1.0)
        upgrader = Upgrader(self._identity.key, pace, security=security.security, stock=security.noise == "py-libp2p")
        return Libp2pTransport(
            self._identity.key,
            self._network.listen,
            announce=self._network.announce,
            relays=self._network.relays,
            allow_private=self._near,
            upgrader=upgrader,
            own_names=[parse_address(text).host for text in self._named()],
        )

    def _named(self) -> tuple[str, ...]:
        """The addresses of others that the operator has written down."""
        return (*self._network.bootstrap, *self._network.relays, *self._network.discovery.rendezvous.at)

    def _relay(self) -> RelayService:
        settings = self._network.relay
        limits = RelayLimits()
        return RelayService(
            self.transport,
            self._identity.key,
            attested=self._attested,
            allow=self._may_carry,
            addresses=self.transport.own_addresses,
            now_s=lambda: self._gate.now_ms() // 1000,
            limits=replace(
                limits,
                reservations_per_organization=settings.reservations_per_organization,
                circuits_per_organization=settings.circuits_per_organization,
                organization_bytes=settings.megabytes_per_hour * _MEGABYTE,
            ),
        )

    async def _may_carry(self, source: Attested, target: Attested | None) -> None:
        """Ask the policy about whoever wants a reservation or a circuit, and about whom it wants to reach."""
        for member in (source, target):
            if member is not None:
                await self._gate.demand(Question(Request("relay.carry", member.organization)))

    def _kademlia(self) -> Kademlia:
        settings = KademliaSettings(allow_private=self._near)
        return Kademlia(self.transport, self._reach, now_ms=self._gate.now_ms, settings=settings)

    def _pubsub(self) -> PubSub:
        return PubSub(self.transport, self.links, self._identity.key, now_ms=self._gate.now_ms, random=SystemRandom())

    def _news(self, pubsub: PubSub) -> News:
        return News(
            pubsub,
            self._identity,
            self._trust,
            now_ms=self._gate.now_ms,
            random=SystemRandom(),
            own_cards=self._doings.own_cards,
            own_hints=self._doings.own_hints,
            own_evidence=self._doings.own_evidence,
            on_evidence=self._doings.on_evidence,
            on_card=self._on_card,
            on_revoked=self._on_revoked,
        )

    def _rendezvous(self) -> RendezvousClient | None:
        settings = RendezvousSettings(allow_private=self._near)
        meeting = self._network.discovery.rendezvous
        if meeting.serve:
            RendezvousPoint(self.transport, now_ms=self._gate.now_ms, settings=settings)
        if not meeting.at:
            return None
        return RendezvousClient(
            self.transport,
            self._identity.key,
            f"comity/{self._trust.bundle.consortium}",
            [Contact(each.peer_id, (each.without_peer,)) for each in map(parse_address, meeting.at)],
            self._found,
            now_ms=self._gate.now_ms,
            settings=settings,
        )

    def _mdns(self) -> Mdns:
        return Mdns(
            self.transport.peer_id,
            self.transport.addresses,
            lambda contact: self._found("local network", contact),
            random_bytes=os.urandom,
        )

    # Finding others.

    def _found(self, source: str, contact: Contact) -> None:
        """Somebody (a PeerId, or a way of finding) has named a peer: dial it, within the bounds for who named it."""
        self.discovery.learn(contact.named_by or source, [PeerHint(contact.peer_id, "", contact.addresses)])

    def _on_card(self, card: AgentCard) -> None:
        """A card came with the news: its node is dialled if it is needed, or while there is room for anybody."""
        hint = PeerHint(card.peer_id, card.organization, card.addresses)
        self.discovery.learn(card.peer_id, [hint])

    async def _link_with(self, relay: Address, timeout_s: float) -> None:
        """Link with a relay, ours or one that a peer is behind: it carries for nobody whom it has not attested."""
        self._found("relays", Contact(relay.peer_id, (relay.without_peer,)))
        await self.links.wait_for(relay.peer_id, timeout_s)

    async def _fetch_peers(self, peer_id: str) -> Sequence[PeerHint]:
        state = self.links.state(peer_id)
        if state is None or not state.organization:
            return ()
        return await self._doings.fetch_hints(state.organization)

    async def _reach(self, contact: Contact) -> bool:
        """Link with a peer that the provider table has named, so that it can be asked; False if it has no place for us.

        While few places are left, whoever was linked with for a search gives its place to the next one.
        """
        peer_id = contact.peer_id
        is_guest = self.links.state(peer_id) is None
        if is_guest:
            await self._make_room()
        hint = PeerHint(peer_id, "", contact.addresses)
        self.discovery.learn(contact.named_by or "provider table", [hint], searched=True)
        with trio.move_on_after(_REACH_S):
            while True:
                version = self.links.changes.version
                state = self.links.state(peer_id)
                if state is None or (state.state == "down" and state.reason):
                    break  # there is no place here, or there: waiting changes nothing
                if state.state == "connected":
                    if is_guest:
                        self._guests[peer_id] = None
                    return True
                await self.links.changes.wait(version)
        log.debug("a peer of the provider table cannot be linked with: %s", peer_id)
        return False

    async def _make_room(self) -> None:
        """Let guests go, the oldest first, while only the places that are kept for searches are left."""
        states = {each.peer_id: each for each in self.links.peers()}
        self._guests = {peer_id: None for peer_id in self._guests if peer_id in states}
        places = self._config.limits.peers
        while self._guests and (
            len(states) >= places or (len(self._guests) >= _MAX_GUESTS and len(states) >= _casual_places(places))
        ):
            peer_id = next(iter(self._guests))
            state = states.pop(peer_id, None)
            if state is None:
                break  # it came meanwhile
            del self._guests[peer_id]
            if not self._doings.needed(state.organization):
                await self.links.remove_peer(peer_id)

    async def _follow_links(self, kademlia: Kademlia) -> None:
        """Tell the provider table who is linked."""
        known: set[str] = set()
        version = -1
        while True:
            version = await self.links.changes.wait(version)
            linked = {each.peer_id: each for each in self.links.peers() if each.state == "connected"}
            for peer_id in linked.keys() - known:
                kademlia.peer_up(peer_id, linked[peer_id].addresses)
            for peer_id in known - linked.keys():
                kademlia.peer_down(peer_id)
            known = set(linked)

    async def _provide(self, kademlia: Kademlia) -> None:
        """Say which skills are provided here, whenever they change."""
        while True:
            changed = self._doings.changed()
            kademlia.provide(self._doings.skills())
            await changed.wait()

    async def _seek(self, kademlia: Kademlia) -> None:
        """While an organization is missing, look for whoever provides what workflows need."""
        while True:
            await trio.sleep(_SEEK_S)
            if not self.discovery.missing():
                continue
            for skill in self._doings.seek:
                for contact in await kademlia.find(skill):
                    hint = PeerHint(contact.peer_id, "", contact.addresses)
                    self.discovery.learn(contact.named_by or "provider table", [hint], searched=True)

    # Revocations.

    async def _restore(self) -> None:
        """Take the revocations that an earlier run wrote down, before anybody is linked with.

        They hold whether or not this node takes part in the news now.
        """
        kept = await self._database.read(revocations.kept)
        self._written = frozenset(kept)
        if self.news is not None:
            self.news.restore(kept)
            return
        for raw in kept:
            try:
                bundle, now_ms = self._trust.bundle, self._gate.now_ms()
                self._on_revoked(verify_revocation(raw, bundle, now_ms=now_ms, past=True))
            except RevocationInvalid as error:
                log.warning("a revocation that was written down is left out: %s", error)

    def _on_revoked(self, revocation: Revocation) -> None:
        """Refuse a certificate from now on; links look at theirs again with every sign of life."""
        self._trust.revoke(revocation.certificate, revocation.issued_ms)
        if revocation.raw in self._written:
            return
        try:
            self._unwritten.send_nowait(revocation)
        except trio.WouldBlock:
            log.warning("a revocation is in force but not written down; after a restart the news brings it again")

    async def _write_down(self) -> None:
        async for revocation in self._to_write:
            try:
                keep = partial(revocations.keep, revocation=revocation, now_ms=self._gate.now_ms())
                await self._database.transact(keep)
            except ComityError as error:  # the disk may be full: it is in force all the same
                log.error("a revocation could not be written down: %s", error.diagnostics())  # noqa: TRY400

    # Who is linked.

    def _attested(self, peer_id: str) -> Attested | None:
        state = self.links.state(peer_id)
        return attested(state) if state is not None and state.state == "connected" else None


class LinkedPeers:
    """The links by organization: what the runtime asks for."""

    def __init__(self, links: Callable[[], Links]) -> None:
        """Look at `links`."""
        self._links = links

    def peer(self, organization: str) -> Attested | None:
        """Return a linked node of `organization`, if there is one."""
        return self._links().member(organization)

    def nodes(self, organization: str) -> Sequence[Attested]:
        """Return the linked nodes of `organization`, in an order that stays."""
        return self._links().members(organization)

    def node(self, peer_id: str) -> Attested | None:
        """Return a linked node by its PeerId, if it is linked."""
        state = self._links().state(peer_id)
        return attested(state) if state is not None and state.state == "connected" else None

    async def request(
        self, peer_id: str, payload: bytes, deadline_s: float, *, priority: Priority = Priority.WORK
    ) -> bytes:
        """Send a request over the link to `peer_id`, in its class."""
        return await self._links().request(peer_id, payload, deadline_s, priority=priority)


def attested(state: LinkState) -> Attested:
    """Return who is at the other end of a link that is up."""
    return _attested(state.peer_id, state.organization, state.node)


@lru_cache(maxsize=1024)
def _attested(peer_id: str, organization: str, node: str) -> Attested:
    """Every message asks; base58 is slow."""
    key = from_libp2p_public_key(peer_id_to_bytes(peer_id)[2:])
    return Attested(organization, SpiffeId.parse(node), key, peer_id)


def _casual_places(peers: int) -> int:
    """How many of a node's places go to whoever is there; an eighth is for searches and for whom it needs."""
    return peers - max(1, peers // 8)


def is_near(config: NodeConfig) -> bool:
    """Whether the node's own network is one of private addresses: then it dials those that peers name, too."""
    network = config.network
    named = [parse_address(text) for text in (*network.listen, *network.bootstrap, *network.relays)]
    return any(address.is_private and not address.is_wildcard for address in named)


def now_ms() -> int:
    """Return the time in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000
