"""From one address to the full mesh: ask linked peers whom they know, and link with those too.

What a peer says about others is a hint and no more: its PeerId and addresses are checked for form, and
whoever is dialled there still has to attest itself (`links.greeting`). One peer can make a node try only
so many others, and a hint that leads nowhere is forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from comity.errors import Busy, ComityError, ConfigError
from comity.signing import peer_id_to_bytes
from comity_node.links import Changes, LinkState
from comity_node.transport.address import Address, may_dial, parse_address

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.discovery")


@dataclass(frozen=True, slots=True)
class PeerHint:
    """What one node says about another.

    Attributes:
        peer_id: who it is.
        organization: whose it is said to be.
        addresses: where it is said to be dialled, without /p2p.
    """

    peer_id: str
    organization: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """How discovery goes about it.

    Attributes:
        searching_s: between rounds while an organization of the consortium is not linked.
        settled_s: between rounds when all are.
        ask_s: for one peer's answer.
        max_hints: hints taken from one answer.
        max_unproved: peers known from hints of one organization's nodes that have not attested themselves.
        max_addresses: addresses taken from one hint.
        give_up_s: then such a peer is forgotten.
        allow_private: whether loopback and private addresses are dialled when a peer names them.
    """

    searching_s: float = 2.0
    settled_s: float = 30.0
    ask_s: float = 10.0
    max_hints: int = 128
    max_unproved: int = 32
    max_addresses: int = 32
    give_up_s: float = 60.0
    allow_private: bool = False


class LinkTable(Protocol):
    """What discovery needs of `Links`."""

    @property
    def peer_id(self) -> str:
        """Our own PeerId."""
        ...

    @property
    def changes(self) -> Changes:
        """Counts changes of any link's state."""
        ...

    def peers(self) -> list[LinkState]:
        """The state of every link."""
        ...

    def add_peer(self, peer_id: str, addresses: Sequence[str] = (), *, keep: bool = False) -> None:
        """Link with a peer from now on, or learn further addresses of it; `keep`: never forget it."""
        ...

    async def remove_peer(self, peer_id: str) -> None:
        """Forget a peer."""
        ...


FetchPeers = Callable[[str], Awaitable[Sequence[PeerHint]]]


@dataclass(frozen=True, slots=True)
class _Unproved:
    source: str
    since: float


class Discovery:
    """Keeps looking for the nodes of a consortium."""

    def __init__(
        self,
        links: LinkTable,
        fetch_peers: FetchPeers,
        *,
        bootstrap: Sequence[str],
        organizations: Callable[[], Collection[str]],
        settings: DiscoverySettings | None = None,
    ) -> None:
        """Make a discovery; `run` starts it.

        Args:
            links: the node's links.
            fetch_peers: asks a linked peer (PeerId) whom it knows; raises ComityError when it does not answer.
            bootstrap: multiaddrs with /p2p to begin with; they are never forgotten.
            organizations: the other members of the consortium, by name.
            settings: times and bounds.

        Raises:
            ConfigError: a bootstrap address is malformed or has no /p2p.
        """
        self._links, self._fetch_peers, self._organizations = links, fetch_peers, organizations
        self._settings = settings or DiscoverySettings()
        self._bootstrap = [_bootstrap_address(text) for text in bootstrap]
        self._unproved: dict[str, _Unproved] = {}
        self._asked: set[str] = set()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for nodes until cancelled."""
        for address in self._bootstrap:
            self._links.add_peer(address.peer_id, [str(address)], keep=True)
        task_status.started()
        while True:
            await self._forget_dead_ends()
            await self._ask_all()
            version = self._links.changes.version
            with trio.move_on_after(self._pause_s()):
                while not self._connected() - self._asked:
                    version = await self._links.changes.wait(version)

    def hints(self) -> list[PeerHint]:
        """What this node tells others: the peers that it is linked with, and where they can be dialled."""
        return [
            PeerHint(state.peer_id, state.organization, state.addresses)
            for state in self._links.peers()
            if state.state == "connected" and state.addresses
        ]

    def missing(self) -> frozenset[str]:
        """The organizations of the consortium that no link leads to."""
        linked = {state.organization for state in self._links.peers() if state.state == "connected"}
        return frozenset(self._organizations()) - linked

    def learn(self, source: str, hints: Sequence[PeerHint]) -> None:
        """Take hints from a peer; those that are malformed or too many are dropped."""
        for hint in hints[: self._settings.max_hints]:
            try:
                self._learn(source, hint)
            except ComityError as error:  # whatever is wrong with it: what others say never stops a node
                _log.debug("a hint of %s about %s was dropped: %s", source, hint.peer_id, error)

    def _learn(self, source: str, hint: PeerHint) -> None:
        peer_id_to_bytes(hint.peer_id)
        known = {state.peer_id: state for state in self._links.peers()}.get(hint.peer_id)
        if hint.peer_id == self._links.peer_id or (known and known.state == "connected"):
            return
        if hint.organization not in self._organizations():
            raise ConfigError(f"{hint.organization} is no other member")
        addresses = self._usable(hint)
        if known is None:
            if not addresses:
                raise ConfigError("no address that can be dialled")
            sources = self._nodes_beside(source)
            if sum(one.source in sources for one in self._unproved.values()) >= self._settings.max_unproved:
                raise Busy(f"the organization of {source} has named too many peers that cannot be reached")
        self._links.add_peer(hint.peer_id, addresses)
        if known is None:
            self._unproved[hint.peer_id] = _Unproved(source, trio.current_time())

    def _usable(self, hint: PeerHint) -> list[str]:
        parsed = [parse_address(text) for text in hint.addresses[: self._settings.max_addresses]]
        return [str(address) for address in parsed if may_dial(address, allow_private=self._settings.allow_private)]

    def _nodes_beside(self, source: str) -> set[str]:
        """The nodes of the organization that a peer is of: they name peers on one account."""
        states = self._links.peers()
        own = {state.organization for state in states if state.peer_id == source} - {""}
        return {source} | {state.peer_id for state in states if state.organization in own}

    async def _ask_all(self) -> None:
        connected = self._connected()
        async with trio.open_nursery() as nursery:
            for peer_id in connected:
                nursery.start_soon(self._ask, peer_id)
        self._asked = connected

    async def _ask(self, peer_id: str) -> None:
        try:
            with trio.fail_after(self._settings.ask_s):
                hints = await self._fetch_peers(peer_id)
        except (ComityError, trio.TooSlowError) as error:
            _log.debug("%s does not say whom it knows: %s", peer_id, error)
        else:
            self.learn(peer_id, hints)

    async def _forget_dead_ends(self) -> None:
        states = {state.peer_id: state for state in self._links.peers()}
        now = trio.current_time()
        for peer_id, one in list(self._unproved.items()):
            state = states.get(peer_id)
            if state is None or state.organization:
                del self._unproved[peer_id]
            elif now - one.since > self._settings.give_up_s:
                del self._unproved[peer_id]
                await self._links.remove_peer(peer_id)

    def _connected(self) -> set[str]:
        return {state.peer_id for state in self._links.peers() if state.state == "connected"}

    def _pause_s(self) -> float:
        return self._settings.searching_s if self.missing() else self._settings.settled_s


def _bootstrap_address(text: str) -> Address:
    address = parse_address(text)
    if not address.peer_id:
        raise ConfigError(f"{text} has no /p2p/<PeerId> at its end: without it nobody knows who must answer there")
    return address
