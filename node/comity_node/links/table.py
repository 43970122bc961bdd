"""The peers that a node knows, each with the link on which it is called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import trio

from comity.errors import Busy, PeerNotAttested
from comity_node.links.activity import Activity, Changes
from comity_node.links.greeting import Greeter, Greeting
from comity_node.links.limits import LinkLimits
from comity_node.links.outbound import OutboundLink
from comity_node.links.places import whose_place
from comity_node.links.state import Peer
from comity_node.transport.base import Transport

_log = logging.getLogger("comity.links")


class PeerTable:
    """As many peers as there are places; each is linked with for as long as it is known."""

    def __init__(
        self, transport: Transport, greeter: Greeter, limits: LinkLimits, random_bytes: Callable[[int], bytes]
    ) -> None:
        #: Counts changes of any link's state.
        self.changes = Changes()
        #: Counts calls under way on all links, in both directions.
        self.activity = Activity()
        self._transport, self._greeter, self._limits = transport, greeter, limits
        self._random_bytes = random_bytes
        self._links: dict[str, OutboundLink] = {}
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """Keep links up in `nursery` from now on."""
        self._nursery = nursery
        nursery.start_soon(self._watch)
        for link in self._links.values():
            nursery.start_soon(self._keep, link)

    def stop(self) -> None:
        """Start no more of them."""
        self._nursery = None

    def __iter__(self) -> Iterator[OutboundLink]:
        return iter([self._links[peer_id] for peer_id in sorted(self._links)])

    def get(self, peer_id: str) -> OutboundLink | None:
        """Return the link to a peer, or None if it is not known."""
        return self._links.get(peer_id)

    def add(self, peer_id: str, addresses: Sequence[str], *, keep: bool) -> None:
        """Know a peer from now on.

        Raises:
            Busy: `max_peers` are known, and the operator did not name this one.
        """
        if peer_id not in self._links and not keep and len(self._links) >= self._limits.max_peers:
            raise Busy(f"{len(self._links)} peers are known, which is the limit", retry_after_ms=60_000)
        peer = self.link(peer_id).peer
        peer.keep = peer.keep or keep
        peer.add_addresses(addresses, first=False)

    def link(self, peer_id: str) -> OutboundLink:
        """Return the link to a peer, a new one if it is not known."""
        if peer_id in self._links:
            return self._links[peer_id]
        peer = Peer(peer_id, self.changes, self.activity, max_addresses=self._limits.max_addresses)
        link = OutboundLink(peer, self._transport, self._greeter, self._limits, self._random_bytes, self.give_place)
        self._links[peer_id] = link
        self.changes.note()
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, link)
        return link

    def forget(self, peer_id: str) -> None:
        """Know a peer no more, and end its link."""
        if link := self._links.pop(peer_id, None):
            link.scope.cancel()
            self.changes.note()

    def give_place(self, greeting: Greeting) -> None:
        """Find a place among its organization's nodes for a peer that has attested itself.

        Raises:
            Busy: there is none.
        """
        peer_id, organization = greeting.attested.peer_id, greeting.attested.organization
        known = self._links.get(peer_id)
        if known is None or not (known.peer.keep or known.peer.place_of == organization):
            others = [link.peer for link in self._links.values() if link is not known]
            now = trio.current_time()
            leaving = whose_place(organization, others, known=known is not None, limits=self._limits, now=now)
            if leaving is not None:
                _log.debug("%s was gone for long, and its place is needed", leaving.peer_id)
                self.forget(leaving.peer_id)
                self._cut(leaving.peer_id)  # nobody looks at its certificate any more
        peer = self.link(peer_id).peer
        peer.place_of = organization
        peer.gone_since = trio.current_time()  # it is here now: its place is not given away while it greets us

    def organization_of(self, peer_id: str) -> str:
        """Whose node a peer is, "" if that is not known."""
        link = self._links.get(peer_id)
        return link.peer.attested.organization if link and link.peer.attested else ""

    async def _watch(self) -> None:
        """Cut every peer whose certificate, or our trust bundle, has expired or was revoked.

        Links look at the certificates of their own streams. A peer may have others: tunnels, and whatever else the
        transport serves to members.
        """
        while True:
            await trio.sleep(self._limits.ping_every_s)
            self.judge_again()

    def judge_again(self) -> None:
        """Cut every peer whose certificate is not good any more."""
        for link in self:
            if (greeting := link.peer.greeting) is None:
                continue
            try:
                self._greeter.judge_again(greeting)
            except PeerNotAttested as error:
                _log.debug("%s is cut: %s", link.peer.peer_id, error)
                link.peer.greeting = None
                self._cut(link.peer.peer_id)

    def _cut(self, peer_id: str) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._transport.disconnect, peer_id)

    async def _keep(self, link: OutboundLink) -> None:
        with link.scope:
            await link.run()
