"""Who offers what: the agent cards of the other organizations, and the own ones shown to them.

A card is fetched from its own node and nobody else, and shown only to whom the policy lets see it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate

import trio
from google.protobuf.message import DecodeError

from comity.card import AgentCard, Skill, open_card, sign_card
from comity.errors import ComityError, PeerUnreachable, UnexpectedMessage
from comity.ids import SpiffeId
from comity.trust import Attested, NodeIdentity, TrustStore
from comity.v1.card_pb2 import CardReply, CardRequest
from comity.v1.link_pb2 import PeerHint, PeersReply, PeersRequest
from comity.v1.task_pb2 import Receipt
from comity_node.admission import Gate, Question
from comity_node.links.greeting import MAX_ADDRESSES
from comity_node.policy.model import Request
from comity_node.protocol.market import PRICE_PARTS, ROWS_SECONDS
from comity_node.runtime.market_bids import Offer
from comity_node.runtime.messenger import Handler, Messenger, accepted
from comity_node.runtime.seams import TaskStatus

log = logging.getLogger(__name__)

CARDS = "cards"
PEERS = "peers"
_LIFETIME_MS = 24 * 3600 * 1000
_MAX_CARDS = 64
#: Bytes of one organization's cards that are kept, before they are parsed.
_MAX_CARD_BYTES = 512 * 1024
_MAX_HINTS = 1_000
_MAX_REASON = 200
_ASK_S = 10.0
#: Refresh, in seconds: soon while somebody's cards are missing, then later and later; else now and then. No
#: organization is asked twice within `_SOON_S`, however often its link comes and goes.
_SOON_S = 1.0
_CALM_S = 15.0

#: The part that each skill plays, which policies can ask for.
ROLES = {"generate": "generator", "repair": "generator", "review": "validator"}

OwnAgents = Callable[[], Sequence[tuple[SpiffeId, tuple[str, ...]]]]


class Directory:
    """The agent cards that this node knows."""

    def __init__(
        self, *, identity: NodeIdentity, trust: TrustStore, gate: Gate, messenger: Messenger, own_agents: OwnAgents,
        addresses: Callable[[], Sequence[str]], hints: Callable[[], Sequence[PeerHint]],
        told: Callable[[str, Sequence[str]], None], version: str,
        offer: Callable[[str], Offer | None] = lambda skill: None,
    ) -> None:  # fmt: skip
        """Fetch and show cards in the name of `identity`'s organization.

        Args:
            identity: whose cards are shown.
            trust: against whom the others' cards are checked.
            gate: decides who may see the own ones.
            messenger: reaches the others.
            own_agents: returns the agents that are connected, with their skills.
            addresses: returns where this node can be dialled.
            hints: returns what is known about others' addresses.
            told: takes where a peer (its PeerId) says it can be dialled; raises ComityError for what is no address.
            version: of this software, for the cards.
            offer: what the own workers can do of a skill, for the cards.
        """
        self._identity = identity
        self._trust = trust
        self._gate = gate
        self._messenger = messenger
        self._own_agents = own_agents
        self._addresses = addresses
        self._hints = hints
        self._told = told
        self._version = version
        self._offer = offer
        self._cards: dict[str, tuple[AgentCard, ...]] = {}
        #: The highest price that the cards of an organization name for a row of a skill.
        self._prices: dict[tuple[str, str], float] = {}
        self._news = trio.Event()
        #: When each organization was asked, by trio's clock.
        self._asked: dict[str, float] = {}
        self.handlers: dict[str, Handler] = {CARDS: self._on_cards, PEERS: self._on_peers}

    def cards(self) -> list[AgentCard]:
        """Return all cards, the own ones too."""
        members = self._trust.bundle.members
        others = [card for organization, cards in self._cards.items() if organization in members for card in cards]
        return [*self._own_cards(), *others]

    def organizations_with(self, skills: frozenset[str]) -> frozenset[str]:
        """Return the other organizations whose agents offer all of `skills`."""
        return frozenset(
            organization
            for organization, cards in self._cards.items()
            if organization in self._trust.bundle.members
            and skills <= {skill.id for card in cards for skill in card.skills}
        )

    def price(self, organization: str, skill: str) -> float:
        """Return what an organization asks for a row of a skill by its cards; 0 where they name nothing."""
        return self._prices.get((organization, skill), 0.0)

    def skills(self) -> dict[str, frozenset[str]]:
        """Return which skills the agents of each other organization offer."""
        members = self._trust.bundle.members
        return {
            organization: frozenset(skill.id for card in cards for skill in card.skills)
            for organization, cards in self._cards.items()
            if organization in members
        }

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the cards of all members fresh, until cancelled."""
        task_status.started()
        pause_s = _SOON_S
        while True:
            self._news = trio.Event()
            others = sorted(set(self._trust.bundle.members) - {self._identity.organization})
            too_soon = await self._fetch_from(others)
            complete = all(self._cards.get(organization) for organization in others)
            pause_s = _CALM_S if complete else min(pause_s * 1.5, _CALM_S)
            with trio.move_on_after(_SOON_S if too_soon else pause_s):
                await self._news.wait()
                pause_s = _SOON_S

    async def _fetch_from(self, organizations: Sequence[str]) -> bool:
        """Fetch the cards of those that are linked; returns whether somebody was asked too short a while ago."""
        now = trio.current_time()
        linked = [each for each in organizations if self._messenger.reachable(each)]
        due = [each for each in linked if now - self._asked.get(each, -_SOON_S) >= _SOON_S]
        self._asked.update(dict.fromkeys(due, now))
        async with trio.open_nursery() as nursery:
            for organization in due:
                nursery.start_soon(self.fetch, organization)
        return len(due) < len(linked)

    def look_again(self) -> None:
        """Fetch soon: a link came up. Nobody is asked more than once a second for it."""
        self._news.set()

    async def fetch(self, organization: str) -> None:
        """Ask an organization's node for its cards; one that does not verify is left out, and logged."""
        try:
            body = CardRequest().SerializeToString()
            receipt = await self._messenger.ask(organization, CARDS, body, deadline_s=_ASK_S)
            if receipt.status == Receipt.STATUS_ACCEPTED:
                self._keep(organization, self._open(organization, CardReply.FromString(receipt.body)))
            else:
                log.info("%s does not show its cards: %r", organization, receipt.reason[:_MAX_REASON])
        except (ComityError, DecodeError) as error:
            log.info("no cards of %s: %s", organization, error)

    def _keep(self, organization: str, cards: tuple[AgentCard, ...]) -> None:
        self._cards[organization] = cards
        self._prices = {key: price for key, price in self._prices.items() if key[0] != organization}
        for skill in (skill for card in cards for skill in card.skills):
            key = (organization, skill.id)
            self._prices[key] = max(self._prices.get(key, 0.0), skill.price / PRICE_PARTS)

    def _open(self, organization: str, reply: CardReply) -> tuple[AgentCard, ...]:
        peer = self._messenger.peer(organization)
        if peer is None:
            raise PeerUnreachable(f"the link to {organization} went down")
        now_ms = self._gate.now_ms()
        cards: dict[SpiffeId, AgentCard] = {}
        for data in _clipped(reply.cards):
            try:
                card = open_card(data, self._trust, now_ms, peer.peer_id)
            except ComityError as error:
                log.info("a card of %s is left out: %s", organization, error)
            else:
                cards[card.agent] = card
        return tuple(cards.values())

    def _own_cards(self) -> list[AgentCard]:
        now_ms = self._gate.now_ms()
        return [
            AgentCard(
                agent=agent,
                peer_id=self._identity.peer_id,
                name=agent.name,
                description=f"{agent.name} of {agent.organization}",
                version=self._version,
                skills=tuple(self._own_skill(skill) for skill in skills),
                addresses=tuple(self._addresses()),
                issued_ms=now_ms,
                expires_ms=now_ms + _LIFETIME_MS,
            )
            for agent, skills in self._own_agents()
            if skills
        ]

    def _own_skill(self, skill: str) -> Skill:
        offer = self._offer(skill)
        return Skill(
            id=skill,
            name=skill,
            role=ROLES.get(skill, ""),
            rows=round(offer.rows_per_s * ROWS_SECONDS) if offer else 0,
            price=round(offer.price * PRICE_PARTS) if offer else 0,
        )

    async def public_cards(self) -> list[bytes]:
        """Return the own cards, signed, if every member may see them; else none: news go to all.

        Every member's decision is in the audit log.
        """
        others = sorted(set(self._trust.bundle.members) - {self._identity.organization})
        questions = [Question(Request(action="agent.discover", organization=each)) for each in others]
        cards = self._own_cards()[:_MAX_CARDS]
        if not cards or not all(decision.allowed for decision in await self._gate.decide(questions)):
            return []
        return [sign_card(self._identity, card) for card in cards]

    async def _on_cards(self, sender: Attested, body: bytes) -> Receipt:
        CardRequest.FromString(body)
        await self._gate.demand(Question(Request(action="agent.discover", organization=sender.organization)))
        cards = [sign_card(self._identity, card) for card in self._own_cards()[:_MAX_CARDS]]
        return accepted(CardReply(cards=cards).SerializeToString())

    async def _on_peers(self, sender: Attested, body: bytes) -> Receipt:
        asked = PeersRequest.FromString(body)
        await self._gate.demand(Question(Request(action="agent.discover", organization=sender.organization)))
        self._told(sender.peer_id, asked.addresses)
        hints = [hint for hint in self._hints() if hint.peer_id != sender.peer_id]
        return accepted(PeersReply(peers=hints[:_MAX_HINTS]).SerializeToString())

    async def fetch_hints(self, organization: str) -> list[PeerHint]:
        """Ask an organization's node where the others can be dialled: hints, to be attested when dialled.

        Raises:
            ComityError: it did not answer, or not with hints.
        """
        body = PeersRequest(addresses=self._addresses()[:MAX_ADDRESSES]).SerializeToString()
        receipt = await self._messenger.ask(organization, PEERS, body, deadline_s=_ASK_S)
        if receipt.status != Receipt.STATUS_ACCEPTED:
            raise UnexpectedMessage(f"{organization} does not name its peers: {receipt.reason[:_MAX_REASON]}")
        try:
            return list(PeersReply.FromString(receipt.body).peers)[:_MAX_HINTS]
        except DecodeError as error:
            raise UnexpectedMessage(f"the hints of {organization} do not parse") from error


def _clipped(cards: Sequence[bytes]) -> Sequence[bytes]:
    """The first cards of an answer, as many as are taken."""
    sizes = accumulate(len(card) for card in cards)
    return [card for card, size in zip(cards[:_MAX_CARDS], sizes, strict=False) if size <= _MAX_CARD_BYTES]
