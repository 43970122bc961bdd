"""A meeting point without I/O: who has registered under which namespace, for how long.

https://github.com/libp2p/specs/tree/master/rendezvous. Registrations are bounded for each peer, for each namespace
and in all; a full table refuses.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from comity.errors import Busy


@dataclass(frozen=True, slots=True)
class RendezvousLimits:
    """What registrations may cost.

    Attributes:
        lives_s: how long one is kept at most; the specification's three days would keep the dead.
        per_peer: namespaces that one peer registers under.
        registrations: in all.
        answer: registrations in one answer.
    """

    lives_s: int = 7200
    per_peer: int = 16
    registrations: int = 2048
    answer: int = 100


@dataclass(frozen=True, slots=True)
class Registration:
    """One peer under one namespace.

    Attributes:
        peer_id: who.
        record: its signed peer record, verified, as it came.
        until_ms: milliseconds since the Unix epoch.
        number: grows with each registration, so that a later question can ask for what is new.
    """

    peer_id: str
    record: bytes
    until_ms: int
    number: int


class Registrations:
    """The table of a meeting point."""

    def __init__(self, limits: RendezvousLimits | None = None) -> None:
        """Begin with nobody."""
        self._limits = limits or RendezvousLimits()
        self._spaces: dict[str, dict[str, Registration]] = {}
        self._counts: Counter[str] = Counter()
        self._number = 0

    def __len__(self) -> int:
        return sum(len(space) for space in self._spaces.values())

    def register(self, namespace: str, peer_id: str, record: bytes, ttl_s: int, now_ms: int) -> int:
        """Register a peer, or renew it.

        Returns:
            For how many seconds it is kept.

        Raises:
            Busy: the peer has too many, or the table is full.
        """
        self._expire(now_ms)
        space = self._spaces.get(namespace, {})
        if peer_id not in space:
            if self._counts[peer_id] >= self._limits.per_peer or len(self) >= self._limits.registrations:
                raise Busy("too many registrations", retry_after_ms=60_000)
            self._counts[peer_id] += 1
        lives_s = min(ttl_s or self._limits.lives_s, self._limits.lives_s)
        self._number += 1
        entry = Registration(peer_id, record, now_ms + lives_s * 1000, self._number)
        space = self._spaces.setdefault(namespace, {})
        space.pop(peer_id, None)  # the order within a namespace is that of the numbers
        space[peer_id] = entry
        return lives_s

    def unregister(self, namespace: str, peer_id: str) -> None:
        """Forget a peer under a namespace; no effect if it is not there."""
        space = self._spaces.get(namespace, {})
        if space.pop(peer_id, None) is not None:
            self._forgotten(namespace, peer_id)

    def discover(self, namespace: str, after: int, limit: int, now_ms: int) -> tuple[list[Registration], int]:
        """Return who has registered under a namespace.

        Args:
            namespace: which.
            after: the number that an earlier answer ended with; 0 for everybody.
            limit: how many at most; 0 for as many as an answer takes.
            now_ms: milliseconds since the Unix epoch.

        Returns:
            The oldest of them first, and the number to go on with.
        """
        most = min(limit or self._limits.answer, self._limits.answer)
        entries = self._spaces.get(namespace, {}).values()
        fresh = [entry for entry in entries if entry.number > after and self._holds(entry, now_ms)][:most]
        return fresh, fresh[-1].number if fresh else after

    def _holds(self, entry: Registration, now_ms: int) -> bool:
        """Whether an entry is not over; one that would hold for longer than any was made before the clock went back."""
        return now_ms < entry.until_ms <= now_ms + self._limits.lives_s * 1000

    def _expire(self, now_ms: int) -> None:
        for namespace in list(self._spaces):
            for entry in list(self._spaces[namespace].values()):
                if not self._holds(entry, now_ms):
                    del self._spaces[namespace][entry.peer_id]
                    self._forgotten(namespace, entry.peer_id)

    def _forgotten(self, namespace: str, peer_id: str) -> None:
        self._counts[peer_id] -= 1
        if not self._counts[peer_id]:
            del self._counts[peer_id]
        if not self._spaces[namespace]:
            del self._spaces[namespace]
