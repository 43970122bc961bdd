"""From one address to the full mesh: ask linked peers whom they know, and link with those too.

What a peer says about others is a hint and no more: its PeerId and addresses are checked for form, and
whoever is dialled there still has to attest itself (`links.greeting`). One peer can make a node try only
so many others. A hint that leads nowhere is forgotten, but for a while it counts for whoever gave it, and is not taken
again: else a node could be made to knock at any door on the Internet, at any rate.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from comity.errors import Busy, ComityError, ConfigError
from comity.signing import peer_id_to_bytes
from comity_node.links import Changes, LinkState
from comity_node.transport.address import Address, may_dial, parse_address

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger("comity.discovery")
#: Rounds for a missing organization before they become rarer.
_EAGER_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class PeerHint:
    """What one node says about another.

    Attributes:
        peer_id: who it is.
        organization: whose it is said to be; "" if that was not said.
        addresses: where it is said to be dialled, without /p2p.
    """

    peer_id: str
    organization: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """How discovery goes about it.

    Attributes:
        searching_s: between rounds while an organization of the consortium is not linked; if it stays away that grows,
            up to `settled_s`.
        settled_s: between rounds when all are.
        ask_s: for one peer's answer.
        max_hints: hints taken from one answer.
        max_unproved: peers known from hints of one organization's nodes that have not attested themselves; a quarter
            of them once only the places are left that are kept.
        max_addresses: addresses taken from one hint.
        max_casual: peers that are known, from which on only those are dialled that are needed or searched for: what is
            left of a node's places is for searches and for others who come.
        give_up_s: then such a peer is forgotten.
        dead_end_s: for so long after that it is not taken again, and still counts for its organization.
        allow_private: whether loopback and private addresses are dialled when a peer names them.
    """

    searching_s: float = 2.0
    settled_s: float = 30.0
    ask_s: float = 10.0
    max_hints: int = 128
    max_unproved: int = 32
    max_addresses: int = 16
    max_casual: int = 224
    give_up_s: float = 60.0
    dead_end_s: float = 120.0
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
    """A peer that somebody has named; `relays`: the PeerIds of those that it is said to be behind."""

    source: str
    since: float
    relays: frozenset[str] = frozenset()
    #: Nobody answered there, and it is forgotten, since then.
    is_dead_end: bool = False


class Discovery:
    """Keeps looking for the nodes of a consortium."""

    def __init__(
        self,
        links: LinkTable,
        fetch_peers: FetchPeers,
        *,
        bootstrap: Sequence[str],
        organizations: Callable[[], Collection[str]],
        needed: Callable[[str], bool] = lambda organization: False,
        settings: DiscoverySettings | None = None,
    ) -> None:
        """Make a discovery; `run` starts it.

        Args:
            links: the node's links.
            fetch_peers: asks a linked peer (PeerId) whom it knows; raises ComityError when it does not answer.
            bootstrap: multiaddrs with /p2p to begin with; they are never forgotten.
            organizations: the other members of the consortium, by name.
            needed: whether there is something to do with an organization: it is dialled as long as there is any place.
            settings: times and bounds.

        Raises:
            ConfigError: a bootstrap address is malformed or has no /p2p.
        """
        self._links, self._fetch_peers, self._organizations = links, fetch_peers, organizations
        self._needed = needed
        self._settings = settings or DiscoverySettings()
        self._bootstrap = [_bootstrap_address(text) for text in bootstrap]
        self._unproved: dict[str, _Unproved] = {}
        self._asked: set[str] = set()
        self._rounds = 0
        self._last_missing: frozenset[str] = frozenset()
        self._again = False

    def look_again(self) -> None:
        """Ask around now: the consortium has changed."""
        self._again = True
        self._links.changes.note()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for nodes until cancelled."""
        for address in self._bootstrap:
            self._links.add_peer(address.peer_id, [str(address)], keep=True)
        task_status.started()
        due = trio.current_time()
        while True:
            await self._forget_dead_ends()
            connected = self._connected()
            is_round = self._again or trio.current_time() >= due
            self._again = False
            await self._ask_all(connected if is_round else connected - self._asked)
            if is_round:
                due = trio.current_time() + self._next_pause_s()
            version = self._links.changes.version
            with trio.move_on_at(due):
                while not (self._again or self._connected() - self._asked):
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

    def learn(self, source: str, hints: Sequence[PeerHint], *, searched: bool = False) -> None:
        """Take hints from a peer; those that are malformed or too many are dropped.

        Args:
            source: who has named them.
            hints: what it says.
            searched: whether they are what this node searches for, or the way to it.
        """
        states = {state.peer_id: state for state in self._links.peers()}
        beside = _nodes_beside(source, states.values())
        places = self._settings.max_casual - len(states)
        for hint in hints[: self._settings.max_hints]:
            known = states.get(hint.peer_id)
            try:
                if known is None and places <= 0 and not (searched or self._needed(hint.organization)):
                    raise Busy("the places that are left are for who is needed or searched for")
                self._learn(source, hint, known, beside, is_kept=places <= 0)
                places -= known is None
            except ComityError as error:  # whatever is wrong with it: what others say never stops a node
                _log.debug("a hint of %s about %.64s was dropped: %s", source, hint.peer_id, error)

    def _learn(
        self, source: str, hint: PeerHint, known: LinkState | None, beside: Collection[str], *, is_kept: bool
    ) -> None:
        peer_id_to_bytes(hint.peer_id)
        if hint.peer_id == self._links.peer_id or (known and known.state == "connected"):
            return
        if hint.organization and hint.organization not in self._organizations():
            raise ConfigError(f"{hint.organization} is no other member")
        addresses = self._usable(hint)
        if known is None and hint.peer_id not in self._unproved:
            if not addresses:
                raise ConfigError("no address that can be dialled")
            # Whoever only says that somebody is needed does not take all the places that are kept for it.
            most = max(1, self._settings.max_unproved // 4) if is_kept else self._settings.max_unproved
            self._charge(source, hint.peer_id, addresses, beside, most)
        elif hint.peer_id in self._unproved and self._unproved[hint.peer_id].is_dead_end:
            raise Busy("nobody was there a moment ago")
        try:
            self._links.add_peer(hint.peer_id, [str(address) for address in addresses])
        except ComityError:
            if known is None:
                self._unproved.pop(hint.peer_id, None)
            raise

    def _charge(
        self, source: str, peer_id: str, addresses: Sequence[Address], beside: Collection[str], most: int
    ) -> None:
        """Put a peer on the account of the organization that has named it, or has named peers that are behind it."""
        by_relay = next((one.source for one in self._unproved.values() if peer_id in one.relays), "")
        if by_relay and by_relay != source:
            source, beside = by_relay, _nodes_beside(by_relay, self._links.peers())
        if sum(one.source in beside for one in self._unproved.values()) >= most:
            raise Busy(f"the organization of {source} has named too many peers that cannot be reached")
        relays = frozenset(address.relay for address in addresses) - {""}
        self._unproved[peer_id] = _Unproved(source, trio.current_time(), relays)

    def _usable(self, hint: PeerHint) -> list[Address]:
        most = self._settings.max_addresses
        parsed = [parse_address(text) for text in hint.addresses[: 2 * most]]
        return [address for address in parsed if may_dial(address, allow_private=self._settings.allow_private)][:most]

    async def _ask_all(self, peers: Collection[str]) -> None:
        async with trio.open_nursery() as nursery:
            for peer_id in peers:
                nursery.start_soon(self._ask, peer_id)
        self._asked = (self._asked | set(peers)) & self._connected()

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
        now, settings = trio.current_time(), self._settings
        for peer_id, one in list(self._unproved.items()):
            state = states.get(peer_id)
            if state is not None and state.organization:
                del self._unproved[peer_id]
            elif one.is_dead_end:
                if now - one.since > settings.dead_end_s:
                    del self._unproved[peer_id]
            elif state is None:
                del self._unproved[peer_id]
            elif now - one.since > settings.give_up_s:
                self._unproved[peer_id] = _Unproved(one.source, now, is_dead_end=True)
                await self._links.remove_peer(peer_id)

    def _connected(self) -> set[str]:
        return {state.peer_id for state in self._links.peers() if state.state == "connected"}

    def _next_pause_s(self) -> float:
        missing, settings = self.missing(), self._settings
        if missing != self._last_missing:
            self._last_missing, self._rounds = missing, 0
        self._rounds += 1
        doubled = 2.0 ** min(max(self._rounds - _EAGER_ROUNDS, 0), 16)
        return min(settings.searching_s * doubled, settings.settled_s) if missing else settings.settled_s


def _nodes_beside(source: str, states: Iterable[LinkState]) -> frozenset[str]:
    """The nodes of the organization that a peer is of: they name peers on one account."""
    known = list(states)
    own = {state.organization for state in known if state.peer_id == source} - {""}
    return frozenset({source, *(state.peer_id for state in known if state.organization in own)})


def _bootstrap_address(text: str) -> Address:
    address = parse_address(text)
    if not address.peer_id:
        raise ConfigError(f"{text} has no /p2p/<PeerId> at its end: without it nobody knows who must answer there")
    return address
