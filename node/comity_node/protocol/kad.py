"""Kademlia with no I/O: who is near a key, who provides it, and how the nearest are found step by step.

After P. Maymounkov and D. Mazieres, *Kademlia* (2002), as libp2p uses it
(https://github.com/libp2p/specs/tree/master/kad-dht): the distance between two keys is the exclusive or of their
SHA-256 digests, a node knows up to `K` peers in each range of distances, and asks `ALPHA` at a time for nearer ones.

Of libp2p's table only what finding providers takes is here: no values are stored for anybody.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from comity.digest import sha256
from comity.errors import Busy
from comity.signing import peer_id_to_bytes

#: Peers of one range of distances, and peers that a search ends with.
K: Final = 20
#: Questions of one search that are under way at a time.
ALPHA: Final = 3
_BITS: Final = 256
_SHA2_256: Final = b"\x12\x20"
_SKILL: Final = b"/comity/skill/"


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer and where it can be dialled.

    Attributes:
        peer_id: who it is.
        addresses: multiaddrs without /p2p.
        named_by: the PeerId of whoever has said so, whose account it goes on; "" if it was nobody in particular.
    """

    peer_id: str
    addresses: tuple[str, ...] = ()
    named_by: str = field(default="", compare=False)


def skill_key(skill: str) -> bytes:
    """Return the multihash under which the providers of a skill are recorded."""
    return _SHA2_256 + sha256(_SKILL + skill.encode())


def position(key: bytes) -> int:
    """Return where a key (the bytes of a PeerId, or a multihash) lies in the space of distances."""
    return int.from_bytes(sha256(key), "big")


class RoutingTable:
    """Peers that can be asked, by their distance from us."""

    def __init__(self, me: str, *, bucket: int = K) -> None:
        """Begin with nobody.

        Args:
            me: our PeerId.
            bucket: peers of one range of distances; so the table holds at most 256 times as many.
        """
        self._me = position(peer_id_to_bytes(me))
        self._bucket = bucket
        self._buckets: dict[int, dict[str, int]] = {}

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def add(self, peer_id: str) -> bool:
        """Take a peer in; False if its range is full: who has been there longest stays."""
        at = position(peer_id_to_bytes(peer_id))
        if at == self._me:
            return False
        bucket = self._buckets.setdefault(self._range(at), {})
        if peer_id not in bucket and len(bucket) >= self._bucket:
            return False
        bucket[peer_id] = at
        return True

    def remove(self, peer_id: str) -> None:
        """Forget a peer; no effect on one that is not there."""
        index = self._range(position(peer_id_to_bytes(peer_id)))
        if bucket := self._buckets.get(index):
            bucket.pop(peer_id, None)
            if not bucket:
                del self._buckets[index]

    def closest(self, key: bytes, count: int = K) -> list[str]:
        """Return up to `count` peers, the nearest to `key` first."""
        target = position(key)
        known = [(at ^ target, peer_id) for bucket in self._buckets.values() for peer_id, at in bucket.items()]
        return [peer_id for _, peer_id in sorted(known)[:count]]

    def _range(self, at: int) -> int:
        return (at ^ self._me).bit_length()


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """What others may have a node remember.

    Attributes:
        keys: in all.
        per_key: providers of one key.
        per_provider: keys of one provider.
        lives_ms: how long a record is kept; its provider says it again before.
    """

    keys: int = 4096
    per_key: int = 64
    per_provider: int = 128
    lives_ms: int = 3_600_000


@dataclass(frozen=True, slots=True)
class _Provider:
    contact: Contact
    until_ms: int


class Providers:
    """Who says that it provides what. A record is a hint: who is found has to attest itself."""

    def __init__(self, limits: ProviderLimits | None = None) -> None:
        """Begin with nothing."""
        self._limits = limits or ProviderLimits()
        self._keys: dict[bytes, dict[str, _Provider]] = {}
        #: Every record, the one that was renewed last at the end.
        self._order: OrderedDict[tuple[bytes, str], None] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes, provider: Contact, now_ms: int) -> None:
        """Record, or renew, that a peer provides a key.

        Args:
            key: a multihash.
            provider: who says so, of itself.
            now_ms: milliseconds since the Unix epoch.

        Raises:
            Busy: it provides too many keys, too many provide this one, or too many keys are known.
        """
        self._expire(now_ms)
        limits = self._limits
        known = self._keys.get(key, {})
        if provider.peer_id not in known:
            crowded = len(known) >= limits.per_key or (not known and len(self._keys) >= limits.keys)
            if crowded or self._counts[provider.peer_id] >= limits.per_provider:
                raise Busy("too many provider records", retry_after_ms=60_000)
            self._counts[provider.peer_id] += 1
        self._keys.setdefault(key, {})[provider.peer_id] = _Provider(provider, now_ms + limits.lives_ms)
        self._order[key, provider.peer_id] = None
        self._order.move_to_end((key, provider.peer_id))

    def of(self, key: bytes, now_ms: int) -> list[Contact]:
        """Return who provides a key."""
        return [each.contact for each in self._keys.get(key, {}).values() if self._holds(each, now_ms)]

    def _holds(self, record: _Provider, now_ms: int) -> bool:
        """Whether a record is not over; one that would hold for longer than any was made before the clock went back."""
        return now_ms < record.until_ms <= now_ms + self._limits.lives_ms

    def _expire(self, now_ms: int) -> None:
        """Forget what is over: all records live equally long, so those come first that were renewed first."""
        while self._order:
            key, peer_id = next(iter(self._order))
            records = self._keys[key]
            if self._holds(records[peer_id], now_ms):
                return
            del self._order[key, peer_id], records[peer_id]
            self._counts[peer_id] -= 1
            if not self._counts[peer_id]:
                del self._counts[peer_id]
            if not records:
                del self._keys[key]


class Search:
    """One search for the peers nearest to a key: says whom to ask next until the nearest have answered.

    Those that it begins with, whom we know ourselves, are all asked before anybody that others have named. Names are
    cheap, and can be made to lie as near to a key as one likes: a liar's cost time, and keep no answer of ours away.
    """

    def __init__(self, key: bytes, start: Iterable[str], *, most: int = 3 * K, me: str = "") -> None:
        """Begin with the nearest that we know.

        Args:
            key: what is looked for.
            start: PeerIds, at least one of which must answer.
            most: peers that are asked in all: others' answers cannot lead it on for ever.
            me: our PeerId, who is never asked.
        """
        self._target = position(key)
        self._most = most
        self._me = me
        self._distance: dict[str, int] = {}
        self._known: dict[str, Contact] = {}
        self._asked: set[str] = set()
        self._answered: set[str] = set()
        self._failed: set[str] = set()
        self._learn(Contact(peer_id) for peer_id in start)
        self._own = frozenset(self._distance)

    @property
    def done(self) -> bool:
        """Whether nobody is left to ask, and no answer is waited for."""
        return not self._under_way and not self._candidates()

    def next(self) -> list[Contact]:
        """Return whom to ask now; each is to be reported with `answered` or `failed`."""
        room = min(ALPHA - len(self._under_way), self._most - len(self._asked))
        chosen = self._candidates()[: max(room, 0)]
        self._asked.update(chosen)
        return [self._known[peer_id] for peer_id in chosen]

    def answered(self, peer_id: str, closer: Sequence[Contact]) -> None:
        """A peer has named peers that are nearer."""
        self._answered.add(peer_id)
        self._learn(closer[:K])

    def failed(self, peer_id: str) -> None:
        """A peer has not answered."""
        self._failed.add(peer_id)

    def nearest(self) -> list[Contact]:
        """Return the nearest `K` peers that have answered, the nearest first."""
        found = sorted(self._answered, key=self._distance.__getitem__)[:K]
        return [self._known[peer_id] for peer_id in found]

    @property
    def _under_way(self) -> set[str]:
        return self._asked - self._answered - self._failed

    def _candidates(self) -> list[str]:
        """Who is not asked yet: of those that we began with, or else among the nearest K that have not failed."""
        if len(self._asked) >= self._most:
            return []
        if own := self._own - self._asked:
            return sorted(own, key=self._distance.__getitem__)
        nearest = sorted((peer for peer in self._distance if peer not in self._failed), key=self._distance.__getitem__)
        return [peer for peer in nearest[:K] if peer not in self._asked]

    def _learn(self, contacts: Iterable[Contact]) -> None:
        for contact in contacts:
            if contact.peer_id == self._me:
                continue
            self._distance.setdefault(contact.peer_id, position(peer_id_to_bytes(contact.peer_id)) ^ self._target)
            known = self._known.get(contact.peer_id)
            if known is None or not known.addresses:
                self._known[contact.peer_id] = contact
        if len(self._distance) > self._most * K:  # the nearest are enough
            nearest = sorted(self._distance, key=self._distance.__getitem__)[: self._most]
            keep = self._own | self._asked | set(nearest)
            self._distance = {peer: at for peer, at in self._distance.items() if peer in keep}
            self._known = {peer: contact for peer, contact in self._known.items() if peer in keep}
